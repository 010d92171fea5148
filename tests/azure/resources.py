"""What the kit makes in a subscription, and how it is all deleted again: commands of `az`, decided here, run there.

One resource group of a unique name has all of it. Roles go to whoever is logged in, on the resources that the
probes use and on nothing that is called closed. Local authentication is off everywhere, as in production.
"""

import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from worker.roles import BLOB_DATA_CONTRIBUTOR, OPENAI_USER, SERVICE_BUS_DATA_RECEIVER, SERVICE_BUS_DATA_SENDER

QUEUE, CLOSED_QUEUE, JOBS_QUEUE, RESULTS_QUEUE = "probes", "closed", "jobs", "results"
CONTAINER, CLOSED_CONTAINER = "probes", "closed"
DEPLOYMENT, SMALL_DEPLOYMENT, REASONING_DEPLOYMENT = "probe", "probe-small", "probe-reasoning"
ISSUER = "https://oidc.example/aoai-worker/"
SUBJECT = "system:serviceaccount:aoai-worker:aoai-worker"
AUDIENCE = "api://AzureADTokenExchange"
_QUEUE_PROPERTIES = {
    "lockDuration": "PT1M",
    "maxDeliveryCount": 10,
    "requiresDuplicateDetection": True,
    "duplicateDetectionHistoryTimeWindow": "PT10M",
}
"""As deploy.md asks of the worker's queues, with a shorter lock and window."""
_CAPACITY = 50
"""Thousands of tokens a minute: enough that nothing but the small deployment is throttled."""
_STEP_PATIENCE = 1_800.0
"""Seconds for one command; to delete a resource group takes minutes."""

Command = Sequence[str]


