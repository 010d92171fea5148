"""What is said of batches: short enough for a terminal, nothing claimed that is not known."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.pages import blocks
from worker.cli.batch_texts import (
    describe,
    describe_cancellation,
    describe_change,
    describe_in_full,
    describe_retry,
    retry_document,
    shortly,
    status_document,
    table,
    waits_of,
)
from worker.client import BatchDetail, BatchRetry, BatchStatus, PassedOver
from worker.client.prices import cost_of
from worker.jobs.batch_records import PodReport
from worker.jobs.job import rfc3339
from worker.jobs.outcomes import Usage
from worker.settings import Price

NOW = 1_790_000_000.0
PRICES = {"gpt-5.4-mini": Price(input=1.0, output=4.0)}
GATE = "gpt-5.4-mini@my-account.openai.azure.com"
THROTTLED = {GATE: "429: quota, for another 42 s"}


def pod(name: str = "pod-1", **waits: str) -> PodReport:
    return PodReport(pod=name, at=NOW, waits=waits)


DETAIL = BatchDetail(
    submitted_at=rfc3339(NOW - 600),
    running=64,
    queued=3_702,
    failures={"attempts_exhausted": 30, "400": 4},
    warnings={"schema_mismatch": 7},
    usage={"gpt-5.4-mini": Usage(prompt=1_234_567, cached=12_345, completion=234_567)},
    rate=12.34,
    pods=(
        PodReport(pod="pod-1", at=NOW, waits=THROTTLED),
        PodReport(pod="pod-2", at=NOW, waits={GATE: "429: quota, for another 40 s"}),
    ),
)
RUNNING = BatchStatus(batch_id="reviews-2026-11", total=5_000, succeeded=1_200, failed=34, detail=DETAIL)
DONE = BatchStatus(batch_id="b1", total=3, succeeded=3, detail=BatchDetail(submitted_at=rfc3339(NOW - 90_000)))
CANCELLED = BatchStatus(batch_id="b2", total=5, succeeded=1, failed=1, detail=BatchDetail(cancelled=3))
QUEUED = BatchStatus(batch_id="b3", total=5, detail=BatchDetail(queued=5))


def in_full(status: BatchStatus, *, width: int = 80) -> str:
    assert status.detail
    return describe_in_full(status, cost_of(status.detail.usage, PRICES), now=NOW, width=width)


def test_a_running_batch_is_told_in_80_columns() -> None:
    assert in_full(RUNNING) == (
        "reviews-2026-11: running, 1,234 of 5,000 results (1,200 succeeded, 34 failed)\n"
        "  submitted  2026-09-21T14:03:20.000Z, 10 min ago\n"
        "  jobs       3,702 queued, 64 running, 12.3 a second, 5 min left\n"
        "  failed     attempts_exhausted: 30, 400: 4\n"
        "  unfit      schema_mismatch: 7\n"
        "  tokens     gpt-5.4-mini: 1,234,567 in (12,345 cached), 234,567 out\n"
        "  cost       2.17\n"
        "  waits      gpt-5.4-mini@my-account.openai.azure.com: 429: quota, for another\n"
        "             42 s (2 pods)"
    )
    assert in_full(RUNNING, width=140).endswith("429: quota, for another 42 s (2 pods)")


@pytest.mark.parametrize(
    ("status", "state"), [(RUNNING, "running"), (DONE, "complete"), (CANCELLED, "cancelled"), (QUEUED, "queued")]
)
def test_each_batch_has_one_state(status: BatchStatus, state: str) -> None:
    assert status.state == state


def test_jobs_that_workers_ended_as_cancelled_are_counted_with_those_that_nobody_met() -> None:
    detail = BatchDetail(cancelled=3, failures={"batch_cancelled": 1})
    status = replace(CANCELLED, detail=detail)
    assert describe(status) == "b2: cancelled, 4 not called, 1 result (1 succeeded, 0 failed)"


def test_a_cost_without_a_price_is_unknown() -> None:
    detail = replace(DETAIL, usage={**DETAIL.usage, "gpt-new": Usage(prompt=1)})
    told = in_full(replace(RUNNING, detail=detail), width=200)
    assert "cost       gpt-5.4-mini: 2.17; unknown for gpt-new: AOAI_WORKER_PRICES has no price" in told


@pytest.mark.parametrize(
    ("detail", "why"),
    [
        (BatchDetail(queued=5), "no pod has reported within a minute"),
        (BatchDetail(queued=5, pods=(pod(),)), "other batches are ahead of it"),
        (BatchDetail(queued=5, pods=(pod(),)), "Next: if submit or retry was interrupted, the same command again"),
        (BatchDetail(queued=5, pods=(pod(sink="Blob storage is down"),)), "sink: Blob storage is down"),
        (BatchDetail(queued=5, starts_at=rfc3339(NOW + 60)), "no worker receives its jobs before"),
        (BatchDetail(queued=5, starts_at=rfc3339(NOW - 60)), "no pod has reported within a minute"),
    ],
)
def test_why_jobs_wait_comes_from_the_pods(detail: BatchDetail, why: str) -> None:
    (wait,) = waits_of(replace(QUEUED, detail=detail), NOW)
    assert why in str(wait)


def test_tokens_of_failures_that_used_none_are_no_line() -> None:
    status = replace(QUEUED, detail=BatchDetail(queued=4, failures={"400": 1}, usage={"m": Usage()}, pods=(pod(),)))
    assert "tokens" not in in_full(status)
    assert "cost" not in in_full(status)


def test_nothing_waits_in_a_batch_that_is_complete_or_all_of_whose_jobs_are_called() -> None:
    assert waits_of(DONE, NOW) == ()
    assert waits_of(replace(QUEUED, detail=BatchDetail(running=5, pods=(pod(),))), NOW) == []


def test_a_change_is_one_line() -> None:
    assert describe_change(RUNNING).endswith("34 failed); 3,702 queued, 64 running, 12.3 a second, 5 min left")
    assert describe_change(DONE) == "b1: complete, 3 results (3 succeeded, 0 failed)"


def test_the_page_on_batches_shows_what_is_printed() -> None:
    """Of a batch on the deployment of a model, submitted at another time."""
    status, batches = (block.text for block in blocks("docs/batches.md"))
    waits = [PodReport(pod=name, at=NOW, waits={"gpt-5.4-mini": THROTTLED[GATE]}) for name in ("pod-1", "pod-2")]
    shown = replace(RUNNING, detail=replace(DETAIL, warnings={}, pods=tuple(waits)))
    submitted = status.partition("submitted  ")[2].partition(",")[0]
    assert in_full(shown).replace(rfc3339(NOW - 600), submitted) == status.rstrip("\n")
    done = replace(DONE, batch_id="batch-d28b0c728c8bed50", total=240, succeeded=231, failed=9)
    assert table([RUNNING, done], now=NOW, width=80) == batches.rstrip("\n")


def test_a_table_has_a_row_for_each_batch() -> None:
    assert table([RUNNING, DONE, CANCELLED], now=NOW, width=80) == (
        "BATCH            STATE           DONE  FAILED  JOBS/S   LEFT     AGE\n"
        "reviews-2026-11  running    1234/5000      34    12.3  5 min  10 min\n"
        "b1               complete         3/3       0       -      -    25 h\n"
        "b2               cancelled        2/5       1       -      -       ?"
    )


def test_an_id_too_long_for_its_row_stands_whole_on_a_line_of_its_own() -> None:
    long = replace(RUNNING, batch_id="x" * 48)
    shown = table([long, DONE], now=NOW, width=80).splitlines()
    assert shown[1] == "x" * 48
    assert shown[2].split() == ["running", "1234/5000", "34", "12.3", "5", "min", "10", "min"]
    assert table([long, DONE], now=NOW, width=140).splitlines()[1].startswith("x" * 48 + "  running")


@given(
    ids=st.lists(st.integers(1, 48), min_size=1, max_size=5),
    total=st.integers(0, 10_000_000),
    rate=st.just(0.0) | st.floats(1 / 300, 9_999),
    age=st.floats(0, 1e9),
)
def test_a_table_fits_80_columns(ids: list[int], total: int, rate: float, age: float) -> None:
    detail = BatchDetail(submitted_at=rfc3339(NOW - age), queued=total, rate=rate)
    statuses = [
        BatchStatus(batch_id="x" * size, total=total, succeeded=total // 2, failed=total // 3, detail=detail)
        for size in ids
    ]
    shown = table(statuses, now=NOW, width=80)
    assert max(map(len, shown.splitlines())) <= 80
    assert all("x" * size in shown for size in ids), "an id is shown whole, so that it can be copied"


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (-1, "0 s"),
        (0.4, "0 s"),
        (99, "99 s"),
        (100, "2 min"),
        (5_999, "100 min"),
        (7_200, "2 h"),
        (864_000, "10 d"),
        (1e12, "> 999 d"),
    ],
)
def test_a_time_is_told_shortly(seconds: float, told: str) -> None:
    assert shortly(seconds) == told


def test_a_cancellation_says_what_was_done_and_what_will_not_be() -> None:
    detail = BatchDetail(cancelled=3, running=1)
    told = describe_cancellation(replace(CANCELLED, detail=detail))
    assert told.startswith("b2: cancelled. 2 results (1 succeeded, 1 failed) so far; 3 jobs will not be called")
    assert "Workers hold up to 1 of these now" in told
    assert "nothing was left to cancel" in describe_cancellation(DONE)
    of_retry = BatchStatus(batch_id="b1", total=1, failed=1, detail=BatchDetail(cancelled_at=rfc3339(NOW)))
    assert describe_cancellation(of_retry) == "b1: cancelled, 1 result (0 succeeded, 1 failed)"


def test_a_retry_says_what_it_sent_and_what_it_passed_over() -> None:
    outcome = BatchRetry(
        batch_id="b1", number=1_000, sent=2, resumed=1, passed_over={PassedOver.SUCCEEDED: 7}, elsewhere=1
    )
    told = describe_retry(outcome)
    assert told.startswith(
        "b1: 2 jobs sent again. Their results have worker.replay 1000.\n"
        "b1: 1 job of an earlier retry without a result"
    )
    assert "Not sent: 7 lines that succeeded." in told
    assert "--model-map" not in told
    assert "give the same options to retry" in describe_retry(replace(outcome, is_submitted_file=False))
    assert describe_retry(BatchRetry(batch_id="b1")) == "b1: nothing to retry."
    assert retry_document(outcome) == {
        "batch_id": "b1",
        "is_submitted_file": True,
        "number": 1_000,
        "sent": 2,
        "resumed": 1,
        "passed_over": {"succeeded": 7},
        "elsewhere": 1,
    }


@pytest.mark.parametrize("is_submitted_file", [True, False])
def test_a_line_that_was_changed_within_a_retry_is_told_not_to_count(is_submitted_file: bool) -> None:
    told = describe_retry(BatchRetry(batch_id="b1", resumed=1, is_submitted_file=is_submitted_file))
    assert ("Next, to replace it: aoai-worker cancel b1, then this command again" in told) is not is_submitted_file


def test_a_program_gets_all_that_is_known() -> None:
    document = status_document(RUNNING, PRICES, NOW)
    assert document["detail"] == {
        "state": "running",
        "submitted_at": "2026-09-21T14:03:20.000Z",
        "starts_at": None,
        "cancelled_at": None,
        "queued": 3_702,
        "running": 64,
        "cancelled": 0,
        "failures": {"attempts_exhausted": 30, "400": 4},
        "warnings": {"schema_mismatch": 7},
        "usage": {"gpt-5.4-mini": {"prompt": 1_234_567, "completion": 234_567, "cached": 12_345}},
        "cost": {"gpt-5.4-mini": pytest.approx(2.172835)},
        "total_cost": pytest.approx(2.172835),
        "jobs_per_second": 12.34,
        "seconds_left": 305.2,
        "pods": 2,
        "waits": [{"concerns": GATE, "why": THROTTLED[GATE], "pods": 2}],
    }
