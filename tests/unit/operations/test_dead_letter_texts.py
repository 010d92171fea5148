"""Dead letters as a person or a script reads them."""

import base64
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.jobs.job import Envelope
from worker.jobs.printable import printable
from worker.jobs.replays import DeadLetter, Survey, dead_letter_of
from worker.operations.dead_letters.texts import (
    as_line,
    describe,
    print_list,
    saved_line,
    shown_body,
    summary,
)


def envelope(
    number: int = 17, *, body: bytes = b"{", reason: str | None = "InvalidJson", **fields: Any
) -> Envelope:
    given: dict[str, Any] = {
        "message_id": "b/q-1",
        "correlation_id": "b",
        "properties": {"DeadLetterErrorDescription": "fix\nit", "n": 7},
    }
    return Envelope(
        body=body,
        queue="jobs",
        sequence_number=number,
        enqueued_at=1_795_500_000.0,
        dead_letter_reason=reason,
        **given | fields,
    )


def letters(*reasons: str | None) -> Sequence[DeadLetter]:
    return [dead_letter_of(envelope(number, reason=reason)) for number, reason in enumerate(reasons, 1)]


def test_a_script_gets_a_line_of_fields_between_tabs() -> None:
    line = as_line(dead_letter_of(envelope(message_id=None)))
    assert line == "17\t2026-11-24T06:00:00.000Z\t-\tb\tInvalidJson\tfix\\nit\t1"


@given(st.text(), st.text(), st.text())
def test_nothing_that_a_producer_writes_steers_a_terminal_or_breaks_a_line(one: str, two: str, three: str) -> None:
    written = envelope(
        message_id=one, correlation_id=two, properties={"DeadLetterErrorDescription": three, one: three, two: 1}
    )
    assert as_line(dead_letter_of(written)).replace("\t", "").isprintable()
    assert all(line.isprintable() for line in describe(written))


def test_what_is_escaped_can_be_told_from_what_is_not() -> None:
    assert printable("caf\u00e9 \x1b[2J\u202e\n") == "caf\u00e9 \\x1b[2J\\u202e\\n"
    assert shown_body(b"one\n\ttwo\x00\xff") == "one\n\ttwo\\x00\\xff"


@given(st.binary())
def test_what_is_saved_has_the_body_byte_for_byte(body: bytes) -> None:
    saved = json.loads(saved_line(envelope(body=body)))
    kept = saved["body"].encode() if "body" in saved else base64.b64decode(saved["body_base64"])
    assert kept == body


def test_what_is_saved_is_the_whole_message_on_one_line() -> None:
    line = saved_line(envelope(content_type="text/plain"))
    assert b"\n" not in line
    assert json.loads(line) == {
        "sequence_number": 17,
        "enqueued": "2026-11-24T06:00:00.000Z",
        "message_id": "b/q-1",
        "batch_id": "b",
        "reason": "InvalidJson",
        "description": "fix\nit",
        "size": 1,
        "queue": "jobs",
        "content_type": "text/plain",
        "delivery_count": 0,
        "properties": {"n": 7},
        "body": "{",
    }


def test_a_body_that_is_no_bytes_is_saved_as_far_as_json_can_say_it() -> None:
    saved = json.loads(saved_line(envelope(), value={b"a": [1, b"\xff", None], 2: {b"b": 1.5}}))
    assert saved["body_value"] == {"a": [1, "\\xff", None], "2": {"b": 1.5}}
    assert "body" not in saved


def test_the_whole_of_one_says_how_it_would_be_replayed() -> None:
    lines = dict(line.split("  ", 1) for line in describe(envelope()))
    told = {name: value.strip() for name, value in lines.items()}
    assert told["replayed as"] == "b/q-1~r1"
    assert told["property n"] == "7"
    assert told["description"] == "fix\\nit"


def test_no_line_of_a_list_is_wider_than_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    long = envelope(
        message_id="m" * 128, correlation_id="b" * 48, properties={"DeadLetterErrorDescription": "d" * 900}
    )
    print_list([dead_letter_of(long), *letters("InvalidJob", None)])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7
    assert max(map(len, lines)) == 80
    assert lines[6].strip() == "no reason: fix\\nit"


def test_the_summary_counts_by_reason_and_names_the_next_step() -> None:
    found = Survey(letters=letters("InvalidJson", "InvalidJson", None), is_whole=True)
    told = summary("jobs", found, 3)
    assert told.startswith(
        "3 dead letters in queue jobs: 2 InvalidJson, 1 no reason.\nNext: aoai-worker dlq show SEQ"
    )
    assert "Shown are the first 2; --limit N shows more." in summary("jobs", found, 2)
    assert summary("jobs", Survey(letters=[], is_whole=True), 0) == "No dead letters in queue jobs."


def test_a_summary_that_did_not_see_all_says_more_than() -> None:
    assert summary("jobs", Survey(letters=letters("A"), is_whole=False), 1).startswith("more than 1 dead letters")


def test_what_the_workers_end_themselves_is_said() -> None:
    assert "error line" in summary("jobs", Survey(letters=letters("TTLExpiredException"), is_whole=True), 1)
    assert "error line" not in summary("jobs", Survey(letters=letters("InvalidJob"), is_whole=True), 1)
