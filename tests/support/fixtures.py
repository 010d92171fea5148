"""The embedded Service Bus inside the test's own event loop, and Blob storage in a process of its own."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from azure.servicebus._pyamqp.aio._client_async import AMQPClientAsync

from embedded_azure.entra.tokens import AccessTokens, issuer_of
from embedded_azure.servicebus.server import serve
from tests.support.blob_service import BlobService, azurite_blobs, embedded_blobs
from tests.support.local_azure import Authority, Bus, bus_config, make_authority
from worker.azure.blob.container import BlobContainer


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
async def bus(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bus]:
    # Closing a receiver waits out a second's sleep of its keep-alive task, which no test here needs.
    monkeypatch.setattr(AMQPClientAsync, "_keep_alive_async", lambda client: asyncio.sleep(0))
    config = bus_config()
    tokens = AccessTokens(authority.entra_public, issuer_of(config.tenant_id))
    async with serve(config, tokens, tls=authority.tls()) as served:
        yield Bus(
            tls_port=served.tls_port,
            plain_port=served.plain_port,
            config=config,
            authority=authority,
            service=served.bus,
        )


BOTH = pytest.mark.parametrize("blob_storage", ["embedded", "azurite"], indirect=True)
"""Run the tests against the embedded Blob storage and against Azurite, where there is Node.js."""


@pytest.fixture(scope="session")
def azurite_storage(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BlobService]:
    with azurite_blobs(tmp_path_factory.mktemp("azurite"), authority) as service:
        yield service


@pytest.fixture(scope="session")
def blob_storage(
    request: pytest.FixtureRequest, authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BlobService]:
    """The embedded one, unless the test asks for `BOTH`."""
    if getattr(request, "param", "embedded") == "azurite":
        yield request.getfixturevalue("azurite_storage")
        return
    with embedded_blobs(tmp_path_factory.mktemp("blobs"), authority) as service:
        yield service


@pytest.fixture
async def container(blob_storage: BlobService) -> AsyncIterator[BlobContainer]:
    """An empty container, under an identity that may read and write it."""
    async with blob_storage.open(await blob_storage.new_container()) as opened:
        yield opened


@pytest.fixture
async def azurite_container(azurite_storage: BlobService) -> AsyncIterator[BlobContainer]:
    """The same of Azurite."""
    async with azurite_storage.open(await azurite_storage.new_container()) as opened:
        yield opened
