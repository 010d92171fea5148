"""Claim checks: one set of promises for the fake, ours and Azurite, and urls that nobody may make us fetch."""

import asyncio
import contextlib
import gc
import hashlib
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import pytest

from tests.support.blob_jobs import make_job, make_line, make_result
from tests.support.blob_service import BlobService
from worker.azure.blob.claims import BlobClaims, ClaimedResults
from worker.azure.blob.container import BlobContainer, BlobFailed
from worker.errors import ClaimUnavailable, DeadLetterReason, NotAJob, ResultTooLarge, SinkUnavailable
from worker.interfaces import Claims
from worker.jobs.claims import make_claim
from worker.jobs.job import CLAIM_TYPE, Claim, Job, parse_claim
from worker.jobs.results import Result
from worker.testing import FakeClaims, job_line, result_of

LARGEST = 1 << 20
BODY = job_line(content="x" * 300_000)


@dataclass
class Store:
    """Claims, and a way to put what they stand for."""

    claims: Claims
    put: Callable[[bytes], Awaitable[Claim]]


def fake_store() -> Store:
    claims = FakeClaims()

    async def put(body: bytes) -> Claim:
        url = f"memory:{hashlib.sha256(body).hexdigest()}"
        claims.bodies[url] = body
        return make_claim(url, body, etag=None)

    return Store(claims, put)


@pytest.fixture
def claims(container: BlobContainer) -> BlobClaims:
    return BlobClaims(container, largest=LARGEST)


@pytest.fixture(params=["fake", "container", "azurite_container"])
def store(request: pytest.FixtureRequest) -> Store:
    if request.param == "fake":
        return fake_store()
    claims = BlobClaims(request.getfixturevalue(request.param), largest=LARGEST)
    return Store(claims, lambda body: claims.store("b1", body))


async def test_what_was_put_is_fetched(store: Store) -> None:
    assert await store.claims.fetch(await store.put(BODY)) == BODY


async def test_the_same_body_is_put_once(store: Store) -> None:
    assert await store.put(BODY) == await store.put(BODY)


@pytest.mark.parametrize(
    "changes",
    [
        {"length": len(BODY) - 1},
        {"length": len(BODY) + 1},
        {"sha256": "0" * 64},
        {"url": "https://elsewhere.blob.core.windows.net/batches/claims/b1/x.json"},
    ],
    ids=lambda changes: next(iter(changes)),
)
async def test_a_claim_that_is_not_true_is_not_a_job(store: Store, changes: dict[str, object]) -> None:
    claim = await store.put(BODY)
    with pytest.raises(NotAJob) as caught:
        await store.claims.fetch(replace(claim, **changes))  # type: ignore[arg-type] # of any field
    assert caught.value.reason is DeadLetterReason.INVALID_CLAIM
    assert "aoai-worker submit" in caught.value.description


async def test_a_body_that_is_gone_stays_so(container: BlobContainer, claims: BlobClaims) -> None:
    url = f"{container.url}/claims/b1/nothing.json"
    with pytest.raises(NotAJob, match="does not exist, or no longer"):
        await claims.fetch(make_claim(url, BODY, etag=None))


async def test_a_body_that_was_written_again_is_told_by_its_etag(claims: BlobClaims) -> None:
    claim = await claims.store("b1", BODY)
    with pytest.raises(NotAJob, match=r"claim\.etag"):
        await claims.fetch(replace(claim, etag='"0x8DEAD"'))
    assert await claims.fetch(replace(claim, etag=None)) == BODY


async def test_more_than_is_held_in_memory_is_not_fetched(claims: BlobClaims) -> None:
    claim = await claims.store("b1", BODY)
    with pytest.raises(NotAJob, match="at most 1,048,576 bytes are fetched"):
        await claims.fetch(replace(claim, length=LARGEST + 1))


async def test_a_body_is_taken_as_it_lies_there_whatever_its_encoding_claims(
    container: BlobContainer, claims: BlobClaims
) -> None:
    claim = await claims.store("..", BODY)
    assert "/claims/..~/" in claim.url
    assert await claims.fetch(claim) == BODY


