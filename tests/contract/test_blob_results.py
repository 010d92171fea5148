"""The blob sink: one set of promises for the fake, ours and Azurite, and what only a container can do."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from aiohttp import web
from azure.core.credentials import AccessToken

from embedded_azure.config import default_config
from tests.support.blob_jobs import make_job, make_line, make_result
from tests.support.blob_service import BlobService
from tests.support.local_azure import Authority, SignedCredential
from worker.azure.blob.container import LARGEST_PUT, PIECE, BlobContainer, BlobFailed
from worker.azure.blob.names import batch_folder, counting, parse_result_name
from worker.azure.blob.results import BlobResults
from worker.errors import Cause, ResultTooLarge, SinkUnavailable, TokenUnavailable
from worker.interfaces import Sink
from worker.jobs.outcomes import Usage
from worker.jobs.results import ResultSummary, decode_summary
from worker.testing import FakeSink, result_of

PREFIX = "results"


@pytest.fixture(params=["fake", "container", "azurite_container"])
def sink(request: pytest.FixtureRequest) -> Sink:
    if request.param == "fake":
        return FakeSink(knows=True)
    container: BlobContainer = request.getfixturevalue(request.param)
    return BlobResults(container, prefix=PREFIX)


@pytest.fixture(params=["container", "azurite_container"])
def either(request: pytest.FixtureRequest) -> BlobContainer:
    container: BlobContainer = request.getfixturevalue(request.param)
    return container


@pytest.fixture
def results(container: BlobContainer) -> BlobResults:
    return BlobResults(container, prefix=PREFIX)


async def names_of(container: BlobContainer, batch_id: str = "b1") -> list[str]:
    folder = batch_folder(PREFIX, batch_id)
    return [name async for page in container.names(folder) for name in page]


async def test_a_result_is_written_once_and_can_be_asked_for(sink: Sink) -> None:
    job = make_job()
    assert not await sink.has(job)
    assert await sink.write(make_result(job))
    assert await sink.has(job)
    assert not await sink.write(make_result(job, said="no"))
    assert not await sink.has(make_job("b"))


async def test_a_replay_is_another_result(sink: Sink) -> None:
    job, again = make_job(), make_job(replay=1)
    await sink.write(make_result(job))
    assert not await sink.has(again)
    assert await sink.write(make_result(again))
    assert await sink.has(again)


async def test_the_first_line_stays(container: BlobContainer, results: BlobResults) -> None:
    job = make_job()
    await results.write(make_result(job, said="first"))
    await results.write(make_result(job, said="second"))
    (name,) = await names_of(container)
    assert await container.read(name, at_most=10_000) == make_line(job, said="first")


@pytest.mark.parametrize("failed", [False, True])
async def test_an_answer_and_an_error_are_both_found(results: BlobResults, failed: bool) -> None:
    job = make_job()
    await results.write(make_result(job, failed=failed))
    assert await results.has(job)


async def test_the_result_of_a_later_replay_makes_an_earlier_delivery_needless(results: BlobResults) -> None:
    job, later = make_job(), make_job(replay=12)
    await results.write(make_result(later))
    assert await results.has(job)
    assert await results.has(make_job(replay=11))
    assert not await results.has(make_job(replay=13))


INTERLEAVINGS = [
    pytest.param([(0, True), (0, False)], (0, False), id="an error, then an answer"),
    pytest.param([(0, False), (0, True)], (0, False), id="an answer, then an error"),
    pytest.param([(0, False), (1, True)], (1, True), id="an answer, then a replay that fails"),
    pytest.param([(1, True), (0, False)], (1, True), id="a replay that fails, then the answer before it"),
    pytest.param([(0, True), (1, False), (2, True)], (2, True), id="two replays"),
    pytest.param([(2, True), (10, False), (9, True)], (10, False), id="replays count as numbers"),
    pytest.param([(1, True), (1, False), (0, False)], (1, False), id="a replay with both"),
]
"""What was written in which order, as replay and whether it failed, and what of it counts."""


@pytest.mark.parametrize(("written", "counts"), INTERLEAVINGS)
async def test_whatever_comes_first_the_latest_replay_counts_and_of_it_the_answer(
    container: BlobContainer, results: BlobResults, written: list[tuple[int, bool]], counts: tuple[int, bool]
) -> None:
    for replay, failed in written:
        job = make_job(replay=replay)
        assert await results.write(make_result(job, failed=failed))
    (counting_one,) = counting([one for name in await names_of(container) if (one := parse_result_name(name))])
    assert (counting_one.replay, counting_one.failed) == counts


@pytest.mark.parametrize("batch_id", [".", "..", "...", "b.", "a.b", "-", "A" * 48])
async def test_every_batch_id_is_a_folder_of_its_own(
    container: BlobContainer, results: BlobResults, batch_id: str
) -> None:
    job = make_job(batch_id=batch_id)
    await results.write(make_result(job))
    assert len(await names_of(container, batch_id)) == 1
    assert await results.has(job)
    assert [name async for page in container.names(f"{PREFIX}/") for name in page] == await names_of(
        container, batch_id
    )


@pytest.mark.parametrize("job_id", ["ä/ö?#%", "../../x", "a b\\c", "x" * 128, "b1/q~r1"])
async def test_any_job_id_has_a_name(container: BlobContainer, results: BlobResults, job_id: str) -> None:
    job = make_job(job_id=job_id)
    assert await results.write(make_result(job))
    assert await results.has(job)


async def test_many_writers_of_one_result_leave_one(container: BlobContainer, results: BlobResults) -> None:
    job = make_job()
    written = await asyncio.gather(*[results.write(make_result(job)) for _ in range(20)])
    assert sorted(written) == [False] * 19 + [True]


async def test_start_up_proves_the_container_and_leaves_nothing_in_it(
    container: BlobContainer, results: BlobResults
) -> None:
    await results.open()
    assert [name async for page in container.names("") for name in page] == []


async def test_a_missing_container_is_told_with_what_to_do(blob_storage: BlobService) -> None:
    async with blob_storage.open(blob_storage.url("nowhere")) as container:
        results = BlobResults(container)
        for attempt in (results.open(), results.has(make_job()), results.write(make_result(make_job()))):
            with pytest.raises(SinkUnavailable, match="404 ContainerNotFound: create it, or check its name"):
                await attempt


async def test_a_token_for_another_service_is_refused(blob_storage: BlobService) -> None:
    url = await blob_storage.new_container()
    async with blob_storage.open(url, audience="https://servicebus.azure.net") as container:
        with pytest.raises(SinkUnavailable, match=r'40[13].*(token|role "Storage Blob Data Contributor")'):
            await BlobResults(container).write(make_result(make_job()))


@pytest.mark.parametrize("identity", ["producer", "stranger"], ids=["a reader", "without a role"])
async def test_start_up_finds_out_that_the_role_is_missing(blob_storage: BlobService, identity: str) -> None:
    async with blob_storage.open(await blob_storage.new_container(), identity) as container:
        with pytest.raises(SinkUnavailable, match="403 AuthorizationPermissionMismatch") as caught:
            await BlobResults(container).open()
    assert caught.value.cause is Cause.ROLE_MISSING


async def test_an_account_that_cannot_be_reached_is_told(blob_storage: BlobService) -> None:
    async with blob_storage.open("https://localhost:1/local/batches") as container:
        with pytest.raises(SinkUnavailable, match=r"cannot be reached: .*AOAI_WORKER_CA_FILE"):
            await BlobResults(container).has(make_job())
        with pytest.raises(SinkUnavailable, match="cannot be reached"):
            await BlobResults(container).write(make_result(make_job()))


class TooLong(bytes):
    def __len__(self) -> int:
        return LARGEST_PUT + 1


async def test_what_one_request_cannot_write_is_too_large_for_ever(results: BlobResults) -> None:
    with pytest.raises(ResultTooLarge, match="5,242,880,000"):
        await results.write(result_of(make_job(), TooLong()))


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def service(authority: Authority, handler: Handler) -> AsyncIterator[str]:
    """Blob storage that does as it is told; the url of a container."""
    app = web.Application(client_max_size=1 << 24)
    app.router.add_route("*", "/{tail:.*}", handler)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=authority.tls()).start()
        yield f"https://localhost:{runner.addresses[0][1]}/local/batches"
    finally:
        await runner.cleanup()


class CountedCredential(SignedCredential):
    """Hands out token-0 until it is told that one was rejected."""

    number = 0
    broken = False

    async def get_token(self, *scopes: str, **options: object) -> AccessToken:
        if self.broken:
            raise TokenUnavailable(scopes[0], "Entra is down", code="other")
        return AccessToken(f"token-{self.number}", 4_000_000_000)

    async def replace(self, scope: str, rejected: str) -> str:
        assert rejected == f"token-{self.number}"
        self.number += 1
        return f"token-{self.number}"


def credential(authority: Authority) -> CountedCredential:
    config = default_config()
    return CountedCredential(authority.entra_private, config.tenant_id, config.identity("worker"))


@pytest.mark.parametrize(
    ("status", "code", "told", "cause"),
    [
        (401, "InvalidAuthenticationInfo", "AZURE_TENANT_ID", Cause.TOKEN_REFUSED),
        (403, "AuthorizationPermissionMismatch", 'role "Storage Blob Data Contributor"', Cause.ROLE_MISSING),
        (403, "AuthorizationFailure", "firewall", Cause.NETWORK_CLOSED),
        (404, "ContainerNotFound", "create it", Cause.MISSING),
        (404, "ResourceNotFound", "create it", Cause.MISSING),
        (409, "ContainerBeingDeleted", "409 ContainerBeingDeleted", None),
        (429, "TooManyRequests", "throttles", None),
        (503, "ServerBusy", "throttles", None),
        (500, "InternalError", "tries again later", None),
        (302, "no error code", "302", Cause.WRONG_ENDPOINT),
    ],
)
async def test_a_refusal_is_a_sink_that_is_down_and_names_the_next_step(
    authority: Authority, status: int, code: str, told: str, cause: Cause | None
) -> None:
    async def refuse(request: web.Request) -> web.Response:
        headers = {"x-ms-error-code": code, "location": "https://example.com"}
        return web.Response(status=status, headers=headers)

    async with (
        service(authority, refuse) as url,
        BlobContainer(url, credential(authority), ca_file=authority.ca_file) as container,
    ):
        for attempt in (
            BlobResults(container).write(make_result(make_job())),
            BlobResults(container).has(make_job()),
        ):
            with pytest.raises(SinkUnavailable, match=told) as caught:
                await attempt
            assert caught.value.cause is cause


async def test_a_result_that_is_there_is_no_failure_however_the_service_says_it(authority: Authority) -> None:
    words = iter([(409, "BlobAlreadyExists"), (412, "ConditionNotMet"), (409, "BlobImmutableDueToPolicy")])

    async def exists(request: web.Request) -> web.Response:
        status, code = next(words)
        return web.Response(status=status, headers={"x-ms-error-code": code})

    async with (
        service(authority, exists) as url,
        BlobContainer(url, credential(authority), ca_file=authority.ca_file) as container,
    ):
        for _ in range(3):
            assert not await BlobResults(container).write(make_result(make_job()))


@pytest.mark.parametrize("letters", [1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 12_345])
async def test_a_rejected_token_is_replaced_once_and_all_is_sent_again(authority: Authority, letters: int) -> None:
    line = make_line(make_job(), said="x" * letters)
    seen: list[str] = []

    async def accept_newer(request: web.Request) -> web.Response:
        seen.append(request.headers["authorization"])
        assert request.headers["content-length"] == str(len(line)), "Put Blob wants to know it beforehand"
        assert await request.read() == line
        if seen[-1] == "Bearer token-0":
            return web.Response(status=401, headers={"www-authenticate": "Bearer authorization_uri=https://x/"})
        return web.Response(status=201, headers={"etag": '"0x1"'})

    async with (
        service(authority, accept_newer) as url,
        BlobContainer(url, credential(authority), ca_file=authority.ca_file) as container,
    ):
        assert await BlobResults(container).write(result_of(make_job(), line))
    assert seen == ["Bearer token-0", "Bearer token-1"]


async def test_a_large_result_is_written_as_it_is(container: BlobContainer, results: BlobResults) -> None:
    line = make_line(make_job(), said="".join(f"{number}," for number in range(300_000)))
    assert await results.write(result_of(make_job(), line))
    assert not await results.write(result_of(make_job(), line))
    [name] = await names_of(container)
    assert await container.read(name, at_most=len(line)) == line


async def test_without_a_token_the_sink_is_down(authority: Authority) -> None:
    broken = credential(authority)
    broken.broken = True
    async with BlobContainer("https://localhost:1/local/batches", broken, ca_file=authority.ca_file) as container:
        for attempt in (
            BlobResults(container).write(make_result(make_job())),
            BlobResults(container).has(make_job()),
        ):
            with pytest.raises(SinkUnavailable, match="Entra is down"):
                await attempt


async def test_a_silent_service_is_not_waited_for_longer_than_the_time_out(authority: Authority) -> None:
    async def hang(request: web.Request) -> web.Response:
        await asyncio.Event().wait()
        raise AssertionError

    async with (
        service(authority, hang) as url,
        BlobContainer(url, credential(authority), ca_file=authority.ca_file, timeout=0.05) as container,
    ):
        for attempt in (
            BlobResults(container).write(make_result(make_job())),
            BlobResults(container).has(make_job()),
        ):
            with pytest.raises(SinkUnavailable, match="no answer in time"):
                await attempt


async def test_connections_are_bounded_and_used_again(authority: Authority) -> None:
    peers: set[object] = set()
    now, most = 0, 0

    async def take(request: web.Request) -> web.Response:
        nonlocal now, most
        assert request.transport is not None
        peers.add(request.transport.get_extra_info("peername"))
        now += 1
        most = max(most, now)
        await request.read()
        await asyncio.sleep(0.01)
        now -= 1
        return web.Response(status=201, headers={"etag": '"0x1"'})

    async with (
        service(authority, take) as url,
        BlobContainer(url, credential(authority), ca_file=authority.ca_file, connections=3) as container,
    ):
        jobs = [make_job(str(number)) for number in range(30)]
        await asyncio.gather(*[BlobResults(container).write(make_result(job)) for job in jobs])
    assert (len(peers), most) == (3, 3)


async def test_a_listing_tells_of_each_result_what_it_was_and_cost(either: BlobContainer) -> None:
    summary = ResultSummary(
        code="429", model="org/model:v1@x+y", finished=1_790_000_000.125, usage=Usage(prompt=7, completion=1_000)
    )
    result = make_result(make_job("a"), failed=True)
    await BlobResults(either, prefix=PREFIX).write(replace(result, summary=summary))
    [blob] = [blob async for page in either.blobs(batch_folder(PREFIX, "b1")) for blob in page]
    assert decode_summary(blob.metadata) == summary
    assert abs(blob.modified - time.time()) < 600


async def test_a_blob_is_replaced_and_removed_whatever_was_there(either: BlobContainer) -> None:
    for body in (b"one", b"two"):
        await either.replace("reports/a.json", body)
        assert await either.read("reports/a.json", at_most=10) == body
    for _ in range(2):
        await either.delete("reports/a.json")
    assert [name async for page in either.names("") for name in page] == []


async def test_a_blob_that_has_changed_is_neither_replaced_nor_removed(either: BlobContainer) -> None:
    first = await either.replace("a.json", b"one")
    second = await either.replace("a.json", b"two", etag=first)
    assert second not in (None, first)
    assert await either.replace("a.json", b"three", etag=first) is None
    await either.delete("a.json", etag=first)
    assert await either.read("a.json", at_most=10) == b"two"
    await either.delete("a.json", etag=second)
    await either.delete("a.json", etag=second)
    assert [name async for page in either.names("") for name in page] == []


async def test_folders_are_listed_once_however_many_blobs_lie_in_them(either: BlobContainer) -> None:
    for name in ("results/a/1", "results/a/2", "results/b~/1", "results/file", "other/c/1"):
        await either.replace(name, b"")
    assert [name async for page in either.folders("results/") for name in page] == ["results/a/", "results/b~/"]


async def test_a_listing_that_is_not_xml_is_a_failure_that_says_so(authority: Authority) -> None:
    async def greet(request: web.Request) -> web.Response:
        return web.Response(text="<html>Sign in<br>")

    async with (
        service(authority, greet) as url,
        BlobContainer(url, credential(authority), ca_file=authority.ca_file) as container,
    ):
        with pytest.raises(BlobFailed, match="its listing is not XML") as raised:
            await anext(aiter(container.names("results/")))
    assert raised.value.code == "InvalidXml"
