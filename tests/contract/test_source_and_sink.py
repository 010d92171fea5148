"""One set of promises, kept by the fakes and by the adapters before the embedded Service Bus.

Lock loss is brought about by the broker here; what the worker does about it is `tests/unit/flow/test_processor.py`.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, cast

import orjson
import pytest
from azure.servicebus.amqp import AmqpAnnotatedMessage, AmqpMessageProperties

from tests.support.local_azure import Bus
from tests.support.patience import PATIENCE
from tests.support.service_bus import (
    HELD,
    JOBS,
    RESULTS,
    a_job,
    broker_of,
    jobs_queue,
    results_queue,
    send,
    service_of,
    settings_for,
    stored,
)
from worker.admission.admission import Admission
from worker.azure.servicebus.jobs_queue import SOCKET_TIMEOUT, JobsQueue, connect
from worker.azure.servicebus.links import SETTLE_TIMEOUT, LockedMessage
from worker.errors import Cause, DeadLetterReason, LockLost, ResultTooLarge, SinkUnavailable, SourceUnavailable
from worker.flow.sweeper import Sweeper
from worker.interfaces import Delivery, LocksRenewed, Sink, Source
from worker.jobs.job import decode
from worker.jobs.outcomes import Abandon, Complete, DeadLetter, Release
from worker.testing import EventList, FakeQueue, FakeSink, job_line, result_of
from worker.waits import loop_time


class SourceFixture(Protocol):
    """What a test needs of either: a queue to receive from, a way to send to it, and its dead letters."""

    @property
    def source(self) -> Source: ...

    async def send(self, *bodies: bytes, queue: str = JOBS) -> None: ...

    async def dead_letters(self) -> Sequence[tuple[str, str]]: ...


@dataclass
class FakeSourceFixture:
    source: FakeQueue

    async def send(self, *bodies: bytes, queue: str = JOBS) -> None:
        for number, body in enumerate(bodies):
            self.source.send(body, message_id=f"m{number}")

    async def dead_letters(self) -> Sequence[tuple[str, str]]:
        return [(letter.reason, letter.description) for _, letter in self.source.dead if letter]


@dataclass
class EmbeddedSourceFixture:
    source: JobsQueue
    bus: Bus

    async def send(self, *bodies: bytes, queue: str = JOBS) -> None:
        await send(self.bus, queue, *bodies)

    async def dead_letters(self) -> Sequence[tuple[str, str]]:
        letters = broker_of(self.bus).entity(f"{JOBS}/$DeadLetterQueue").peek(0, 100)
        return [(letter.dead_letter_reason or "", letter.dead_letter_description or "") for letter in letters]


@pytest.fixture(params=["fake", "embedded"])
async def config(request: pytest.FixtureRequest, bus: Bus) -> AsyncIterator[SourceFixture]:
    if request.param == "fake":
        yield FakeSourceFixture(FakeQueue(clock=time.time))
        return
    async with jobs_queue(bus) as source:
        yield EmbeddedSourceFixture(source, bus)


async def receive(source: Source, count: int = 10, *, wait: float = 0.5) -> Sequence[Delivery]:
    return await source.receive(count, wait=wait)


async def test_a_received_message_is_not_received_again_while_it_is_locked(config: SourceFixture) -> None:
    await config.send(job_line("a"), job_line("b"))
    assert [delivery.envelope.message_id for delivery in await receive(config.source)] == ["m0", "m1"]
    assert await receive(config.source) == []


async def test_no_more_messages_come_than_were_asked_for(config: SourceFixture) -> None:
    await config.send(*[job_line(f"{number}") for number in range(5)])
    assert len(await receive(config.source, 2)) == 2
    assert len(await receive(config.source, 10)) == 3


async def test_an_empty_queue_is_waited_for_no_longer_than_asked(config: SourceFixture) -> None:
    started = loop_time()
    assert await receive(config.source, wait=0.3) == []
    assert loop_time() - started < 3


async def test_a_delivery_carries_what_the_worker_reads(config: SourceFixture) -> None:
    await config.send(job_line("a"))
    [delivery] = await receive(config.source)
    envelope = delivery.envelope
    assert envelope.queue == JOBS
    assert envelope.body == job_line("a")
    assert (envelope.message_id, envelope.correlation_id, envelope.delivery_count) == ("m0", "batch", 0)
    assert abs(envelope.enqueued_at - time.time()) < 5
    assert envelope.sequence_number > 0


async def test_a_completed_message_is_gone(config: SourceFixture) -> None:
    await config.send(job_line("a"))
    [delivery] = await receive(config.source)
    await delivery.settle(Complete())
    assert await receive(config.source) == []
    assert await config.dead_letters() == []


async def test_a_released_message_is_back_at_once_and_its_count_has_not_risen(config: SourceFixture) -> None:
    await config.send(job_line("a"))
    [delivery] = await receive(config.source)
    await delivery.settle(Release())
    [again] = await receive(config.source)
    assert again.envelope.delivery_count == 0


async def test_an_abandoned_message_is_back_at_once_and_its_count_has_risen(config: SourceFixture) -> None:
    await config.send(job_line("a"))
    [delivery] = await receive(config.source)
    await delivery.settle(Abandon())
    [again] = await receive(config.source)
    assert again.envelope.delivery_count == 1


async def test_a_dead_letter_tells_its_reason_and_how_to_mend_it(config: SourceFixture) -> None:
    await config.send(b"nonsense")
    [delivery] = await receive(config.source)
    settlement = DeadLetter(reason=DeadLetterReason.INVALID_JSON, description="send a Batch line")
    await delivery.settle(settlement)
    assert await receive(config.source) == []
    assert await config.dead_letters() == [("InvalidJson", "send a Batch line")]


async def test_dead_letters_can_be_looked_at_given_back_and_completed(bus: Bus) -> None:
    async with jobs_queue(bus) as source:
        await send(bus, JOBS, b"broken", job_line("b"))
        for delivery in await receive(source):
            await delivery.settle(DeadLetter(reason=DeadLetterReason.INVALID_JSON, description="fix it"))
    client = connect(settings_for(bus), bus.credential("owner"), retries=0)
    async with client, JobsQueue(client, JOBS, observer=EventList(), dead_letters=True) as dead:
        seen = await dead.peek(0, 10)
        assert [(envelope.body, envelope.dead_letter_reason) for envelope in seen] == [
            (b"broken", "InvalidJson"),
            (job_line("b"), "InvalidJson"),
        ]
        assert await dead.peek(seen[-1].sequence_number + 1, 10) == []
        first, second = await receive(dead)
        await first.settle(Release())
        await second.settle(Complete())
        assert [envelope.body for envelope in await dead.peek(0, 10)] == [b"broken"]


async def test_what_the_broker_gave_up_is_swept_and_the_rest_stays(bus: Bus) -> None:
    async with jobs_queue(bus) as source:
        await send(bus, JOBS, b"broken", job_line("b"))
        broken, tried = await receive(source)
        await broken.settle(DeadLetter(reason=DeadLetterReason.INVALID_JSON, description="fix it"))
        while tried.envelope.delivery_count < 19:
            await tried.settle(Abandon())
            [tried] = await receive(source)
        await tried.settle(Abandon())
    sink, events = FakeSink(), EventList()
    client = connect(settings_for(bus), bus.credential("owner"), retries=0)
    async with client, JobsQueue(client, JOBS, observer=events, dead_letters=True) as dead:
        sweeper = Sweeper(
            queue=JOBS,
            open_dead_letters=lambda: nullcontext(dead),
            sink=sink,
            claims=None,
            admission=Admission({}, slots=1, observer=events),
            observer=events,
            pod="pod-1",
            every=60,
            chance=lambda: 0.5,
        )
        await sweeper.sweep(dead)
        assert [line["error"]["code"] for line in map(orjson.loads, sink.lines.values())] == ["max_deliveries"]
        assert [envelope.body for envelope in await dead.peek(0, 10)] == [b"broken"]


async def test_an_error_within_its_block_comes_out_as_it_is(bus: Bus) -> None:
    async def fail_within() -> None:
        async with jobs_queue(bus) as source:
            await receive(source, wait=0.1)
            raise SourceUnavailable("mine")

    with pytest.raises(SourceUnavailable, match="mine"):
        await fail_within()


@pytest.mark.parametrize("identifier", [uuid.UUID(int=7), 7, b"seven"])
async def test_identifiers_that_are_no_text_arrive_as_text(bus: Bus, identifier: uuid.UUID | int | bytes) -> None:
    async with bus.client() as client, client.get_queue_sender(JOBS) as sender:
        properties = AmqpMessageProperties(message_id=cast(Any, identifier), correlation_id=cast(Any, identifier))
        await sender.send_messages(AmqpAnnotatedMessage(data_body=[job_line("a")], properties=properties))
    async with jobs_queue(bus) as source:
        [delivery] = await receive(source)
        job = decode(delivery.envelope, max_age=60)
    expected = identifier.decode() if isinstance(identifier, bytes) else str(identifier)
    assert (job.id, job.batch_id) == (expected, expected)


async def test_a_message_is_settled_once(config: SourceFixture) -> None:
    await config.send(job_line("a"))
    [delivery] = await receive(config.source)
    await delivery.settle(Complete())
    with pytest.raises((LockLost, SourceUnavailable)):
        await delivery.settle(Complete())


async def test_many_settlements_may_wait_at_once(config: SourceFixture) -> None:
    await config.send(*[job_line(f"{number}") for number in range(40)])
    deliveries: list[Delivery] = []
    while len(deliveries) < 40:
        deliveries += await receive(config.source, 40)
    await asyncio.gather(*[delivery.settle(Complete()) for delivery in deliveries])
    assert await receive(config.source) == []


# What only the adapter before a broker has


async def test_the_lock_of_a_held_delivery_is_kept_for_many_lock_durations(bus: Bus) -> None:
    async with jobs_queue(bus, HELD) as source:
        await send(bus, HELD, *[job_line(f"{number}") for number in range(30)])
        deliveries: list[Delivery] = []
        while len(deliveries) < 30:
            deliveries += await receive(source, 30)
        ends = loop_time() + 6.5
        while loop_time() < ends:
            assert await receive(source, 30, wait=0.5) == [], "a lock has lapsed"
        await asyncio.gather(*[delivery.settle(Complete()) for delivery in deliveries])
        counts = broker_of(bus).entity(HELD).counts()
    assert counts.active == 0


async def test_lost_locks_are_found_among_many_told_once_and_the_others_are_kept(bus: Bus) -> None:
    events = EventList()
    async with jobs_queue(bus, HELD, events=events) as source:
        await send(bus, HELD, *[job_line(f"{number}") for number in range(9)])
        deliveries: list[Delivery] = []
        while len(deliveries) < 9:
            deliveries += await receive(source, 9)
        taken, lost = {1, 4, 5, 8}, list[int]()
        all_known = asyncio.Event()

        def lose(number: int) -> None:
            lost.append(number)
            if len(lost) == len(taken):
                all_known.set()

        for number, delivery in enumerate(deliveries):
            delivery.when_lost(partial(lose, number))
        # the broker takes some away, as it does when a queue is failed over
        for number in taken:
            broker_of(bus).entity(HELD).complete(token_of(deliveries[number]))
        async with asyncio.timeout(PATIENCE):
            await all_known.wait()
            while not any(event.lost for event in events.of(LocksRenewed)):
                await events.next()
        assert sorted(lost) == sorted(taken)
        kept = [delivery for number, delivery in enumerate(deliveries) if number not in taken]
        await asyncio.gather(*[delivery.settle(Complete()) for delivery in kept])
    assert [event.lost for event in events.of(LocksRenewed) if event.lost] == [4]


async def test_a_delivery_can_be_settled_after_its_connection_was_lost(bus: Bus) -> None:
    async with jobs_queue(bus) as source:
        await send(bus, JOBS, job_line("a"))
        [delivery] = await receive(source)
        service_of(bus).drop_connections()
        await delivery.settle(Complete())
        assert broker_of(bus).entity(JOBS).counts().active == 0


async def test_after_its_connection_was_lost_the_source_receives_again(bus: Bus) -> None:
    async with jobs_queue(bus) as source:
        await source.open()
        service_of(bus).drop_connections()
        await send(bus, JOBS, job_line("a"))
        received: Sequence[Delivery] = []
        async with asyncio.timeout(PATIENCE):
            while not received:
                try:
                    received = await receive(source)
                except SourceUnavailable:
                    await asyncio.sleep(0.1)
        await received[0].settle(Complete())


async def test_the_receiver_reads_in_short_turns_so_that_settlements_need_not_wait(bus: Bus) -> None:
    """The SDK's receivers inherit no time-outs from their client; at its own 0.2 s a settlement takes as long."""
    async with jobs_queue(bus) as source:
        await source.open()
        assert source._link is not None
        receiver = source._link.receiver
        assert receiver._handler._socket_timeout == SOCKET_TIMEOUT
        assert receiver._config.timeout == SETTLE_TIMEOUT


