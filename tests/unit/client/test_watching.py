"""A batch that is watched: how often, until when, and what is outlived."""

import pytest

from tests.support.memory_container import PREFIX, MemoryContainer
from worker.azure.blob.container import BlobFailed
from worker.client.batches import BatchStatus
from worker.client.blob_batches import BlobBatches
from worker.client.watching import watch
from worker.waits import loop_time


async def watched(container: MemoryContainer, waited_for: list[str] | None = None) -> list[BatchStatus]:
    waiting = (lambda _: None) if waited_for is None else waited_for.append
    return [status async for status in watch(BlobBatches(container, PREFIX), "b1", waiting)]


@pytest.mark.looptime
async def test_watching_ends_when_the_batch_is_complete() -> None:
    container = MemoryContainer()
    container.announce(2)
    container.put("a")

    def arrive(_: int) -> None:
        if loop_time() > 4:
            container.put("b")

    container.before_listing = arrive
    statuses = await watched(container)
    assert [status.succeeded for status in statuses] == [1, 1, 2]
    assert loop_time() == pytest.approx(4.5)  # two pauses of 2.25 s


@pytest.mark.looptime
async def test_what_is_cancelled_meanwhile_or_was_never_submitted_is_not_waited_for() -> None:
    container = MemoryContainer()
    assert [status.is_unknown for status in await watched(container)] == [True]
    container.announce(2)
    await BlobBatches(container, PREFIX).cancel("b1")
    assert [status.state for status in await watched(container)] == ["cancelled"]
    assert loop_time() == 0


@pytest.mark.looptime
async def test_a_service_that_fails_for_a_while_is_outlived_and_named() -> None:
    container = MemoryContainer()
    container.announce(1)

    def fail(listing: int) -> None:
        if loop_time() and not container.stored.get("told"):
            container.stored["told"] = b"once"
            container.failures.append(BlobFailed("the service failed", status=503, code="ServerBusy"))
        elif loop_time():
            container.put("a")

    container.before_listing = fail
    waited_for: list[str] = []
    statuses = await watched(container, waited_for)
    assert [status.complete for status in statuses] == [False, True]
    assert any(text.endswith("again after 0.5 s; the last try failed: the service failed") for text in waited_for)


@pytest.mark.looptime
async def test_a_refusal_ends_watching_at_once() -> None:
    container = MemoryContainer()
    container.failures.append(BlobFailed("no role", status=403, code="AuthorizationPermissionMismatch"))
    with pytest.raises(BlobFailed, match="no role"):
        await watched(container)
