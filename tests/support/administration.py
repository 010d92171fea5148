"""The administration of an embedded Azure that runs as a process: what its queues hold."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from urllib.parse import urlsplit

from azure.servicebus.aio.management import ServiceBusAdministrationClient

from embedded_azure.config import Config, Identity, RoleAssignment
from tests.support.local_azure import SignedCredential
from tests.support.processes import Azure

OWNER = Identity(
    name="owner",
    client_id="6b0f6c1e-0000-4000-8000-000000000009",
    object_id="0d0d0d0d-0000-4000-8000-000000000009",
    subject="system:serviceaccount:default:owner",
)


def with_owner(config: Config) -> Config:
    """The same with somebody who may manage its queues."""
    assignment = RoleAssignment(object_id=OWNER.object_id, role="Azure Service Bus Data Owner", scope="servicebus")
    return replace(
        config,
        identities=(*config.identities, OWNER),
        role_assignments=(*config.role_assignments, assignment),
    )


@asynccontextmanager
async def administration(cloud: Azure) -> AsyncIterator[ServiceBusAdministrationClient]:
    credential = SignedCredential(
        private_key=(cloud.state / "entra.key.pem").read_bytes(), tenant_id=cloud.config.tenant_id, identity=OWNER
    )
    trust = cloud.environment()["AOAI_WORKER_CA_FILE"]
    host = urlsplit(cloud.servicebus).netloc
    async with ServiceBusAdministrationClient(host, credential, connection_verify=trust) as client:
        yield client


async def waiting_in(cloud: Azure, queue: str) -> int:
    """Messages of the queue, locked ones too."""
    async with administration(cloud) as client:
        return (await client.get_queue_runtime_properties(queue)).active_message_count or 0
