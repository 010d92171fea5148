"""Jobs that are sent again, over the embedded storage and queues: which, under which ids, and how often."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from azure.servicebus import ServiceBusReceivedMessage

from tests.support.blob_client import answer, client, read_ids, receive_all, small_batch, write_batch
from tests.support.blob_jobs import make_job, make_line
from tests.support.local_azure import Bus
from worker.azure.blob.container import BlobContainer
from worker.azure.blob.names import retry_name
from worker.azure.blob.results import BlobResults
from worker.client import (
    BatchFile,
    BatchRetry,
    JobClient,
    PassedOver,
    SubmissionInterrupted,
    UnknownBatch,
    read_batch_file,
)
from worker.jobs.batch_records import decode_retry
from worker.jobs.job import Envelope, Job, decode
from worker.testing import result_of

__all__ = ["client"]


def read_as_a_worker(message: ServiceBusReceivedMessage) -> Job:
    properties = {
        name.decode() if isinstance(name, bytes) else name: value.decode() if isinstance(value, bytes) else value
        for name, value in (message.application_properties or {}).items()
    }
    envelope = Envelope(
        body=b"".join(message.body),
        queue="jobs",
        sequence_number=1,
        enqueued_at=0.0,
        message_id=message.message_id,
        correlation_id=message.correlation_id,
        content_type=message.content_type,
        properties=properties,
    )
    return decode(envelope, max_age=60.0)


async def sent(bus: Bus) -> list[Job]:
    return [read_as_a_worker(message) for message in await receive_all(bus, "jobs")]


async def submitted(bus: Bus, client: JobClient, path: Path, names: Iterable[str]) -> BatchFile:
    """As batch b1; its messages are taken off the queue."""
    batch = read_batch_file(small_batch(path, names))
    await client.submit(batch, batch_id="b1")
    await receive_all(bus, "jobs")
    return batch


async def test_what_failed_is_sent_again_and_its_new_result_supersedes(
    bus: Bus, client: JobClient, container: BlobContainer, tmp_path: Path
) -> None:
    batch = await submitted(bus, client, tmp_path / "jobs.jsonl", ["a", "ä", "b", "c"])
    await answer(container, "b", "c", failed=True)
    await answer(container, "a", "c")
    assert await client.retry(batch, "b1") == BatchRetry(
        batch_id="b1", number=1_000, sent=1, passed_over={PassedOver.SUCCEEDED: 2, PassedOver.PENDING: 1}
    )
    (job,) = await sent(bus)
    assert (job.id, job.replay, job.batch_id, job.line.custom_id) == ("b1/b", 1_000, "b1", "b")
    await answer(container, "b", replay=1_000)
    status = await client.status("b1")
    assert (status.succeeded, status.failed, status.complete) == (3, 0, False)


async def test_the_record_names_what_is_sent_before_it_is(
    bus: Bus, client: JobClient, container: BlobContainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole sending is interrupted; the same command finishes it under the same ids, and once only."""
    batch = await submitted(bus, client, tmp_path / "jobs.jsonl", ["a", "b"])
    await answer(container, "a", "b", failed=True)

    async def interrupt(*_: object, **__: object) -> None:
        raise SubmissionInterrupted(0, 2)

    with monkeypatch.context() as patched:
        patched.setattr("worker.client.job_client.send_jobs", interrupt)
        with pytest.raises(SubmissionInterrupted):
            await client.retry(batch, "b1")
    record = decode_retry(await container.read(retry_name("results", "b1", 1_000), at_most=10_000))
    assert len(record.keys) == 2
    assert not (await client.status("b1")).complete
    assert await sent(bus) == []
    assert await client.retry(batch, "b1") == BatchRetry(batch_id="b1", resumed=2)
    messages = await receive_all(bus, "jobs")
    assert [message.message_id for message in messages] == ["b1/a~r1000", "b1/b~r1000"]
    # a job that was sent long ago, beyond what the queue knows, is not paid for again
    assert all((message.application_properties or {}).get(b"check-result") for message in messages)
    await client.retry(batch, "b1")
    assert await sent(bus) == [], "duplicate detection drops what came"


async def test_a_retry_that_failed_too_is_retried_under_the_next_number(
    bus: Bus, client: JobClient, container: BlobContainer, tmp_path: Path
) -> None:
    batch = await submitted(bus, client, tmp_path / "jobs.jsonl", ["a", "b"])
    await answer(container, "a", "b", failed=True)
    await client.retry(batch, "b1")
    await receive_all(bus, "jobs")
    await answer(container, "a", failed=True, replay=1_000)
    again = await client.retry(batch, "b1")
    assert (again.number, again.sent, again.resumed) == (1_001, 1, 1)
    assert [(job.id, job.replay) for job in await sent(bus)] == [("b1/a", 1_001)], "b is in the queue's memory"


async def test_of_a_cancelled_batch_all_that_has_no_answer_is_sent_again(
    bus: Bus, client: JobClient, container: BlobContainer, tmp_path: Path
) -> None:
    batch = await submitted(bus, client, tmp_path / "jobs.jsonl", ["a", "b", "c"])
    await answer(container, "a")
    await answer(container, "b", failed=True)
    await client.cancel("b1")
    collection = await client.collect("b1", tmp_path / "out")
    assert (collection.complete, collection.cancelled, collection.missing) == (True, 1, 0)
    assert (await client.retry(batch, "b1")).sent == 2
    assert [job.id for job in await sent(bus)] == ["b1/b", "b1/c"]
    waiting = await client.collect("b1", tmp_path / "later")
    assert (waiting.complete, waiting.cancelled, waiting.missing) == (False, 0, 2)
    await answer(container, "b", "c", replay=1_000)
    assert (await client.collect("b1", tmp_path / "later")).complete
    assert (await client.collect("b1", tmp_path / "out")).complete
    assert read_ids(tmp_path / "out") == read_ids(tmp_path / "later") == ["a", "b", "c"]


