"""What the results queue does when the SDK fails in ways nobody foresaw. With a broker: `tests/contract`."""

import asyncio
import sys
from typing import Any, cast

import pytest
from azure.servicebus import ServiceBusMessage
from azure.servicebus.aio import ServiceBusClient
from azure.servicebus.exceptions import MessageSizeExceededError

from tests.support.bench import wall_clock
from worker.azure.servicebus.results_queue import ResultsQueue
from worker.errors import ResultTooLarge, SinkUnavailable
from worker.jobs.job import Job, decode
from worker.testing import FakeQueue, job_line, result_of
from worker.waits import loop_time

pytestmark = pytest.mark.looptime


class HasABug:
    """A sender of the SDK that fails with what no adapter could list."""

    async def __aenter__(self) -> "HasABug":
        return self

    async def create_message_batch(self, max_size_in_bytes: int | None = None) -> Any:
        raise ZeroDivisionError("a slip")

    async def close(self) -> None: ...


class Senders:
    def get_queue_sender(self, queue: str, **options: Any) -> HasABug:
        return HasABug()


class CountsMore(HasABug):
    """A sender whose queue refuses a batch with a large message that the SDK has let pass."""

    def __init__(self) -> None:
        self.taken: list[bytes] = []

    async def create_message_batch(self, max_size_in_bytes: int | None = None) -> Any:
        return Lenient()

    async def send_messages(self, batch: "Lenient") -> None:
        if any(len(body) > 10 for body in batch.bodies):
            raise MessageSizeExceededError(message="too large")
        self.taken += batch.bodies


class Lenient:
    max_size_in_bytes = 1_000

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    def __len__(self) -> int:
        return len(self.bodies)

    def add_message(self, message: ServiceBusMessage) -> None:
        self.bodies.append(b"".join(message.body))


class OneSender:
    def __init__(self, sender: HasABug) -> None:
        self.sender = sender

    def get_queue_sender(self, queue: str, **options: Any) -> HasABug:
        return self.sender


class LosesConfirmations(CountsMore):
    """A sender whose queue takes everything and does not confirm the first `lost` batches."""

    def __init__(self, lost: int) -> None:
        super().__init__()
        self.lost = lost
        self.closed = 0

    async def send_messages(self, batch: "Lenient") -> None:
        await super().send_messages(batch)
        self.lost -= 1
        if self.lost >= 0:
            await asyncio.sleep(3_600)

    async def close(self) -> None:
        self.closed += 1
        await asyncio.sleep(3_600)  # a silent broker does not confirm that either


async def a_job() -> Job:
    queue = FakeQueue(clock=wall_clock)
    queue.send(job_line("a"), message_id="batch/a")
    [delivery] = await queue.receive(1, wait=0)
    return decode(delivery.envelope, max_age=60)


async def test_whatever_the_sdk_raises_each_writer_hears_of_it_and_may_try_again() -> None:
    job = await a_job()
    async with ResultsQueue(cast(ServiceBusClient, Senders()), "results") as sink:
        for _ in range(2):
            with pytest.raises(SinkUnavailable, match="a slip"):
                await sink.write(result_of(job, b"1"))


async def test_a_result_that_only_the_queue_finds_too_large_is_told_apart_and_the_others_are_written() -> None:
    job, sender = await a_job(), CountsMore()
    async with ResultsQueue(cast(ServiceBusClient, OneSender(sender)), "results") as sink:
        outcomes = await asyncio.gather(
            sink.write(result_of(job, b"small")),
            sink.write(result_of(job, b"x" * 11)),
            sink.write(result_of(job, b"other")),
            return_exceptions=True,
        )
    assert [type(outcome) for outcome in outcomes] == [bool, ResultTooLarge, bool]
    assert sender.taken == [b"small", b"other"]


class Takes(HasABug):
    """A sender whose queue takes everything."""

    async def create_message_batch(self, max_size_in_bytes: int | None = None) -> Any:
        return Lenient()

    async def send_messages(self, batch: "Lenient") -> None: ...


async def test_a_result_that_is_sent_is_not_held_until_the_next() -> None:
    job, line = await a_job(), bytes(bytearray(b"x" * 777))
    held = sys.getrefcount(line)
    async with ResultsQueue(cast(ServiceBusClient, OneSender(Takes())), "results") as sink:
        await sink.write(result_of(job, line))
        await asyncio.sleep(1)
        assert sys.getrefcount(line) == held


async def test_one_lost_confirmation_costs_seconds_and_no_writer_hears_of_it() -> None:
    job, sender = await a_job(), LosesConfirmations(lost=1)
    async with ResultsQueue(cast(ServiceBusClient, OneSender(sender)), "results") as sink:
        writes = [asyncio.ensure_future(sink.write(result_of(job, b"%d" % number))) for number in range(300)]
        await asyncio.sleep(2)
        late = asyncio.ensure_future(sink.write(result_of(job, b"late")))
        assert await asyncio.gather(*writes, late) == [True] * 301
        assert loop_time() < 5 + 5 + 1
    assert {int(body) for body in sender.taken if body != b"late"} == set(range(300))


async def test_what_is_never_confirmed_is_told_to_the_writer() -> None:
    job, sender = await a_job(), LosesConfirmations(lost=2)
    async with ResultsQueue(cast(ServiceBusClient, OneSender(sender)), "results") as sink:
        with pytest.raises(SinkUnavailable):
            await sink.write(result_of(job, b"1"))
        assert loop_time() < 5 + 30 + 10 + 1
        assert await sink.write(result_of(job, b"1")) is True


class ClosesBadly(HasABug):
    async def close(self) -> None:
        raise ZeroDivisionError("another slip")


async def test_a_writer_hears_of_a_failure_though_the_broken_link_cannot_be_closed_and_so_does_the_next() -> None:
    job, client = await a_job(), cast(ServiceBusClient, OneSender(ClosesBadly()))
    async with ResultsQueue(client, "results") as sink, asyncio.timeout(60):
        for _ in range(2):
            with pytest.raises(SinkUnavailable, match="a slip"):
                await sink.write(result_of(job, b"1"))
