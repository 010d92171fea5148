"""What the jobs queue does when the SDK hangs or the broker is silent, to the second; what it does before the
embedded one is in `tests/contract`."""

import asyncio
import itertools
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from azure.servicebus.aio import ServiceBusClient
from azure.servicebus.amqp import AmqpMessageBodyType
from azure.servicebus.exceptions import OperationTimeoutError, ServiceBusError

from tests.support.bench import wall_clock
from worker.azure.servicebus.jobs_queue import JobsQueue
from worker.azure.servicebus.links import PROVE_AFTER, SETTLE_TIMEOUT, SETTLE_TOGETHER, SETTLE_WITHIN
from worker.errors import SourceUnavailable
from worker.interfaces import Delivery, ReceiverRestarted
from worker.jobs.outcomes import Complete
from worker.testing import EventList
from worker.waits import loop_time

pytestmark = pytest.mark.looptime


class NeverReturns:
    """A receiver of the SDK whose connection died without a word."""

    def __init__(self) -> None:
        self.closed = False

    async def __aenter__(self) -> "NeverReturns":
        return self

    async def receive_messages(self, **options: Any) -> list[Any]:
        await asyncio.Event().wait()
        return []

    async def close(self) -> None:
        self.closed = True


class Receivers:
    """A client of the SDK that hands out such receivers."""

    def __init__(self) -> None:
        self.made: list[NeverReturns] = []

    def get_queue_receiver(self, queue: str, **options: Any) -> NeverReturns:
        self.made.append(NeverReturns())
        return self.made[-1]


async def test_a_receive_that_hangs_is_given_up_and_the_next_opens_another_link() -> None:
    receivers, events = Receivers(), EventList()
    async with JobsQueue(cast(ServiceBusClient, receivers), "jobs", observer=events, clock=wall_clock) as source:
        with pytest.raises(SourceUnavailable):
            await source.receive(1, wait=1.0)
        assert loop_time() == 31
        with pytest.raises(SourceUnavailable):
            await source.receive(1, wait=1.0)
        assert len(receivers.made) == 2
        assert receivers.made[0].closed
    assert len(events.of(ReceiverRestarted)) == 2
    assert receivers.made[1].closed


class Message:
    """As the SDK hands one over, locked for `lock` seconds."""

    def __init__(self, number: int, lock: float) -> None:
        self.sequence_number = self._delivery_id = number
        self.lock_token = uuid.UUID(int=number)
        self._delivery_tag = self.lock_token.bytes_le
        self.locked_until_utc = datetime.fromtimestamp(wall_clock() + lock, UTC)
        self.time_to_live = None
        self.enqueued_time_utc = datetime.fromtimestamp(wall_clock(), UTC)
        self.body = [b"{}"]
        self.body_type = AmqpMessageBodyType.DATA
        self.message_id = self.correlation_id = self.content_type = self.dead_letter_reason = None
        self.delivery_count = 0
        self.application_properties = None


class Broker:
    """A client of the SDK, its receivers and the broker behind: what it does not do takes the whole of its time."""

    def __init__(self, *, messages: int, lock: float = 300.0, confirms: bool, answers_after: float) -> None:
        self.messages = [Message(number, lock) for number in range(messages)]
        self.confirms = confirms
        self.answers_after = answers_after
        self.asked_on_link = 0
        self.asked_by_token = 0
        self.peeked = 0
        self.opened = 0
        self.renewed_at: list[float] = []
        self.is_closed = False
        self.receive_takes = 0.0
        self.confirming_takes = 0.0
        self._handler = self._amqp_transport = self._link = self
        self.current_link_credit = 0
        self._received_delivery_tags = {message._delivery_tag for message in self.messages}

    def get_queue_receiver(self, queue: str, **options: Any) -> "Broker":
        self.opened += 1
        return self

    async def __aenter__(self) -> "Broker":
        return self

    async def close(self) -> None:
        self.is_closed = True

    async def receive_messages(self, max_message_count: int, max_wait_time: float) -> list[Message]:
        await asyncio.sleep(self.receive_takes)
        received, self.messages = self.messages[:max_message_count], self.messages[max_message_count:]
        return received

    async def peek_messages(self, count: int, *, sequence_number: int, timeout: float) -> list[Message]:
        self.peeked += 1
        await self._answer(timeout)
        return []

    async def settle_messages_async(self, *settlement: Any, outcome_timeout: float, **options: Any) -> None:
        self.asked_on_link += 1
        await asyncio.sleep(self.confirming_takes)
        if not self.confirms:
            await asyncio.sleep(outcome_timeout)
            raise ServiceBusError("unconfirmed")

    AMQP_ARRAY_VALUE = list

    async def _mgmt_request_response_with_retry(self, *request: Any, timeout: float) -> None:
        assert not self.is_closed
        self.asked_by_token += 1
        await self._answer(timeout)

    async def _renew_locks(self, *tokens: uuid.UUID, timeout: float) -> dict[bytes, list[float]]:
        self.renewed_at.append(loop_time())
        await self._answer(timeout)
        return {b"expirations": [1000 * (wall_clock() + 300.0) for _ in tokens]}

    async def _answer(self, timeout: float) -> None:
        if loop_time() < self.answers_after:
            await asyncio.sleep(timeout)
            raise OperationTimeoutError()
        await asyncio.sleep(0.02)