async def test_another_file_sends_only_jobs_that_are_of_the_batch(
    bus: Bus, client: JobClient, container: BlobContainer, tmp_path: Path
) -> None:
    await submitted(bus, client, tmp_path / "jobs.jsonl", ["a", "b", "c"])
    await answer(container, "a", "b", failed=True)
    await client.cancel("b1")
    other = read_batch_file(small_batch(tmp_path / "other.jsonl", ["b", "c", "stranger"]))
    outcome = await client.retry(other, "b1")
    assert (outcome.sent, outcome.passed_over) == (1, {PassedOver.NOT_SHOWN: 2})
    assert [job.id for job in await sent(bus)] == ["b1/b"]


async def test_a_file_with_the_model_map_of_its_submission_is_the_submitted_one(
    bus: Bus, client: JobClient, tmp_path: Path
) -> None:
    path = small_batch(tmp_path / "jobs.jsonl", ["a", "b"])
    mapped = read_batch_file(path, model_map={"gpt-5.4-mini": "other"})
    await client.submit(mapped, batch_id="b1")
    await client.cancel("b1")
    await sent(bus)
    without = await client.retry(read_batch_file(path), "b1")
    assert (without.is_submitted_file, without.sent, without.passed_over) == (False, 0, {PassedOver.NOT_SHOWN: 2})
    outcome = await client.retry(mapped, "b1")
    assert (outcome.is_submitted_file, outcome.sent) == (True, 2)
    assert {job.line.model for job in await sent(bus)} == {"other"}


@pytest.mark.parametrize(("only", "wanted"), [(["429", "attempts_exhausted"], ["b1/a", "b1/b"]), ("429", ["b1/a"])])
async def test_only_the_wanted_codes_are_sent_again(
    bus: Bus,
    client: JobClient,
    container: BlobContainer,
    tmp_path: Path,
    only: Sequence[str] | str,
    wanted: Sequence[str],
) -> None:
    batch = await submitted(bus, client, tmp_path / "jobs.jsonl", ["a", "b", "c"])
    results = BlobResults(container)
    for name, code in (("a", "429"), ("b", "attempts_exhausted"), ("c", "400")):
        job = make_job(name)
        await results.write(result_of(job, make_line(job, failed=True), failed=True, code=code))
    outcome = await client.retry(batch, "b1", only=only)
    assert (outcome.sent, outcome.passed_over) == (len(wanted), {PassedOver.OTHER_CODE: 3 - len(wanted)})
    assert [job.id for job in await sent(bus)] == wanted


async def test_of_two_retries_at_once_each_job_is_sent_once(
    bus: Bus, client: JobClient, container: BlobContainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody records the same retry between our look and our record."""
    batch = await submitted(bus, client, tmp_path / "jobs.jsonl", ["a"])
    await answer(container, "a", failed=True)
    from worker.client.blob_batches import BlobBatches

    record, others = BlobBatches.record_retry, iter([True])

    async def record_second(batches: BlobBatches, batch_id: str, retry: object) -> bool:
        if next(others, False):
            await client.retry(batch, batch_id)
        return await record(batches, batch_id, retry)  # type: ignore[arg-type]

    monkeypatch.setattr(BlobBatches, "record_retry", record_second)
    assert await client.retry(batch, "b1") == BatchRetry(batch_id="b1", resumed=1)
    assert [(job.id, job.replay) for job in await sent(bus)] == [("b1/a", 1_000)]


async def test_a_large_job_goes_by_its_claim_again(
    bus: Bus, client: JobClient, container: BlobContainer, tmp_path: Path
) -> None:
    batch = read_batch_file(write_batch(tmp_path / "jobs.jsonl", {"a": "x" * 300_000}))
    await client.submit(batch, batch_id="b1")
    (first,) = await receive_all(bus, "jobs")
    await answer(container, "a", failed=True)
    await client.retry(batch, "b1")
    (again,) = await receive_all(bus, "jobs")
    assert again.message_id == "b1/a~r1000"
    assert json.loads(b"".join(again.body)) == json.loads(b"".join(first.body))


async def test_nothing_is_retried_of_a_batch_that_nobody_submitted(client: JobClient, tmp_path: Path) -> None:
    batch = read_batch_file(small_batch(tmp_path / "jobs.jsonl", ["a"]))
    with pytest.raises(UnknownBatch, match="b1: no manifest of this batch was found"):
        await client.retry(batch, "b1")


@pytest.mark.parametrize("limit", [-1, 0])
async def test_a_limit_that_lists_nothing_is_refused(client: JobClient, limit: int) -> None:
    with pytest.raises(ValueError, match=f"limit is {limit}; it must be .* from 1 on"):
        await client.newest(limit)


async def test_a_path_in_the_place_of_a_batch_file_is_refused_with_what_makes_one(client: JobClient) -> None:
    path: Any = "jobs.jsonl"
    for refused in (client.submit(path), client.retry(path, "b1")):
        with pytest.raises(
            TypeError, match=r"batch is 'jobs\.jsonl'; it must be a BatchFile.*read_batch_file\(path\)"
        ):
            await refused
