"""What one result costs to write to Blob storage: our sink beside azure-storage-blob's own call.

    python -m benchmarks.blob_writes

CPU of this process alone, paired in five rounds of 3,000 writes of 2 KB, 32 at a time. The service is a process of
its own that takes every blob, over TLS.
"""

import asyncio
import json
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import aiohttp
import uvloop
from azure.core.credentials import AccessToken
from azure.core.pipeline.transport import AioHttpTransport
from azure.storage.blob.aio import BlobServiceClient

from embedded_azure.certificates import make_server_identity
from worker.azure.blob.container import BlobContainer
from worker.azure.blob.results import BlobResults
from worker.azure.network import trust
from worker.jobs.job import Job, JobLine, Operation
from worker.testing import result_of

ROUNDS, WRITES, AT_ONCE = 5, 3_000, 32
CREATED = b'HTTP/1.1 201 Created\r\nContent-Length: 0\r\nETag: "0x8DC"\r\nx-ms-version: 2023-11-03\r\n\r\n'

Write = Callable[[int], Awaitable[object]]


class Taker(asyncio.Protocol):
    """Answers 201 to each request once it is whole."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's for TLS is none by its class
        self._buffer = b""

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n") + 4) > 3:
            head = self._buffer[:end].lower()
            whole = end + int(head.split(b"content-length:")[1].split(b"\r\n")[0])
            if len(self._buffer) < whole:
                return
            self._buffer = self._buffer[whole:]
            self._transport.write(CREATED)


async def serve(folder: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    server = await asyncio.get_running_loop().create_server(Taker, "127.0.0.1", 0, ssl=context)
    print(json.dumps(server.sockets[0].getsockname()[1]), flush=True)
    await server.serve_forever()


class Credential:
    async def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        return AccessToken("t" * 1_200, int(time.time()) + 36_000)

    async def close(self) -> None: ...

    async def __aenter__(self) -> "Credential":
        return self

    async def __aexit__(self, *error: object) -> None: ...


def make_job(number: int) -> Job:
    line = JobLine(custom_id=str(number), operation=Operation.CHAT_COMPLETIONS, model="m", body={})
    return Job(id=f"b/{number}", batch_id="b", queue="jobs", line=line, enqueued_at=0.0, deadline=1.0)


def make_line(number: int) -> bytes:
    response = {"status_code": 200, "request_id": "r", "body": {"said": "x" * 2_000}}
    worker = {"job_id": f"b/{number}", "batch_id": "b"}
    return json.dumps({"custom_id": str(number), "response": response, "error": None, "worker": worker}).encode()


async def cost(write: Write) -> float:
    """Milliseconds of CPU for each write, after a warm-up."""
    await write_all(write, 300)
    begun = time.process_time()
    await write_all(write, WRITES)
    return 1_000 * (time.process_time() - begun) / WRITES


async def write_all(write: Write, count: int) -> None:
    numbers = iter(range(count))

    async def take() -> None:
        for number in numbers:
            await write(number)

    await asyncio.gather(*[take() for _ in range(AT_ONCE)])


async def cost_of_the_sdk(account: str, ca_file: Path) -> float:
    connector = aiohttp.TCPConnector(ssl=trust(ca_file), limit=AT_ONCE)
    async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:
        transport = AioHttpTransport(session=session, session_owner=False)
        async with BlobServiceClient(account, Credential(), transport=transport, retry_total=0) as service:

            async def write(number: int) -> None:
                async with service.get_blob_client("c", f"results/b/{number:032x}.ok.json") as blob:
                    await blob.upload_blob(make_line(number), overwrite=False)

            return await cost(write)


async def cost_of_the_sink(account: str, ca_file: Path) -> float:
    async with BlobContainer(f"{account}/c", Credential(), ca_file=ca_file, connections=AT_ONCE) as container:
        results = BlobResults(container)

        async def write(number: int) -> None:
            await results.write(result_of(make_job(number), make_line(number)))

        return await cost(write)


async def compare(port: int, ca_file: Path) -> None:
    account = f"https://localhost:{port}/account"
    print("CPU of one write in ms   BlobClient.upload_blob   BlobResults.write")
    for number in range(1, ROUNDS + 1):
        sdk, sink = await cost_of_the_sdk(account, ca_file), await cost_of_the_sink(account, ca_file)
        print(f"round {number}                  {sdk:.3f}                    {sink:.3f}")


def main() -> None:
    if len(sys.argv) > 1:
        uvloop.run(serve(Path(sys.argv[1])))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        identity = make_server_identity()
        (folder / "ca.pem").write_bytes(identity.ca_pem)
        (folder / "server.pem").write_bytes(identity.certificate_pem)
        (folder / "server.key").write_bytes(identity.key_pem)
        service = [sys.executable, "-m", "benchmarks.blob_writes", name]
        with subprocess.Popen(service, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            try:
                uvloop.run(compare(int(child.stdout.readline()), folder / "ca.pem"))
            finally:
                child.terminate()


if __name__ == "__main__":
    main()
