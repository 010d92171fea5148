"""A worker without a world: the real core between fakes, under virtual time."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

from worker.admission.gates import Gates
from worker.admission.intake import Intake
from worker.admission.quarantine import Quarantine
from worker.flow.caller import Caller
from worker.flow.consumer import Consumer, Receiver
from worker.flow.processor import Processor
from worker.flow.retry import RetryPolicy
from worker.flow.rollouts import Rollouts
from worker.interfaces import Source, Target
from worker.jobs.job import Job
from worker.jobs.outcomes import Response
from worker.testing import EventList, FakeModel, FakeQueue, FakeSink, answer
from worker.waits import loop_time

EPOCH = 1_795_000_000.0
"""The wall clock's reading when the loop's clock reads 0."""

Behaviour = Callable[[Job, Target], Awaitable[Response]]


def wall_clock() -> float:
    return EPOCH + loop_time()


def target(deployment: str) -> Target:
    return Target(deployment=deployment, endpoint="https://account.openai.azure.com")


class Bench:
    """`behaviour` is the service. The jitter is the whole of each backoff, so waits are exact."""

    def __init__(
        self,
        behaviour: Behaviour | None = None,
        *,
        slots: int = 4,
        routes: Mapping[str, Sequence[Target]] | None = None,
        passthrough: bool = False,
        attempts: int = 6,
        parking: float = 900.0,
        max_age: float = 86_400.0,
        unknown_model_patience: float = 0.0,
        grace: float = 25.0,
        sink: FakeSink | None = None,
    ) -> None:
        self.events = EventList()
        self.queue = FakeQueue(clock=wall_clock)
        self.sink = sink or FakeSink()
        self.model = FakeModel(behaviour or answers)
        known = None if passthrough else routes or {"gpt-4o-mini": [target("mini")]}
        self.intake = Intake(slots, self.events)
        self.gates = Gates(
            known,
            endpoint="https://account.openai.azure.com",
            observer=self.events,
            slots=slots,
            on_change=self.intake.look_again,
            on_setup=partial(self.intake.note_trouble, "setup"),
        )
        self.lane = self.intake.lane("jobs", self.gates.wanted)
        self.caller = Caller(
            model=self.model,
            gates=self.gates,
            intake=self.intake,
            policy=RetryPolicy(attempts=attempts),
            parking=parking,
            rollouts=Rollouts(unknown_model_patience, random.Random(7).random),
            observer=self.events,
            clock=wall_clock,
            chance=lambda: 1.0,
        )
        self.processor = Processor(
            caller=self.caller,
            sink=self.sink,
            intake=self.intake,
            quarantine=Quarantine(self.intake, self.gates),
            observer=self.events,
            pod="pod-1",
            max_age=max_age,
            clock=wall_clock,
            chance=lambda: 1.0,
        )
        self.grace = grace
        self.consumer = self.consumer_of(self.queue)

    def consumer_of(self, source: Source) -> Consumer:
        return Consumer(
            receivers=[Receiver(source=source, lane=self.lane)],
            processor=self.processor,
            intake=self.intake,
            observer=self.events,
            chance=lambda: 1.0,
            grace=self.grace,
            clock=wall_clock,
        )

    async def run_for(self, seconds: float) -> None:
        """Work for so long, then stop and drain."""
        asyncio.get_running_loop().call_later(seconds, self.intake.stop)
        await self.consumer.run()

    async def work(self, *, until: Callable[[], bool] | None = None) -> None:
        """Work until everything sent is settled, or `until` holds after an event, and stop."""
        done = until or (lambda: not len(self.queue) and not self.queue.locked)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.consumer.run())
            while not done():
                await self.events.next()
            self.intake.stop()


async def answers(job: Job, target: Target) -> Response:
    await asyncio.sleep(0.2)
    return answer(f"to {job.line.custom_id}")