def jobs_queue(broker: Broker, events: EventList, clock: Callable[[], float] = wall_clock) -> JobsQueue:
    return JobsQueue(cast(ServiceBusClient, broker), "jobs", observer=events, clock=clock)


async def settle_all(deliveries: Sequence[Delivery]) -> list[BaseException | None]:
    settlements = [delivery.settle(Complete()) for delivery in deliveries]
    return await asyncio.gather(*settlements, return_exceptions=True)


async def receive_for(source: JobsQueue, seconds: float) -> None:
    """As a worker that has nothing to do."""
    until = loop_time() + seconds
    while loop_time() < until:
        assert await source.receive(1, wait=1.0) == []


async def test_an_idle_link_whose_connection_is_dead_is_given_up_within_half_a_minute() -> None:
    broker, events = Broker(messages=0, confirms=True, answers_after=3600), EventList()
    broker.receive_takes = 1.0
    async with jobs_queue(broker, events) as source:
        with pytest.raises(SourceUnavailable):
            await receive_for(source, 60.0)
        assert loop_time() == PROVE_AFTER + SETTLE_TIMEOUT < 30
        assert await source.receive(1, wait=1.0) == []
        assert broker.opened == 2
    assert len(events.of(ReceiverRestarted)) == 1


async def test_an_idle_link_that_is_alive_is_asked_now_and_then_and_kept() -> None:
    broker, events = Broker(messages=0, confirms=True, answers_after=0), EventList()
    broker.receive_takes = 1.0
    async with jobs_queue(broker, events) as source:
        await receive_for(source, 4 * (PROVE_AFTER + 1))
        assert (broker.opened, broker.peeked) == (1, 4)


async def test_a_link_that_brings_messages_need_not_show_that_it_is_alive() -> None:
    broker = Broker(messages=60, confirms=True, answers_after=3600)
    broker.receive_takes = 1.0
    async with jobs_queue(broker, EventList()) as source:
        for _ in range(60):
            [delivery] = await source.receive(1, wait=1.0)
            await delivery.settle(Complete())
        assert broker.peeked == 0


async def test_settlements_before_a_silent_broker_end_within_half_a_minute_however_many_wait() -> None:
    broker, events = Broker(messages=1000, confirms=False, answers_after=3600), EventList()
    async with jobs_queue(broker, events) as source:
        *deliveries, last = await source.receive(1000, wait=1.0)
        outcomes = await settle_all(deliveries)
        assert {type(outcome) for outcome in outcomes} == {SourceUnavailable}
        assert loop_time() == 3 * SETTLE_TIMEOUT < SETTLE_WITHIN
        assert (broker.asked_on_link, broker.asked_by_token) == (SETTLE_TOGETHER, 2)
        with pytest.raises(SourceUnavailable):
            await last.settle(Complete())
        assert loop_time() == 4 * SETTLE_TIMEOUT  # for the renewal that was under way
        assert (broker.asked_on_link, broker.asked_by_token) == (SETTLE_TOGETHER, 2)
    assert len(events.of(ReceiverRestarted)) == 1


