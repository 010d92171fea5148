"""Submitting through the real SDK: files of many batches, and faults of the queues on the way."""

import json
import os
import random
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from azure.servicebus.exceptions import ServiceBusError

from tests.support.local_azure import Bus
from tests.support.service_bus import RESULTS, disturb, service_of, settings_for
from worker.cli.advice import explain
from worker.client import (
    InvalidBatch,
    InvalidQueueName,
    JobClient,
    Progress,
    SubmissionInterrupted,
    read_batch_file,
)
from worker.jobs.job import make_job_id
from worker.jobs.replays import InvalidDeadline


def make_lines(megabytes: float, *, longest: int) -> Iterator[tuple[str, bytes]]:
    """custom_id and line of jobs as people have them: mostly short, some long, ids of all lengths."""
    chance = random.Random(megabytes)
    left = megabytes * 1_000_000
    number = 0
    while left > 0:
        custom_id = f"q{number}-".ljust(chance.randint(1, 70), "c")
        short = min(900, longest)
        length = chance.randint(1, chance.choice([short, short, longest]))
        body = {"model": "gpt-5.4-mini", "messages": [{"role": "user", "content": "x" * length}]}
        job = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}
        line = json.dumps(job).encode()
        yield custom_id, line
        left -= len(line)
        number += 1


def write_lines(path: Path, jobs: Sequence[tuple[str, bytes]]) -> Path:
    path.write_bytes(b"".join(line + b"\n" for _, line in jobs))
    return path


def arrived(bus: Bus, queue: str) -> list[str]:
    """The message-ids in the queue, in its order."""
    return [str(message.message_id) for message in service_of(bus).broker.entity(queue).peek(1, 1_000_000)]


@pytest.mark.parametrize(
    ("megabytes", "queue", "batch_id", "longest"),
    [
        (3, "jobs", "b", 60_000),
        (3, "jobs", "batch-3f2a91bc0d4e5f67", 90),
        (3, "jobs", "a" * 48, 250_000),
        (30, "jobs", "batch-3f2a91bc0d4e5f67", 200_000),
        (10, "large", "x" * 27, 900_000),
    ],
)
async def test_a_file_of_many_batches_arrives_whole_and_in_order(
    bus: Bus, tmp_path: Path, megabytes: int, queue: str, batch_id: str, longest: int
) -> None:
    jobs = list(make_lines(megabytes, longest=longest))
    batch = read_batch_file(write_lines(tmp_path / "jobs.jsonl", jobs))
    told: list[int] = []
    async with JobClient(settings_for(bus, jobs=queue), bus.credential()) as client:
        await client.submit(batch, batch_id=batch_id, on_progress=lambda now: told.append(now.done))
    assert told[-1] == len(jobs) == batch.total
    assert len(told) > 3
    assert arrived(bus, queue) == [make_job_id(batch_id, custom_id) for custom_id, _ in jobs]


async def test_jobs_go_straight_to_the_queues_of_their_models_and_the_rest_to_the_entry_queue(
    bus: Bus, tmp_path: Path
) -> None:
    models = ["gpt-5.4", "gpt-5.4-mini", "third"]
    jobs = [
        (custom_id, line.replace(b"gpt-5.4-mini", models[number % 5 % 3].encode()))
        for number, (custom_id, line) in enumerate(make_lines(27, longest=200_000))
    ]
    batch = read_batch_file(write_lines(tmp_path / "jobs.jsonl", jobs))
    settings = settings_for(bus, queues={"held": "gpt-5.4", "large": "gpt-5.4-mini"})
    async with JobClient(settings, bus.credential()) as client:
        await client.submit(batch, batch_id="b")
        again = await client.submit(batch, batch_id="b")
    assert again.submitted_before is not None
    for queue, model in {"held": "gpt-5.4", "large": "gpt-5.4-mini", "jobs": "third"}.items():
        expected = [make_job_id("b", custom_id) for custom_id, line in jobs if f'"{model}"'.encode() in line]
        assert arrived(bus, queue) == expected