async def test_a_queue_that_does_not_exist_or_is_not_ours_is_named(bus: Bus) -> None:
    async with jobs_queue(bus, "nowhere") as source:
        with pytest.raises(SourceUnavailable, match="nowhere") as missing:
            await source.open()
    async with jobs_queue(bus, RESULTS) as source:
        with pytest.raises(SourceUnavailable, match="requires sessions") as with_sessions:
            await source.open()
    async with jobs_queue(bus, identity="stranger") as source:
        with pytest.raises(SourceUnavailable, match="'Listen' claim") as refused:
            await source.open()
    causes = [caught.value.cause for caught in (missing, with_sessions, refused)]
    assert causes == [Cause.MISSING, Cause.SESSIONS_REQUIRED, Cause.ROLE_MISSING]


def token_of(delivery: Delivery) -> uuid.UUID:
    assert isinstance(delivery, LockedMessage)
    return uuid.UUID(delivery.token)


# Sinks


@dataclass
class SinkFixture:
    sink: Sink
    lines: Callable[[], Awaitable[list[bytes]]]


@pytest.fixture(params=["fake", "embedded"])
async def sinks(request: pytest.FixtureRequest, bus: Bus) -> AsyncIterator[SinkFixture]:
    if request.param == "fake":
        fake = FakeSink(largest=200_000)

        async def lines() -> list[bytes]:
            return list(fake.lines.values())

        yield SinkFixture(fake, lines)
        return
    async with results_queue(bus) as sink:
        yield SinkFixture(sink, lambda: stored(bus))


