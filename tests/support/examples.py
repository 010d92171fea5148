"""One example of every event, made from its fields, so that a new event is tested before anybody thinks of it."""

from typing import Any, get_args, get_type_hints

from worker.errors import Cause, DeadLetterReason
from worker.interfaces import Event
from worker.jobs.outcomes import (
    Abandon,
    AlreadyDone,
    Answered,
    Complete,
    DeadLetter,
    Failed,
    FailureCode,
    Faulted,
    HandBackReason,
    Lapse,
    Lost,
    Outcome,
    Refused,
    Release,
    Response,
    Settlement,
    Unfinished,
    Unreadable,
    Usage,
    WarningCode,
)
from worker.rate_limits import ThrottleKind

PAYLOAD = "a prompt or an answer that nobody else may see"

OUTCOMES: tuple[Outcome, ...] = (
    Answered(
        response=Response(
            status=200,
            request_id="req-1",
            body=f'{{"choices":["{PAYLOAD}"]}}'.encode(),
            usage=Usage(prompt=10, completion=2, cached=4),
        )
    ),
    Refused(response=Response(status=400, request_id="req-2", body=f'{{"error":"{PAYLOAD}"}}'.encode())),
    *[Failed(code=code, message="why") for code in FailureCode],
    AlreadyDone(),
    Unreadable(reason=DeadLetterReason.INVALID_JOB, description="why"),
    *[Unfinished(reason=reason) for reason in HandBackReason],
    Faulted(),
    Lost(),
)

SETTLEMENTS: tuple[Settlement, ...] = (
    Complete(),
    DeadLetter(reason=DeadLetterReason.INVALID_JSON, description="why"),
    Release(),
    Abandon(),
    Lapse(),
)

EVENT_TYPES: tuple[type[Any], ...] = get_args(Event)

_EXAMPLES: tuple[tuple[Any, Any], ...] = (
    (str, "text"),
    (str | None, "text"),
    (int, 3),
    (float, 1.5),
    (bool, True),
    (Exception, ValueError("wrong")),
    (Outcome, OUTCOMES[0]),
    (Settlement, SETTLEMENTS[0]),
    (tuple[str, ...], ("text",)),
    (float | None, 1.5),
    (ThrottleKind | None, ThrottleKind.QUOTA),
    (Cause | None, Cause.ROLE_MISSING),
    (WarningCode, WarningCode.INVALID_JSON),
    (Usage | None, Usage(prompt=10, completion=2, cached=4)),
)


def example_of(kind: type[Any], **fields: Any) -> Any:
    """An event of this type with all of its fields filled, those given as given."""
    return kind(**{name: _example(hint) for name, hint in get_type_hints(kind).items()} | fields)


def _example(hint: Any) -> Any:
    return next(value for of, value in _EXAMPLES if of == hint)
