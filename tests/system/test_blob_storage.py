"""Results in Blob storage and jobs by claim, end to end: the worker's process, storage, and the command line."""

import json
import signal
from pathlib import Path

from azure.servicebus import ServiceBusReceivedMessage

from tests.support.blob_processes import bus_of, container_of, result_names
from tests.support.patience import PATIENCE
from tests.support.processes import (
    Azure,
    assert_one_result_each,
    azure,
    command,
    config_for_tests,
    results_in,
    worker,
    write_batch,
)
from worker.azure.blob.results import BlobResults
from worker.jobs.job import Envelope, decode
from worker.testing import result_of

BATCH = "a-batch"
LARGE = 300_000
ANSWER = "answered by a pod that died"


async def submit(cloud: Azure, path: Path) -> None:
    code, output = await command(cloud, "submit", str(path), "--batch", BATCH)
    assert code == 0, output


async def collect(cloud: Azure, out: Path) -> list[dict[str, object]]:
    code, output = await command(cloud, "collect", BATCH, "-o", str(out), "--follow")
    assert code == 0, output
    return results_in(out)


async def test_a_batch_with_large_jobs_goes_through_and_can_be_collected_by_anybody_again(tmp_path: Path) -> None:
    path = write_batch(tmp_path / "in.jsonl", 40)
    with path.open("a") as file:
        for number in range(40, 44):
            padding = [{"role": "user", "content": "x" * LARGE}]
            question = [{"role": "user", "content": f"What is {number} + {number}?"}]
            limits = {"reasoning_effort": "none", "max_completion_tokens": 64}
            body = {"model": "gpt-5.4-mini", "messages": [*padding, *question], **limits}
            line = {"custom_id": f"q-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(line) + "\n")
    async with azure(tmp_path, config_for_tests()) as cloud:
        await submit(cloud, path)
        code, told = await command(cloud, "status", BATCH)
        assert (code, "0 of 44 results" in told) == (0, True), told
        async with worker(cloud):
            first = await collect(cloud, tmp_path / "one.jsonl")
        second = await collect(cloud, tmp_path / "two.jsonl")
        code, told = await command(cloud, "status", BATCH, "--json")
        assert json.loads(told)["complete"], told
    assert_one_result_each(first, 44)
    assert sorted(json.dumps(line) for line in first) == sorted(json.dumps(line) for line in second)


async def test_a_killed_worker_loses_and_doubles_no_result(tmp_path: Path) -> None:
    slots = 16
    async with azure(tmp_path, config_for_tests(lock_duration=5.0)) as cloud:
        await submit(cloud, write_batch(tmp_path / "in.jsonl", 200))
        async with worker(cloud, slots=str(slots)) as dying:
            await until_written(cloud, 50)
            dying.process.child.kill()
            assert await dying.process.ended() == -signal.SIGKILL
        written = set(await result_names(cloud, BATCH))
        async with worker(cloud):
            results = await collect(cloud, tmp_path / "out.jsonl")
        stats = await cloud.control("/local/stats")
        assert written <= set(await result_names(cloud, BATCH))
    assert_one_result_each(results, 200)
    assert len(written) < 200, "the kill came too late to count"
    assert stats["answered_more_than_once"] <= slots, "more was paid twice than was under way without a result"


async def until_written(cloud: Azure, count: int) -> None:
    """Look again and again: a listing is all that says how far another process is."""
    while len(await result_names(cloud, BATCH)) < count:
        pass


async def test_a_redelivered_job_whose_result_is_there_is_not_paid_again(tmp_path: Path) -> None:
    """As after a pod that died between writing and settling: ten of twenty jobs have their result already."""
    async with azure(tmp_path, config_for_tests()) as cloud:
        await submit(cloud, write_batch(tmp_path / "in.jsonl", 20))
        await receive_write_and_abandon(cloud, count=20, written=10)
        async with worker(cloud) as one:
            results = await collect(cloud, tmp_path / "out.jsonl")
            one.process.child.send_signal(signal.SIGTERM)
            assert await one.process.ended() == 0
        stats = await cloud.control("/local/stats")
    assert len(results) == len({str(result["custom_id"]) for result in results}) == 20
    assert sum(ANSWER in json.dumps(result) for result in results) == 10
    assert sum(stats["answers"].values()) == 10


async def receive_write_and_abandon(cloud: Azure, *, count: int, written: int) -> None:
    async with (
        container_of(cloud) as container,
        bus_of(cloud) as client,
        client.get_queue_receiver("jobs") as receiver,
    ):
        messages: list[ServiceBusReceivedMessage] = []
        while len(messages) < count:
            messages += await receiver.receive_messages(count, max_wait_time=PATIENCE)
        for message in messages[:written]:
            await write_result(BlobResults(container), message)
        for message in messages:
            await receiver.abandon_message(message)


async def write_result(results: BlobResults, message: ServiceBusReceivedMessage) -> None:
    envelope = Envelope(
        body=b"".join(message.body),
        queue="jobs",
        sequence_number=message.sequence_number or 0,
        enqueued_at=0.0,
        message_id=message.message_id,
        correlation_id=message.correlation_id,
        properties={},
    )
    job = decode(envelope, max_age=86_400.0)
    line = {
        "id": "batch_req_1",
        "custom_id": job.line.custom_id,
        "response": {"status_code": 200, "request_id": "r", "body": {"said": ANSWER}},
        "error": None,
        "worker": {"job_id": job.id, "batch_id": job.batch_id},
    }
    assert await results.write(result_of(job, json.dumps(line).encode()))
