"""Batches in words, in a table and as JSON. Values in, text out; `batches.py` acts.

Heavy imports stand in the functions, as `--help` loads this module.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from worker.client import BatchDetail, BatchFile, BatchRetry, BatchStatus, Collection, ModelTokens, PassedOver
    from worker.client.prices import Cost
    from worker.settings import Price

LABEL = 11
"""Columns of a label in front of what `status` tells."""
SHOWN_WAITS = 8
HEADINGS = ("BATCH", "STATE", "DONE", "FAILED", "JOBS/S", "LEFT", "AGE")
GAP = "  "
NO_POD = (
    "no pod has reported within a minute. Next: check that workers run or are being scaled up, with the same "
    "AOAI_WORKER_BLOB_CONTAINER and AOAI_WORKER_BLOB_PREFIX"
)
OTHERS_FIRST = (
    "pods run, but none reports a job of this batch (they report every 10 s): other batches are ahead of it, no "
    "pod receives its model's queue, a dead pod still holds its jobs, for 5 min at most, or not all were sent. "
    "Next: if submit or retry was interrupted, the same command again sends the rest"
)


CHECK_ID = (
    "Next: check the batch id that submit printed (`aoai-worker list` shows the newest), and use the same settings "
    "as submit"
)


class Wait(NamedTuple):
    """Why jobs wait. `concerns`: such as a deployment, empty for the whole fleet; `pods`: how many say so."""

    concerns: str
    why: str
    pods: int

    def __str__(self) -> str:
        told = f"{self.concerns}: {self.why}" if self.concerns else self.why
        return f"{told} ({self.pods:,} pods)" if self.pods > 1 else told


def waits_of(status: "BatchStatus", now: float) -> Sequence[Wait]:
    """Empty where nothing is left, or nothing is known to wait."""
    from worker.jobs.batch_records import FOR_SO_LONG
    from worker.jobs.job import moment_of

    detail = status.detail
    if detail is None or not detail.queued + detail.running or status.complete:
        return ()
    if (start := moment_of(detail.starts_at or "")) and start > now:
        return (Wait("", f"scheduled for {detail.starts_at}: no worker receives its jobs before", 0),)
    if not detail.pods:
        return (Wait("", NO_POD, 0),)
    reasons = (reason for pod in detail.pods for reason in pod.waits.items())
    told = [(concerns, why, why.partition(FOR_SO_LONG)[0]) for concerns, why in reasons]
    pods = Counter((concerns, alike) for concerns, _, alike in told)
    first = {(concerns, alike): why for concerns, why, alike in reversed(told)}
    waits = [Wait(concerns, first[concerns, alike], count) for (concerns, alike), count in pods.most_common()]
    if not waits and not detail.running and not detail.rate:
        return (Wait("", OTHERS_FIRST, len(detail.pods)),)
    return waits


def shortly(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h`, `5 d`; of what has no sensible end `> 999 d`."""
    for unit, size, until in (("s", 1, 100), ("min", 60, 100), ("h", 3_600, 48)):
        if seconds < until * size:
            return f"{max(0.0, seconds) / size:.0f} {unit}"
    days = seconds / 86_400
    return f"{days:.0f} d" if days < 1_000 else "> 999 d"


def pace(rate: float) -> str:
    return f"{rate:.1f}" if rate >= 1 else f"{rate:.2g}"


def amount(value: float) -> str:
    return f"{value:,.2f}" if value >= 1 else f"{value:.4f}"


def describe(status: "BatchStatus") -> str:
    """On one line."""
    from worker.client.batches import counted

    if status.being_collected_by_other:
        return f"{status.batch_id}: another process is collecting it, and only that one sees the results"
    if status.is_unknown:
        return f"{status.batch_id}: unknown. No manifest and no result of this batch was found. {CHECK_ID}"
    failed = _failed(status)
    done = status.succeeded + failed
    counts = f"({status.succeeded:,} succeeded, {failed:,} failed)"
    if record := status.collected:
        return (
            f"{status.batch_id}: collected at {record.collected_at} into {record.out}, "
            f"{counted(done, 'result')} {counts}" + _describe_later(status.later)
        )
    wait = "" if status.detail else " to be collected"
    if status.total is None:
        return f"{status.batch_id}: {counted(done, 'result')}{wait} {counts}; no manifest, so the total is unknown"
    if status.complete:
        how = f"cancelled, {status.cancelled:,} not called" if status.cancelled else "complete"
        return f"{status.batch_id}: {how}, {counted(done, 'result')}{wait} {counts}"
    how = f"{status.state}, " if status.detail else ""
    return f"{status.batch_id}: {how}{done:,} of {counted(status.total, 'result')}{wait} {counts}"


