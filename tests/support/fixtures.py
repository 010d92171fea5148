"""The embedded Service Bus inside the test's own event loop, and Azurite in a process of its own."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from azure.servicebus._pyamqp.aio._client_async import AMQPClientAsync

from embedded_azure.entra.tokens import AccessTokens, issuer_of
from embedded_azure.servicebus.server import serve
from tests.support.azurite import BlobService, blob_service
from tests.support.local_azure import Authority, Bus, bus_world, make_authority
from worker.azure.blob.container import BlobContainer


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
async def bus(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bus]:
    # Closing a receiver waits out a second's sleep of its keep-alive task, which no test here needs.
    monkeypatch.setattr(AMQPClientAsync, "_keep_alive_async", lambda client: asyncio.sleep(0))
    world = bus_world()
    tokens = AccessTokens(authority.entra_public, issuer_of(world.tenant_id))
    async with serve(world, tokens, tls=authority.tls()) as served:
        yield Bus(
            tls_port=served.tls_port,
            plain_port=served.plain_port,
            world=world,
            authority=authority,
            service=served.bus,
        )


@pytest.fixture(scope="session")
def blob_storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BlobService]:
    with blob_service(tmp_path_factory.mktemp("blobs")) as service:
        yield service


@pytest.fixture
async def container(blob_storage: BlobService) -> AsyncIterator[BlobContainer]:
    """An empty container of Azurite, under an identity that may read and write it."""
    async with blob_storage.open(await blob_storage.new_container()) as opened:
        yield opened
