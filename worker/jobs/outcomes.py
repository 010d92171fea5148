"""What became of a job, and what is therefore said to the broker.

`Outcome` is our verdict, `Settlement` the broker's word. `settlement_of` is the only place where one leads to
the other.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import assert_never

from worker.errors import DeadLetterReason
from worker.rate_limits import RateLimits


class FailureCode(StrEnum):
    """The closed list of `error.code` values: calls that were never answered."""

    EXPIRED = "expired"
    MODEL_NOT_ALLOWED = "model_not_allowed"
    ATTEMPTS_EXHAUSTED = "attempts_exhausted"
    ANSWER_TOO_LARGE = "answer_too_large"
    MAX_DELIVERIES = "max_deliveries"
    BATCH_CANCELLED = "batch_cancelled"


class HandBackReason(StrEnum):
    """Why a message went back to the queue unfinished."""

    SHUTDOWN = "shutdown"
    PARKED = "parked"
    SETUP = "setup"
    SUSPECT = "suspect"
    UNKNOWN_MODEL = "unknown_model"


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens as the service counted them."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            prompt=self.prompt + other.prompt,
            completion=self.completion + other.completion,
            cached=self.cached + other.cached,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """What the service said. `body` is its JSON, byte for byte; of a streamed answer, the final object.

    `first_token`: seconds from the request to the first token of a streamed answer.
    """

    status: int
    request_id: str | None
    body: bytes
    usage: Usage | None = None
    rate_limits: RateLimits | None = None
    first_token: float | None = None


class WarningCode(StrEnum):
    """What is wrong with an answer; a closed list."""

    INVALID_JSON = "invalid_json"
    SCHEMA_MISMATCH = "schema_mismatch"


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerWarning:
    """An answer is not the JSON that its job asked for. `message` is for people: where, what, what may help."""

    code: WarningCode
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """The service answered. `warning`: why the answer is not what the job asked for, all the same."""

    response: Response
    warning: AnswerWarning | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The service's last word was an error status."""

    response: Response


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """No answer was had and none will be sought."""

    code: FailureCode
    message: str


@dataclass(frozen=True, slots=True)
class AlreadyDone:
    """A result was there before: an earlier delivery wrote it and died before it settled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreadable:
    """The message is not a job."""

    reason: DeadLetterReason
    description: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfinished:
    """The job goes back to the queue for another worker. `is_perhaps_written`: its result was on its way to the
    sink, which may have it."""

    reason: HandBackReason
    is_perhaps_written: bool = False


@dataclass(frozen=True, slots=True)
class Faulted:
    """We failed at it ourselves; after enough such deliveries the broker dead-letters the message."""


@dataclass(frozen=True, slots=True)
class Lost:
    """The lock lapsed; the other holder decides."""


Concluded = Answered | Refused | Failed
"""The outcomes that are written as a result line."""

Outcome = Concluded | AlreadyDone | Unreadable | Unfinished | Faulted | Lost


@dataclass(frozen=True, slots=True)
class Complete:
    """The message is done with and leaves the queue."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """The message moves to the dead-letter queue."""

    reason: DeadLetterReason
    description: str


@dataclass(frozen=True, slots=True)
class Release:
    """The message is available again at once and its delivery count does not rise."""


@dataclass(frozen=True, slots=True)
class Abandon:
    """The message is available again at once and its delivery count rises."""


@dataclass(frozen=True, slots=True)
class Lapse:
    """Nothing is said to the broker: the lock is no longer ours."""


Settlement = Complete | DeadLetter | Release | Abandon | Lapse


def settlement_of(outcome: Outcome) -> Settlement:
    match outcome:
        case Answered() | Refused() | Failed() | AlreadyDone():
            return Complete()
        case Unreadable(reason=reason, description=description):
            return DeadLetter(reason=reason, description=description)
        case Unfinished(is_perhaps_written=True):
            return Abandon()  # who gets it looks for the result only if the delivery count has risen
        case Unfinished():
            return Release()
        case Faulted():
            return Abandon()
        case Lost():
            return Lapse()
        case _:
            assert_never(outcome)


def without_body(outcome: Concluded) -> Concluded:
    """The same for those who need not know what the service said."""
    match outcome:
        case Answered(response=response):  # a warning may quote the answer
            return Answered(response=replace(response, body=b""))
        case Refused(response=response):
            return Refused(response=replace(response, body=b""))
        case Failed():
            return outcome


def label_of(outcome: Outcome) -> str:
    """The outcome as metrics and logs name it; a closed list."""
    match outcome:
        case Answered():
            return "answered"
        case Refused():
            return "refused"
        case Failed(code=code):
            return code.value
        case AlreadyDone():
            return "already_done"
        case Unreadable():
            return "dead_lettered"
        case Unfinished():
            return "handed_back"
        case Faulted():
            return "faulted"
        case Lost():
            return "lock_lost"
