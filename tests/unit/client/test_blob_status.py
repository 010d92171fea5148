"""What a producer is told of batches in Blob storage: counts, tokens, rate, what is left, and why it waits."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.blob_jobs import make_job
from tests.support.memory_container import PREFIX, MemoryContainer
from worker.azure.blob.names import cancellation_name, job_key, report_name, retry_name
from worker.client.batches import UnknownBatch
from worker.client.blob_batches import BlobBatches, Tally, UnusableBlob
from worker.client.blob_collector import BlobCollector
from worker.client.result_files import ResultFiles
from worker.jobs.batch_records import (
    BatchRecords,
    Cancellation,
    Manifest,
    PodReport,
    Retry,
    encode_cancellation,
    encode_report,
    encode_retry,
)
from worker.jobs.outcomes import Usage
from worker.jobs.results import ResultSummary

NOW = 1_790_000_000.0


def summary(code: str = "200", *, ago: float = 0.0, model: str = "small", prompt: int = 0) -> ResultSummary:
    usage = Usage(prompt=prompt, completion=1, cached=2) if prompt else None
    return ResultSummary(code=code, model=model, finished=NOW - ago, usage=usage)


def sent_again(container: MemoryContainer, number: int, *names: str) -> None:
    keys = frozenset(job_key(make_job(name).id) for name in names)
    record = encode_retry(Retry(number=number, retried_at="", keys=keys))
    container.stored[retry_name(PREFIX, "b1", number)] = record


async def test_a_listing_tells_failures_by_code_and_tokens_by_model() -> None:
    container = MemoryContainer(page=2)
    container.announce(10)
    container.put("a", summary=summary(prompt=10))
    container.put("b", summary=replace(summary(prompt=20), warning="invalid_json"))
    container.put("c", summary=summary(model="large", prompt=5))
    container.put("d", failed=True, summary=summary("400"))
    container.put("e", failed=True, summary=summary("expired"))
    container.put("f", failed=True, summary=summary("400"))
    container.put("g", failed=True)  # of a version without metadata
    status = await BlobBatches(container, PREFIX).status("b1")
    assert (status.total, status.succeeded, status.failed) == (10, 3, 4)
    assert status.detail is not None
    assert status.detail.warnings == {"invalid_json": 1}
    assert status.detail.failures == {"400": 2, "expired": 1, "unknown": 1}
    assert status.detail.usage == {
        "small": Usage(prompt=30, completion=2, cached=4),
        "large": Usage(prompt=5, completion=1, cached=2),
    }
    assert (status.detail.queued, status.detail.running, status.detail.cancelled) == (3, 0, 0)


async def tally(container: MemoryContainer, records: BatchRecords) -> Tally:
    counted = Tally(records)
    async for results in BlobBatches(container, PREFIX).results("b1"):
        for result in results:
            counted.add(result)
    return counted


async def test_the_rate_is_of_the_last_minutes_or_since_the_first_result() -> None:
    container = MemoryContainer()
    manifest = Manifest(batch_id="b1", total=1_000, sha256="", submitted_at="")
    for number in range(100):
        container.put(f"old-{number}", summary=summary(ago=4_000))
    counted = await tally(container, BatchRecords(manifest))
    detail = counted.status("b1", (), NOW).detail
    assert detail is not None
    assert (detail.rate, detail.seconds_left) == (0.0, None)
    for number in range(300):
        container.put(str(number), summary=summary(ago=number / 5))
    counted = await tally(container, BatchRecords(manifest))
    detail = counted.status("b1", (), NOW).detail
    assert detail is not None
    assert detail.seconds_left is not None
    assert detail.rate == pytest.approx(5.0, rel=0.2)
    assert detail.seconds_left == pytest.approx(600 / detail.rate)


async def test_what_pods_told_within_a_minute_says_what_runs() -> None:
    container = MemoryContainer()
    container.announce(10)
    for pod, running in (("pod-1", 4), ("pod-2", 3), ("dead", 9)):
        report = PodReport(pod=pod, at=time.time(), running={"b1": running}, waits={"gate": "throttled"})
        await container.replace(report_name(PREFIX, pod), encode_report(report))
    container.modified[report_name(PREFIX, "dead")] = time.time() - 120
    detail = (await BlobBatches(container, PREFIX).status("b1")).detail
    assert detail is not None
    assert [pod.pod for pod in detail.pods] == ["pod-1", "pod-2"]
    assert (detail.running, detail.queued) == (7, 3)


async def test_a_cancelled_batch_ends_at_once_and_a_retry_since_runs() -> None:
    container, batches = MemoryContainer(), None
    container.announce(4)
    container.put("a")
    container.put("b", failed=True)
    batches = BlobBatches(container, PREFIX)
    assert not (await batches.status("b1")).complete
    status = await batches.cancel("b1")
    cancellation = (await batches.records("b1")).cancellation
    assert cancellation
    assert cancellation.replay == 999
    assert await batches.cancel("b1") == status == await batches.status("b1"), "again is harmless"
    assert (await batches.records("b1")).cancellation == cancellation
    assert status.complete
    assert status.detail
    assert status.detail.cancelled_at == cancellation.cancelled_at
    assert (status.detail.cancelled, status.detail.queued) == (2, 0)
    sent_again(container, 1_000, "b", "c")
    status = await batches.status("b1")
    assert not status.complete
    assert status.detail
    assert (status.succeeded, status.failed) == (1, 0), "what was sent again does not count yet"
    assert (status.detail.cancelled, status.detail.queued) == (1, 2)
    assert status.detail.cancelled_at is None, "the cancellation does not hold for the retry"
    container.put("b", replay=1_000)
    container.put("c", replay=1_000)
    assert (await batches.status("b1")).complete
    assert (await batches.cancel("b1")).complete
    cancellation = (await batches.records("b1")).cancellation
    assert cancellation
    assert cancellation.replay == 1_000


async def test_a_complete_batch_is_not_cancelled() -> None:
    container = MemoryContainer()
    container.announce(2)
    container.put("a")
    container.put("b", failed=True)
    batches = BlobBatches(container, PREFIX)
    marked: list[bool] = []
    mark = cancellation_name(PREFIX, "b1")
    container.before_listing = lambda _: marked.append(mark in container.stored)
    status = await batches.cancel("b1")
    assert all(marked), "the mark comes before anything is counted"
    assert mark not in container.stored
    assert (status.state, status.detail and status.detail.cancelled_at) == ("complete", None)


async def test_cancelling_a_batch_whose_retry_is_complete_leaves_the_cancellation_before_it() -> None:
    container = MemoryContainer()
    container.announce(1)
    batches = BlobBatches(container, PREFIX)
    await batches.cancel("b1")
    before = await batches.records("b1")
    sent_again(container, 1_000, "a")
    container.put("a", replay=1_000)
    await batches.cancel("b1")
    assert (await batches.records("b1")).cancellation == before.cancellation


async def test_a_retry_that_runs_is_cancelled_though_each_job_has_a_result() -> None:
    container = MemoryContainer()
    container.announce(1)
    container.put("a", failed=True)
    sent_again(container, 1_000, "a")
    batches = BlobBatches(container, PREFIX)
    status = await batches.cancel("b1")
    cancellation = (await batches.records("b1")).cancellation
    assert status.detail
    assert cancellation
    assert cancellation.cancelled_at == status.detail.cancelled_at
    assert cancellation.replay == 1_000


async def test_the_cancellation_of_somebody_else_is_not_taken_away() -> None:
    container = MemoryContainer()
    container.announce(1)
    container.put("a", failed=True)
    batches = BlobBatches(container, PREFIX)
    mark = cancellation_name(PREFIX, "b1")
    theirs = Cancellation(replay=1_000, cancelled_at="2026-11-29T00:00:00.000Z")

    def cancel_too(_: int) -> None:
        container.stored[mark], container.etags[mark] = encode_cancellation(theirs), '"theirs"'

    container.before_listing = cancel_too
    await batches.cancel("b1")
    assert (await batches.records("b1")).cancellation == theirs


async def test_what_was_never_submitted_cannot_be_cancelled() -> None:
    with pytest.raises(UnknownBatch, match="aoai-worker list"):
        await BlobBatches(MemoryContainer(), PREFIX).cancel("b1")


async def test_the_newest_batches_are_listed_first_and_other_folders_are_none() -> None:
    container = MemoryContainer()
    for number in range(7):
        container.announce(number, batch_id=f"b{number}", submitted_at=f"2026-11-2{number}T00:00:00.000Z")
    container.announce(9, batch_id="ends.", submitted_at="2026-11-27T00:00:00.000Z")
    await container.replace(f"{PREFIX}/~fleet/pod.json", b"{}")
    await container.replace(f"{PREFIX}/other/file.json", b"{}")
    container.modified.clear()
    newest = await BlobBatches(container, PREFIX).newest(3)
    assert [(status.batch_id, status.total) for status in newest] == [("ends.", 9), ("b6", 6), ("b5", 5)]


async def test_a_record_that_cannot_be_read_is_named() -> None:
    container = MemoryContainer()
    container.stored[f"{PREFIX}/b1/cancelled.json"] = b"{"
    with pytest.raises(UnusableBlob, match=f"{PREFIX}/b1/cancelled.json"):
        await BlobBatches(container, PREFIX).status("b1")


async def test_a_cancelled_batch_is_published_as_it_is_and_a_retry_is_waited_for(
    tmp_path: Path,
) -> None:
    container = MemoryContainer()
    batches = BlobBatches(container, PREFIX)
    container.announce(3)
    container.put("a")
    container.put("b", failed=True)
    await batches.cancel("b1")

    async def collect() -> tuple[bool, int, int]:
        with ResultFiles("b1", tmp_path / "out", None) as files:
            collector = BlobCollector(batches, "b1", files, lambda _: None, lambda _: None)
            await collector.gather(follow=False)
            return collector.complete, collector.cancelled, files.failed

    assert await collect() == (True, 1, 1)
    assert (tmp_path / "out").exists()
    sent_again(container, 1_000, "b")
    assert await collect() == (False, 1, 1)
    container.put("b", replay=1_000)
    assert await collect() == (True, 1, 0)