def _failed(status: "BatchStatus") -> int:
    """Without the jobs that failed for being cancelled, which are told as that."""
    from worker.jobs.outcomes import FailureCode

    failures = status.detail.failures if status.detail else {}
    return status.failed - failures.get(FailureCode.BATCH_CANCELLED, 0)


def _describe_later(later: int) -> str:
    from worker.client.batches import counted

    if not later:
        return ""
    return f"; {counted(later, 'later result')} to be collected. Next: collect into the same file again"


def describe_change(status: "BatchStatus") -> str:
    """On one line, for a log."""
    detail = status.detail
    if detail is None or status.complete:
        return describe(status)
    return f"{describe(status)}; {_describe_pace(detail)}"


def describe_in_full(status: "BatchStatus", cost: "Cost", *, now: float, width: int) -> str:
    """Several lines, of `width` columns where words allow it. With the queue sink there is one line to tell."""
    if status.detail is None or status.is_unknown:
        return describe(status)
    lines = [describe(status)]
    for label, value in _facts(status, status.detail, cost, now):
        start = f"  {label:<{LABEL}}"
        lines += wrap(
            f"{start}{value}",
            width,
            subsequent_indent=" " * len(start),
            break_long_words=False,
            break_on_hyphens=False,
        )
    return "\n".join(lines)


def _facts(status: "BatchStatus", detail: "BatchDetail", cost: "Cost", now: float) -> Sequence[tuple[str, str]]:
    from worker.jobs.outcomes import Usage

    facts = []
    if detail.submitted_at:
        facts.append(("submitted", _with_age(detail.submitted_at, now)))
    if detail.cancelled_at:
        facts.append(("cancelled", _with_age(detail.cancelled_at, now)))
    if not status.complete:
        facts.append(("jobs", _describe_pace(detail)))
    elif detail.running:
        facts.append(("jobs", f"{detail.running:,} still with workers; calls in flight end, and write results"))
    if detail.failures:
        facts.append(("failed", ", ".join(f"{code}: {count:,}" for code, count in detail.failures.items())))
    if detail.warnings:
        facts.append(("unfit", ", ".join(f"{code}: {count:,}" for code, count in detail.warnings.items())))
    used = {model: usage for model, usage in sorted(detail.usage.items()) if usage != Usage()}
    for model, usage in used.items():
        cached = f" ({usage.cached:,} cached)" if usage.cached else ""
        facts.append(("tokens", f"{model}: {usage.prompt:,} in{cached}, {usage.completion:,} out"))
    if used:
        facts.append(("cost", describe_cost(cost)))
    waits = waits_of(status, now)
    facts += [("waits", str(wait)) for wait in waits[:SHOWN_WAITS]]
    if len(waits) > SHOWN_WAITS:
        facts.append(("", f"... and {len(waits) - SHOWN_WAITS:,} more; --json shows all"))
    return facts


def _describe_pace(detail: "BatchDetail") -> str:
    left = detail.seconds_left
    speed = f"{pace(detail.rate)} a second, {shortly(left)} left" if left is not None else "none finished recently"
    return f"{detail.queued:,} queued, {detail.running:,} running, {speed}"


def describe_cost(cost: "Cost") -> str:
    """No total is claimed where a price is missing."""
    if cost.total is not None:
        return amount(cost.total)
    known = [f"{model}: {amount(value)}" for model, value in sorted(cost.models.items()) if value is not None]
    return "; ".join([*known, f"unknown for {', '.join(cost.unpriced)}: AOAI_WORKER_PRICES has no price"])


def _with_age(moment: str, now: float) -> str:
    from worker.jobs.job import moment_of

    since = moment_of(moment)
    return moment if since is None else f"{moment}, {shortly(now - since)} ago"


def table(statuses: Sequence["BatchStatus"], *, now: float, width: int) -> str:
    """A row a batch. An id that is too long for the row stands on a line of its own, whole."""
    rows = [HEADINGS, *(_row(status, now) for status in statuses)]
    _, *columns = zip(*rows, strict=True)
    widths = [max(map(len, column)) for column in columns]
    room = width - sum(len(GAP) + size for size in widths)
    ids = [len(batch_id) for batch_id, *_ in rows if len(batch_id) <= room]
    first = max(ids, default=0)
    lines = []
    for batch_id, state, *numbers in rows:
        cells = [f"{state:<{widths[0]}}", *(f"{n:>{size}}" for n, size in zip(numbers, widths[1:], strict=True))]
        if len(batch_id) > first:
            lines.append(batch_id)
            batch_id = ""
        lines.append(GAP.join([f"{batch_id:<{first}}", *cells]).rstrip())
    return "\n".join(lines)


