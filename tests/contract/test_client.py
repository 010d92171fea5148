"""The producer's side against the embedded Service Bus: submit, status, collect, and going on when interrupted."""

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from azure.servicebus import ServiceBusMessage
from azure.servicebus.amqp import AmqpAnnotatedMessage
from azure.servicebus.exceptions import (
    ServiceBusAuthorizationError,
    ServiceBusError,
    SessionLockLostError,
)

from tests.support.blob_client import receive_all
from tests.support.local_azure import Bus
from tests.support.service_bus import RESULTS, settings_for
from worker.cli.advice import explain
from worker.client import (
    AlreadyCollected,
    BatchStatus,
    BeingCollected,
    Collection,
    InvalidBatchId,
    JobClient,
    LikelyRefused,
    OtherBatch,
    Progress,
    Submission,
    SyncJobClient,
    UncheckedBatch,
    make_batch_id,
    read_batch_file,
)
from worker.client.queue_collector import announce
from worker.jobs.batch_records import Manifest, decode_manifest


@pytest.fixture
async def client(bus: Bus) -> AsyncIterator[JobClient]:
    async with JobClient(settings_for(bus), bus.credential()) as opened:
        yield opened


def write_batch(path: Path, names: Iterable[str], *, padding: int = 0) -> Path:
    body = {"model": "gpt-5.4-mini", "messages": [{"role": "user", "content": "x" * padding}]}
    lines = [
        json.dumps({"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body})
        for name in names
    ]
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def line_of(batch_id: str, name: str, status: int = 200, replay: int = 0) -> bytes:
    line = {
        "custom_id": name,
        "response": {"status_code": status, "request_id": "r", "body": {}},
        "error": None,
        "worker": {"job_id": f"{batch_id}/{name}", "batch_id": batch_id, "replay": replay},
    }
    return json.dumps(line).encode()


async def answer(
    bus: Bus, batch_id: str, statuses: dict[str, int], *, queue: str = RESULTS, replay: int = 0
) -> None:
    """What a worker writes for these jobs."""
    messages = []
    for name, status in statuses.items():
        message_id = f"{batch_id}/{name}" + (f"~r{replay}" if replay else "")
        line = line_of(batch_id, name, status, replay)
        messages.append(ServiceBusMessage(line, message_id=message_id, session_id=batch_id))
    async with bus.client() as worker, worker.get_queue_sender(queue) as sender:
        for start in range(0, len(messages), 170):
            await sender.send_messages(messages[start : start + 170])


def read_ids(path: Path) -> list[str]:
    return [json.loads(line)["custom_id"] for line in path.read_bytes().splitlines()]


async def test_each_line_becomes_a_message_and_a_manifest_goes_ahead(
    bus: Bus, client: JobClient, tmp_path: Path
) -> None:
    path = write_batch(tmp_path / "jobs.jsonl", ["a", "ä"])
    batch = read_batch_file(path)
    submission = await client.submit(
        batch, batch_id="b1", time_to_live=timedelta(hours=1), deadline=datetime(2030, 1, 1, tzinfo=UTC)
    )
    first, second = await receive_all(bus, "jobs")
    (manifest,) = await receive_all(bus, RESULTS, session_id="b1")
    assert b"".join(first.body) == path.read_bytes().splitlines()[0]
    assert (first.message_id, first.correlation_id, first.content_type) == ("b1/a", "b1", "application/json")
    assert (first.time_to_live, first.application_properties) == (
        timedelta(hours=1),
        {b"deadline": b"2030-01-01T00:00:00.000Z"},
    )
    assert str(second.message_id).startswith("b1/sha256-")
    assert (manifest.message_id, manifest.subject) == ("b1/manifest", "batch-manifest")
    told = decode_manifest(b"".join(manifest.body))
    assert (told.batch_id, told.total, told.sha256) == ("b1", 2, submission.sha256)


async def test_a_file_submitted_twice_is_one_batch(bus: Bus, client: JobClient, tmp_path: Path) -> None:
    batch = read_batch_file(write_batch(tmp_path / "jobs.jsonl", ["a", "b"]))
    first, second = await client.submit(batch), await client.submit(batch)
    assert first.batch_id == second.batch_id == make_batch_id(batch)
    assert len(await receive_all(bus, "jobs")) == 2
    assert len(await receive_all(bus, RESULTS, session_id=first.batch_id)) == 1


async def test_a_batch_of_many_transfers_arrives_whole_and_in_order(
    bus: Bus, client: JobClient, tmp_path: Path
) -> None:
    told: list[Progress] = []
    names = [f"{number}" for number in range(700)]
    batch = read_batch_file(write_batch(tmp_path / "jobs.jsonl", names, padding=1_000))
    await client.submit(batch, batch_id="b1", on_progress=told.append)
    assert [str(message.message_id) for message in await receive_all(bus, "jobs")] == [f"b1/{n}" for n in names]
    assert len(told) > 2
    assert told[-1] == Progress(done=700, total=700)


async def test_status_counts_without_taking_anything(bus: Bus, client: JobClient, tmp_path: Path) -> None:
    await client.submit(read_batch_file(write_batch(tmp_path / "jobs.jsonl", ["a", "b", "c"])), batch_id="b1")
    assert await client.status("b1") == BatchStatus(batch_id="b1", total=3)
    await answer(bus, "b1", {"a": 200, "b": 400})
    for _ in range(2):
        status = await client.status("b1")
        assert (status.total, status.succeeded, status.failed, status.complete) == (3, 1, 1, False)
    await answer(bus, "b1", {"c": 200})
    assert (await client.status("b1")).complete


async def test_status_looks_at_more_results_than_one_peek_brings(bus: Bus, client: JobClient) -> None:
    await answer(bus, "b1", {f"{number}": 200 for number in range(300)})
    assert (await client.status("b1")).succeeded == 300


async def test_an_unknown_batch_has_no_total(client: JobClient) -> None:
    assert await client.status("nobody") == BatchStatus(batch_id="nobody")


async def test_a_batch_under_collection_is_told_as_such(bus: Bus, client: JobClient, tmp_path: Path) -> None:
    async with bus.client() as other, other.get_queue_receiver(RESULTS, session_id="b1"):
        assert await client.status("b1") == BatchStatus(batch_id="b1", being_collected_by_other=True)
        with pytest.raises(BeingCollected, match="lapses"):
            await client.collect("b1", tmp_path / "out")
    assert not (tmp_path / "out.partial").exists()


async def test_a_collection_goes_on_until_the_batch_is_whole(bus: Bus, client: JobClient, tmp_path: Path) -> None:
    out, errors = tmp_path / "out", tmp_path / "err"
    await client.submit(read_batch_file(write_batch(tmp_path / "jobs.jsonl", ["a", "b", "c"])), batch_id="b1")
    await answer(bus, "b1", {"a": 200, "b": 400})
    first = await client.collect("b1", out, errors)
    assert (first.complete, first.missing, first.succeeded, first.failed) == (False, 1, 1, 1)
    assert not out.exists()
    await answer(bus, "b1", {"c": 200})
    second = await client.collect("b1", out, errors)
    assert (second.complete, second.missing) == (True, 0)
    assert (read_ids(out), read_ids(errors)) == (["a", "c"], ["b"])
    status = await client.status("b1")
    assert (status.complete, status.total, status.succeeded, status.failed, status.later) == (True, 3, 2, 1, 0)
    assert status.collected
    assert status.collected.out == "out and err"


async def test_following_waits_for_the_last_result(bus: Bus, client: JobClient, tmp_path: Path) -> None:
    await client.submit(read_batch_file(write_batch(tmp_path / "jobs.jsonl", ["a", "b"])), batch_id="b1")
    first_is_here = asyncio.Event()

    def watch(now: Progress) -> None:
        if now.done == 1:
            first_is_here.set()

    async with asyncio.TaskGroup() as group:
        collecting = group.create_task(client.collect("b1", tmp_path / "out", follow=True, on_progress=watch))
        await answer(bus, "b1", {"a": 200})
        await first_is_here.wait()
        await answer(bus, "b1", {"b": 200})
    assert collecting.result().complete
    assert read_ids(tmp_path / "out") == ["a", "b"]


async def test_following_outlives_the_lock_of_its_session(bus: Bus, tmp_path: Path) -> None:
    """The lock lasts half a second; it is renewed, and where it is lost the session is opened again."""
    async with JobClient(settings_for(bus, results="brief-chat"), bus.credential()) as client:
        batch = read_batch_file(write_batch(tmp_path / "jobs.jsonl", ["a", "b"]))
        await client.submit(batch, batch_id="b1")
        rounds = 0
        three_rounds = asyncio.Event()

        def count(_: Progress) -> None:
            nonlocal rounds
            rounds += 1
            if rounds == 3:
                three_rounds.set()

        async with asyncio.TaskGroup() as group:
            collecting = group.create_task(client.collect("b1", tmp_path / "out", follow=True, on_progress=count))
            await three_rounds.wait()
            await answer(bus, "b1", {"a": 200, "b": 200}, queue="brief-chat")
        assert collecting.result().complete


async def test_a_session_lost_between_the_disk_and_the_queue_loses_and_doubles_nothing(
    bus: Bus, client: JobClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await client.submit(read_batch_file(write_batch(tmp_path / "jobs.jsonl", ["a", "b"])), batch_id="b1")
    await answer(bus, "b1", {"a": 200, "b": 200})
    losses = iter([True, True])
    complete = client_module_complete()

    async def lose_first(session: Any, received: Any) -> None:
        if received and next(losses, False):
            raise SessionLockLostError()
        await complete(session, received)

    monkeypatch.setattr("worker.client.result_session.BusSession.complete", lose_first)
    assert (await client.collect("b1", tmp_path / "out")).complete
    assert read_ids(tmp_path / "out") == ["a", "b"]


def client_module_complete() -> Any:
    from worker.client.result_session import BusSession

    return BusSession.complete


async def test_an_interrupted_collection_is_resumed_by_the_next(
    bus: Bus, client: JobClient, tmp_path: Path
) -> None:
    names = [f"{number}" for number in range(600)]
    await client.submit(read_batch_file(write_batch(tmp_path / "jobs.jsonl", names)), batch_id="b1")
    await answer(bus, "b1", dict.fromkeys(names, 200))
    some_are_here = asyncio.Event()

    def watch(now: Progress) -> None:
        if now.done:
            some_are_here.set()

    interrupted = asyncio.ensure_future(client.collect("b1", tmp_path / "out", follow=True, on_progress=watch))
    await some_are_here.wait()
    interrupted.cancel()
    with pytest.raises(asyncio.CancelledError):
        await interrupted
    assert not (tmp_path / "out").exists()
    assert (await client.collect("b1", tmp_path / "out")).complete
    assert sorted(read_ids(tmp_path / "out")) == sorted(names)


async def test_a_foreign_message_is_dead_lettered_for_inspection(
    bus: Bus, client: JobClient, tmp_path: Path
) -> None:
    async with bus.client() as other, other.get_queue_sender(RESULTS) as sender:
        await sender.send_messages(ServiceBusMessage("hello", session_id="b1"))
    await client.collect("b1", tmp_path / "out")
    (dead,) = await receive_all(bus, RESULTS, sub_queue="deadletter")
    assert (dead.dead_letter_reason, b"".join(dead.body)) == ("InvalidResult", b"hello")


async def test_results_are_collected_from_data_and_text_and_no_other_body_stops_a_collection(
    bus: Bus, client: JobClient, tmp_path: Path
) -> None:
    """What AMQP clients other than ours send: one or more data sections, a text, a binary value, structures."""
    bodies: list[dict[str, Any]] = [
        {"data_body": [line_of("b1", "whole")]},
        {"data_body": [line_of("b1", "parted")[:50], line_of("b1", "parted")[50:]]},
        {"value_body": line_of("b1", "text").decode()},
        {"value_body": line_of("b1", "binary")},
        {"value_body": 7},
        {"value_body": {"a": 1}},
        {"sequence_body": [[1, b"a"], [line_of("b1", "sequence")]]},
    ]
    async with bus.client() as other, other.get_queue_sender(RESULTS) as sender:
        for body in bodies:
            await sender.send_messages(AmqpAnnotatedMessage(**body, properties={"group_id": "b1"}))
    await client.collect("b1", tmp_path / "out")
    assert read_ids(tmp_path / "out.partial") == ["whole", "parted", "text", "binary"]
    dead = await receive_all(bus, RESULTS, sub_queue="deadletter")
    assert [one.dead_letter_reason for one in dead] == ["InvalidResult"] * 3


async def test_the_same_id_with_another_file_is_refused_before_anything_is_sent(
    bus: Bus, client: JobClient, tmp_path: Path
) -> None:
    two = read_batch_file(write_batch(tmp_path / "two.jsonl", ["a", "b"]))
    five = read_batch_file(write_batch(tmp_path / "five.jsonl", ["a", "b", "c", "d", "e"], padding=1))
    await client.submit(two, batch_id="b1")
    with pytest.raises(OtherBatch, match="2 jobs"):
        await client.submit(five, batch_id="b1")
    await answer(bus, "b1", {"a": 200, "b": 200})
    assert (await client.collect("b1", tmp_path / "out")).complete
    with pytest.raises(OtherBatch, match="2 jobs"):
        await client.submit(five, batch_id="b1")
    assert len(await receive_all(bus, "jobs")) == 2


async def test_of_two_files_submitted_together_under_one_id_one_is_refused(
    bus: Bus, client: JobClient, tmp_path: Path
) -> None:
    files = [
        read_batch_file(write_batch(tmp_path / f"{size}.jsonl", [f"{n}" for n in range(size)])) for size in (3, 7)
    ]
    outcomes = await asyncio.gather(*[client.submit(file, batch_id="b1") for file in files], return_exceptions=True)
    (sent,) = [outcome.total for outcome in outcomes if isinstance(outcome, Submission)]
    assert [type(outcome) for outcome in outcomes if isinstance(outcome, BaseException)] == [OtherBatch]
    assert len(await receive_all(bus, "jobs")) == sent


async def test_what_was_collected_is_not_submitted_again_and_another_id_runs_it_anew(
    bus: Bus, client: JobClient, tmp_path: Path
) -> None:
    batch = read_batch_file(write_batch(tmp_path / "jobs.jsonl", ["a", "b"]))
    first = await client.submit(batch)
    assert first.submitted_before is None
    assert (await client.submit(batch)).submitted_before is not None  # as after an interruption
    await answer(bus, first.batch_id, {"a": 200, "b": 400})
    await client.collect(first.batch_id, tmp_path / "out.jsonl")
    with pytest.raises(AlreadyCollected, match=r"into out\.jsonl: 2 results \(1 succeeded, 1 failed\)"):
        await client.submit(batch)
    assert len(await receive_all(bus, "jobs")) == 2
    assert (await client.submit(batch, batch_id="anew")).submitted_before is None
    assert len(await receive_all(bus, "jobs")) == 2


async def test_a_collector_that_waited_for_another_is_told_that_it_has_collected(
    bus: Bus, client: JobClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.client.queue_collector.HELD_DELAY", 0.05)
    names = [f"{number}" for number in range(833)]
    await client.submit(read_batch_file(write_batch(tmp_path / "jobs.jsonl", names)), batch_id="b1")
    is_held = asyncio.Event()

    def watch(now: Progress) -> None:
        if now.held:
            is_held.set()

    async with asyncio.TaskGroup() as group:
        first = group.create_task(client.collect("b1", tmp_path / "first", follow=True))
        while not (await client.status("b1")).being_collected_by_other:
            await asyncio.sleep(0.05)  # over sockets: the session is opened
        second = group.create_task(gathered(client.collect("b1", tmp_path / "2", follow=True, on_progress=watch)))
        await is_held.wait()
        await answer(bus, "b1", dict.fromkeys(names, 200))
    assert first.result().complete
    assert isinstance(second.result(), AlreadyCollected)
    assert not (await client.status("b1")).being_collected_by_other
    assert file_names(tmp_path) == {"jobs.jsonl", "first"}


def file_names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


async def gathered(waiting: Coroutine[Any, Any, Any]) -> object:
    return (await asyncio.gather(waiting, return_exceptions=True))[0]


async def test_a_replayed_result_is_added_to_the_files_of_a_collected_batch(
    bus: Bus, client: JobClient, tmp_path: Path
) -> None:
    out, errors = tmp_path / "out", tmp_path / "err"
    await client.submit(read_batch_file(write_batch(tmp_path / "jobs.jsonl", ["a", "b"])), batch_id="b1")
    await answer(bus, "b1", {"a": 400, "b": 200})
    await client.collect("b1", out, errors)
    await answer(bus, "b1", {"a": 200}, replay=1)
    status = await client.status("b1")
    assert (status.failed, status.later) == (1, 1)
    with pytest.raises(AlreadyCollected, match="1 later result"):
        await client.collect("b1", tmp_path / "elsewhere")
    assert (await client.collect("b1", out, errors)).failed == 0
    assert (read_ids(out), read_ids(errors)) == (["b", "a"], [])
    status = await client.status("b1")
    assert (status.failed, status.later) == (0, 0)


@pytest.fixture
async def sender(bus: Bus) -> AsyncIterator[JobClient]:
    """May send to both queues, and listen to neither."""
    async with JobClient(settings_for(bus), bus.credential("sender")) as opened:
        yield opened


async def test_without_the_right_to_listen_only_ids_made_from_the_content_are_taken(
    bus: Bus, sender: JobClient, tmp_path: Path
) -> None:
    batch = read_batch_file(write_batch(tmp_path / "jobs.jsonl", ["a", "b"]))
    with pytest.raises(UncheckedBatch, match=r'may not receive .* Receiver" there, or leave out --batch'):
        await sender.submit(batch, batch_id="b1")
    assert await receive_all(bus, "jobs") == []
    await sender.submit(batch)
    await sender.submit(batch, batch_id=make_batch_id(batch))
    assert len(await receive_all(bus, "jobs")) == 2


@pytest.mark.parametrize("must_check", [True, False])
async def test_while_a_collector_holds_the_session_only_an_id_made_from_the_content_is_sent(
    bus: Bus, must_check: bool
) -> None:
    sent = False

    async def send() -> None:
        nonlocal sent
        sent = True

    manifest = Manifest(batch_id="b1", total=1, sha256="aa", submitted_at="2026-11-28T12:00:00.000Z")
    expected = pytest.raises(UncheckedBatch, match=r"has held its session") if must_check else nullcontext()
    async with (
        bus.client() as other,
        other.get_queue_receiver(RESULTS, session_id="b1"),
        bus.client(retry_total=0) as producer,
    ):
        with expected:
            await announce(producer, RESULTS, manifest, send, must_check=must_check, patience=0.2)
    assert sent is not must_check


async def test_a_session_state_of_another_program_does_not_disturb(
    bus: Bus, client: JobClient, tmp_path: Path
) -> None:
    async with bus.client() as other, other.get_queue_receiver(RESULTS, session_id="b1") as receiver:
        await receiver.session.set_state(b"\x00mine")
    await client.submit(read_batch_file(write_batch(tmp_path / "jobs.jsonl", ["a"])), batch_id="b1")
    await answer(bus, "b1", {"a": 200})
    assert (await client.collect("b1", tmp_path / "out")).complete


async def test_a_wrong_batch_id_is_refused_before_anything_is_sent(client: JobClient, tmp_path: Path) -> None:
    batch = read_batch_file(write_batch(tmp_path / "jobs.jsonl", ["a"]))
    with pytest.raises(InvalidBatchId, match="1 to 48 letters"):
        await client.submit(batch, batch_id="a/b")


async def test_a_missing_role_is_named(bus: Bus, tmp_path: Path) -> None:
    batch = read_batch_file(write_batch(tmp_path / "jobs.jsonl", ["a"]))
    async with JobClient(settings_for(bus), bus.credential("stranger")) as client:
        with pytest.raises(ServiceBusAuthorizationError) as caught:
            await client.submit(batch)
        assert '"Azure Service Bus Data Sender"' in explain(caught.value)
        with pytest.raises(ServiceBusAuthorizationError) as caught:
            await client.status("b1")
        assert '"Azure Service Bus Data Receiver"' in explain(caught.value)


async def test_a_queue_that_does_not_exist_is_told(bus: Bus, tmp_path: Path) -> None:
    async with JobClient(settings_for(bus, results="nowhere"), bus.credential()) as client:
        with pytest.raises(ServiceBusError) as caught:
            await client.status("b1")
    assert explain(caught.value).startswith("The queue does not exist")


async def test_without_following_a_batch_among_others_is_collected_as_far_as_it_was_at_the_beginning(
    bus: Bus, client: JobClient, tmp_path: Path
) -> None:
    names = [f"{number}" for number in range(833)]
    await client.submit(read_batch_file(write_batch(tmp_path / "jobs.jsonl", [*names, "late"])), batch_id="b1")
    for start in range(0, len(names), 90):
        await answer(bus, "b1", dict.fromkeys(names[start : start + 90], 200))
        await answer(bus, "b2", {f"{start}": 200})
    told: list[Progress] = []
    first = await client.collect("b1", tmp_path / "out", on_progress=told.append)
    assert (first.succeeded, first.missing, first.timed_out) == (833, 1, False)
    assert len([now for now in told if now.done]) >= 4  # groups of 250
    await answer(bus, "b1", {"late": 200})
    assert (await client.collect("b1", tmp_path / "out")).complete
    assert (await client.status("b2")).succeeded == 10


async def test_following_a_batch_that_nobody_submitted_ends_after_the_timeout(
    client: JobClient, tmp_path: Path
) -> None:
    collection = await client.collect("nobody", tmp_path / "out", follow=True, timeout=0.2)
    assert (collection.timed_out, collection.total, collection.complete) == (True, None, False)


async def test_what_a_model_is_likely_to_refuse_is_warned_of_once_and_sent(
    bus: Bus, client: JobClient, tmp_path: Path
) -> None:
    body = {"model": "gpt-5.4-mini", "messages": [], "max_tokens": 5}
    lines = [
        json.dumps({"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body})
        for name in ("a", "b")
    ]
    path = tmp_path / "jobs.jsonl"
    path.write_text("\n".join(lines))
    with pytest.warns(LikelyRefused, match="2 lines have 'max_tokens'.*use max_completion_tokens") as caught:
        await client.submit(read_batch_file(path))
    assert len(caught) == 1
    assert len(await receive_all(bus, "jobs")) == 2


async def test_a_script_without_a_loop_submits_asks_and_collects(bus: Bus, tmp_path: Path) -> None:
    names = [f"q{number}" for number in range(40)]
    file = write_batch(tmp_path / "jobs.jsonl", names)

    def submit() -> tuple[Submission, BatchStatus]:
        with SyncJobClient(settings_for(bus), bus.credential()) as client:
            return client.submit(read_batch_file(file), batch_id="b1"), client.status("b1")

    def collect() -> Collection:
        with SyncJobClient(settings_for(bus), bus.credential()) as client:
            return client.collect("b1", tmp_path / "out.jsonl")

    submission, status = await asyncio.to_thread(submit)
    assert (submission.total, status.total, status.succeeded) == (40, 40, 0)
    await answer(bus, "b1", dict.fromkeys(names, 200))
    collection = await asyncio.to_thread(collect)
    assert (collection.complete, collection.succeeded) == (True, 40)


async def test_a_sync_client_that_is_not_open_or_in_a_loop_says_so(bus: Bus) -> None:
    client = SyncJobClient(settings_for(bus), bus.credential())
    with pytest.raises(RuntimeError, match="not open"):
        client.status("b1")
    with pytest.raises(RuntimeError, match="use JobClient"), client:
        pass
