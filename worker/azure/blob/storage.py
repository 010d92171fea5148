"""The containers that the settings name, opened: one for results, one for claims, often the same."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from azure.core.credentials_async import AsyncTokenCredential

from worker.azure.blob.claims import BlobClaims
from worker.azure.blob.container import BlobContainer
from worker.settings import ConnectionSettings

CONNECTIONS = 32
"""Requests at once to a container; at 20 ms a write that is 1,600 results a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """`results` is None with the queue sink, `claims` where no container is named."""

    results: BlobContainer | None
    claims: BlobClaims | None


@asynccontextmanager
async def open_storage(
    settings: ConnectionSettings, credential: AsyncTokenCredential, *, connections: int = CONNECTIONS
) -> AsyncIterator[Storage]:
    """Nothing is asked of the service yet."""
    claims_url = settings.claims_container or settings.blob_container
    async with AsyncExitStack() as stack:
        containers = {
            url: await stack.enter_async_context(
                BlobContainer(url, credential, ca_file=settings.ca_file, connections=connections)
            )
            for url in {settings.blob_container, claims_url}
            if url
        }
        claims = containers.get(claims_url or "")
        yield Storage(
            results=containers.get(settings.blob_container or "") if settings.sink == "blob" else None,
            claims=BlobClaims(claims, largest=settings.largest_claim) if claims else None,
        )
