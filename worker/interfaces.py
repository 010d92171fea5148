"""The seams: what the core asks of the world, as promises, and the events it reports.

An adapter and its fake in `testing.py` keep the same promises; `tests/contract` holds both to them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from worker.errors import Cause
from worker.jobs.batch_records import PodReport
from worker.jobs.copies import Copy
from worker.jobs.job import Claim, Envelope, Job
from worker.jobs.outcomes import Outcome, Response, Settlement, Usage, WarningCode
from worker.jobs.results import Result
from worker.rate_limits import ThrottleKind


class Delivery(Protocol):
    """One received message under our lock. The source keeps the lock renewed until the message is settled."""

    @property
    def envelope(self) -> Envelope: ...

    def when_lost(self, callback: Callable[[], None]) -> None:
        """Call back once, soon after the lock is known to be lost; at once if it already is."""

    async def settle(self, settlement: Settlement) -> None:
        """Tell the broker, exactly once, and return when it has confirmed.

        Many may wait at once; a confirmation takes tens of milliseconds, and throughput does not suffer. Where
        nothing is confirmed all waiting ends within half a minute.
        Raises LockLost, or SourceUnavailable when no confirmation came: the message may come again.
        """


class Source(Protocol):
    """A queue of jobs."""

    async def receive(self, count: int, *, wait: float) -> Sequence[Delivery]:
        """Up to `count` deliveries, after at most about `wait` seconds; empty if none came.

        Never cancel it: messages already taken from the wire would stay locked until their locks lapse.
        Raises SourceUnavailable; the source has then retired its link and opens another at the next call.
        """


class EntryQueue(Source, Protocol):
    """The queue whose jobs are sent on to those of their models."""

    @property
    def queue(self) -> str: ...

    async def complete(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Settle them all with `Complete`, which costs much less than one by one; those that are confirmed.

        The others come again when their locks lapse, or were taken from us.
        """


@dataclass(frozen=True, slots=True, eq=False)
class Forward:
    """A delivery that is sent on, and what of it changes."""

    delivery: Delivery
    copy: Copy


class JobSender(Protocol):
    """A queue to which jobs are sent on."""

    @property
    def queue(self) -> str: ...

    async def send_on(
        self,
        forwards: Sequence[Forward],
        *,
        sent: Callable[[Sequence[Forward]], None],
        refuse: Callable[[Forward], None],
    ) -> None:
        """Send copies of all, and settle none. `sent` is told those that the queue has confirmed, one or more, as
        soon as it has; `refuse` one that no message can carry. One call at a time.

        Raises SourceUnavailable: of which neither was told may have arrived or not, and the same message-id makes
        sending it again harmless.
        """


class DeadLetters(Source, Protocol):
    """The dead-letter queue of a queue of jobs. A released message stays where it was."""

    async def peek(self, following: int, count: int) -> Sequence[Envelope]:
        """Up to `count` messages from the sequence number `following` on; none is locked.

        Raises SourceUnavailable.
        """


class Model(Protocol):
    """The deployments of Azure OpenAI."""

    async def complete(self, job: Job, target: "Target", room: "AnswerMemory") -> Response:
        """One call. Returns the answer of a 200 whose body is whole; raises a CallFailed for all else.

        What it holds of the answer it has counted in `room` before.
        """


class AnswerMemory(Protocol):
    """The memory for a job's answer."""

    @property
    def reserved(self) -> int:
        """Bytes that may be held now."""

    async def grow(self, size: int) -> None:
        """Return once `size` bytes may be held, in all."""


class Tokens(Protocol):
    """Bearer tokens by scope. Both raise TokenUnavailable."""

    async def bearer(self, scope: str) -> str:
        """One that is valid now; it never waits for the refresh of a token that still is."""

    async def replace(self, scope: str, rejected: str) -> str:
        """One that is newer than the one which a service has just rejected."""


class Sink(Protocol):
    """Where results go. Writing the same job again has no further effect."""

    async def write(self, result: Result) -> bool:
        """Return once the line is durable; False where a result of this job is known to have been there before.

        Raises SinkUnavailable (try again), or ResultTooLarge (never).
        """

    async def has(self, job: Job) -> bool:
        """Whether a result of this job is there, so that it need not be paid for again. False where the sink
        cannot tell. Raises SinkUnavailable."""


