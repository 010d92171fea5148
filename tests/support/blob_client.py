"""The producer's side with Blob storage, over the embedded storage and queues, and what workers write there."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from azure.servicebus import ServiceBusReceivedMessage

from tests.support.blob_jobs import make_job, make_result
from tests.support.blob_service import BlobService
from tests.support.local_azure import Bus
from worker.azure.blob.container import BlobContainer
from worker.azure.blob.results import BlobResults
from worker.client import JobClient
from worker.settings import ConnectionSettings

RESULTS = "chat"


@asynccontextmanager
async def client_of(
    bus: Bus, blobs: BlobService, container: BlobContainer | None, folder: Path, **changes: Any
) -> AsyncIterator[JobClient]:
    authorities = folder / "authorities.pem"
    authorities.write_bytes(bus.authority.ca_file.read_bytes() + blobs.state.ca.read_bytes())
    options = {
        "servicebus_namespace": bus.config.namespace,
        "servicebus_endpoint": f"localhost:{bus.tls_port}",
        "ca_file": authorities,
        "sink": "queue",
        "results_queue": RESULTS,
        "blob_container": container.url if container else None,
        **changes,
    }
    async with JobClient(ConnectionSettings(**options), bus.credential()) as opened:
        yield opened


@pytest.fixture
async def client(
    bus: Bus, blob_storage: BlobService, container: BlobContainer, tmp_path: Path
) -> AsyncIterator[JobClient]:
    """With results in Blob storage."""
    async with client_of(bus, blob_storage, container, tmp_path, sink="blob") as opened:
        yield opened


def write_batch(path: Path, contents: Mapping[str, str]) -> Path:
    lines = [
        json.dumps(
            {
                "custom_id": name,
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": {"model": "gpt-5.4-mini", "messages": [{"role": "user", "content": content}]},
            }
        )
        for name, content in contents.items()
    ]
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def small_batch(path: Path, names: Iterable[str]) -> Path:
    return write_batch(path, dict.fromkeys(names, "Is it?"))


async def answer(container: BlobContainer, *names: str, failed: bool = False, replay: int = 0) -> None:
    """What a worker writes for these jobs of batch b1."""
    results = BlobResults(container)
    for name in names:
        job = make_job(name, replay=replay)
        assert await results.write(make_result(job, failed=failed))


async def receive_all(bus: Bus, queue: str, **options: Any) -> list[ServiceBusReceivedMessage]:
    found = []
    async with bus.client() as reader, reader.get_queue_receiver(queue, **options) as receiver:
        while messages := await receiver.receive_messages(500, max_wait_time=0.3):
            found += messages
            await asyncio.gather(*map(receiver.complete_message, messages))
    return found


def read_ids(path: Path) -> list[str]:
    return sorted(json.loads(line)["custom_id"] for line in path.read_bytes().splitlines())