@pytest.mark.parametrize(
    "etag", ["", '"', "0x1\r\nx-ms-lease-id: 1", "*", "ä", '"' + "1" * 200 + '"', "W/ x"], ids=repr
)
async def test_an_etag_that_is_none_is_no_header(claims: BlobClaims, etag: str) -> None:
    claim = await claims.store("b1", BODY)
    with pytest.raises(NotAJob, match=r"claim\.etag"):
        await claims.fetch(replace(claim, etag=etag))


async def test_a_store_that_is_down_or_not_ours_is_unavailable(blob_storage: BlobService) -> None:
    url = blob_storage.url("nowhere")
    async with blob_storage.open(url) as container:
        claims = BlobClaims(container, largest=LARGEST)
        with pytest.raises(ClaimUnavailable, match="404 ContainerNotFound"):
            await claims.fetch(make_claim(f"{url}/claims/b1/a.json", BODY, etag=None))
        with pytest.raises(ClaimUnavailable, match="404 ContainerNotFound"):
            await claims.open()
        with pytest.raises(BlobFailed, match="404 ContainerNotFound"):
            await claims.store("b1", BODY)


async def test_a_fake_that_is_down_is_unavailable_too() -> None:
    claims = FakeClaims()
    claims.down = True
    with pytest.raises(ClaimUnavailable):
        await claims.fetch(make_claim("memory:1", BODY, etag=None))


async def test_start_up_proves_the_container_of_claims(container: BlobContainer, claims: BlobClaims) -> None:
    await claims.open()
    assert [name async for page in container.names("") for name in page] == []


class SmallQueue:
    """A queue of results that takes `largest` bytes. `down`: it fails."""

    def __init__(self, largest: int) -> None:
        self.sent: list[tuple[bytes, str]] = []
        self.down = False
        self._largest = largest

    async def write(self, result: Result, *, content_type: str = "application/json") -> bool:
        if self.down:
            raise SinkUnavailable("down")
        if len(result.line) > self._largest:
            raise ResultTooLarge(size=len(result.line), allowed=self._largest)
        self.sent.append((result.line, content_type))
        return True

    async def has(self, job: Job) -> bool:
        return False


async def test_a_result_too_large_for_the_queue_goes_there_as_a_claim(claims: BlobClaims) -> None:
    queue = SmallQueue(1_000)
    sink = ClaimedResults(queue, claims)
    job = make_job()
    small, large = make_line(job), make_line(job, said="x" * 5_000)
    assert await sink.write(result_of(job, small))
    assert await sink.write(result_of(job, large))
    assert not await sink.has(job)
    assert queue.sent[0] == (small, "application/json")
    claim_line, kind = queue.sent[1]
    assert kind == CLAIM_TYPE
    assert await claims.fetch(parse_claim(claim_line)) == large


async def test_a_result_that_nobody_would_fetch_is_too_large_for_ever(claims: BlobClaims) -> None:
    job = make_job()
    with pytest.raises(ResultTooLarge, match="1,048,576"):
        await ClaimedResults(SmallQueue(1_000), claims).write(make_result(job, said="x" * LARGEST))


class SmallQueueOfFutures(SmallQueue):
    """It fails by a future, as the queue of results does: the future keeps the error, and that its frames."""

    async def write(self, result: Result, *, content_type: str = "application/json") -> bool:
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        if len(result.line) > self._largest:
            done.set_exception(ResultTooLarge(size=len(result.line), allowed=self._largest))
        else:
            done.set_result(True)
        return await done


@pytest.mark.parametrize("letters", [5_000, LARGEST])
async def test_a_result_too_large_for_the_queue_is_not_left_to_the_garbage_collector(
    claims: BlobClaims, letters: int
) -> None:
    line = make_line(make_job(), said="x" * letters)
    held = sys.getrefcount(line)
    gc.disable()
    try:
        with contextlib.suppress(ResultTooLarge):
            await ClaimedResults(SmallQueueOfFutures(1_000), claims).write(result_of(make_job(), line))
        assert sys.getrefcount(line) == held
    finally:
        gc.enable()


async def test_a_store_that_is_down_is_a_sink_that_is_down(blob_storage: BlobService) -> None:
    async with blob_storage.open(blob_storage.url("nowhere")) as container:
        sink = ClaimedResults(SmallQueue(10), BlobClaims(container, largest=LARGEST))
        with pytest.raises(SinkUnavailable, match="ContainerNotFound"):
            await sink.write(make_result(make_job()))
