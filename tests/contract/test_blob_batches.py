"""The producer's side with Blob storage: batches, claims and collections over the embedded storage and queues."""

import asyncio
import json
from pathlib import Path

import pytest
from azure.servicebus import ServiceBusMessage

from tests.support.blob_client import (
    RESULTS,
    answer,
    client,
    client_of,
    read_ids,
    receive_all,
    small_batch,
    write_batch,
)
from tests.support.blob_jobs import make_job, make_line
from tests.support.blob_service import BlobService
from tests.support.local_azure import Bus
from worker.azure.blob.claims import BlobClaims
from worker.azure.blob.container import BlobContainer
from worker.azure.blob.names import manifest_name
from worker.client import (
    ClaimsNotConfigured,
    InvalidBatch,
    JobClient,
    OtherBatch,
    UnusableBlob,
    make_batch_id,
    read_batch_file,
)
from worker.client.batches import BatchDetail, BatchStatus, Progress
from worker.jobs.claims import encode_claim
from worker.jobs.job import CLAIM_TYPE, make_job_id, parse_claim

__all__ = ["client"]

LARGE = 300_000


async def test_a_batch_is_announced_by_a_blob_and_submitting_again_is_harmless(
    bus: Bus, client: JobClient, container: BlobContainer, tmp_path: Path
) -> None:
    batch = read_batch_file(small_batch(tmp_path / "jobs.jsonl", ["a", "b"]))
    first, second = await client.submit(batch), await client.submit(batch)
    assert first.batch_id == second.batch_id
    assert (first.submitted_before is None, second.submitted_before is None) == (True, False)
    manifest = await container.read(manifest_name("results", make_batch_id(batch)), at_most=1_000)
    assert json.loads(manifest)["total"] == 2
    assert len(await receive_all(bus, "jobs")) == 2
    assert await receive_all(bus, RESULTS, session_id=first.batch_id) == []


async def test_another_file_under_the_same_batch_id_is_refused_before_a_job_is_sent(
    bus: Bus, client: JobClient, tmp_path: Path
) -> None:
    await client.submit(read_batch_file(small_batch(tmp_path / "one.jsonl", ["a"])), batch_id="b1")
    other = read_batch_file(small_batch(tmp_path / "other.jsonl", ["b", "c"]))
    with pytest.raises(OtherBatch, match=r"1 job,.* another --batch"):
        await client.submit(other, batch_id="b1")
    assert len(await receive_all(bus, "jobs")) == 1


async def test_a_line_too_large_for_a_message_goes_by_blob_storage(
    bus: Bus, client: JobClient, container: BlobContainer, tmp_path: Path
) -> None:
    path = write_batch(tmp_path / "jobs.jsonl", {"a": "small", "b": "x" * LARGE, "c": "small", "d": "y" * LARGE})
    told: list[Progress] = []
    await client.submit(read_batch_file(path), batch_id="b1", on_progress=told.append)
    messages = await receive_all(bus, "jobs")
    assert [str(message.message_id) for message in messages] == [make_job_id("b1", name) for name in "abcd"]
    assert told[-1] == Progress(done=4, total=4)
    lines = path.read_bytes().splitlines()
    claims = BlobClaims(container, largest=1 << 20)
    for message, line in zip(messages, lines, strict=True):
        body = b"".join(message.body)
        if len(line) > LARGE:
            assert message.content_type == CLAIM_TYPE
            assert await claims.fetch(parse_claim(body)) == line
        else:
            assert (message.content_type, body) == ("application/json", line)


@pytest.mark.parametrize("sink", ["queue", "blob"])
async def test_a_line_too_large_for_anything_is_refused_before_anything_is_sent(
    bus: Bus, blob_storage: BlobService, container: BlobContainer, tmp_path: Path, sink: str
) -> None:
    path = write_batch(tmp_path / "jobs.jsonl", {"a": "small", "b": "x" * LARGE})
    there = container if sink == "blob" else None
    async with client_of(bus, blob_storage, there, tmp_path, sink=sink, largest_claim=LARGE) as client:
        with pytest.raises(InvalidBatch, match="LARGEST_CLAIM" if there else "CLAIMS_CONTAINER"):
            await client.submit(read_batch_file(path), batch_id="b1")
    assert await receive_all(bus, "jobs") == []
    assert await receive_all(bus, RESULTS, session_id="b1") == []
    assert [name async for page in container.names("") for name in page] == []


