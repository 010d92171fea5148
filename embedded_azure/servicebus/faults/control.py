"""The kinds of fault that can be set in the embedded Service Bus: what each is called and which fields it has.

`control_links.py` makes links meet them, `control_line.py` the connections below, `server.py` the whole namespace.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from embedded_azure.faults import AnswerFault, Fault

Condition = Literal[
    "amqp:internal-error",
    "amqp:link:detach-forced",
    "amqp:link:message-size-exceeded",
    "amqp:not-allowed",
    "amqp:not-found",
    "amqp:not-implemented",
    "amqp:resource-limit-exceeded",
    "amqp:unauthorized-access",
    "com.microsoft:argument-error",
    "com.microsoft:argument-out-of-range",
    "com.microsoft:auth-failed",
    "com.microsoft:container-close",
    "com.microsoft:entity-already-exists",
    "com.microsoft:entity-disabled",
    "com.microsoft:message-lock-lost",
    "com.microsoft:message-not-found",
    "com.microsoft:precondition-failed",
    "com.microsoft:server-busy",
    "com.microsoft:session-cannot-be-locked",
    "com.microsoft:session-lock-lost",
    "com.microsoft:timeout",
]
"""What azure-servicebus has an exception for, and the one for everything else."""

Entity = Annotated[str, StringConstraints(to_lower=True, strip_whitespace=True)]
_BUSY = (
    "The request was terminated because the namespace local is being throttled. Error code : 50009. Please wait 2 "
    "seconds and try again. To know more visit https://aka.ms/sbResourceMgrExceptions and "
    "https://aka.ms/ServiceBusThrottling"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RefuseFault(Fault):
    """`on` what a client does, it gets the error `condition` instead, and nothing is done.

    receive: when a receiver asks for messages (gives credit), its link is detached. management and put-token are
    requests; `operation` narrows the former to one.
    """

    kind: Literal["refuse"] = "refuse"
    on: Literal["attach", "send", "receive", "settle", "management", "put-token"]
    condition: Condition = "com.microsoft:server-busy"
    description: str = _BUSY
    entity: Entity | None = None
    operation: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoseAnswerFault(Fault):
    """What is asked is done (`applied`) or not, and the client hears nothing either way."""

    kind: Literal["lose_answer"] = "lose_answer"
    on: Literal["send", "settle", "management", "put-token"]
    applied: bool = True
    entity: Entity | None = None
    operation: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DetachFault(Fault):
    """Every link of `entity` (and of its dead letters and subscriptions), or of all, is detached now."""

    kind: Literal["detach"] = "detach"
    condition: Condition = "amqp:link:detach-forced"
    description: str = "The link is force detached by the broker."
    entity: Entity | None = None

    @property
    def acts_at_once(self) -> bool:
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class CutFault(Fault):
    """All connections break now, without a word. With `after_bytes`, each breaks when that many bytes of what is
    next sent (`out`) or received (`in`) have passed; what is sent begins with a frame."""

    kind: Literal["cut"] = "cut"
    after_bytes: Annotated[int, Field(ge=0)] | None = None
    direction: Literal["out", "in"] = "out"

    @property
    def acts_at_once(self) -> bool:
        return self.after_bytes is None


@dataclass(frozen=True, slots=True, kw_only=True)
class DropFault(Fault):
    """A connection that carries something while it lasts is dropped for good and in silence, as a NAT drops a flow:
    both sides still have it, and nothing arrives any more."""

    kind: Literal["drop"] = "drop"


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowFault(Fault):
    """Every connection has `latency` seconds in each direction, and carries `bytes_per_second`."""

    kind: Literal["slow"] = "slow"
    latency: Annotated[float, Field(ge=0)] = 0.0
    bytes_per_second: Annotated[float, Field(gt=0)] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RefuseConnectionsFault(Fault):
    """New connections are accepted by the socket and broken at once; those that exist stay."""

    kind: Literal["refuse_connections"] = "refuse_connections"


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartFault(Fault):
    """All connections break and the ports are closed now; the same ports open again after `seconds`.

    `messages` are kept, with their locks and everything else; or lost, and the entities are those of the start.
    """

    kind: Literal["restart"] = "restart"
    messages: Literal["kept", "lost"] = "kept"

    @property
    def acts_at_once(self) -> bool:
        return True


FAULTS: tuple[type[Fault], ...] = (
    RefuseFault,
    LoseAnswerFault,
    DetachFault,
    CutFault,
    DropFault,
    SlowFault,
    RefuseConnectionsFault,
    RestartFault,
    AnswerFault,
)
