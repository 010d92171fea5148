"""What the results queue does when the SDK fails in ways nobody foresaw. With a broker: `tests/contract`."""

from typing import Any, cast

import pytest
from azure.servicebus.aio import ServiceBusClient

from tests.unit.bench import wall_clock
from worker.errors import SinkUnavailable
from worker.jobs import Job, decode
from worker.results_queue import ResultsQueue
from worker.testing import FakeQueue, job_line

pytestmark = pytest.mark.looptime


class HasABug:
    """A sender of the SDK that fails with what no adapter could list."""

    async def __aenter__(self) -> "HasABug":
        return self

    async def create_message_batch(self) -> Any:
        raise ZeroDivisionError("a slip")

    async def close(self) -> None: ...


class Senders:
    def get_queue_sender(self, queue: str, **options: Any) -> HasABug:
        return HasABug()


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
                await sink.write(job, b"1")
