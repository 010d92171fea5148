"""What exists in the embedded Azure: one tenant, its identities, roles, entities of Service Bus and deployments.

The supervisor writes the config and the keys into one state directory; every process reads them from there.
Nothing in it is shared with the worker, which gets a pod's environment and no more.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from embedded_azure.models import EMBEDDINGS, INSTRUCT, LARGE, SMALL

Role = Literal[
    "Cognitive Services OpenAI User",
    "Azure Service Bus Data Sender",
    "Azure Service Bus Data Receiver",
    "Azure Service Bus Data Owner",
    "Storage Blob Data Reader",
    "Storage Blob Data Contributor",
    "Storage Blob Data Owner",
]

Right = Literal["Send", "Listen", "Manage"]

EntityStatus = Literal["Active", "Disabled", "SendDisabled", "ReceiveDisabled"]

ModelKind = Literal["chat", "completions", "embeddings"]

DEFAULT_ACCOUNT = "default"
"""The Azure OpenAI account of deployments that name none."""

RESULTS_CONTAINER = "batches"
"""The container of results and claims in the demo's Azure."""

STANDARD_BYTES = 262_144
PREMIUM_BYTES = 1_048_576
"""The largest message of a namespace of this tier, and its largest batch."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """A user-assigned managed identity with one federated credential for a Kubernetes service account."""

    name: str
    client_id: str
    object_id: str
    subject: str
    """`system:serviceaccount:<namespace>:<name>`, the `sub` of the service account's projected token."""
    federated: bool = True
    """Whether the identity has its federated credential, or nobody has made one yet."""


@dataclass(frozen=True, kw_only=True)
class RoleAssignment:
    """`scope` is a resource: `openai` (every account), `openai/<account>`, `servicebus` (the namespace) or
    `servicebus/<entity>`, where an entity is a queue, a topic or `<topic>/Subscriptions/<name>`; `blob` (the
    storage account) or `blob/<container>`. A role on a topic holds for its subscriptions."""

    object_id: str
    role: Role
    scope: str


@dataclass(frozen=True, kw_only=True)
class SharedAccessRule:
    """A key for the namespace, or for the entity at `path`, by which tokens (SAS) can be signed.

    The rights are those of Service Bus: Manage has the other two in it.
    """

    name: str
    key: str
    rights: tuple[Right, ...] = ("Manage", "Send", "Listen")
    path: str = ""


@dataclass(frozen=True, kw_only=True)
class QueueSpec:
    """Durations in seconds. The defaults are those `docs/deploy.md` asks of the real queues.

    `forward_to` and `forward_dead_letters_to` are paths of a queue or a topic.
    """

    name: str
    lock_duration: float = 300.0
    max_delivery_count: int = 20
    requires_session: bool = False
    duplicate_detection_window: float | None = 86_400.0
    default_time_to_live: float | None = None
    dead_letter_on_expiry: bool = True
    max_message_bytes: int = STANDARD_BYTES
    max_size_bytes: int = 1 << 30
    forward_to: str | None = None
    forward_dead_letters_to: str | None = None
    status: EntityStatus = "Active"


@dataclass(frozen=True, kw_only=True)
class CorrelationSpec:
    """Matches messages that have all of these; None asks nothing. `properties` are application properties."""

    correlation_id: str | None = None
    message_id: str | None = None
    to: str | None = None
    reply_to: str | None = None
    label: str | None = None
    session_id: str | None = None
    reply_to_session_id: str | None = None
    content_type: str | None = None
    properties: dict[str, str | int | float | bool] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RuleSpec:
    """Which messages of a topic a subscription takes: by `sql`, by `correlation`, or (neither) all."""

    name: str = "$Default"
    sql: str | None = None
    correlation: CorrelationSpec | None = None
    parameters: dict[str, str | int | float | bool] = field(default_factory=dict)
    """What `@name` stands for in `sql`."""
    action: str | None = None
    """SQL such as `SET region = 'eu'; REMOVE draft`, carried out on the subscription's copy."""
    action_parameters: dict[str, str | int | float | bool] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SubscriptionSpec:
    """Durations in seconds. A message that matches several rules arrives once."""

    name: str
    lock_duration: float = 300.0
    max_delivery_count: int = 20
    requires_session: bool = False
    default_time_to_live: float | None = None
    dead_letter_on_expiry: bool = True
    dead_letter_on_filter_error: bool = True
    """Dead-letter a message that a rule's filter cannot be evaluated for; otherwise that rule does not match."""
    forward_to: str | None = None
    forward_dead_letters_to: str | None = None
    status: EntityStatus = "Active"
    rules: tuple[RuleSpec, ...] = (RuleSpec(),)


