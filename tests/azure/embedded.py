"""The embedded Azure as a target: what its tests hold against recordings, and how the kit itself is tested.

A verdict against it says what the embedded Azure does. It confirms nothing of Azure.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from aiohttp import ClientSession, TCPConnector
from azure.identity.aio import WorkloadIdentityCredential

from embedded_azure.config import Config, Deployment, QueueSpec, Role, RoleAssignment, default_config
from embedded_azure.state import StateDirectory
from tests.azure.probing import Provisioned, Target
from tests.azure.redaction import Redactor
from tests.support.processes import Azure, azure
from worker.azure.network import trust

_ACCOUNT, _CLOSED, _PRIVATE = "default", "closed", "private"
_SMALL, _REASONING, _PROVISIONED = "probe-small", "probe-reasoning", "probe-provisioned"
_QUEUE, _CLOSED_QUEUE, _JOBS, _RESULTS = "probes", "closed", "jobs", "results"
SERVICE_BUS_ROLES: tuple[Role, ...] = ("Azure Service Bus Data Receiver", "Azure Service Bus Data Sender")
_CONTAINER, _CLOSED_CONTAINER = "probes", "closed"


def config_for_probes() -> Config:
    """The demo's identities; the worker has every role it needs, but none on what is called closed."""
    config = default_config()
    first = replace(config.deployments[0], latency=0.01, requests_per_minute=10_000, tokens_per_minute=1_000_000)
    worker = config.identity("worker").object_id
    roles = (
        RoleAssignment(object_id=worker, role="Cognitive Services OpenAI User", scope=f"openai/{_ACCOUNT}"),
        RoleAssignment(object_id=worker, role="Cognitive Services OpenAI User", scope=f"openai/{_PRIVATE}"),
        *[
            RoleAssignment(object_id=worker, role=role, scope=f"servicebus/{queue}")
            for queue in (_QUEUE, _JOBS, _RESULTS)
            for role in SERVICE_BUS_ROLES
        ],
        RoleAssignment(object_id=worker, role="Storage Blob Data Contributor", scope=f"blob/{_CONTAINER}"),
    )
    return replace(
        config,
        role_assignments=roles,
        queues=(
            *[QueueSpec(name=queue) for queue in (_QUEUE, _CLOSED_QUEUE, _JOBS)],
            QueueSpec(name=_RESULTS, requires_session=True),
        ),
        containers=(_CONTAINER, _CLOSED_CONTAINER),
        deployments=(
            first,
            replace(first, name=_SMALL, requests_per_minute=1),
            replace(first, name=_REASONING, model="gpt-5"),
            replace(first, name=_PROVISIONED, provisioned_units=1, tokens_per_unit=1, spillover_to=first.name),
            Deployment(name=first.name, model=first.model, account=_CLOSED),
            Deployment(name=first.name, model=first.model, account=_PRIVATE),
        ),
        faults={f"openai/{_PRIVATE}": [{"kind": "network", "how": "private"}]},
    )


@asynccontextmanager
async def embedded_target(folder: Path) -> AsyncIterator[tuple[Target, Redactor]]:
    """Started in `folder` and stopped at the end."""
    config = config_for_probes()
    async with azure(folder, config) as running:
        environment = running.environment("worker")
        ca_file = StateDirectory(running.state).ca
        credential = WorkloadIdentityCredential(
            tenant_id=config.tenant_id,
            client_id=environment["AZURE_CLIENT_ID"],
            token_file_path=environment["AZURE_FEDERATED_TOKEN_FILE"],
            authority=_authority(environment),
            disable_instance_discovery=True,
            connection_verify=str(ca_file),
        )
        async with credential, ClientSession(connector=TCPConnector(ssl=trust(ca_file))) as session:
            target = _target(running, environment, ca_file, session, credential)
            yield target, Redactor(_secrets(config, target))


def _target(
    running: Azure,
    environment: dict[str, str],
    ca_file: Path,
    session: ClientSession,
    credential: WorkloadIdentityCredential,
) -> Target:
    config, openai = running.config, environment["AZURE_OPENAI_ENDPOINT"]
    containers = environment["AOAI_WORKER_BLOB_CONTAINER"].rpartition("/")[0]
    identity = config.identity("worker")
    return Target(
        session=session,
        credential=credential,
        openai=openai,
        closed_openai=f"{openai}/accounts/{_CLOSED}",
        private_openai=f"{openai}/accounts/{_PRIVATE}",
        deployment=config.deployments[0].name,
        small_deployment=_SMALL,
        reasoning_deployment=_REASONING,
        provisioned=Provisioned(endpoint=openai, deployment=_PROVISIONED),
        namespace=config.namespace,
        servicebus_endpoint=environment["AOAI_WORKER_SERVICEBUS_ENDPOINT"],
        queue=_QUEUE,
        closed_queue=_CLOSED_QUEUE,
        container=f"{containers}/{_CONTAINER}",
        closed_container=f"{containers}/{_CLOSED_CONTAINER}",
        token_url=f"{_authority(environment)}/{config.tenant_id}/oauth2/v2.0/token",
        client_id=identity.client_id,
        issuer=config.issuer,
        subject=identity.subject,
        assertion_file=StateDirectory(running.state).projected_token(identity.name),
        worker_environment=environment,
        ca_file=ca_file,
    )


def _secrets(config: Config, target: Target) -> dict[str, str]:
    return {
        config.tenant_id: "tenant",
        config.namespace: "namespace",
        target.deployment: "deployment",
        target.client_id: "client",
        config.storage_account: "storage",
        config.issuer: "issuer",
    }


def _authority(environment: dict[str, str]) -> str:
    return environment["AZURE_AUTHORITY_HOST"].rstrip("/")
