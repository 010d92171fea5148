"""Collecting from a container: each job's counting result once, whatever is listed when; and how long is waited."""

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.blob_jobs import make_job
from tests.support.memory_container import MemoryContainer
from worker.azure.blob.container import BlobFailed, ListedBlob
from worker.azure.blob.names import result_name
from worker.client.batches import BatchIsCancelled, OtherBatch, Progress
from worker.client.blob_batches import BlobBatches
from worker.client.blob_collector import (
    LONGEST_PAUSE,
    SHORTEST_PAUSE,
    BlobCollector,
    pause_after,
)
from worker.client.result_files import ResultFiles
from worker.jobs.batch_records import Manifest
from worker.jobs.results import result_rank
from worker.waits import loop_time


async def collect(
    container: MemoryContainer,
    folder: Path,
    *,
    follow: bool = False,
    told: list[Progress] | None = None,
    waited_for: list[str] | None = None,
) -> ResultFiles:
    with ResultFiles("b1", folder / "out", folder / "err") as files:
        report = (lambda _: None) if told is None else told.append
        waiting = (lambda _: None) if waited_for is None else waited_for.append
        await BlobCollector(BlobBatches(container, "results"), "b1", files, report, waiting).gather(follow=follow)
    return files


def read_ids(path: Path) -> list[str]:
    return sorted(json.loads(line)["custom_id"] for line in path.read_bytes().splitlines())


RESULT = st.tuples(st.sampled_from("abcde"), st.integers(0, 2), st.booleans())


@settings(max_examples=150, deadline=None)
@given(
    first=st.lists(RESULT, max_size=12),
    later=st.lists(RESULT, max_size=6),
    page=st.integers(1, 6),
)
async def test_in_any_order_and_over_any_pages_the_counting_result_of_each_job_is_collected(
    tmp_path_factory: pytest.TempPathFactory,
    first: list[tuple[str, int, bool]],
    later: list[tuple[str, int, bool]],
    page: int,
) -> None:
    folder = tmp_path_factory.mktemp("gather")
    container = MemoryContainer(page=page)
    counts: dict[str, tuple[int, bool]] = {}
    container.announce(len({name for name, _, _ in first + later}))
    files = await collect(container, folder)
    for written in (first, later):
        for name, replay, failed in written:
            container.put(name, replay=replay, failed=failed)
            rank = result_rank(replay, failed)
            counts[name] = max(counts.get(name, rank), rank)
        files = await collect(container, folder)
        status = await BlobBatches(container, "results").status("b1")
        assert len(files) == len(counts) == status.succeeded + status.failed
        assert files.failed == status.failed == sum(not is_answer for _, is_answer in counts.values())
    assert files.published
    assert read_ids(folder / "out") == sorted(name for name, (_, is_answer) in counts.items() if is_answer)
    assert read_ids(folder / "err") == sorted(name for name, (_, is_answer) in counts.items() if not is_answer)


async def test_only_what_counts_and_is_not_here_yet_is_read(tmp_path: Path) -> None:
    container = MemoryContainer()
    container.put("a", failed=True)
    container.put("a")
    await collect(container, tmp_path)
    container.put("b")
    await collect(container, tmp_path)
    read = [name for name in container.read_names if not name.endswith(("manifest.json", "cancelled.json"))]
    assert read == [
        result_name("results", make_job("a"), failed=False),
        result_name("results", make_job("b"), failed=False),
    ]


@pytest.mark.looptime
@pytest.mark.parametrize(("announced", "ends_at"), [(False, 900.0), (True, 920.0)])
async def test_following_ends_when_nothing_new_has_come_for_the_timeout(
    tmp_path: Path, announced: bool, ends_at: float
) -> None:
    container = MemoryContainer()

    def arrive(listing: int) -> None:
        if loop_time() >= 20 and announced:
            container.announce(3)

    container.before_listing = arrive
    with ResultFiles("b1", tmp_path / "out", None) as files:
        collector = BlobCollector(BlobBatches(container, "results"), "b1", files, lambda _: None, lambda _: None)
        await collector.gather(follow=True)
    assert (collector.timed_out, collector.total, files.published) == (True, 3 if announced else None, False)
    assert ends_at <= loop_time() < ends_at + (60 if announced else 1)


@pytest.mark.looptime
async def test_following_looks_again_after_pauses_that_grow_while_nothing_comes(tmp_path: Path) -> None:
    container = MemoryContainer()
    container.announce(2)

    def arrive(listing: int) -> None:
        if listing == 4:
            container.put("a")
        elif listing == 6:
            container.put("b")

    container.before_listing = arrive
    files = await collect(container, tmp_path, follow=True)
    assert files.published
    pauses = [round(b - a, 3) for a, b in zip(container.listed, container.listed[1:], strict=False)]
    assert pauses == [1.5, 2.25, 3.375, 1.0, 1.5]  # "a" came with the fourth, so the next look is soon