async def test_a_slow_broker_that_confirms_is_waited_for_however_many_settlements_wait() -> None:
    broker, events = Broker(messages=2_000, confirms=True, answers_after=0), EventList()
    broker.confirming_takes = 1.0
    async with jobs_queue(broker, events) as source:
        deliveries = await source.receive(2_000, wait=1.0)
        assert set(await settle_all(deliveries)) == {None}
        assert loop_time() == 63 > SETTLE_WITHIN
    assert broker.asked_by_token == 0
    assert events.of(ReceiverRestarted) == []


async def test_a_link_that_confirms_nothing_receives_nothing_more() -> None:
    broker = Broker(messages=2, confirms=False, answers_after=0)
    async with jobs_queue(broker, EventList()) as source:
        [first] = await source.receive(1, wait=1.0)
        await first.settle(Complete())
        await source.receive(1, wait=1.0)
    assert broker.opened == 2


async def test_a_link_is_not_closed_under_a_receive_and_keeps_what_that_brings() -> None:
    broker = Broker(messages=2, confirms=False, answers_after=0)
    async with jobs_queue(broker, EventList()) as source, asyncio.TaskGroup() as tasks:
        [first] = await source.receive(1, wait=1.0)
        broker.receive_takes = 20.0
        receiving = tasks.create_task(source.receive(1, wait=20.0))
        await first.settle(Complete())
        [second] = await receiving
        assert not broker.is_closed
        await second.settle(Complete())
        await asyncio.sleep(0)
        assert broker.is_closed


async def test_settlements_are_made_good_over_a_new_connection_when_the_old_one_is_dead() -> None:
    """As when NAT has dropped it: what is asked over the old one is asked in vain."""
    broker = Broker(messages=300, confirms=False, answers_after=2 * SETTLE_TIMEOUT)
    async with jobs_queue(broker, EventList()) as source:
        deliveries = await source.receive(300, wait=1.0)
        assert set(await settle_all(deliveries)) == {None}
    assert broker.asked_on_link == SETTLE_TOGETHER


async def test_settlements_succeed_again_once_a_silent_broker_has_answered_a_renewal() -> None:
    broker = Broker(messages=2, confirms=False, answers_after=40)
    async with jobs_queue(broker, EventList()) as source:
        first, second = await source.receive(2, wait=1.0)
        with pytest.raises(SourceUnavailable):
            await first.settle(Complete())
        await asyncio.sleep(60 - loop_time())
        await second.settle(Complete())
    assert loop_time() == pytest.approx(60.02)


async def test_a_settlement_waits_for_renewals_no_longer_than_half_a_minute_in_all() -> None:
    broker = Broker(messages=500, lock=2 * SETTLE_TIMEOUT - 2, confirms=False, answers_after=3600)
    async with jobs_queue(broker, EventList()) as source:
        deliveries = await source.receive(500, wait=1.0)
        with pytest.raises(SourceUnavailable):
            await deliveries[0].settle(Complete())
        assert loop_time() == SETTLE_WITHIN


@pytest.mark.parametrize("step_at", [0.0, 100.0])
async def test_locks_are_renewed_in_time_by_a_pod_whose_clock_is_behind_or_is_set_back(step_at: float) -> None:
    broker = Broker(messages=1, lock=300, confirms=True, answers_after=0)

    def behind() -> float:
        return wall_clock() - (600 if loop_time() >= step_at else 0)

    async with jobs_queue(broker, EventList(), behind) as source:
        [delivery] = await source.receive(1, wait=1.0)
        await asyncio.sleep(1_000)
        await delivery.settle(Complete())
    times = [0.0, *broker.renewed_at]
    assert max(later - sooner for sooner, later in itertools.pairwise([*times, 1_000])) < 300


async def test_a_link_that_failed_stays_open_until_what_it_did_not_complete_is_settled_by_the_lock() -> None:
    broker = Broker(messages=3, confirms=True, answers_after=1.0)
    async with jobs_queue(broker, EventList()) as source:
        deliveries = await source.receive(3, wait=1.0)
        with pytest.raises(SourceUnavailable):
            await source.peek(1, 1)
        broker._received_delivery_tags.clear()  # as after a reconnect
        assert [*await source.complete(deliveries)] == [*deliveries]
    assert (broker.asked_on_link, broker.asked_by_token) == (0, 3)