class ResourcesError(Exception):
    """A command of az failed. The message is for the person at the terminal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model as Azure names it, and the SKU of its deployments."""

    name: str
    version: str
    sku: str = "GlobalStandard"


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What is made. `run` is six letters or digits, and makes the names unique in Azure."""

    subscription: str
    location: str
    run: str
    model: Model
    principal: str
    """Object id of who is logged in."""
    principal_type: str = "User"
    reasoning: Model | None = None

    @property
    def group(self) -> str:
        return f"aoai-worker-probes-{self.run}"

    @property
    def namespace(self) -> str:
        return f"aoai-worker-probes-{self.run}"

    @property
    def storage(self) -> str:
        return f"aoaiprobes{self.run}"

    @property
    def identity(self) -> str:
        return f"aoai-worker-probes-{self.run}"

    def account(self, kind: str) -> str:
        """`kind` is open, closed or private. The name is also that of its host."""
        return f"aoai-probes-{kind}-{self.run}"

    @property
    def scope(self) -> str:
        return f"/subscriptions/{self.subscription}/resourceGroups/{self.group}/providers"


ACCOUNTS = ("open", "closed", "private")


def creation(made: Resources) -> Iterator[Command]:
    """In order. What costs by the hour comes first to last: a namespace, and nothing else does."""
    group, place = ("-g", made.group), ("-l", made.location)
    yield ("group", "create", "-n", made.group, *place, "--tags", "purpose=aoai-worker-probes")
    yield from _identity(made)
    yield from _service_bus(made)
    yield from _storage(made)
    for kind in ACCOUNTS:
        name = made.account(kind)
        sku = ("--kind", "OpenAI", "--sku", "S0", "--custom-domain", name)
        yield ("cognitiveservices", "account", "create", *group, "-n", name, *place, *sku)
        network = ("properties.publicNetworkAccess=Disabled",) if kind == "private" else ()
        yield (
            *("resource", "update", "--ids", _account_id(made, kind)),
            *("--set", "properties.disableLocalAuth=true", *network),
        )
    yield _deployment(made, DEPLOYMENT, made.model, capacity=_CAPACITY)
    yield _deployment(made, SMALL_DEPLOYMENT, made.model, capacity=1)
    yield _deployment(made, DEPLOYMENT, made.model, capacity=1, kind="closed")
    if made.reasoning is not None:
        yield _deployment(made, REASONING_DEPLOYMENT, made.reasoning, capacity=_CAPACITY)
    yield from _grants(made)


def removal(made: Resources) -> Iterator[Command]:
    """Deleted accounts are kept by Azure and hold their names and quota until they are purged."""
    yield ("group", "delete", "-n", made.group, "--yes")
    for kind in ACCOUNTS:
        yield (
            *("cognitiveservices", "account", "purge", "-g", made.group),
            *("-n", made.account(kind), "-l", made.location),
        )


def _identity(made: Resources) -> Iterator[Command]:
    yield ("identity", "create", "-g", made.group, "-n", made.identity, "-l", made.location)
    yield (
        *("identity", "federated-credential", "create", "-g", made.group, "--identity-name", made.identity),
        *("-n", "probes", "--issuer", ISSUER, "--subject", SUBJECT, "--audience", AUDIENCE),
    )


def _service_bus(made: Resources) -> Iterator[Command]:
    yield (
        *("servicebus", "namespace", "create", "-g", made.group, "-n", made.namespace, "-l", made.location),
        *("--sku", "Standard", "--disable-local-auth", "true", "--minimum-tls-version", "1.2"),
    )
    for queue in (QUEUE, CLOSED_QUEUE, JOBS_QUEUE, RESULTS_QUEUE):
        properties = {**_QUEUE_PROPERTIES, "requiresSession": queue == RESULTS_QUEUE}
        yield (
            *("resource", "create", "--id", f"{_namespace_id(made)}/queues/{queue}"),
            *("--api-version", "2024-01-01", "--properties", json.dumps(properties)),
        )


def _storage(made: Resources) -> Iterator[Command]:
    yield (
        *("storage", "account", "create", "-g", made.group, "-n", made.storage, "-l", made.location),
        *("--kind", "StorageV2", "--sku", "Standard_LRS", "--allow-shared-key-access", "false"),
        *("--allow-blob-public-access", "false", "--min-tls-version", "TLS1_2", "--https-only", "true"),
    )
    for container in (CONTAINER, CLOSED_CONTAINER):
        yield (
            *("storage", "container-rm", "create", "-g", made.group),
            *("--storage-account", made.storage, "-n", container),
        )


def _deployment(made: Resources, name: str, model: Model, *, capacity: int, kind: str = "open") -> Command:
    return (
        *("cognitiveservices", "account", "deployment", "create", "-g", made.group, "-n", made.account(kind)),
        *("--deployment-name", name, "--model-format", "OpenAI", "--model-name", model.name),
        *("--model-version", model.version, "--sku-name", model.sku, "--sku-capacity", str(capacity)),
    )


def _grants(made: Resources) -> Iterator[Command]:
    queues = [f"{_namespace_id(made)}/queues/{queue}" for queue in (QUEUE, JOBS_QUEUE, RESULTS_QUEUE)]
    storage = f"{made.scope}/Microsoft.Storage/storageAccounts/{made.storage}"
    for role, scope in (
        (OPENAI_USER, _account_id(made, "open")),
        *[(role, queue) for queue in queues for role in (SERVICE_BUS_DATA_RECEIVER, SERVICE_BUS_DATA_SENDER)],
        (BLOB_DATA_CONTRIBUTOR, f"{storage}/blobServices/default/containers/{CONTAINER}"),
    ):
        yield (
            *("role", "assignment", "create", "--assignee-object-id", made.principal),
            *("--assignee-principal-type", made.principal_type, "--role", role.id, "--scope", scope),
        )


def _namespace_id(made: Resources) -> str:
    return f"{made.scope}/Microsoft.ServiceBus/namespaces/{made.namespace}"


def _account_id(made: Resources, kind: str) -> str:
    return f"{made.scope}/Microsoft.CognitiveServices/accounts/{made.account(kind)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AzureCli:
    """`program` is az or a stand-in; `environment` is the process's whole one."""

    program: str
    environment: Mapping[str, str]

    def run(self, command: Command, *, subscription: str | None = None) -> str:
        """What it printed. Raises ResourcesError with what az said."""
        has_id = "--id" in command or "--ids" in command  # which names the subscription itself
        options = ("--subscription", subscription) if subscription and not has_id else ()
        line = [self.program, *command, *options]
        try:
            done = subprocess.run(
                line, env=self.environment, capture_output=True, text=True, timeout=_STEP_PATIENCE, check=False
            )
        except OSError as error:
            raise ResourcesError(
                f"{self.program} cannot be run: {error.strerror}. Install the Azure CLI."
            ) from error
        except subprocess.TimeoutExpired as error:
            raise ResourcesError(f"az {' '.join(command[:4])} took more than {_STEP_PATIENCE:g} s") from error
        if done.returncode != 0:
            raise ResourcesError(f"az {' '.join(command[:4])} failed: {done.stderr.strip()[-500:]}")
        return done.stdout.strip()


@contextmanager
def resources(az: AzureCli, made: Resources) -> Iterator[None]:
    """Made on the way in; deleted on the way out, whatever happens, as far as az can be run."""
    try:
        for command in creation(made):
            az.run((*command, "-o", "none"), subscription=made.subscription)
        yield
    finally:
        group_deletion, *purges = removal(made)
        az.run(group_deletion, subscription=made.subscription)
        for command in purges:
            # one that was never made cannot be purged, and costs nothing
            with suppress(ResourcesError):
                az.run(command, subscription=made.subscription)