async def test_a_queue_of_a_model_that_is_not_there_is_told_before_anything_is_sent(
    bus: Bus, tmp_path: Path
) -> None:
    batch = read_batch_file(write_lines(tmp_path / "jobs.jsonl", list(make_lines(0.01, longest=90))))
    settings = settings_for(bus, queues={"nowhere": "gpt-5.4-mini"})
    async with JobClient(settings, bus.credential()) as client:
        with pytest.raises(ServiceBusError):
            await client.submit(batch, batch_id="b")
    assert service_of(bus).broker.entity(RESULTS).counts().active == 0


async def test_scheduled_jobs_of_many_batches_can_be_received_at_their_time_only(bus: Bus, tmp_path: Path) -> None:
    jobs = list(make_lines(1.5, longest=3_000))
    batch = read_batch_file(write_lines(tmp_path / "jobs.jsonl", jobs))
    start = datetime.now(UTC) + timedelta(hours=1)
    async with JobClient(settings_for(bus), bus.credential()) as client:
        await client.submit(batch, batch_id="b1", enqueue_at=start, deadline=start + timedelta(hours=2))
    counts = service_of(bus).broker.entity("jobs").counts()
    assert (counts.active, counts.scheduled) == (0, len(jobs))
    messages = service_of(bus).broker.entity("jobs").peek(1, 1_000_000)
    assert {message.scheduled_enqueue_time for message in messages} == {int(1_000 * start.timestamp()) / 1_000}


@pytest.mark.parametrize("start", [None, timedelta(hours=2)])
async def test_a_deadline_before_workers_can_receive_the_jobs_is_refused_before_anything_is_sent(
    bus: Bus, tmp_path: Path, start: timedelta | None
) -> None:
    batch = read_batch_file(write_lines(tmp_path / "jobs.jsonl", list(make_lines(0.01, longest=90))))
    now = datetime.now(UTC)
    async with JobClient(settings_for(bus), bus.credential()) as client:
        with pytest.raises(InvalidDeadline, match="must be after"):
            await client.submit(
                batch,
                deadline=now + timedelta(hours=1) if start else now,
                enqueue_at=now + start if start else None,
            )
    assert (arrived(bus, "jobs"), arrived(bus, RESULTS)) == ([], [])


@pytest.mark.parametrize("name", ["deadline", "enqueue_at"])
async def test_a_moment_without_a_time_zone_is_refused_before_anything_is_sent(
    bus: Bus, tmp_path: Path, name: str
) -> None:
    batch = read_batch_file(write_lines(tmp_path / "jobs.jsonl", list(make_lines(0.01, longest=90))))
    naive: dict[str, Any] = {name: datetime.now().replace(tzinfo=None) + timedelta(days=2)}
    async with JobClient(settings_for(bus), bus.credential()) as client:
        with pytest.raises(InvalidDeadline, match=f"{name} is .* has no time zone"):
            await client.submit(batch, **naive)
    assert (arrived(bus, "jobs"), arrived(bus, RESULTS)) == ([], [])


@pytest.mark.parametrize("life", [timedelta(seconds=-5), timedelta(0), timedelta(microseconds=999)])
async def test_a_time_to_live_that_is_none_is_refused_before_anything_is_sent(
    bus: Bus, tmp_path: Path, life: timedelta
) -> None:
    batch = read_batch_file(write_lines(tmp_path / "jobs.jsonl", list(make_lines(0.01, longest=90))))
    async with JobClient(settings_for(bus), bus.credential()) as client:
        with pytest.raises(InvalidDeadline, match=f"time_to_live is {life.total_seconds():g} s.*at least"):
            await client.submit(batch, time_to_live=life)
    assert (arrived(bus, "jobs"), arrived(bus, RESULTS)) == ([], [])


@pytest.mark.parametrize("queue", ["", "$management", "my jobs", "x" * 261])
async def test_a_name_that_no_queue_has_is_refused_before_anything_is_sent(
    bus: Bus, tmp_path: Path, queue: str
) -> None:
    batch = read_batch_file(write_lines(tmp_path / "jobs.jsonl", list(make_lines(0.01, longest=90))))
    async with JobClient(settings_for(bus), bus.credential()) as client:
        with pytest.raises(InvalidQueueName, match=r"the name of a queue has 1 to 260 letters"):
            await client.submit(batch, queue=queue)
    assert (arrived(bus, "jobs"), arrived(bus, RESULTS)) == ([], [])


