"""What others wrote is shown to a person, and steers no terminal."""

from pathlib import Path
from typing import Any

import orjson
import pytest

import worker.client
from tests.support.commands import FakeClient, call
from tests.support.decoders import RESULT
from worker.client import BatchDetail, BatchStatus, CollectionRecord, OtherBatch, UnusableOutput
from worker.client.result_files import ResultFiles
from worker.errors import SinkUnavailable
from worker.jobs.batch_records import Manifest, PodReport
from worker.jobs.outcomes import Usage

EVIL = "\x1b]0;owned\x07\x1b[2J\u202etxt.exe\u2028\x9b31m"
STATUS = BatchStatus(
    batch_id="b1",
    total=3,
    detail=BatchDetail(
        submitted_at=EVIL,
        cancelled_at=EVIL,
        failures={EVIL: 1},
        warnings={EVIL: 1},
        usage={EVIL: Usage(prompt=1)},
        running=1,
        pods=(PodReport(pod=EVIL, at=0.0, running={"b1": 1}, waits={EVIL: EVIL}),),
    ),
)
COLLECTED = BatchStatus(
    batch_id="b1",
    total=3,
    collected=CollectionRecord(
        total=3, sha256=EVIL, submitted_at=EVIL, succeeded=3, failed=0, collected_at=EVIL, out=EVIL
    ),
)


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("status b1", STATUS),
        ("status b1", COLLECTED),
        ("status b1 --json", STATUS),
        ("status b1 --watch", [STATUS]),
        ("list", [STATUS]),
        ("list --json", [STATUS]),
        ("cancel b1", STATUS),
        ("cancel b1 --json", STATUS),
        ("status b1", OtherBatch("b1", Manifest(batch_id="b1", total=1, sha256=EVIL, submitted_at=EVIL))),
        ("status b1", SinkUnavailable(f"HTTP 403 {EVIL}")),
    ],
)
def test_records_and_errors_are_shown_escaped(monkeypatch: pytest.MonkeyPatch, command: str, answer: Any) -> None:
    monkeypatch.setattr(worker.client, "JobClient", FakeClient(answer))
    result = call(*command.split())
    assert result.exit_code in (0, 1, 2, 3), result.output
    assert_harmless(result.stdout)
    assert_harmless(result.stderr)
    assert "b1" in result.output or "HTTP 403" in result.output


def test_a_hostile_file_that_is_in_the_way_of_a_collection_is_named_and_left_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    document = orjson.loads(RESULT)
    document["worker"]["batch_id"] = EVIL
    partial = tmp_path / "out.jsonl.partial"
    partial.write_bytes(hostile := orjson.dumps(document) + b"\n")
    with pytest.raises(UnusableOutput, match="holds results of batch") as refused:
        ResultFiles("b1", tmp_path / "out.jsonl", None).__enter__()
    assert partial.read_bytes() == hostile
    monkeypatch.setattr(worker.client, "JobClient", FakeClient(refused.value))
    result = call("collect", "b1", "-o", tmp_path / "other.jsonl")
    assert result.exit_code == 2
    assert "owned" in result.stderr
    assert_harmless(result.stderr)


def assert_harmless(text: str) -> None:
    assert all(one.isprintable() or one == "\n" for one in text), ascii(text)
