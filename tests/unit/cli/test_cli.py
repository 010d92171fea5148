"""The command: exit codes, what goes to standard output, and readable errors."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from azure.servicebus.exceptions import ServiceBusAuthorizationError
from typer.testing import CliRunner

import worker.client
from tests.support.commands import FakeClient, call
from worker.azure.blob.container import refusal
from worker.cli.commands import app
from worker.cli.progress import ProgressLines
from worker.cli.terminal import Heartbeat, parse_seconds
from worker.client import (
    BatchDetail,
    BatchRetry,
    BatchStatus,
    Collection,
    CollectionRecord,
    InvalidQueueName,
    NeedsBlob,
    OtherBatch,
    Progress,
    Submission,
)
from worker.jobs.batch_records import Manifest

GOOD_LINE = (
    '{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m", "messages": []}}\n'
)


@pytest.fixture
def jobs_file(tmp_path: Path) -> Path:
    path = tmp_path / "jobs.jsonl"
    path.write_text(GOOD_LINE)
    return path


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AOAI_WORKER_SERVICEBUS_NAMESPACE", "AZURE_OPENAI_ENDPOINT", "AOAI_WORKER_MODELS"):
        monkeypatch.delenv(name, raising=False)


def answer_with(monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
    monkeypatch.setattr(worker.client, "JobClient", FakeClient(answer))


def collection(*, failed: int = 0, total: int | None = 3, complete: bool = False) -> Collection:
    return Collection(batch_id="b1", total=total, succeeded=2, failed=failed, complete=complete)


def test_submit_prints_the_batch_id_and_nothing_else_to_standard_output(
    monkeypatch: pytest.MonkeyPatch, jobs_file: Path
) -> None:
    answer_with(monkeypatch, Submission(batch_id="b1", total=1, sha256=""))
    result = call("submit", jobs_file)
    assert (result.exit_code, result.stdout) == (0, "b1\n")
    assert "collect b1" in result.stderr


@pytest.mark.parametrize(("total", "told"), [(1, "1 job submitted."), (1_319, "1,319 jobs submitted.")])
def test_submit_counts_in_english(monkeypatch: pytest.MonkeyPatch, jobs_file: Path, total: int, told: str) -> None:
    answer_with(monkeypatch, Submission(batch_id="b1", total=total, sha256=""))
    assert told in call("submit", jobs_file).stderr


def test_submit_reads_standard_input_and_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    answer_with(monkeypatch, Submission(batch_id="b1", total=1, sha256=""))
    assert call("submit", "-", input=GOOD_LINE).stdout == "b1\n"
    wrong = call("submit", "-", input=GOOD_LINE * 2)
    assert wrong.exit_code == 2
    assert wrong.stderr.startswith("standard input cannot be submitted; nothing was sent:\n  line 2: custom_id 'a'")


def test_a_file_that_is_not_there_is_refused_as_wrong_input(tmp_path: Path) -> None:
    result = call("submit", tmp_path / "nowhere.jsonl")
    assert result.exit_code == 2
    assert "does not exist" in result.stderr


def test_submit_reads_a_pipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answer_with(monkeypatch, Submission(batch_id="b1", total=1, sha256=""))
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as thread:
        writing = thread.submit(pipe.write_text, GOOD_LINE)
        assert call("submit", pipe).stdout == "b1\n"
        writing.result()


def test_submit_says_what_it_skips(monkeypatch: pytest.MonkeyPatch, jobs_file: Path) -> None:
    answer_with(monkeypatch, Submission(batch_id="b1", total=1, sha256=""))
    jobs_file.write_bytes(b"\xef\xbb\xbf\n\n" + GOOD_LINE.encode())
    result = call("submit", jobs_file)
    assert f"{jobs_file}: skipped 2 blank lines and 1 byte order mark\n" in result.stderr
    assert result.stdout == "b1\n"


def test_submit_warns_of_what_a_model_is_likely_to_refuse_and_sends_it(
    monkeypatch: pytest.MonkeyPatch, jobs_file: Path
) -> None:
    answer_with(monkeypatch, Submission(batch_id="b1", total=1, sha256=""))
    line = GOOD_LINE.replace('"m"', '"gpt-5.4-mini", "max_tokens": 5')
    jobs_file.write_text(line + line.replace('"a"', '"b"'))
    result = call("submit", jobs_file)
    assert result.exit_code == 0
    assert result.stderr.count("2 lines have 'max_tokens', which the model gpt-5.4-mini is likely to refuse") == 1
    assert result.stdout == "b1\n"


def test_a_dry_run_prints_jobs_and_tokens_by_model_and_asks_no_azure(jobs_file: Path) -> None:
    line = GOOD_LINE.replace('"m"', '"m", "max_tokens": 700')
    jobs_file.write_text(
        GOOD_LINE + line.replace('"a"', '"b"') + GOOD_LINE.replace('"m"', '"long-name"').replace('"a"', '"c"')
    )
    result = call("submit", jobs_file, "--dry-run", "--model-map", "m=new")
    assert result.exit_code == 0
    rows = [line.split() for line in result.stdout.splitlines()]
    assert [row[:2] for row in rows] == [["model", "jobs"], ["long-name", "1"], ["new", "2"]]
    assert int(rows[2][3]) == 700 + 256
    assert "Nothing was sent" in result.stderr


def test_lines_that_are_left_out_are_written_beside_the_file_with_their_reasons(
    monkeypatch: pytest.MonkeyPatch, jobs_file: Path
) -> None:
    answer_with(monkeypatch, Submission(batch_id="b1", total=1, sha256=""))
    jobs_file.write_bytes(b'{"a": \xff}\n' + GOOD_LINE.encode() * 30)
    result = call("submit", jobs_file, "--skip-invalid")
    assert (result.exit_code, result.stdout) == (3, "b1\n")
    written = [json.loads(line) for line in Path(f"{jobs_file}.invalid.jsonl").read_text().splitlines()]
    assert [line["line"] for line in written] == [1, *range(3, 32)]
    assert written[0]["content"] == '{"a": \\xff}'
    assert written[1] == {
        "line": 3,
        "problem": "custom_id 'a' is already on line 2; make it unique",
        "content": GOOD_LINE.strip(),
    }
    assert f"{jobs_file}: 30 lines are left out:\n  line 1: column 7" in result.stderr
    assert "  ... and 10 more\n" in result.stderr


def test_where_nothing_is_left_out_no_file_is_written(monkeypatch: pytest.MonkeyPatch, jobs_file: Path) -> None:
    answer_with(monkeypatch, Submission(batch_id="b1", total=1, sha256=""))
    assert call("submit", jobs_file, "--skip-invalid").exit_code == 0
    assert not Path(f"{jobs_file}.invalid.jsonl").exists()


@pytest.mark.parametrize("option", ["--deadline", "--at"])
@pytest.mark.parametrize("when", ["soon", "0s", "2020-01-01T00:00:00Z", "366d"])
def test_a_moment_that_is_none_to_come_is_refused(jobs_file: Path, option: str, when: str) -> None:
    result = call("submit", jobs_file, option, when)
    assert result.exit_code == 2
    assert option in result.stderr
    assert "such as 4h" in " ".join(result.stderr.replace("│", " ").split())


def test_a_moment_without_a_time_zone_is_refused_with_two_that_have_one(jobs_file: Path) -> None:
    result = call("submit", jobs_file, "--deadline", "2030-01-01T00:00:00")
    assert result.exit_code == 2
    assert "has no time zone. Next: add one, such as 2030-01-01T00:00:00Z (UTC) or" in " ".join(
        result.stderr.replace("│", " ").split()
    )


def test_a_dry_run_tells_the_invalid_lines_and_writes_no_file(jobs_file: Path) -> None:
    jobs_file.write_text(f"{GOOD_LINE}{{\n")
    result = call("submit", jobs_file, "--skip-invalid", "--dry-run")
    assert result.exit_code == 3
    assert "1 line is left out" in result.stderr
    assert not Path(f"{jobs_file}.invalid.jsonl").exists()


def test_a_deadline_before_the_jobs_can_be_received_is_refused_before_the_file_is_read(jobs_file: Path) -> None:
    jobs_file.write_text("{")
    result = call("submit", jobs_file, "--at", "2h", "--deadline", "1h")
    assert result.exit_code == 2
    assert "'1h' is not after --at 2h" in result.stderr


@pytest.mark.parametrize("pairs", [["m"], ["m="], ["=m"], ["m=a b"], ["m=a", "m=b"]])
def test_a_model_map_that_is_none_is_refused(jobs_file: Path, pairs: list[str]) -> None:
    result = call("submit", jobs_file, *(word for pair in pairs for word in ("--model-map", pair)))
    assert result.exit_code == 2
    assert "OLD=NEW" in result.stderr


@pytest.mark.parametrize("batch_id", ["", "a/b", "b" * 49])
def test_a_wrong_batch_id_is_refused_before_the_file_is_read(tmp_path: Path, batch_id: str) -> None:
    path = tmp_path / "jobs.jsonl"
    path.write_text("{")
    result = call("submit", path, "--batch", batch_id)
    assert result.exit_code == 2
    assert f"batch id '{batch_id}': allowed are 1 to 48 letters" in result.stderr
    assert "line 1" not in result.stderr


def test_whoever_waits_is_told_for_what_and_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("worker.cli.terminal.SILENCE", 0.05)
    with Heartbeat("the check of jobs.jsonl") as heartbeat:
        wait_until_said(capsys, "waiting for the check of jobs.jsonl")
        heartbeat.wait_for("queue 'jobs' to confirm 812 messages")
        wait_until_said(capsys, "waiting for queue 'jobs' to confirm 812 messages")


class SlowClient(FakeClient):
    """Says what it waits for, and answers half a second later."""

    async def status(self, batch_id: str) -> Any:
        await asyncio.sleep(0.5)
        return self._answer

    async def collect(self, *_: Any, on_waiting: Callable[[str], None], **__: Any) -> Any:
        on_waiting("queue 'results' to answer about batch b1")
        await asyncio.sleep(0.5)
        return self._answer


@pytest.mark.parametrize(
    ("command", "answer", "told"),
    [
        ("status b1", BatchStatus(batch_id="b1", total=1), "waiting for a token and an answer about batch b1"),
        ("collect b1 -o -", collection(complete=True), "waiting for queue 'results' to answer about batch b1"),
    ],
)
def test_whoever_looks_or_collects_is_told_too_what_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, command: str, answer: Any, told: str
) -> None:
    monkeypatch.setattr("worker.cli.terminal.SILENCE", 0.05)
    monkeypatch.setattr(worker.client, "JobClient", SlowClient(answer))
    result = call(*command.split())
    assert result.exit_code == 0
    assert told in result.stderr


def test_a_pause_of_our_own_is_not_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("worker.cli.terminal.SILENCE", 0.01)
    with Heartbeat("") as heartbeat:
        time.sleep(0.2)
        assert capsys.readouterr().err == ""
        heartbeat.wait_for("the next look")
        wait_until_said(capsys, "waiting for the next look")


def wait_until_said(capsys: pytest.CaptureFixture[str], text: str) -> None:
    ends = time.monotonic() + 10
    while text not in capsys.readouterr().err:
        assert time.monotonic() < ends, f"{text!r} was not said"
        time.sleep(0.01)


def test_a_wrong_file_is_refused_line_by_line_before_any_setting_is_read(tmp_path: Path) -> None:
    path = tmp_path / "jobs.jsonl"
    path.write_text(GOOD_LINE + "{\n" + GOOD_LINE)
    result = call("submit", path)
    assert result.exit_code == 2
    assert "line 2: " in result.stderr
    assert "line 3: custom_id 'a' is already on line 1" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("command", ["run", "status b1", "collect b1 -o out", "dlq list", "dlq replay --all"])
def test_wrong_settings_are_all_told_at_once(command: str) -> None:
    result = call(*command.split())
    assert result.exit_code == 2
    assert "AOAI_WORKER_SERVICEBUS_NAMESPACE is missing" in result.stderr
    assert ("AZURE_OPENAI_ENDPOINT is missing" in result.stderr) == (command == "run")


def test_a_key_in_the_environment_is_refused_without_being_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", "very-secret")
    result = call("status", "b1")
    assert result.exit_code == 2
    assert "AZURE_OPENAI_API_KEY" in result.stderr
    assert "very-secret" not in result.output


DETAIL = BatchDetail()
RECORD = CollectionRecord(
    total=3,
    sha256="0" * 64,
    submitted_at="2026-11-23T18:00:00Z",
    succeeded=2,
    failed=1,
    collected_at="2026-11-23T19:00:00Z",
    out="out.jsonl",
)


def test_a_batch_that_was_submitted_before_is_said_to_be(monkeypatch: pytest.MonkeyPatch, jobs_file: Path) -> None:
    answer_with(monkeypatch, Submission(batch_id="b1", total=1, sha256="", submitted_before="2026-11-23T18:00:00Z"))
    result = call("submit", jobs_file)
    assert (result.exit_code, result.stdout) == (0, "b1\n")
    assert "submitted before, at 2026-11-23T18:00:00Z" in result.stderr


@pytest.mark.parametrize("options", [[], ["--json"]])
@pytest.mark.parametrize("detail", [None, BatchDetail()], ids=["queue", "blob"])
def test_the_status_of_an_unknown_batch_is_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, options: list[str], detail: BatchDetail | None
) -> None:
    answer_with(monkeypatch, BatchStatus(batch_id="b1", detail=detail))
    result = call("status", "b1", *options)
    assert result.exit_code == 1
    assert options or "b1: unknown." in result.stdout


def test_nothing_is_ever_said_to_be_above_100_percent(capsys: pytest.CaptureFixture[str]) -> None:
    report = ProgressLines("collected")
    report(Progress(done=5, total=2))
    assert "100 %" in capsys.readouterr().err


def test_status_as_json_is_one_object_on_standard_output(monkeypatch: pytest.MonkeyPatch) -> None:
    answer_with(monkeypatch, BatchStatus(batch_id="b1", total=3, succeeded=2, failed=1))
    result = call("status", "b1", "--json")
    assert json.loads(result.stdout) == {
        "batch_id": "b1",
        "total": 3,
        "succeeded": 2,
        "failed": 1,
        "complete": True,
        "being_collected_by_other": False,
        "collected": None,
        "later": 0,
        "detail": None,
    }


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (BatchStatus(batch_id="b1", total=3, succeeded=1), "1 of 3 results to be collected"),
        (BatchStatus(batch_id="b1", total=1, failed=1), "complete, 1 result to be collected"),
        (BatchStatus(batch_id="b1", succeeded=2), "2 results to be collected (2 succeeded, 0 failed); no manifest"),
        (
            BatchStatus(batch_id="b1", total=3, succeeded=2, failed=1, collected=RECORD, later=1),
            "collected at 2026-11-23T19:00:00Z into out.jsonl, 3 results (2 succeeded, 1 failed); 1 later result",
        ),
        (BatchStatus(batch_id="b1", being_collected_by_other=True), "another process is collecting it"),
        (
            BatchStatus(batch_id="b1", total=3, succeeded=1, failed=1, detail=DETAIL),
            "2 of 3 results (1 succeeded",
        ),
        (BatchStatus(batch_id="b1", total=1, failed=1, detail=DETAIL), "complete, 1 result (0 succeeded"),
    ],
)
def test_status_is_told_in_words(monkeypatch: pytest.MonkeyPatch, status: BatchStatus, told: str) -> None:
    answer_with(monkeypatch, status)
    assert told in call("status", "b1").stdout


@pytest.mark.parametrize(
    ("answer", "code", "told"),
    [
        (collection(complete=True), 0, "complete, 2 results (2 succeeded, 0 failed) in out.jsonl"),
        (collection(failed=1, complete=True), 4, "complete, 3 results (2 succeeded, 1 failed) in out.jsonl"),
        (collection(failed=1), 3, "3 results so far (2 succeeded, 1 failed)"),
        (collection(), 3, "1 of 3 are missing"),
        (collection(total=None), 3, "its manifest has not arrived"),
        (
            replace(collection(complete=True), cancelled=1, cancelled_at="then"),
            4,
            "cancelled, 2 results (2 succeeded, 0 failed) in out.jsonl",
        ),
        (replace(collection(complete=True), cancelled=1, cancelled_at="then"), 4, "1 job will get no result"),
        (
            replace(collection(complete=True, failed=1), cancelled_at="then"),
            4,
            "b1: cancelled, 3 results (2 succeeded",
        ),
        (replace(collection(complete=True), cancelled_at="then"), 0, "b1: complete, 2 results (2 succeeded"),
        (replace(collection(), outdated=1), 3, "2 of 3 are missing; 1 of these were sent again"),
        (replace(collection(total=None), succeeded=0), 3, "Next: check the batch id that submit printed"),
    ],
)
def test_collect_tells_by_its_exit_code_whether_the_batch_is_complete(
    monkeypatch: pytest.MonkeyPatch, answer: Collection, code: int, told: str
) -> None:
    answer_with(monkeypatch, answer)
    result = call("collect", "b1", "-o", "out.jsonl")
    assert (result.exit_code, result.stdout) == (code, "")
    assert told in result.stderr


def test_a_collection_that_gave_up_says_what_it_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    answer_with(monkeypatch, replace(collection(), timed_out=True))
    result = call("collect", "b1", "-o", "out.jsonl", "--follow", "--timeout", "90s")
    assert result.exit_code == 3
    assert "1 of 3 are missing" in result.stderr
    assert "No manifest and no new result arrived within 90s (--timeout)" in result.stderr


@pytest.mark.parametrize(
    ("text", "seconds"), [("1", 1), ("90", 90), ("90s", 90), ("15m", 900), ("1.5h", 5_400), ("7d", 604_800)]
)
def test_a_timeout_is_given_in_seconds_or_with_a_unit(text: str, seconds: float) -> None:
    assert parse_seconds(text, "--timeout") == seconds


@pytest.mark.parametrize("text", ["", "0", "-1", "inf", "nan", "1e9", "8d", "15 minutes", "٣", "0.5"])
def test_a_timeout_that_is_none_is_wrong_input(text: str) -> None:
    result = call("collect", "b1", "-o", "out.jsonl", "--follow", f"--timeout={text}")
    assert result.exit_code == 2
    assert "Invalid value for '--timeout'" in result.stderr
    assert "1s to 7d" in result.stderr


@pytest.mark.parametrize("text", ["90s", ""])
def test_a_timeout_of_what_does_not_follow_is_wrong_input(text: str) -> None:
    result = call("collect", "b1", "-o", "out.jsonl", f"--timeout={text}")
    assert result.exit_code == 2
    assert "--follow" in result.stderr


@pytest.mark.parametrize(
    ("selection", "told"),
    [
        ([], "No dead letters are named. Next: give"),
        (["--all", "--reason", "x"], "--reason and --all are given together. Next: give"),
        (["7", "--all"], "sequence numbers and --all are given together. Next: give"),
    ],
)
@pytest.mark.parametrize("command", [["replay"], ["discard", "--save", "-"]])
def test_dead_letters_are_chosen_in_exactly_one_way(command: list[str], selection: list[str], told: str) -> None:
    result = call("dlq", *command, *selection)
    assert (result.exit_code, result.stdout) == (2, "")
    assert told in result.stderr


def test_a_log_says_what_is_waited_for_when_nothing_comes(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    report = ProgressLines("collected", clock=lambda: now)
    for moment, progress in (
        (0, Progress(done=0, total=None)),
        (5, Progress(done=30, total=250)),
        (64, Progress(done=30, total=250)),
        (65, Progress(done=30, total=250)),
        (66, Progress(done=30, total=250)),
        (70, Progress(done=30, total=250, held=True)),
        (80, Progress(done=250, total=250)),
    ):
        now = float(moment)
        report(progress)
    assert capsys.readouterr().err.splitlines() == [
        "waiting for the batch's manifest (0)",
        "collected: 10 % (30)",
        "waiting for the other 220 of 250 results (30)",
        "waiting for another collector to end (30)",
        "collected: 100 % (250; 3/s)",
    ]


def test_programs_get_an_object_of_a_submission_and_of_a_collection(
    monkeypatch: pytest.MonkeyPatch, jobs_file: Path, tmp_path: Path
) -> None:
    answer_with(monkeypatch, Submission(batch_id="b1", total=1, sha256="f00"))
    assert json.loads(call("submit", jobs_file, "--json").stdout) == {
        "batch_id": "b1",
        "total": 1,
        "sha256": "f00",
        "submitted_before": None,
    }
    answer_with(monkeypatch, Collection(batch_id="b1", total=3, succeeded=1, failed=1, complete=False))
    result = call("collect", "b1", "-o", tmp_path / "out", "--json")
    assert result.exit_code == 3
    document = json.loads(result.stdout)
    assert (document["succeeded"], document["failed"], document["missing"]) == (1, 1, 1)
    assert call("collect", "b1", "-o", "-", "--json").stdout == "", "standard output has the results"


def test_a_complete_collection_is_sorted_where_that_is_wanted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lines = [
        b'{"custom_id": "%s", "method": "POST", "url": "/v1/embeddings", "body": {"model": "m", "input": "x"}}'
        % name
        for name in (b"b", b"a")
    ]
    like, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    like.write_bytes(b"\n".join([lines[0], b"no job", lines[1]]))
    for complete, order in ((False, ["a", "b"]), (True, ["b", "a"])):
        out.write_bytes(b'{"custom_id": "a"}\n{"custom_id": "b"}\n')
        answer_with(monkeypatch, collection(complete=complete))
        call("collect", "b1", "-o", out, "--errors", tmp_path / "none", "--sort", like)
        assert [json.loads(line)["custom_id"] for line in out.read_bytes().splitlines()] == order
    assert call("collect", "b1", "-o", "-", "--sort", like).exit_code == 2
    assert call("collect", "b1", "-o", out, "--sort", tmp_path / "absent").exit_code == 2


def test_a_file_that_gives_no_order_is_refused_before_anything_is_collected(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "in.jsonl").write_text("# no jobs\n")
    answer_with(monkeypatch, AssertionError("it was collected"))
    result = call("collect", "b1", "-o", tmp_path / "out.jsonl", "--sort", tmp_path / "in.jsonl")
    assert result.exit_code == 2
    assert "in.jsonl has no line of a Batch input file, such as: line 1: column 1: not JSON" in result.stderr
    assert "Nothing was collected" in result.stderr
    assert "submitted; nothing was sent" not in result.stderr


def test_a_dry_run_tells_what_it_would_cost_where_prices_are_set(
    monkeypatch: pytest.MonkeyPatch, jobs_file: Path
) -> None:
    assert "cost" not in call("submit", jobs_file, "--dry-run").stdout
    monkeypatch.setenv("AOAI_WORKER_PRICES", '{"another": {"input": 1, "output": 2}}')
    assert call("submit", jobs_file, "--dry-run").stdout.splitlines()[1].endswith("no price")


@pytest.mark.parametrize(
    ("prices", "told"),
    [
        ("{", "AOAI_WORKER_PRICES='{': must be JSON such as {"),
        ("[]", "AOAI_WORKER_PRICES=[]: must be JSON such as {"),
        (
            '{"m": {"input": -1, "output": 2}}',
            "AOAI_WORKER_PRICES[m][input]=-1: must be greater than or equal to 0",
        ),
        ('{"m": {"input": 1}}', "AOAI_WORKER_PRICES[m][output] is missing: the price of a million tokens"),
    ],
)
def test_a_dry_run_names_what_is_wrong_with_the_prices(
    monkeypatch: pytest.MonkeyPatch, jobs_file: Path, prices: str, told: str
) -> None:
    monkeypatch.setenv("AOAI_WORKER_PRICES", prices)
    result = call("submit", jobs_file, "--dry-run")
    assert result.exit_code == 2
    assert told in result.stderr
    assert "pydantic" not in result.stderr


def test_a_log_tells_the_speed_and_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    report = ProgressLines("submitted", clock=lambda: now)
    for moment, done in ((0, 10_000), (2, 30_000), (4, 49_000), (10, 100_000)):
        now = float(moment)
        report(Progress(done=done, total=100_000))
    assert capsys.readouterr().err.splitlines() == [
        "submitted: 10 % (10,000)",
        "submitted: 30 % (30,000; 10,000/s, 0:00:07 left)",
        "submitted: 40 % (49,000; 9,750/s, 0:00:05 left)",
        "submitted: 100 % (100,000; 9,000/s)",
    ]


def test_an_error_of_azure_is_one_message_with_a_next_step_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer_with(monkeypatch, ServiceBusAuthorizationError(message="'Listen' claim(s) are required"))
    result = call("status", "b1")
    assert (result.exit_code, result.stdout) == (1, "")
    assert 'Next: give this identity the role "Azure Service Bus Data Receiver"' in result.stderr
    assert "Traceback" not in result.output


def test_a_batch_id_that_another_file_has_is_wrong_input(monkeypatch: pytest.MonkeyPatch, jobs_file: Path) -> None:
    manifest = Manifest(batch_id="b1", total=7, sha256="0" * 64, submitted_at="2026-11-23T18:00:00Z")
    answer_with(monkeypatch, OtherBatch("b1", manifest))
    result = call("submit", jobs_file, "--batch", "b1")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "7 jobs" in result.stderr


def test_a_name_that_no_queue_has_is_wrong_input(monkeypatch: pytest.MonkeyPatch, jobs_file: Path) -> None:
    answer_with(monkeypatch, InvalidQueueName("queue ''"))
    assert call("submit", jobs_file, "--queue", "").exit_code == 2


def test_a_container_that_refuses_is_told_with_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    answer_with(monkeypatch, refusal("https://a.blob.core.windows.net/r", 403, "AuthorizationPermissionMismatch"))
    result = call("status", "b1")
    assert (result.exit_code, result.stdout) == (1, "")
    assert 'role "Storage Blob Data Contributor"' in result.stderr


def test_an_interruption_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    answer_with(monkeypatch, KeyboardInterrupt())
    result = call("collect", "b1", "-o", "out", "--follow")
    assert result.exit_code == 130
    assert "Run the same command again to continue" in result.stderr


def test_an_interruption_within_an_import_says_how_to_go_on_and_a_fault_stays_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wrapped = RuntimeError("Error calling __set_name__ on 'Field' instance")
    wrapped.__cause__ = KeyboardInterrupt()
    answer_with(monkeypatch, wrapped)
    result = call("collect", "b1", "-o", "out", "--follow")
    assert (result.exit_code, "Run the same command again" in result.stderr) == (130, True)
    answer_with(monkeypatch, RuntimeError("a fault"))
    assert isinstance(call("collect", "b1", "-o", "out").exception, RuntimeError)


def test_an_interruption_of_what_goes_on_nowhere_promises_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    answer_with(monkeypatch, KeyboardInterrupt())
    result = call("status", "b1")
    assert (result.exit_code, result.stderr) == (130, "Interrupted.\n")


def test_an_interruption_before_the_command_is_loaded_is_no_traceback() -> None:
    script = (
        "import signal, sys\n"
        # a shell without job control starts background commands with SIGINT ignored
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from worker.__main__ import main\n"
        "class CtrlC:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'azure':\n"
        "            signal.raise_signal(signal.SIGINT)\n"
        "sys.meta_path.insert(0, CtrlC())\n"
        "main()\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (130, "")


def test_an_interruption_while_the_command_line_is_made_is_no_traceback() -> None:
    script = (
        "import signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import typer.main\n"
        "typer.main.get_command = lambda _: signal.raise_signal(signal.SIGINT)\n"
        "from worker.__main__ import main\n"
        "sys.argv = ['aoai-worker', 'list']\n"
        "main()\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (130, "")


def test_an_interruption_that_python_drops_comes_again() -> None:
    script = (
        "import signal, sys, threading, weakref\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import typer.main\n"
        "class Lock: ...\n"
        "def go_on(_):\n"
        "    lock = Lock()\n"
        "    ref = weakref.ref(lock, lambda _: signal.raise_signal(signal.SIGINT))\n"
        "    del lock\n"
        "    threading.Event().wait(60)\n"
        "typer.main.get_command = go_on\n"
        "from worker.__main__ import main\n"
        "sys.argv = ['aoai-worker', 'list']\n"
        "main()\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=30)
    assert (ended.returncode, ended.stderr) == (130, "")


def test_a_file_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    answer_with(monkeypatch, FileNotFoundError(2, "No such file or directory", "nowhere/out.partial"))
    result = call("collect", "b1", "-o", "nowhere/out")
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (
        1,
        "nowhere/out.partial: No such file or directory",
    )


def test_without_the_local_azure_the_command_says_where_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "embedded_azure", None)
    result = call("local")
    assert result.exit_code == 1
    assert "is not installed" in result.stderr


def test_the_version_is_that_of_the_distribution() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"aoai-worker {version('aoai-worker')}\n")


def test_help_says_of_each_command_in_one_line_what_it_does() -> None:
    for commands in ([], ["dlq"]):
        told = CliRunner().invoke(app, [*commands, "--help"], terminal_width=80).stdout
        listed = told.partition("Commands:\n")[2].splitlines()
        assert len(listed) >= 4
        assert [line for line in listed if not line.endswith(".") or line.endswith("...")] == []


@pytest.mark.parametrize("command", ["submit", "list", "status", "cancel", "retry", "collect"])
def test_help_shows_flags_without_a_value_and_whole_paragraphs(command: str) -> None:
    told = CliRunner().invoke(app, [command, "--help"]).stdout
    assert "bool" not in told
    paragraphs = told.partition("\n\n")[2].partition("Arguments:")[0].partition("Options:")[0].split("\n\n")
    prose = [paragraph for paragraph in paragraphs if "Examples:" not in paragraph]
    for line in (line for paragraph in prose for line in paragraph.splitlines()[:-1]):
        assert len(line) > 60, "a line that ends in the midst of a paragraph"


def test_help_loads_neither_azure_nor_the_settings() -> None:
    script = (
        "import sys, worker.cli\n"
        "heavy = {'azure.servicebus', 'azure.identity', 'azure.storage', 'openai', 'pydantic', 'aiohttp'}\n"
        "heavy |= {'embedded_azure'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert shown.stdout == "[]\n"


RUNNING = BatchStatus(batch_id="b1", total=3, succeeded=1, detail=BatchDetail(queued=1, running=1))
CANCELLED = BatchStatus(batch_id="b1", total=3, succeeded=1, detail=BatchDetail(cancelled=2))
DONE = BatchStatus(batch_id="b1", total=3, succeeded=3, detail=BatchDetail())


def test_watching_prints_a_line_for_each_change_where_nobody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    answer_with(monkeypatch, [RUNNING, RUNNING, DONE])
    result = call("status", "b1", "--watch")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "b1: running, 1 of 3 results (1 succeeded, 0 failed); 1 queued, 1 running, none finished recently",
        "b1: complete, 3 results (3 succeeded, 0 failed)",
    ]


def test_watching_for_a_program_prints_an_object_for_each_change(monkeypatch: pytest.MonkeyPatch) -> None:
    answer_with(monkeypatch, [RUNNING, RUNNING, DONE])
    lines = call("status", "b1", "--watch", "--json").stdout.splitlines()
    assert [json.loads(line)["detail"]["state"] for line in lines] == ["running", "complete"]


def test_a_list_is_a_table_or_an_object_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    answer_with(monkeypatch, [RUNNING, DONE])
    assert len(call("list").stdout.splitlines()) == 3
    assert [json.loads(line)["succeeded"] for line in call("list", "--json").stdout.splitlines()] == [1, 3]
    assert len(call("list", "--limit", "1").stdout.splitlines()) == 2


def test_an_empty_list_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    answer_with(monkeypatch, [])
    result = call("list")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "submit FILE" in result.stderr


def test_a_cancellation_says_what_will_not_be_called(monkeypatch: pytest.MonkeyPatch) -> None:
    answer_with(monkeypatch, CANCELLED)
    result = call("cancel", "b1")
    assert result.exit_code == 0
    assert "1 result (1 succeeded, 0 failed) so far; 2 jobs will not be called" in result.stdout
    assert json.loads(call("cancel", "b1", "--json").stdout)["detail"]["cancelled"] == 2


def test_a_retry_says_what_it_sent(monkeypatch: pytest.MonkeyPatch, jobs_file: Path) -> None:
    answer_with(monkeypatch, BatchRetry(batch_id="b1", number=1_000, sent=1))
    result = call("retry", "b1", jobs_file, "--only", "429", "--only", "attempts_exhausted")
    assert result.exit_code == 0
    assert "b1: 1 job sent again. Their results have worker.replay 1000" in result.stdout
    assert json.loads(call("retry", "b1", jobs_file, "--json").stdout)["number"] == 1_000


def test_a_code_that_there_is_not_is_refused_before_anything_is_asked(jobs_file: Path) -> None:
    result = call("retry", "b1", jobs_file, "--only", "throttled")
    assert result.exit_code == 2
    assert "code 'throttled': allowed are an HTTP status such as 429, and answer_too_large" in result.stderr


@pytest.mark.parametrize("command", ["list", "cancel b1", "retry b1 {file}", "status b1 --watch"])
def test_what_needs_blob_storage_is_wrong_input_with_a_queue(
    monkeypatch: pytest.MonkeyPatch, jobs_file: Path, command: str
) -> None:
    answer_with(monkeypatch, NeedsBlob("this"))
    result = call(*command.format(file=jobs_file).split())
    assert (result.exit_code, result.stdout) == (2, "")
    assert "AOAI_WORKER_SINK=blob" in result.stderr


def test_a_shell_completes_commands_and_options() -> None:
    def complete(*words: str) -> list[str]:
        environment = {"_AOAI_WORKER_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(words)}
        told = CliRunner().invoke(
            app, [], prog_name="aoai-worker", env=environment | {"COMP_CWORD": str(len(words) - 1)}
        )
        return told.stdout.split()

    assert complete("aoai-worker", "sub") == ["submit"]
    assert complete("aoai-worker", "submit", "--de") == ["--deadline"]


def test_the_help_of_submit_has_examples_on_lines_of_their_own() -> None:
    told = CliRunner().invoke(app, ["submit", "--help"], terminal_width=80).stdout
    assert "\n    aoai-worker submit jobs.jsonl --at 2h --deadline 10h\n" in told
