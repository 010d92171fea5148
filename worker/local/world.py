"""What exists in the embedded Azure: one tenant, its identities, roles, queues and deployments.

The supervisor writes the world and the keys into one state directory; every process reads them from there.
Nothing in it is shared with the worker, which gets a pod's environment and no more.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

Role = Literal[
    "Cognitive Services OpenAI User",
    "Azure Service Bus Data Sender",
    "Azure Service Bus Data Receiver",
    "Azure Service Bus Data Owner",
]

ModelKind = Literal["chat", "completions", "embeddings"]


@dataclass(frozen=True, kw_only=True)
class Identity:
    """A user-assigned managed identity with one federated credential for a Kubernetes service account."""

    name: str
    client_id: str
    object_id: str
    subject: str
    """`system:serviceaccount:<namespace>:<name>`, the `sub` of the service account's projected token."""


@dataclass(frozen=True, kw_only=True)
class RoleAssignment:
    """`scope` is a resource: `openai`, `servicebus` (the namespace) or `servicebus/<queue>`."""

    object_id: str
    role: Role
    scope: str


@dataclass(frozen=True, kw_only=True)
class QueueSpec:
    """Durations in seconds. The defaults are those `docs/deploy.md` asks of the real queues."""

    name: str
    lock_duration: float = 300.0
    max_delivery_count: int = 20
    requires_session: bool = False
    duplicate_detection_window: float | None = 86_400.0
    default_time_to_live: float | None = None
    dead_letter_on_expiry: bool = True
    max_message_bytes: int = 262_144
    max_size_bytes: int = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """A model deployment of the Azure OpenAI account.

    `latency` is the median seconds of an answer, drawn log-normally with `latency_sigma` from `seed`.
    `requests_per_minute` and `tokens_per_minute` are the quota; None is unlimited.
    """

    name: str
    model: str
    kind: ModelKind = "chat"
    """What the model is for: `chat` answers chat completions and responses, the others what they are called."""
    latency: float = 0.2
    latency_sigma: float = 0.25
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    seed: int = 7


@dataclass(frozen=True, kw_only=True)
class World:
    """Everything the embedded Azure knows at start. The defaults are the demo's Azure."""

    tenant_id: str = "72f988bf-0000-4000-8000-2d7cd011db47"
    namespace: str = "local.servicebus.windows.net"
    token_lifetime: float = 86_400.0
    """Seconds an Entra access token lives. Azure: about 24 h for a managed identity."""
    projected_token_lifetime: float = 3_600.0
    """Seconds a projected service-account token lives; rewritten at 80 % of it, as the kubelet does."""
    issuer: str = "https://oidc.local/aoai-worker/"
    identities: tuple[Identity, ...] = ()
    role_assignments: tuple[RoleAssignment, ...] = ()
    queues: tuple[QueueSpec, ...] = ()
    deployments: tuple[Deployment, ...] = ()
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
    def load(cls, path: Path) -> "World":
        """Raises pydantic.ValidationError naming the field when the file does not fit."""
        return TypeAdapter(cls).validate_json(path.read_bytes())


def default_world() -> World:
    """Three identities: the worker, a producer, and a stranger who has no role anywhere."""
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
    return World(
        identities=(worker, producer, stranger),
        role_assignments=(
            RoleAssignment(
                object_id=worker.object_id, role="Azure Service Bus Data Receiver", scope="servicebus/jobs"
            ),
            RoleAssignment(
                object_id=worker.object_id, role="Azure Service Bus Data Sender", scope="servicebus/results"
            ),
            RoleAssignment(object_id=worker.object_id, role="Cognitive Services OpenAI User", scope="openai"),
            RoleAssignment(
                object_id=producer.object_id, role="Azure Service Bus Data Sender", scope="servicebus/jobs"
            ),
            RoleAssignment(
                object_id=producer.object_id, role="Azure Service Bus Data Sender", scope="servicebus/results"
            ),
            RoleAssignment(
                object_id=producer.object_id,
                role="Azure Service Bus Data Receiver",
                scope="servicebus/results",
            ),
        ),
        queues=(QueueSpec(name="jobs"), QueueSpec(name="results", requires_session=True)),
        deployments=(
            Deployment(name="gpt-4o-mini", model="gpt-4o-mini"),
            Deployment(name="gpt-4o", model="gpt-4o", latency=0.4),
            Deployment(name="gpt-35-turbo-instruct", model="gpt-35-turbo-instruct", kind="completions"),
            Deployment(
                name="text-embedding-3-small", model="text-embedding-3-small", kind="embeddings", latency=0.05
            ),
        ),
    )