@dataclass(frozen=True, kw_only=True)
class TopicSpec:
    """Durations in seconds. The limits hold for each of its subscriptions too."""

    name: str
    duplicate_detection_window: float | None = None
    default_time_to_live: float | None = None
    max_message_bytes: int = STANDARD_BYTES
    max_size_bytes: int = 1 << 30
    status: EntityStatus = "Active"
    subscriptions: tuple[SubscriptionSpec, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """A model deployment of an Azure OpenAI account.

    `latency` is the median seconds of an answer, drawn log-normally with `latency_sigma` from `seed`, to which
    `time_per_token` is added for each token that is generated. A streamed answer begins after what is drawn
    (around `time_to_first_token`, if that is given) and goes on by `time_per_token`; a whole one takes as long.
    `requests_per_minute` and `tokens_per_minute` are the quota; None is unlimited.
    """

    name: str
    model: str
    kind: ModelKind = "chat"
    """What the model is for: `chat` answers chat completions and responses, the others what they are called."""
    account: str = DEFAULT_ACCOUNT
    """The account it belongs to, whose roles are assigned at the scope `openai/<account>`, or `openai` for all."""
    latency: float = 0.2
    latency_sigma: float = 0.25
    time_to_first_token: float | None = None
    time_per_token: float = 0.0
    tokens_per_event: int = 1
    """Of a streamed answer, in each of its events."""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    estimate_bias: float = 0.0
    """How far the service's own estimate of a request's tokens is off: 0.2 charges a fifth too much."""
    provisioned_units: int = 0
    """More than 0: provisioned throughput, in place of `requests_per_minute` and `tokens_per_minute`."""
    tokens_per_unit: int = 2_500
    """Input tokens a minute that one unit carries. Azure has another figure for each model."""
    output_weight: float = 4.0
    """How many input tokens one of the answer counts as, in provisioned throughput."""
    spillover_to: str | None = None
    """The deployment that answers what a provisioned one cannot."""
    seed: int = 7


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything the embedded Azure knows at start. The defaults are the demo's Azure."""

    tenant_id: str = "72f988bf-0000-4000-8000-2d7cd011db47"
    namespace: str = "local.servicebus.windows.net"
    token_lifetime: float = 86_400.0
    """Seconds an Entra access token lives. Azure: about 24 h for a managed identity."""
    projected_token_lifetime: float = 3_600.0
    """Seconds a projected service-account token lives; rewritten at 80 % of it, as the kubelet does."""
    issuer: str = "https://oidc.local/aoai-worker/"
    identities: tuple[Identity, ...] = ()
    node_identities: tuple[str, ...] = ()
    """Names of the identities that are assigned to the node: IMDS gives their tokens to whoever asks there."""
    bound_identities: tuple[str, ...] = ()
    """Names of those with an identity binding: their service accounts get tokens through the cluster's proxy."""
    role_assignments: tuple[RoleAssignment, ...] = ()
    queues: tuple[QueueSpec, ...] = ()
    topics: tuple[TopicSpec, ...] = ()
    strict_delivery_ids: bool = True
    """Close a connection whose deliveries are not numbered in sequence, as AMQP wants; Azure does not seem
    to: azure-servicebus numbers two alike when several coroutines use one sender or receiver."""
    shared_access_rules: tuple[SharedAccessRule, ...] = ()
    """None, as in a namespace with local authentication disabled. The plaintext port knows the emulator's too."""
    deployments: tuple[Deployment, ...] = ()
    storage_account: str = "embeddedazure"
    """The first segment of Blob storage's addresses: here they name the account in the path, not in the host."""
    containers: tuple[str, ...] = (RESULTS_CONTAINER,)
    """Containers of Blob storage that are there at start."""
    faults: dict[str, Any] = field(default_factory=dict)

    def identity(self, name: str) -> Identity:
        """Raises KeyError naming the identities that exist."""
        for identity in self.identities:
            if identity.name == name:
                return identity
        raise KeyError(f"no identity {name!r}; there are {[i.name for i in self.identities]}")

    def roles_of(self, object_id: str, scope: str) -> set[Role]:
        """The roles held on `scope` or on a parent of it, as Azure RBAC inherits downwards."""
        return {
            assignment.role
            for assignment in self.role_assignments
            if assignment.object_id == object_id
            and (scope == assignment.scope or scope.startswith(f"{assignment.scope}/"))
        }

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=2))

    @classmethod
    def load(cls, path: Path) -> "Config":
        """Raises pydantic.ValidationError naming the field when the file does not fit."""
        return TypeAdapter(cls).validate_json(path.read_bytes())