async def test_a_queue_that_takes_no_jobs_ends_it_without_another_try(bus: Bus, tmp_path: Path) -> None:
    batch = read_batch_file(write_lines(tmp_path / "jobs.jsonl", list(make_lines(0.01, longest=90))))
    waited: list[str] = []
    async with JobClient(settings_for(bus), bus.credential()) as client:
        with pytest.raises(SubmissionInterrupted) as caught:
            await client.submit(batch, queue=RESULTS, on_waiting=waited.append)
    told = explain(caught.value)
    assert f"Queue '{RESULTS}': The queue takes no such message: " in told
    assert "Next: name a queue of jobs, which has no sessions" in told
    assert not [what for what in waited if "try 2" in what]


async def test_a_named_queue_gets_the_jobs_of_all_models(bus: Bus, tmp_path: Path) -> None:
    jobs = list(make_lines(0.1, longest=900))
    batch = read_batch_file(write_lines(tmp_path / "jobs.jsonl", jobs))
    settings = settings_for(bus, queues={"held": "gpt-5.4-mini"})
    async with JobClient(settings, bus.credential()) as client:
        await client.submit(batch, batch_id="b", queue="large")
    assert arrived(bus, "large") == [make_job_id("b", custom_id) for custom_id, _ in jobs]
    assert arrived(bus, "held") == arrived(bus, "jobs") == []


