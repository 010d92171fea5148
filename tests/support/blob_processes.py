"""The container of an embedded Azure that runs as a process, and its Service Bus, seen as the worker sees them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from azure.servicebus import TransportType
from azure.servicebus.aio import ServiceBusClient

from embedded_azure.state import StateDirectory
from tests.support.local_azure import SignedCredential
from tests.support.processes import Azure
from worker.azure.blob.container import BlobContainer


def credential(cloud: Azure) -> SignedCredential:
    key = StateDirectory(cloud.state).entra_private_key.read_bytes()
    return SignedCredential(key, cloud.config.tenant_id, cloud.config.identity("worker"))


def bus_of(cloud: Azure) -> ServiceBusClient:
    """Its Service Bus, under the worker's identity."""
    environment = cloud.environment()
    return ServiceBusClient(
        cloud.config.namespace,
        credential(cloud),
        custom_endpoint_address=f"sb://{environment['AOAI_WORKER_SERVICEBUS_ENDPOINT']}",
        connection_verify=environment["AOAI_WORKER_CA_FILE"],
        transport_type=TransportType.Amqp,
    )


@asynccontextmanager
async def container_of(cloud: Azure) -> AsyncIterator[BlobContainer]:
    environment = cloud.environment()
    url, ca_file = environment["AOAI_WORKER_BLOB_CONTAINER"], Path(environment["AOAI_WORKER_CA_FILE"])
    async with BlobContainer(url, credential(cloud), ca_file=ca_file) as container:
        yield container


async def result_names(cloud: Azure, batch: str) -> list[str]:
    async with container_of(cloud) as container:
        names = [name async for page in container.names(f"results/{batch}/") for name in page]
    return [name for name in names if not name.endswith("manifest.json")]