def _row(status: "BatchStatus", now: float) -> tuple[str, ...]:
    from worker.client.batches import BatchDetail
    from worker.jobs.job import moment_of

    detail = status.detail or BatchDetail()
    submitted = moment_of(detail.submitted_at or "")
    left = None if status.complete else detail.seconds_left
    return (
        status.batch_id,
        status.state,
        f"{status.succeeded + status.failed}/{'?' if status.total is None else status.total}",
        str(_failed(status)),
        pace(detail.rate) if detail.rate and not status.complete else "-",
        "-" if left is None else shortly(left),
        "?" if submitted is None else shortly(now - submitted),
    )


def describe_cancellation(status: "BatchStatus") -> str:
    from worker.client.batches import counted

    failed = _failed(status)
    done = counted(status.succeeded + failed, "result")
    counts = f"{status.succeeded:,} succeeded, {failed:,} failed"
    if not status.cancelled:
        if status.complete and not (status.detail and status.detail.cancelled_at):
            return f"{status.batch_id}: complete, {done} ({counts}); nothing was left to cancel."
        return f"{status.batch_id}: cancelled, {done} ({counts})"
    running = status.detail.running if status.detail else 0
    under_way = (
        f"\nWorkers hold up to {running:,} of these now: calls in flight are not stopped, and write their results."
        if running
        else ""
    )
    return (
        f"{status.batch_id}: cancelled. {done} ({counts}) so far; {counted(status.cancelled, 'job')} will not be "
        f"called; all pods stop within 10 s.{under_way}\n"
        f"Next: aoai-worker collect {status.batch_id} -o OUT.jsonl writes the results; "
        f"aoai-worker retry {status.batch_id} INPUT.jsonl sends the other jobs again"
    )


def describe_retry(retry: "BatchRetry") -> str:
    from worker.client.batches import counted

    lines = []
    if retry.sent:
        lines.append(
            f"{retry.batch_id}: {counted(retry.sent, 'job')} sent again. Their results have worker.replay "
            f"{retry.number}."
        )
    if retry.resumed:
        lines.append(
            f"{retry.batch_id}: {counted(retry.resumed, 'job')} of an earlier retry without a result sent again "
            "under the earlier number; the queue drops duplicates."
        )
        if not retry.is_submitted_file:
            lines.append(
                "A line that was changed since that retry may not count. Next, to replace it: aoai-worker cancel "
                f"{retry.batch_id}, then this command again"
            )
    if not lines:
        lines.append(f"{retry.batch_id}: nothing to retry.")
    if not retry.is_submitted_file:
        lines.append(
            "The file differs from the submitted one; its lines were sent as they are. If submit had --model-map "
            "or --skip-invalid, give the same options to retry."
        )
    if retry.passed_over:
        lines.append(f"Not sent: {_describe_passed_over(retry.passed_over)}.")
    if retry.elsewhere:
        lines.append(
            f"{counted(retry.elsewhere, 'job')} of earlier retries without a result not in this file. Next: if "
            "their results do not arrive, run retry with the file that has them"
        )
    if retry.sent + retry.resumed:
        lines.append(f"Next: aoai-worker status {retry.batch_id} --watch")
    return "\n".join(lines)


def _describe_passed_over(passed_over: "Mapping[PassedOver, int]") -> str:
    from worker.client import PassedOver
    from worker.client.batches import counted

    why = {
        PassedOver.SUCCEEDED: "that succeeded",
        PassedOver.PENDING: "without a result yet",
        PassedOver.OTHER_CODE: "that failed with another code",
        PassedOver.NOT_SHOWN: "without a result; only the submitted file can show that they belong to this batch",
    }
    return ", ".join(f"{counted(count, 'line')} {why[reason]}" for reason, count in passed_over.items())