@pytest.mark.looptime
async def test_following_shows_what_is_here_and_waits_for_the_manifest(tmp_path: Path) -> None:
    container = MemoryContainer()
    container.put("a")
    container.before_listing = lambda listing: container.announce(1) if listing == 2 else None
    told: list[Progress] = []
    await collect(container, tmp_path, follow=True, told=told)
    assert told[:2] == [Progress(done=0, total=None), Progress(done=1, total=None)]
    assert told[-1] == Progress(done=1, total=1)


def down() -> BlobFailed:
    return BlobFailed("the service failed", status=503, code="ServerBusy")


@pytest.mark.looptime
async def test_a_service_that_fails_for_a_while_is_waited_for_once_it_has_worked(tmp_path: Path) -> None:
    container = MemoryContainer()
    container.announce(1)

    def fail(listing: int) -> None:
        if listing == 2:
            container.failures = [down(), down()]
        elif listing == 4:
            container.put("a")

    container.before_listing = fail
    waited_for: list[str] = []
    assert (await collect(container, tmp_path, follow=True, waited_for=waited_for)).published
    assert [round(moment, 3) for moment in container.listed] == [0, 1.5, 2.0, 3.0]
    answer = "Blob storage to answer about batch b1"
    assert waited_for == [
        answer,
        "",
        answer,
        f"{answer}, again after 0.5 s; the last try failed: the service failed",
        f"{answer}, again after 1 s; the last try failed: the service failed",
    ]


@pytest.mark.looptime
async def test_a_service_that_never_worked_is_told_at_once(tmp_path: Path) -> None:
    container = MemoryContainer()
    container.failures = [down()]
    with pytest.raises(BlobFailed, match="the service failed"):
        await collect(container, tmp_path, follow=True)
    assert loop_time() == 0


@pytest.mark.looptime
async def test_a_service_that_stays_down_is_given_up(tmp_path: Path) -> None:
    container = MemoryContainer()
    container.put("a")
    container.before_listing = lambda listing: container.failures.append(down()) if listing > 1 else None
    with pytest.raises(BlobFailed):
        await collect(container, tmp_path, follow=True)
    assert len(container.listed) == 10
    assert (tmp_path / "out.partial").exists(), "what was collected stays"


@pytest.mark.looptime
async def test_a_role_that_is_taken_away_is_not_waited_for(tmp_path: Path) -> None:
    container = MemoryContainer()
    refusal = BlobFailed("no role", status=403, code="AuthorizationPermissionMismatch")
    container.before_listing = lambda listing: container.failures.append(refusal) if listing == 2 else None
    with pytest.raises(BlobFailed, match="no role"):
        await collect(container, tmp_path, follow=True)
    assert len(container.listed) == 2


class ListsWhatIsGone(MemoryContainer):
    """Its listing has one more result than there is."""

    async def blobs(self, prefix: str, *, metadata: bool = True) -> AsyncIterator[Sequence[ListedBlob]]:
        async for page in super().blobs(prefix, metadata=metadata):
            gone = ListedBlob(result_name("results", make_job("gone"), failed=False), "")
            yield sorted([*page, gone], key=lambda blob: blob.name)


async def test_a_result_that_vanishes_between_listing_and_reading_is_left_out(tmp_path: Path) -> None:
    container = ListsWhatIsGone()
    container.put("a")
    container.announce(2)
    files = await collect(container, tmp_path)
    assert (len(files), files.published) == (1, False)


async def test_the_same_manifest_may_be_put_again_but_not_another() -> None:
    container = MemoryContainer()
    manifest = Manifest(batch_id="b1", total=1, sha256="0" * 64, submitted_at="then")
    batches = BlobBatches(container, "results")
    assert await batches.announce(manifest) is None
    assert await batches.announce(replace(manifest, submitted_at="now")) == "then"
    with pytest.raises(OtherBatch):
        await batches.announce(replace(manifest, total=2))
    assert len(container.stored) == 1
    await batches.cancel("b1")
    with pytest.raises(BatchIsCancelled, match="aoai-worker retry b1 FILE"):
        await batches.announce(replace(manifest, submitted_at="now"))


@given(listing=st.floats(0, 1_000), idle=st.integers(0, 10_000))
def test_a_pause_is_bounded_and_looking_takes_a_tenth_of_the_time_at_most(listing: float, idle: int) -> None:
    pause = pause_after(listing, idle)
    assert SHORTEST_PAUSE <= pause <= LONGEST_PAUSE
    assert pause >= min(LONGEST_PAUSE, 10 * listing)
    assert pause <= pause_after(listing, idle + 1)