LOST: dict[str, Any] = {"kind": "lose_answer", "on": "send"}


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The times of `sending`, shorter by a factor; what is expected here takes milliseconds."""
    monkeypatch.setattr("worker.azure.servicebus.sending.TRY_TIMEOUT", 3.0)
    monkeypatch.setattr("worker.azure.servicebus.sending.PATIENCE", 0.5)
    monkeypatch.setattr("worker.azure.servicebus.sending.FIRST_PATIENCE", 0.2)
    monkeypatch.setattr("worker.azure.servicebus.sending.CLOSE_TIMEOUT", 0.5)
    monkeypatch.setattr("worker.client.job_client.CLOSE_TIMEOUT", 1.0)


@pytest.fixture
def tries_again(hurried: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.azure.servicebus.sending.TRY_TIMEOUT", 2.0)
    monkeypatch.setattr("worker.azure.servicebus.sending.PATIENCE", 50.0)


@pytest.mark.usefixtures("tries_again")
@pytest.mark.parametrize("applied", [True, False], ids=["the batch has arrived", "the batch has not arrived"])
@pytest.mark.parametrize("entity", ["jobs", RESULTS])
async def test_after_a_lost_confirmation_it_is_sent_again_and_nothing_is_there_twice(
    bus: Bus, tmp_path: Path, entity: str, applied: bool
) -> None:
    jobs = list(make_lines(1.5, longest=3_000))
    waited: list[str] = []
    disturb(bus, {**LOST, "entity": entity, "applied": applied, "count": 1})
    async with JobClient(settings_for(bus), bus.credential()) as client:
        batch = read_batch_file(write_lines(tmp_path / "jobs.jsonl", jobs))
        await client.submit(batch, batch_id="b1", on_waiting=waited.append)
    assert arrived(bus, "jobs") == [make_job_id("b1", custom_id) for custom_id, _ in jobs]
    assert arrived(bus, RESULTS) == ["b1/manifest"]
    (again,) = [what for what in waited if "try 2" in what]
    assert again.startswith(f"queue '{entity}' to confirm")


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("entity", ["jobs", RESULTS])
async def test_where_no_confirmation_comes_it_ends_saying_what_was_sent_and_what_to_do(
    bus: Bus, tmp_path: Path, entity: str
) -> None:
    jobs = list(make_lines(1.5, longest=3_000))
    batch = read_batch_file(write_lines(tmp_path / "jobs.jsonl", jobs))
    told: list[int] = []

    def lose_the_rest(now: Progress) -> None:
        told.append(now.done)
        if len(told) == 2:
            disturb(bus, {**LOST, "entity": entity})

    if entity == RESULTS:
        disturb(bus, {**LOST, "entity": entity})
    async with JobClient(settings_for(bus), bus.credential()) as client:
        with pytest.raises(SubmissionInterrupted) as caught:
            await client.submit(batch, batch_id="b1", on_progress=lose_the_rest)
    sent = told[-1] if told else 0
    message = explain(caught.value)
    assert message.startswith(f"{sent:,} of {len(jobs):,} jobs were sent, then it was interrupted.\n")
    assert "It is safe to run the same command again" in message
    # and it is
    disturb(bus)
    async with JobClient(settings_for(bus), bus.credential()) as client:
        await client.submit(batch, batch_id="b1")
    assert arrived(bus, "jobs") == [make_job_id("b1", custom_id) for custom_id, _ in jobs]
    assert arrived(bus, RESULTS) == ["b1/manifest"]


async def test_a_file_that_has_changed_since_the_check_is_refused_before_anything_is_sent(
    bus: Bus, tmp_path: Path
) -> None:
    jobs = list(make_lines(0.1, longest=1_000))
    batch = read_batch_file(write_lines(tmp_path / "jobs.jsonl", jobs))
    write_lines(tmp_path / "jobs.jsonl", jobs[1:])
    async with JobClient(settings_for(bus), bus.credential()) as client:
        with pytest.raises(InvalidBatch, match="has changed"):
            await client.submit(batch, batch_id="b1")
    assert (arrived(bus, "jobs"), arrived(bus, RESULTS)) == ([], [])


async def test_a_file_that_changes_on_the_way_ends_the_submission_saying_what_was_sent(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.client.submission.READ_AHEAD", 123_456)
    jobs = list(make_lines(1.5, longest=3_000))
    batch = read_batch_file(write_lines(tmp_path / "jobs.jsonl", jobs))
    async with JobClient(settings_for(bus), bus.credential()) as client:
        with pytest.raises(SubmissionInterrupted) as caught:
            await client.submit(
                batch, batch_id="b1", on_progress=lambda _: os.utime(tmp_path / "jobs.jsonl", (1, 1))
            )
    sent = len(arrived(bus, "jobs"))
    assert 0 < caught.value.sent == sent
    message = explain(caught.value)
    assert message.startswith(f"{sent:,} of {len(jobs):,} jobs were sent, then it was interrupted.\n")
    assert "the file has changed" in message
    assert "safe" not in message


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize(
    "fault",
    [{"kind": "slow", "latency": 3_600}, {"kind": "refuse_connections"}, {"kind": "restart", "seconds": 3_600}],
    ids=["silent", "refusing", "stopped"],
)
async def test_a_broker_that_is_gone_in_the_middle_ends_the_submission(
    bus: Bus, tmp_path: Path, fault: dict[str, Any]
) -> None:
    jobs = list(make_lines(1.5, longest=3_000))
    batch = read_batch_file(write_lines(tmp_path / "jobs.jsonl", jobs))
    told: list[int] = []

    def take_the_broker_away(now: Progress) -> None:
        told.append(now.done)
        if len(told) == 2:
            disturb(bus, fault, {"kind": "cut"})

    async with JobClient(settings_for(bus), bus.credential()) as client:
        with pytest.raises(SubmissionInterrupted) as caught:
            await client.submit(batch, batch_id="b1", on_progress=take_the_broker_away)
    assert caught.value.sent == told[-1]


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("fault", [{"kind": "slow", "latency": 3_600}, {"kind": "refuse_connections"}])
async def test_a_broker_that_is_not_there_at_all_is_told_soon(
    bus: Bus, tmp_path: Path, fault: dict[str, Any]
) -> None:
    batch = read_batch_file(write_lines(tmp_path / "jobs.jsonl", list(make_lines(0.1, longest=1_000))))
    disturb(bus, fault)
    async with JobClient(settings_for(bus), bus.credential()) as client:
        with pytest.raises((ServiceBusError, OSError)) as caught:
            await client.submit(batch, batch_id="b1")
    assert explain(caught.value)