async def test_a_written_line_is_there_as_it_was(sinks: SinkFixture) -> None:
    await sinks.sink.write(result_of(a_job("a"), b'{"custom_id":"a"}'))
    assert await sinks.lines() == [b'{"custom_id":"a"}']


async def test_writing_the_same_job_again_has_no_further_effect(sinks: SinkFixture) -> None:
    await sinks.sink.write(result_of(a_job("a"), b'{"first":1}'))
    await sinks.sink.write(result_of(a_job("a"), b'{"second":2}'))
    assert await sinks.lines() == [b'{"first":1}']


async def test_one_job_id_in_two_batches_is_two_results(sinks: SinkFixture) -> None:
    first, second = (replace(a_job("a", batch), id="order-17") for batch in ("b1", "b2"))
    await sinks.sink.write(result_of(first, b"1"))
    await sinks.sink.write(result_of(second, b"2"))
    assert sorted(await sinks.lines()) == [b"1", b"2"]


async def test_many_writers_at_once_lose_and_double_nothing(sinks: SinkFixture) -> None:
    jobs = [a_job(f"{number}", batch=f"batch-{number % 3}") for number in range(150)]
    await asyncio.gather(*[sinks.sink.write(result_of(job, b'{"id":"%b"}' % job.id.encode())) for job in jobs])
    assert sorted(await sinks.lines()) == sorted(b'{"id":"%b"}' % job.id.encode() for job in jobs)