def default_config() -> Config:
    """Three identities: the worker, a producer, and a stranger who has no role anywhere. Beside the entry queue
    there is one for each model."""
    worker = Identity(
        name="worker",
        client_id="6b0f6c1e-0000-4000-8000-000000000001",
        object_id="0d0d0d0d-0000-4000-8000-000000000001",
        subject="system:serviceaccount:default:aoai-worker",
    )
    producer = Identity(
        name="producer",
        client_id="6b0f6c1e-0000-4000-8000-000000000002",
        object_id="0d0d0d0d-0000-4000-8000-000000000002",
        subject="system:serviceaccount:default:producer",
    )
    stranger = Identity(
        name="stranger",
        client_id="6b0f6c1e-0000-4000-8000-000000000003",
        object_id="0d0d0d0d-0000-4000-8000-000000000003",
        subject="system:serviceaccount:default:stranger",
    )
    deployments = (
        Deployment(name=SMALL, model=SMALL),
        Deployment(name=LARGE, model=LARGE, latency=0.4),
        Deployment(name=INSTRUCT, model=INSTRUCT, kind="completions"),
        Deployment(name=EMBEDDINGS, model=EMBEDDINGS, kind="embeddings", latency=0.05),
    )
    entry, results = "jobs", "results"
    models = [f"{entry}-{deployment.model}" for deployment in deployments]
    receiver: Role = "Azure Service Bus Data Receiver"
    sender: Role = "Azure Service Bus Data Sender"
    rights: list[tuple[Identity, Role, Sequence[str]]] = [
        (worker, receiver, [entry, *models]),
        (worker, sender, [results, *models]),
        (producer, sender, [entry, results, *models]),
        (producer, receiver, [results]),
    ]
    return Config(
        identities=(worker, producer, stranger),
        role_assignments=(
            RoleAssignment(object_id=worker.object_id, role="Cognitive Services OpenAI User", scope="openai"),
            *[
                RoleAssignment(object_id=identity.object_id, role=role, scope=f"servicebus/{queue}")
                for identity, role, queues in rights
                for queue in queues
            ],
            *[
                RoleAssignment(
                    object_id=identity.object_id,
                    role="Storage Blob Data Contributor",
                    scope=f"blob/{RESULTS_CONTAINER}",
                )
                for identity in (worker, producer)
            ],
        ),
        queues=(
            QueueSpec(name=entry),
            *[QueueSpec(name=queue) for queue in models],
            QueueSpec(name=results, requires_session=True),
        ),
        deployments=deployments,
    )