class Fleet(Protocol):
    """What pods and producers tell each other beside the results. All raise SinkUnavailable."""

    async def cancelled_up_to(self, batch_id: str) -> int | None:
        """The last replay of the batch for which no new call is to be made; None where it is not cancelled."""

    async def report(self, report: PodReport) -> None:
        """In place of the pod's last one."""

    async def withdraw(self) -> None:
        """The pod has nothing to tell any more."""


class Claims(Protocol):
    """The store of bodies that were too large for a message."""

    def require_ours(self, claim: Claim) -> object:
        """Raises NotAJob where the claim is larger than allowed or points elsewhere, before anything is fetched."""

    async def fetch(self, claim: Claim) -> bytes:
        """The body, its length and sha256 checked.

        Raises NotAJob where the claim cannot be honoured, ClaimUnavailable where it cannot now.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A deployment of a model at an endpoint, such as `https://my-account.openai.azure.com`.

    The budgets are the whole fleet's; None is unlimited as far as we know. `alias` is what it is called to people
    where deployments of several endpoints have one name.
    """

    deployment: str
    endpoint: str
    tokens_per_minute: int | None = None
    requests_per_minute: int | None = None
    alias: str | None = None

    @property
    def label(self) -> str:
        """What metrics, logs and checks call it; no two targets of a worker have the same."""
        return self.alias or self.deployment


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The worker is set up; sent once."""

    queues: tuple[str, ...]
    slots: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JobsReceived:
    """`count` is 0 when the queue was found empty after it was not. `age`: seconds since the last of them was
    enqueued, which is how far behind the queue is."""

    queue: str
    count: int
    redelivered: int
    age: float


@dataclass(frozen=True, slots=True, kw_only=True)
class JobsSorted:
    """`count` jobs of a model are in its queue, `seconds` after the first of them was received."""

    queue: str
    model: str
    count: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SortingFailed:
    """`held` jobs could not be sent to the queue of their model; it is tried again, while others are sorted."""

    queue: str
    held: int
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CallEnded:
    """`model`: that which the job asked for. `status`: the HTTP status, `none` where none came. Seconds of this
    call, and to the first token of a streamed answer. `throttle` tells the kind of a 429."""

    job_id: str
    deployment: str
    status: str
    seconds: float
    first_token: float | None = None
    throttle: ThrottleKind | None = None
    usage: Usage | None = None
    detail: str | None = None
    model: str = ""
    queue: str = ""
    batch_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerUnfit:
    """An answer is not the JSON that its job asked for. `is_called_again`: another is sought."""

    job_id: str
    deployment: str
    code: WarningCode
    is_called_again: bool


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
    """`paid_twice`: another answer of the same job had been written before."""

    queue: str
    seconds: float
    paid_twice: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStarted:
    """A job leaves the queue for its first call. `waited`: seconds since it was enqueued. `traceparent`: W3C's, as
    its producer sent it."""

    job_id: str
    queue: str
    operation: str
    model: str
    waited: float
    traceparent: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SuspectMet:
    """A delivery whose process may have died of it, after `delivery_count` deliveries; it runs apart."""

    queue: str
    message_id: str | None
    delivery_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterSwept:
    """What the broker itself had dead-lettered has its error line and is gone. `code` is a FailureCode."""

    queue: str
    message_id: str | None
    code: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLettersLeft:
    """So many messages a pass saw in a dead-letter queue and left there. It looks at 10,000 or so at most."""

    queue: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepFailed:
    """A dead-letter queue could not be swept; it is tried again."""

    queue: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEnded:
    """A delivery reached its outcome, `seconds` after it was enqueued and after so many calls."""

    queue: str
    message_id: str | None
    job_id: str | None
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
    """Something that must be true before anything is received is not. `cause`: None where nothing tells it."""

    what: str
    cause: Cause | None
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
    | JobsSorted
    | SortingFailed
    | CallEnded
    | AnswerUnfit
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
    | SuspectMet
    | DeadLetterSwept
    | DeadLettersLeft
    | SweepFailed
)

Observer = Callable[[Event], None]
"""Hears every event, at once and in order. It must be quick and must not raise."""