async def test_lines_larger_than_one_batch_together_are_all_written(sinks: SinkFixture) -> None:
    line = b'"%b"' % (b"x" * 100_000)
    await asyncio.gather(*[sinks.sink.write(result_of(a_job(f"{number}"), line)) for number in range(7)])
    assert await sinks.lines() == [line] * 7


async def test_a_line_that_can_never_be_taken_is_told_apart_and_the_others_are_written(sinks: SinkFixture) -> None:
    outcomes = await asyncio.gather(
        sinks.sink.write(result_of(a_job("small"), b"1")),
        sinks.sink.write(result_of(a_job("large"), b"x" * 300_000)),
        sinks.sink.write(result_of(a_job("other"), b"2")),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes] == [bool, ResultTooLarge, bool]
    assert sorted(await sinks.lines()) == [b"1", b"2"]


async def test_a_sink_that_may_not_be_written_to_says_which_claim_is_missing(bus: Bus) -> None:
    async with results_queue(bus, identity="stranger") as sink:
        with pytest.raises(SinkUnavailable, match="'Send' claim") as caught:
            await sink.open()
        assert caught.value.cause is Cause.ROLE_MISSING
        with pytest.raises(SinkUnavailable, match="'Send' claim"):
            await sink.write(result_of(a_job("a"), b"1"))


async def test_after_its_connection_was_lost_the_sink_writes_again(bus: Bus) -> None:
    async with results_queue(bus) as sink:
        await sink.write(result_of(a_job("a"), b"1"))
        service_of(bus).drop_connections()
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    await sink.write(result_of(a_job("b"), b"2"))
                    break
                except SinkUnavailable:
                    await asyncio.sleep(0.1)
    assert await stored(bus) == [b"1", b"2"]


async def test_the_fake_delivery_calls_back_at_once_when_it_is_already_lost() -> None:
    queue = FakeQueue(clock=time.time)
    queue.send(job_line("a"))
    await queue.receive(1, wait=0)
    [delivery] = queue.locked
    delivery.lose()
    told: list[bool] = []
    delivery.when_lost(lambda: told.append(True))
    assert told == [True]
