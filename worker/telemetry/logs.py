"""Logs on standard error: one line an event, a fixed name plus fields; never a prompt, an answer or a token.

JSON where a machine reads them, readable lines on a terminal.

Events that come with every job are debug; failures of the same kind are limited, and what was held back is
counted, so a bad night does not fill the disk.
"""

import dataclasses
import logging
import re
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import orjson

from worker import interfaces as events
from worker.interfaces import Event
from worker.jobs.outcomes import Answered, Outcome, Refused, label_of

LEVELS: Mapping[type[Any], int] = {
    events.Started: logging.INFO,
    events.JobsReceived: logging.DEBUG,
    events.JobsSorted: logging.DEBUG,
    events.SortingFailed: logging.WARNING,
    events.JobStarted: logging.DEBUG,
    events.CallEnded: logging.DEBUG,
    events.AnswerUnfit: logging.INFO,
    events.BackedOff: logging.INFO,
    events.GateClosed: logging.INFO,
    events.IntakeClosed: logging.WARNING,
    events.IntakeOpened: logging.INFO,
    events.ResultWritten: logging.DEBUG,
    events.JobEnded: logging.DEBUG,
    events.Settled: logging.DEBUG,
    events.LocksRenewed: logging.DEBUG,
    events.LocksNotRenewed: logging.WARNING,
    events.ReceiverRestarted: logging.WARNING,
    events.TokenRefreshed: logging.INFO,
    events.TokenRefreshFailed: logging.ERROR,
    events.SetupCheckFailed: logging.ERROR,
    events.Draining: logging.INFO,
    events.Drained: logging.INFO,
    events.JobFaulted: logging.ERROR,
    events.SuspectMet: logging.WARNING,
    events.DeadLetterSwept: logging.WARNING,
    events.DeadLettersLeft: logging.DEBUG,
    events.SweepFailed: logging.WARNING,
}

LINES_PER_WINDOW = 20
WINDOW = 10.0
"""At most so many lines of one name in so many seconds."""

SECRETS = re.compile(
    r"eyJ[\w-]{10,}\.[\w-]+\.?[\w-]*"
    r"|(?i:\bbearer\s+)[\w.~+/=-]{16,}"
    r"|(?i:sig=|(?:SharedAccess|Account)Key=|(?:api[_-]?key|client[_-]?secret)['\": =]+)[^\s&;'\"]+"
)
"""Tokens, signatures and keys, should one ever appear in the text of somebody's error."""

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


LONGEST_TEXT = 2_000
LONGEST_TRACEBACK = 20_000
"""Characters of a field; names and details come from outside."""

_UNPRINTED = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
"""What JSON leaves as it is, though it ends a line or turns its direction on somebody's screen."""


class JsonLines(logging.Formatter):
    """A record as one JSON object: time, level, event, then the fields passed in `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _moment(record).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": _redacted(record.getMessage()),
            "logger": record.name,
            **_fields_of(record),
        }
        if record.exc_info:
            line["traceback"] = _redacted(self.formatException(record.exc_info), LONGEST_TRACEBACK)
        return _encoded(line)


class ReadableLines(logging.Formatter):
    """A record as a person reads it: time of day, level, event, then the fields as name=value."""

    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{name}={_encoded(value)}" for name, value in _fields_of(record).items() if value != {})
        # a message may be a sentence of a library, and so hold anything
        event = _encoded(_redacted(record.getMessage())).strip('"')
        line = f"{_moment(record):%H:%M:%S} {record.levelname.lower():7} {event} {fields}".rstrip()
        if not record.exc_info:
            return line
        trace = _redacted(self.formatException(record.exc_info), LONGEST_TRACEBACK).splitlines()
        return "\n    ".join([line, *(_encoded(one).strip('"') for one in trace)])


def _moment(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC)


def _fields_of(record: logging.LogRecord) -> dict[str, Any]:
    return {key: _redacted(value) for key, value in record.__dict__.items() if key not in _STANDARD}


def _encoded(value: Any) -> str:
    text = orjson.dumps(value, default=lambda value: _redacted(str(value))).decode()
    return _UNPRINTED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _redacted(value: Any, longest: int = LONGEST_TEXT) -> Any:
    """Before it is JSON: a quoted secret is escaped there, and cutting it out could break the line."""
    match value:
        case str():
            # redacted before it is cut: half a secret would not be recognised
            text = SECRETS.sub("[redacted]", value[: 10 * longest])
            return text if len(text) <= longest else f"{text[:longest]}... ({len(value):,} characters)"
        case dict():
            return {key: _redacted(inner, longest) for key, inner in value.items()}
        case list() | tuple():
            return [_redacted(inner, longest) for inner in value]
        case _:
            return value


class EventLog:
    """An `Observer` that writes events to a logger."""

    def __init__(self, logger: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._logger = logger
        self._limit = LineLimit(clock)

    def __call__(self, event: Event) -> None:
        level = level_of(event)
        if not self._logger.isEnabledFor(level):
            return
        name = event_name(type(event))
        held_back = self._limit.admit(name) if level > logging.DEBUG else 0
        if held_back is None:
            return
        fields = {field.name: _shown(getattr(event, field.name)) for field in dataclasses.fields(event)}
        if held_back:
            fields["held_back"] = held_back
        error = getattr(event, "error", None)
        trace = (type(error), error, error.__traceback__) if isinstance(error, Exception) else None
        self._logger.log(level, name, extra=fields, exc_info=trace)


class LineLimit:
    """So many lines of one name in a window; the first of the next tells how many were held back."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._windows: dict[str, tuple[float, int]] = {}

    def admit(self, name: str) -> int | None:
        """None: hold it back. Else how many were held back before it."""
        now = self._clock()
        began, lines = self._windows.get(name, (now, 0))
        held_back = 0
        if now - began >= WINDOW:
            held_back, began, lines = max(0, lines - LINES_PER_WINDOW), now, 0
        self._windows[name] = (began, lines + 1)
        return held_back if lines < LINES_PER_WINDOW else None


def level_of(event: Event) -> int:
    """Failed calls are worth a line; what the service answered is not."""
    if isinstance(event, events.CallEnded) and event.detail and event.status != "429":
        return logging.WARNING
    if isinstance(event, events.JobEnded) and not isinstance(event.outcome, Answered):
        return logging.INFO
    if isinstance(event, events.Settled) and not event.confirmed:
        return logging.WARNING
    if isinstance(event, events.LocksRenewed) and event.lost:
        return logging.WARNING
    if isinstance(event, events.IntakeClosed) and event.reason == "start-up":
        return logging.INFO
    return LEVELS[type(event)]


def event_name(kind: type[Any]) -> str:
    """`token_refresh_failed` for TokenRefreshFailed."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()


def set_up_logging(level: str) -> logging.Logger:
    """Send this process's logs to standard error, as JSON unless it is a terminal; libraries speak from warnings
    up."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(ReadableLines() if sys.stderr.isatty() else JsonLines())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logger = logging.getLogger("aoai_worker")
    logger.setLevel(level.upper())
    return logger


def _shown(value: Any) -> Any:
    """Outcomes without bodies, settlements by name, times rounded."""
    if isinstance(value, (Answered, Refused)):
        return {"outcome": label_of(value), "status": value.response.status}
    if isinstance(value, Outcome):
        fields = {field.name: str(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"outcome": label_of(value), **fields}
    if dataclasses.is_dataclass(value):
        return type(value).__name__
    if isinstance(value, Exception):
        return f"{type(value).__name__}: {value}"[:500]
    return round(value, 3) if isinstance(value, float) else value
