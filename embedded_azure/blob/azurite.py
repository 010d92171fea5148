"""The embedded Blob storage: Azurite as a process of the embedded Azure, over TLS and with Entra's tokens.

    python -m embedded_azure.blob.azurite --state DIR [--port 0]

Azurite looks at a token's issuer, audience and times, and not at its signature nor at roles. Its account has a
random key that nobody is told, so that tokens are the only way in. All it holds is in memory.
"""

import argparse
import asyncio
import base64
import os
import re
import secrets
import shutil
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from embedded_azure.entra.tokens import TokenIssuer
from embedded_azure.process import announce_until_stopped, run_to_the_end
from embedded_azure.state import StateDirectory
from embedded_azure.world import World

ACCOUNT = "local"
CONTAINER = "batches"
AUDIENCE = "https://storage.azure.com"
_FOLDER = Path(__file__).parent / "node"
_API_VERSION = "2023-11-03"
_STARTED = re.compile(rb"listens on https://[\d.]+:(\d+)")
_START_PATIENCE = 20.0
_STOP_GRACE = 3.0


class AzuriteMissing(Exception):
    """Azurite, or the Node.js that runs it, is not installed. The message says what to do."""


class AzuriteEnded(Exception):
    """Azurite ended by itself."""


def find_azurite() -> str:
    """The Node.js that runs it. Raises AzuriteMissing."""
    node = shutil.which("node")
    if node is None:
        raise AzuriteMissing("Blob storage needs Node.js 20 or newer. Next: install it, then run scripts/azurite")
    if not (_FOLDER / "node_modules" / "azurite").is_dir():
        raise AzuriteMissing(f"Azurite is not installed in {_FOLDER}. Next: run scripts/azurite")
    return node


def container_url(port: int) -> str:
    """Of the container that exists at start."""
    return f"https://localhost:{port}/{ACCOUNT}/{CONTAINER}"


@asynccontextmanager
async def azurite(
    node: str, state: StateDirectory, port: int
) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """The running process, and its port on loopback. Raises AzuriteEnded with what it said, or TimeoutError."""
    child = await asyncio.create_subprocess_exec(
        node,
        str(_FOLDER / "start.js"),
        *("--blobPort", str(port), "--inMemoryPersistence", "--silent", "--disableTelemetry"),
        *("--disableProductStyleUrl", "--oauth", "basic"),
        *("--cert", str(state.server_certificate), "--key", str(state.server_key)),
        cwd=state.root,
        env={**os.environ, "AZURITE_ACCOUNTS": f"{ACCOUNT}:{base64.b64encode(secrets.token_bytes(64)).decode()}"},
        # never written to: its end tells Azurite to stop, and comes even when this process dies by kill -9
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(_START_PATIENCE):
            started = await _read_port(child)
        yield child, started
    finally:
        await _end(child)


async def _read_port(child: asyncio.subprocess.Process) -> int:
    assert child.stdout is not None
    said = b""
    async for line in child.stdout:
        said += line
        if found := _STARTED.search(line):
            return int(found[1])
    raise AzuriteEnded(f"Azurite did not start: {said.decode(errors='replace').strip()}")


async def _end(child: asyncio.subprocess.Process) -> None:
    assert child.stdin is not None
    child.stdin.close()
    try:
        async with asyncio.timeout(_STOP_GRACE):
            await child.communicate()
    except TimeoutError:
        child.kill()
        await child.wait()


async def create_container(url: str, token: str, ca_file: Path) -> None:
    """One that exists stays as it is. Raises aiohttp.ClientError."""
    headers = {"Authorization": f"Bearer {token}", "x-ms-version": _API_VERSION, "Content-Length": "0"}
    context = ssl.create_default_context(cafile=ca_file)
    async with (
        aiohttp.ClientSession() as session,
        session.put(f"{url}?restype=container", headers=headers, ssl=context) as answer,
    ):
        if answer.status != 409:
            answer.raise_for_status()


async def _serve(node: str, state: StateDirectory, port: int) -> None:
    async with azurite(node, state, port) as (child, started):
        await create_container(container_url(started), _own_token(state), state.ca)
        async with asyncio.TaskGroup() as group:
            watch = group.create_task(_watch(child))
            await announce_until_stopped("blob", port=started)
            watch.cancel()


async def _watch(child: asyncio.subprocess.Process) -> None:
    """Read on, lest a full pipe hold it up. Ends only by raising AzuriteEnded."""
    assert child.stdout is not None
    async for _ in child.stdout:
        pass
    raise AzuriteEnded(f"Azurite ended with exit code {await child.wait()}")


def _own_token(state: StateDirectory) -> str:
    """For making the container, as whoever deploys Azure would."""
    world = World.load(state.world)
    issuer = TokenIssuer(state.entra_private_key.read_bytes(), world.tenant_id, 300.0)
    nobody = "00000000-0000-4000-8000-000000000000"
    return issuer.issue(audience=AUDIENCE, client_id=nobody, object_id=nobody)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m embedded_azure.blob.azurite", description="Embedded Blob storage."
    )
    parser.add_argument("--state", type=Path, required=True, help="state directory, made by the supervisor")
    parser.add_argument("--port", type=int, default=0, help="port on loopback; 0 takes a free one")
    arguments = parser.parse_args()
    try:
        node = find_azurite()
    except AzuriteMissing as error:
        parser.exit(1, f"{error}\n")
    run_to_the_end(lambda: _serve(node, StateDirectory(arguments.state), arguments.port))


if __name__ == "__main__":
    main()