async def test_status_counts_each_job_once_and_stays(
    client: JobClient, container: BlobContainer, tmp_path: Path
) -> None:
    assert await client.status("b1") == BatchStatus(batch_id="b1", detail=BatchDetail())
    await client.submit(read_batch_file(small_batch(tmp_path / "jobs.jsonl", ["a", "b", "c"])), batch_id="b1")
    await answer(container, "a", "b", failed=True)
    await answer(container, "b")
    for _ in range(2):
        status = await client.status("b1")
        assert (status.total, status.succeeded, status.failed, status.complete) == (3, 1, 1, False)
        await client.collect("b1", tmp_path / "out")
    await answer(container, "c")
    await answer(container, "a", replay=1)
    status = await client.status("b1")
    assert (status.succeeded, status.failed, status.complete) == (3, 0, True)


async def test_a_listing_of_many_pages_counts_and_collects_each_job_once(
    client: JobClient, container: BlobContainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.azure.blob.container.PAGE", 3)
    names = [str(number) for number in range(20)]
    await client.submit(read_batch_file(small_batch(tmp_path / "jobs.jsonl", names)), batch_id="b1")
    await answer(container, *names, failed=True)
    await answer(container, *names[:10])
    status = await client.status("b1")
    assert (status.succeeded, status.failed) == (10, 10)
    collection = await client.collect("b1", tmp_path / "out", tmp_path / "err")
    assert (collection.succeeded, collection.failed, collection.complete) == (10, 10, True)
    assert read_ids(tmp_path / "out") == sorted(names[:10])
    assert read_ids(tmp_path / "err") == sorted(names[10:])


async def test_a_collected_line_is_what_the_worker_wrote_and_can_be_collected_again(
    client: JobClient, container: BlobContainer, tmp_path: Path
) -> None:
    await client.submit(read_batch_file(small_batch(tmp_path / "jobs.jsonl", ["a"])), batch_id="b1")
    await answer(container, "a")
    for out in (tmp_path / "one", tmp_path / "two", tmp_path / "two"):
        collection = await client.collect("b1", out)
        assert (collection.complete, collection.total, collection.missing) == (True, 1, 0)
        assert out.read_bytes() == make_line(make_job("a")) + b"\n"


async def test_a_collection_goes_on_where_the_last_one_ended(
    client: JobClient, container: BlobContainer, tmp_path: Path
) -> None:
    out, errors = tmp_path / "out", tmp_path / "err"
    await client.submit(read_batch_file(small_batch(tmp_path / "jobs.jsonl", ["a", "b", "c"])), batch_id="b1")
    await answer(container, "a")
    await answer(container, "b", failed=True)
    first = await client.collect("b1", out, errors)
    assert (first.complete, first.missing, out.exists()) == (False, 1, False)
    await answer(container, "c")
    assert (await client.collect("b1", out, errors)).complete
    assert (read_ids(out), read_ids(errors)) == (["a", "c"], ["b"])


async def test_what_comes_later_supersedes_in_a_batch_that_was_whole(
    client: JobClient, container: BlobContainer, tmp_path: Path
) -> None:
    out, errors = tmp_path / "out", tmp_path / "err"
    await client.submit(read_batch_file(small_batch(tmp_path / "jobs.jsonl", ["a", "b"])), batch_id="b1")
    await answer(container, "a", "b", failed=True)
    assert (await client.collect("b1", out, errors)).complete
    await answer(container, "a")
    await answer(container, "b", replay=1)
    collection = await client.collect("b1", out, errors)
    assert (collection.complete, collection.failed) == (True, 0)
    assert (read_ids(out), read_ids(errors)) == (["a", "b"], [])


async def test_following_waits_for_the_last_result(
    client: JobClient, container: BlobContainer, tmp_path: Path
) -> None:
    await client.submit(read_batch_file(small_batch(tmp_path / "jobs.jsonl", ["a", "b"])), batch_id="b1")
    await answer(container, "a")
    first_is_here = asyncio.Event()

    def watch(now: Progress) -> None:
        if now.done == 1:
            first_is_here.set()

    async with asyncio.TaskGroup() as group:
        collecting = group.create_task(client.collect("b1", tmp_path / "out", follow=True, on_progress=watch))
        await first_is_here.wait()
        await answer(container, "b")
    assert collecting.result().complete
    assert read_ids(tmp_path / "out") == ["a", "b"]


async def test_a_blob_that_is_no_result_is_named(
    client: JobClient, container: BlobContainer, tmp_path: Path
) -> None:
    await container.create(f"results/b1/{'0' * 32}.ok.json", make_line(make_job("a")))
    with pytest.raises(UnusableBlob, match=f"results/b1/{'0' * 32}.ok.json cannot be read: .*move it away"):
        await client.collect("b1", tmp_path / "out")


async def claimed_result(bus: Bus, container: BlobContainer, name: str) -> bytes:
    """The result that a worker writes where it is too large for the queue; the queue gets its claim."""
    job = make_job(name)
    line = make_line(job, said="x" * LARGE)
    claim = await BlobClaims(container, largest=1 << 20).store("b1", line)
    async with bus.client() as worker, worker.get_queue_sender(RESULTS) as sender:
        await sender.send_messages(
            ServiceBusMessage(encode_claim(claim), message_id=job.id, session_id="b1", content_type=CLAIM_TYPE)
        )
    return line


async def test_a_result_that_the_queue_has_a_claim_of_is_counted_and_collected(
    bus: Bus, blob_storage: BlobService, container: BlobContainer, tmp_path: Path
) -> None:
    async with client_of(bus, blob_storage, container, tmp_path) as client:
        await client.submit(read_batch_file(small_batch(tmp_path / "jobs.jsonl", ["a"])), batch_id="b1")
        line = await claimed_result(bus, container, "a")
        status = await client.status("b1")
        assert (status.succeeded, status.complete, status.detail) == (1, True, None)
        assert (await client.collect("b1", tmp_path / "out")).complete
    assert (tmp_path / "out").read_bytes() == line + b"\n"


async def test_a_claimed_result_is_not_lost_by_a_collector_that_knows_no_container(
    bus: Bus, blob_storage: BlobService, container: BlobContainer, tmp_path: Path
) -> None:
    async with client_of(bus, blob_storage, container, tmp_path) as client:
        await client.submit(read_batch_file(small_batch(tmp_path / "jobs.jsonl", ["a"])), batch_id="b1")
        await claimed_result(bus, container, "a")
        async with client_of(bus, blob_storage, None, tmp_path) as ignorant:
            with pytest.raises(ClaimsNotConfigured, match="Nothing is lost"):
                await ignorant.collect("b1", tmp_path / "out")
        assert (await client.collect("b1", tmp_path / "out")).complete


async def test_a_claimed_result_that_is_gone_is_dead_lettered_for_inspection(
    bus: Bus, blob_storage: BlobService, container: BlobContainer, tmp_path: Path
) -> None:
    elsewhere = BlobContainer(blob_storage.url("elsewhere"), blob_storage.credential())
    claim = json.dumps({"claim": {"url": f"{elsewhere.url}/claims/x", "length": 1, "sha256": "0" * 64}})
    async with bus.client() as other, other.get_queue_sender(RESULTS) as sender:
        await sender.send_messages(ServiceBusMessage(claim, session_id="b1", content_type=CLAIM_TYPE))
    async with client_of(bus, blob_storage, container, tmp_path) as client:
        await client.collect("b1", tmp_path / "out")
    (dead,) = await receive_all(bus, RESULTS, sub_queue="deadletter")
    assert dead.dead_letter_reason == "InvalidResult"
    assert "claim.url" in str(dead.dead_letter_error_description)
