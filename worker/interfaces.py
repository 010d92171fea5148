"""The seams: what the core asks of the world, as promises, and the events it reports.

An adapter and its fake in `testing.py` keep the same promises; `tests/contract` holds both to them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from worker.jobs import Envelope, Job
from worker.outcomes import Outcome, Response, Settlement


class Delivery(Protocol):
    """One received message under our lock. The source keeps the lock renewed until the message is settled."""

    @property
    def envelope(self) -> Envelope: ...

    def when_lost(self, callback: Callable[[], None]) -> None:
        """Call back once, soon after the lock is known to be lost; at once if it already is."""


class Source(Protocol):
    """A queue of jobs."""

    async def receive(self, count: int, *, wait: float) -> Sequence[Delivery]:
        """Up to `count` deliveries, after at most about `wait` seconds; empty if none came.

        Never cancel it: messages already taken from the wire would stay locked until their locks lapse.
        Raises SourceUnavailable; the source has then retired its link and opens another at the next call.
        """

    async def settle(self, delivery: Delivery, settlement: Settlement) -> None:
        """Tell the broker, exactly once, and return when it has confirmed.

        Many may wait at once; a confirmation takes tens of milliseconds, throughput does not suffer, and no
        wait is longer than half a minute.
        Raises LockLost, or SourceUnavailable when no confirmation came: the message may come again.
        """


class Model(Protocol):
    """The deployments of Azure OpenAI."""

    async def complete(self, job: Job, target: "Target") -> Response:
        """One call. Returns the answer of a 200 whose body is whole; raises a CallFailed for all else."""


class Tokens(Protocol):
    """Bearer tokens by scope. Both raise TokenUnavailable."""

    async def bearer(self, scope: str) -> str:
        """One that is valid now; it never waits for the refresh of a token that still is."""

    async def replace(self, scope: str, rejected: str) -> str:
        """One that is newer than the one which a service has just rejected."""


class Sink(Protocol):
    """Where results go. Writing the same job again has no further effect."""

    async def write(self, job: Job, line: bytes) -> None:
        """Return once the line is durable. Raises SinkUnavailable (try again), or ResultTooLarge (never)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A deployment of a model at an endpoint, such as `https://my-account.openai.azure.com`."""

    deployment: str
    endpoint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The worker is set up; sent once."""

    queue: str
    slots: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JobsReceived:
    queue: str
    count: int
    redelivered: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CallEnded:
    """`status`: the HTTP status, or a word such as `timeout` where none came. Seconds of this call."""

    deployment: str
    status: str
    seconds: float
    detail: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BackedOff:
    """A job waits `seconds` before its next attempt."""

    job_id: str
    failures: int
    seconds: float
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GateClosed:
    """Every job of the deployment waits, for `seconds` more than was known before."""

    deployment: str
    reason: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class IntakeClosed:
    """Receiving stops for `reason`."""

    reason: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class IntakeOpened:
    """Receiving goes on as far as `reason` is concerned."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultWritten:
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStarted:
    """A job leaves the queue for its first call. `waited`: seconds since it was enqueued."""

    queue: str
    waited: float


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEnded:
    """A delivery reached its outcome, `seconds` after it was enqueued and after so many calls."""

    queue: str
    message_id: str | None
    outcome: Outcome
    deployment: str | None
    calls: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """`confirmed` is False where the broker did not confirm and the message may come again."""

    settlement: Settlement
    confirmed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LocksRenewed:
    count: int
    lost: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LocksNotRenewed:
    """A renewal could not be made now; it is tried again while the locks last."""

    count: int
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiverRestarted:
    queue: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRefreshed:
    """`expires_on` and `refresh_on` are Unix seconds."""

    scope: str
    seconds: float
    expires_on: float
    refresh_on: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRefreshFailed:
    """`usable_for`: seconds the last good token is still valid, 0 without one."""

    scope: str
    seconds: float
    code: str
    detail: str
    usable_for: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SetupCheckFailed:
    """Something that must be true before anything is received is not."""

    what: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Draining:
    """No more is received; jobs under way have `grace` seconds."""

    in_flight: int
    grace: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Drained:
    """Nothing is held any more; `handed_back` jobs were not done within the grace period."""

    handed_back: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFaulted:
    """A fault of our own in handling a job; the message goes back to the queue."""

    message_id: str | None
    error: Exception


Event = (
    Started
    | JobsReceived
    | CallEnded
    | BackedOff
    | GateClosed
    | IntakeClosed
    | IntakeOpened
    | ResultWritten
    | JobStarted
    | JobEnded
    | Settled
    | LocksRenewed
    | LocksNotRenewed
    | ReceiverRestarted
    | TokenRefreshed
    | TokenRefreshFailed
    | SetupCheckFailed
    | Draining
    | Drained
    | JobFaulted
)

Observer = Callable[[Event], None]
"""Hears every event, at once and in order. It must be quick and must not raise."""