def describe_collection(collection: "Collection", out: Path, errors: Path | None, timeout: str) -> str:
    from worker.client.batches import counted
    from worker.client.result_files import STANDARD_OUTPUT

    done = collection.succeeded + collection.failed
    counts = f"{collection.succeeded:,} succeeded, {collection.failed:,} failed"
    where = "standard output" if out in STANDARD_OUTPUT else str(out)
    if collection.complete:
        also = f" and {errors}" if errors else ""
        written = f"{counted(done, 'result')} ({counts}) in {where}{also}"
        if not collection.cancelled_at or not collection.failed + collection.cancelled:
            return f"{collection.batch_id}: complete, {written}"
        without = f"; {counted(collection.cancelled, 'job')} will get no result" if collection.cancelled else ""
        return (
            f"{collection.batch_id}: cancelled, {written}{without}\n"
            f"Next: aoai-worker retry {collection.batch_id} INPUT.jsonl sends the other jobs again"
        )
    gave_up = (
        f"\nNo manifest and no new result arrived within {timeout} (--timeout)." if collection.timed_out else ""
    )
    if collection.total is None and not done:
        return f"{collection.batch_id}: no manifest and no result of this batch was found{gave_up}\n{CHECK_ID}"
    if collection.missing is None:
        missing = "its manifest has not arrived, so the number missing is unknown. Was it submitted?"
    else:
        missing = f"{collection.missing:,} of {collection.total:,} are missing"
    if collection.outdated:
        missing += f"; {collection.outdated:,} of these were sent again, and have an earlier result"
    return (
        f"{collection.batch_id}: {counted(done, 'result')} so far ({counts}); {missing}{gave_up}\n"
        f"Next: `aoai-worker status {collection.batch_id}` shows what is there; "
        + (
            "results written to standard output are not written again."
            if out in STANDARD_OUTPUT
            else "run the same command again, with --follow to wait."
        )
    )


def describe_skipped(batch: "BatchFile") -> str:
    counts = [(batch.blank_lines, "blank line"), (batch.byte_order_marks, "byte order mark")]
    skipped = [f"{count:,} {what}{'' if count == 1 else 's'}" for count, what in counts if count]
    return f"{batch.name}: skipped {' and '.join(skipped)}" if skipped else ""


def describe_tokens(by_model: "Mapping[str, ModelTokens]", prices: "Mapping[str, Price]") -> list[str]:
    """A table: tokens are estimates, as they are before a call, and so is what they cost at most."""
    from worker.jobs.outcomes import Usage

    def cost(name: str, of: "ModelTokens") -> list[str]:
        if not prices:
            return []
        usage = Usage(prompt=of.prompt, completion=of.answer)
        return [f"{prices[name].cost(usage):,.2f}" if name in prices else "no price"]

    rows = [["model", "jobs", "prompt tokens, about", "answer tokens, about", *(["cost, about"] if prices else [])]]
    rows += [
        [name, f"{of.jobs:,}", f"{of.prompt:,}", f"{of.answer:,}", *cost(name, of)] for name, of in by_model.items()
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]


def status_document(status: "BatchStatus", prices: "Mapping[str, Price]", now: float) -> dict[str, Any]:
    """For programs. `detail` is null with the queue sink."""
    return {
        "batch_id": status.batch_id,
        "total": status.total,
        "succeeded": status.succeeded,
        "failed": status.failed,
        "complete": status.complete,
        "being_collected_by_other": status.being_collected_by_other,
        "collected": asdict(status.collected) if status.collected else None,
        "later": status.later,
        "detail": _detail_document(status, status.detail, prices, now) if status.detail else None,
    }


def _detail_document(
    status: "BatchStatus", detail: "BatchDetail", prices: "Mapping[str, Price]", now: float
) -> dict[str, Any]:
    from worker.client.prices import cost_of

    cost = cost_of(detail.usage, prices)
    return {
        "state": status.state,
        "submitted_at": detail.submitted_at,
        "starts_at": detail.starts_at,
        "cancelled_at": detail.cancelled_at,
        "queued": detail.queued,
        "running": detail.running,
        "cancelled": status.cancelled,
        "failures": dict(detail.failures),
        "warnings": dict(detail.warnings),
        "usage": {model: asdict(usage) for model, usage in detail.usage.items()},
        "cost": dict(cost.models),
        "total_cost": cost.total,
        "jobs_per_second": round(detail.rate, 3),
        "seconds_left": None if detail.seconds_left is None else round(detail.seconds_left, 1),
        "pods": len(detail.pods),
        "waits": [wait._asdict() for wait in waits_of(status, now)],
    }


def retry_document(retry: "BatchRetry") -> dict[str, Any]:
    return {**asdict(retry), "passed_over": {reason.value: count for reason, count in retry.passed_over.items()}}
