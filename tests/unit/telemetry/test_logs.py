"""The log: one line of JSON an event, nothing that belongs to a job's author, nothing that opens a door."""

import dataclasses
import json
import logging
import sys
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.clock import Clock
from tests.support.examples import EVENT_TYPES, OUTCOMES, PAYLOAD, SETTLEMENTS, example_of
from worker import interfaces as events
from worker.errors import NotAJob
from worker.jobs.job import parse_line
from worker.jobs.outcomes import Answered, Complete, Failed, FailureCode, Outcome, Settlement, Unreadable
from worker.telemetry.logs import (
    LEVELS,
    LINES_PER_WINDOW,
    WINDOW,
    EventLog,
    JsonLines,
    LineLimit,
    ReadableLines,
    event_name,
    level_of,
    set_up_logging,
)

JWT = "eyJhbGciOiJSUzI1NiIsImtpZCI6IjEifQ.eyJhdWQiOiJodHRwczovL2F6dXJlIn0.c2lnbmF0dXJl-_"


class Lines(logging.Handler):
    """Keeps what would have been written."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(JsonLines())
        self.written: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.written.append(self.format(record))

    @property
    def parsed(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.written]


@pytest.fixture
def lines() -> Lines:
    return Lines()


@pytest.fixture
def logger(lines: Lines) -> Iterator[logging.Logger]:
    made = logging.getLogger("test_logs")
    made.setLevel(logging.DEBUG)
    made.propagate = False
    made.addHandler(lines)
    yield made
    made.removeHandler(lines)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log(logger: logging.Logger, clock: Clock) -> EventLog:
    return EventLog(logger, clock)


def told(detail: str) -> str:
    """How a text that somebody else wrote appears in a line."""
    record = logging.makeLogRecord({"msg": "event", "detail": detail})
    line = JsonLines().format(record)
    shown = json.loads(line)["detail"]
    assert isinstance(shown, str)
    return shown


# Every event


def test_every_event_has_a_level_and_no_level_is_for_nothing() -> None:
    assert set(LEVELS) == set(EVENT_TYPES)


@pytest.mark.parametrize("kind", EVENT_TYPES)
def test_every_event_becomes_one_line_with_its_name_and_fields(
    log: EventLog, lines: Lines, kind: type[Any]
) -> None:
    log(example_of(kind))
    (line,) = lines.parsed
    assert line["event"] == event_name(kind)
    assert line["level"] in {"debug", "info", "warning", "error"}
    assert {field.name for field in dataclasses.fields(kind)} <= set(line)
    assert len(lines.written[0].splitlines()) == 1


@pytest.mark.parametrize("kind", EVENT_TYPES)
def test_no_event_shows_a_prompt_or_an_answer(log: EventLog, lines: Lines, kind: type[Any]) -> None:
    log(example_of(kind))
    assert PAYLOAD not in lines.written[0]


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_an_outcome_is_shown_without_bodies(log: EventLog, lines: Lines, outcome: Outcome) -> None:
    log(example_of(events.JobEnded, outcome=outcome))
    assert PAYLOAD not in lines.written[0]
    assert lines.parsed[0]["outcome"]["outcome"]


@pytest.mark.parametrize("settlement", SETTLEMENTS)
def test_a_settlement_is_shown_by_its_name(log: EventLog, lines: Lines, settlement: Settlement) -> None:
    log(example_of(events.Settled, settlement=settlement))
    assert lines.parsed[0]["settlement"] == type(settlement).__name__


def test_the_examples_leave_out_no_outcome_and_no_settlement() -> None:
    assert {type(outcome) for outcome in OUTCOMES} == set(get_args(Outcome))
    assert {type(settlement) for settlement in SETTLEMENTS} == set(get_args(Settlement))


@pytest.mark.parametrize("body", [json.dumps(PAYLOAD), json.dumps([PAYLOAD]), json.dumps({"body": PAYLOAD})])
def test_what_is_dead_lettered_does_not_show_its_content(log: EventLog, lines: Lines, body: str) -> None:
    with pytest.raises(NotAJob) as caught:
        parse_line(body.encode())
    unreadable = Unreadable(reason=caught.value.reason, description=caught.value.description)
    log(example_of(events.JobEnded, outcome=unreadable))
    assert lines.parsed[0]["outcome"]["reason"] == "InvalidJob"
    assert PAYLOAD[:20] not in lines.written[0]


def test_a_line_begins_with_when_how_bad_and_what(log: EventLog, lines: Lines) -> None:
    log(events.GateClosed(deployment="mini-1", reason="throttled", seconds=1.23456))
    (line,) = lines.parsed
    assert list(line)[:4] == ["time", "level", "event", "logger"]
    assert line["time"].endswith("+00:00")
    assert (line["level"], line["event"], line["logger"]) == ("info", "gate_closed", "test_logs")
    assert (line["deployment"], line["reason"], line["seconds"]) == ("mini-1", "throttled", 1.235)


def test_a_failure_is_shown_with_its_code_and_message(log: EventLog, lines: Lines) -> None:
    log(example_of(events.JobEnded, outcome=Failed(code=FailureCode.EXPIRED, message="too late")))
    assert lines.parsed[0]["outcome"] == {"outcome": "expired", "code": "expired", "message": "too late"}


def test_a_fault_of_ours_is_shown_with_its_traceback(log: EventLog, lines: Lines) -> None:
    try:
        raise ZeroDivisionError("by zero")
    except ZeroDivisionError as error:
        log(events.JobFaulted(message_id="b1/a", error=error))
    (line,) = lines.parsed
    assert line["level"] == "error"
    assert line["error"] == "ZeroDivisionError: by zero"
    assert "test_a_fault_of_ours_is_shown" in line["traceback"]
    assert len(lines.written[0].splitlines()) == 1


# Levels


@pytest.mark.parametrize(
    ("event", "level"),
    [
        (example_of(events.Started), logging.INFO),
        (example_of(events.JobsReceived), logging.DEBUG),
        (example_of(events.JobStarted), logging.DEBUG),
        (example_of(events.CallEnded, status="200", detail=None), logging.DEBUG),
        (example_of(events.CallEnded, status="429", detail="slow down"), logging.DEBUG),
        (example_of(events.CallEnded, status="503", detail="down"), logging.WARNING),
        (example_of(events.CallEnded, status="none", detail="timeout"), logging.WARNING),
        (example_of(events.AnswerUnfit), logging.INFO),
        (example_of(events.BackedOff), logging.INFO),
        (example_of(events.GateClosed), logging.INFO),
        (example_of(events.IntakeClosed, reason="start-up"), logging.INFO),
        (example_of(events.IntakeClosed, reason="sink"), logging.WARNING),
        (example_of(events.IntakeOpened), logging.INFO),
        (example_of(events.ResultWritten), logging.DEBUG),
        (example_of(events.Settled, confirmed=True), logging.DEBUG),
        (example_of(events.Settled, confirmed=False), logging.WARNING),
        (example_of(events.LocksRenewed, lost=0), logging.DEBUG),
        (example_of(events.LocksRenewed, lost=1), logging.WARNING),
        (example_of(events.LocksNotRenewed), logging.WARNING),
        (example_of(events.ReceiverRestarted), logging.WARNING),
        (example_of(events.TokenRefreshed), logging.INFO),
        (example_of(events.TokenRefreshFailed), logging.ERROR),
        (example_of(events.SetupCheckFailed), logging.ERROR),
        (example_of(events.Draining), logging.INFO),
        (example_of(events.Drained), logging.INFO),
        (example_of(events.JobFaulted), logging.ERROR),
        *[
            (
                example_of(events.JobEnded, outcome=outcome),
                logging.DEBUG if isinstance(outcome, Answered) else logging.INFO,
            )
            for outcome in OUTCOMES
        ],
    ],
)
def test_what_comes_with_every_job_is_debug_and_what_needs_somebody_is_not(event: events.Event, level: int) -> None:
    assert level_of(event) == level


def test_below_its_level_nothing_is_written_or_counted(log: EventLog, logger: logging.Logger, lines: Lines) -> None:
    logger.setLevel(logging.ERROR)
    for _ in range(LINES_PER_WINDOW + 1):
        log(example_of(events.GateClosed))
    assert lines.written == []
    logger.setLevel(logging.INFO)
    log(example_of(events.GateClosed))
    assert len(lines.written) == 1


def test_names_are_words_in_lower_case() -> None:
    assert event_name(events.TokenRefreshFailed) == "token_refresh_failed"
    names = [event_name(kind) for kind in EVENT_TYPES]
    assert len(set(names)) == len(names)


# A bad night


def test_lines_of_one_name_are_limited_and_what_was_held_back_is_counted(
    log: EventLog, lines: Lines, clock: Clock
) -> None:
    for _ in range(LINES_PER_WINDOW + 7):
        log(example_of(events.TokenRefreshFailed))
    assert len(lines.written) == LINES_PER_WINDOW
    assert not any("held_back" in line for line in lines.parsed)
    clock.now += WINDOW
    log(example_of(events.TokenRefreshFailed))
    log(example_of(events.TokenRefreshFailed))
    assert len(lines.written) == LINES_PER_WINDOW + 2
    assert lines.parsed[-2]["held_back"] == 7
    assert "held_back" not in lines.parsed[-1]


def test_a_flood_of_one_name_holds_no_other_back(log: EventLog, lines: Lines) -> None:
    for _ in range(10 * LINES_PER_WINDOW):
        log(example_of(events.TokenRefreshFailed))
    log(example_of(events.Draining))
    assert lines.parsed[-1]["event"] == "draining"


def test_debug_is_never_held_back(log: EventLog, lines: Lines) -> None:
    for _ in range(10 * LINES_PER_WINDOW):
        log(example_of(events.ResultWritten))
    assert len(lines.written) == 10 * LINES_PER_WINDOW


@given(st.lists(st.floats(0, 2 * WINDOW), min_size=1, max_size=200))
def test_no_line_is_lost_without_being_counted(pauses: list[float]) -> None:
    clock = Clock()
    limit = LineLimit(clock)
    admitted = counted = held = 0
    for pause in pauses:
        clock.now += pause
        answer = limit.admit("name")
        if answer is None:
            held += 1
        else:
            admitted += 1
            counted += answer
    assert admitted + held == len(pauses)
    clock.now += WINDOW
    last = limit.admit("name")
    assert last is not None
    assert counted + last == held


@given(st.lists(st.floats(0, WINDOW), min_size=1, max_size=200))
def test_no_window_ever_admits_more_than_its_limit(pauses: list[float]) -> None:
    clock = Clock()
    limit = LineLimit(clock)
    admitted: list[float] = []
    for pause in pauses:
        clock.now += pause
        if limit.admit("name") is not None:
            admitted.append(clock.now)
    # any stretch of that length touches two windows at most
    for moment in admitted:
        assert sum(moment <= other < moment + WINDOW for other in admitted) <= 2 * LINES_PER_WINDOW


# Secrets


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"rejected {JWT} as expired", "rejected [redacted] as expired"),
        (f"Authorization: Bearer {JWT}", "Authorization: [redacted]"),
        ("Authorization: Bearer opaque-token-0123456789", "Authorization: [redacted]"),
        ("Endpoint=sb://x/;SharedAccessKeyName=Root;SharedAccessKey=s3kret=;", "Root;[redacted];"),
        ("AccountName=x;AccountKey=s3kret==;EndpointSuffix=y", "AccountName=x;[redacted];EndpointSuffix=y"),
        ("https://x.blob.core.windows.net/c?sv=1&sig=s3kret%3D&se=2", "?sv=1&[redacted]&se=2"),
        ("api-key: s3kret", "[redacted]"),
        ("{'api_key': 's3kret', 'x': 1}", "{'[redacted]', 'x': 1}"),
        ('{"api_key": "s3kret", "x": 1}', '{"[redacted]", "x": 1}'),
        ('{"apiKey":"s3kret"}', '{"[redacted]"}'),
        ('url="https://x?sig=s3kret"', 'url="https://x?[redacted]"'),
        ("client_secret=s3kret&grant_type=x", "[redacted]&grant_type=x"),
        ("nothing of the kind: the model said no", "nothing of the kind: the model said no"),
        ("Bearer tokens are not accepted here", "Bearer tokens are not accepted here"),
    ],
)
def test_a_secret_in_somebodys_error_is_cut_out(text: str, shown: str) -> None:
    assert told(text).endswith(shown)
    assert "s3kret" not in told(text)


def test_a_secret_is_cut_out_wherever_it_stands() -> None:
    class Odd:
        def __str__(self) -> str:
            return f"odd {JWT}"

    try:
        raise ValueError(f"with {JWT}")
    except ValueError:
        record = logging.makeLogRecord(
            {"msg": f"about {JWT}", "exc_info": sys.exc_info(), "deep": {"list": [JWT, (JWT,)]}, "odd": Odd()}
        )
    line = JsonLines().format(record)
    assert "eyJ" not in line
    assert json.loads(line)["deep"] == {"list": ["[redacted]", ["[redacted]"]]}
    assert json.loads(line)["odd"] == "odd [redacted]"


@given(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.sampled_from(["sig=", "api_key: ", '"api_key": "', "SharedAccessKey=", "client_secret='", "eyJ", "Bearer "]),
    st.text(st.characters(exclude_categories=["Cs"])),
)
def test_a_line_remains_json_whatever_is_cut_out_of_it(before: str, key: str, after: str) -> None:
    told(before + key + after)


# The process's logging


@pytest.fixture
def restored() -> Iterator[None]:
    """The loggers as they were, since setting them up is for the whole process."""
    root, ours = logging.getLogger(), logging.getLogger("aoai_worker")
    handlers, levels = list(root.handlers), (root.level, ours.level)
    yield
    root.handlers = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


@pytest.mark.parametrize("mark", [chr(mark) for mark in (0x0A, 0x1B, 0x7F, 0x85, 0x2028, 0x2029, 0x202E, 0x2066)])
@pytest.mark.parametrize("formatter", [JsonLines(), ReadableLines()])
def test_what_would_end_a_line_or_turn_its_direction_is_escaped(formatter: logging.Formatter, mark: str) -> None:
    record = logging.makeLogRecord({"msg": f"from{mark}outside", "model": f"gpt{mark}4"})
    line = formatter.format(record)
    assert mark not in line
    assert len(line.splitlines()) == 1
    if isinstance(formatter, JsonLines):
        assert json.loads(line)["model"] == f"gpt{mark}4"


@pytest.mark.parametrize("formatter", [JsonLines(), ReadableLines()])
def test_a_text_from_outside_is_cut_and_its_length_told(formatter: logging.Formatter) -> None:
    line = formatter.format(logging.makeLogRecord({"msg": "call_ended", "models": ["x" * 200_000] * 2}))
    assert len(line) < 5_000
    assert "(200,000 characters)" in line


def test_on_a_terminal_a_line_is_readable() -> None:
    fields = {"done": 5, "waits_for": {"mini": "429: tokens"}, "none": {}}
    record = logging.makeLogRecord({"msg": "progress", "levelname": "INFO", "created": 1_795_000_000.0, **fields})
    assert ReadableLines().format(record) == '11:06:40 info    progress done=5 waits_for={"mini":"429: tokens"}'


def test_on_a_terminal_a_traceback_stands_below_its_line_without_secrets() -> None:
    try:
        raise ValueError(f"refused {JWT}")
    except ValueError:
        record = logging.makeLogRecord({"msg": "job_faulted", "exc_info": sys.exc_info()})
    first, *rest = ReadableLines().format(record).splitlines()
    assert first.endswith("job_faulted")
    assert rest[-1] == "    ValueError: refused [redacted]"


def test_libraries_speak_from_warnings_up_and_everything_goes_to_standard_error(
    restored: None, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = set_up_logging("info")
    logger.info("ours", extra={"port": 9_090})
    logger.debug("too quiet")
    logging.getLogger("azure").info("too quiet")
    logging.getLogger("azure").warning("theirs: %s", JWT)
    captured = capsys.readouterr()
    lines = [json.loads(line) for line in captured.err.splitlines()]
    assert captured.out == ""
    assert [(line["event"], line["level"]) for line in lines] == [
        ("ours", "info"),
        ("theirs: [redacted]", "warning"),
    ]
    assert lines[0]["port"] == 9_090


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_every_level_of_the_settings_is_one(restored: None, level: str) -> None:
    assert set_up_logging(level).level == getattr(logging, level.upper())
    EventLog(logging.getLogger("aoai_worker"))(example_of(events.Settled, settlement=Complete()))
