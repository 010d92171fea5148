"""What the jobs queue does when the SDK hangs; what it does before a broker is in `tests/contract`."""

import asyncio
from typing import Any, cast

import pytest
from azure.servicebus.aio import ServiceBusClient

from tests.unit.bench import wall_clock
from worker.errors import SourceUnavailable
from worker.interfaces import ReceiverRestarted
from worker.servicebus import JobsQueue
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
