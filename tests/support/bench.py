"""A worker without a config: the real core between fakes, under virtual time."""

import asyncio
import math
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

from worker.admission.admission import Admission
from worker.flow.core import Conduct, JobSource, build_core
from worker.flow.rollouts import Rollouts
from worker.interfaces import Claims, DeadLetters, EntryQueue, Fleet, JobSender, Observer, Target
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
        models: frozenset[str] | None = None,
        attempts: int = 6,
        unfit_answers: int = 0,
        parking: float = 900.0,
        max_age: float = 86_400.0,
        unknown_model_patience: float = 0.0,
        grace: float = 25.0,
        bytes_limit: float = math.inf,
        queue: FakeQueue | None = None,
        source: JobSource | None = None,
        sink: FakeSink | None = None,
        fleet: Fleet | None = None,
        claims: Claims | None = None,
        entry: EntryQueue | None = None,
        senders: Mapping[str, JobSender] | None = None,
        sorted_bytes: float = math.inf,
    ) -> None:
        self.events = EventList()
        self.queue = FakeQueue(clock=wall_clock) if queue is None else queue  # an empty one is false
        self.sink = sink or FakeSink()
        self.model = FakeModel(behaviour or answers)
        self.fleet = fleet
        self.claims = claims
        self.sources: Sequence[JobSource] = [source or self.queue]
        self.entry = entry
        self.senders: Mapping[str, JobSender] = senders or {}
        self.admission = Admission(
            None if passthrough else routes or {"gpt-5.4-mini": [target("mini")]},
            endpoint="https://account.openai.azure.com",
            observer=self.events,
            slots=slots,
            bytes_limit=bytes_limit,
        )
        self.rollouts = Rollouts(unknown_model_patience, random.Random(7).random)
        conduct = Conduct(
            models={"jobs": models},
            attempts=attempts,
            unfit_answers=unfit_answers,
            parking=parking,
            max_age=max_age,
            grace=grace,
            sweep_every=math.inf,
            pod="pod-1",
            sorted_bytes=sorted_bytes,
        )
        self.core = build_core(
            self, self.admission, self.rollouts, self.events, conduct, clock=wall_clock, chance=lambda: 1.0
        )

    @asynccontextmanager
    async def dead_letters(self, queue: str, observer: Observer) -> AsyncIterator[DeadLetters]:
        raise AssertionError(f"the bench sweeps no dead letters, those of {queue} neither")
        yield

    async def run_for(self, seconds: float) -> None:
        """Work for so long, then stop and drain."""
        asyncio.get_running_loop().call_later(seconds, self.admission.stop)
        await self.core.run()

    async def work(self, *, until: Callable[[], bool] | None = None) -> None:
        """Work until everything sent is settled, or `until` holds after an event, and stop."""
        done = until or (lambda: not len(self.queue) and not self.queue.locked)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.core.run())
            while not done():
                await self.events.next()
            self.admission.stop()


async def answers(job: Job, target: Target) -> Response:
    await asyncio.sleep(0.2)
    return answer(f"to {job.line.custom_id}")
