"""The worker without its edges: from what talks to Azure, or fakes of it, to a worker that runs."""

import asyncio
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from worker.admission.admission import Admission
from worker.admission.intake import QueueIntake
from worker.flow.batches import Batches
from worker.flow.caller import Caller
from worker.flow.consumer import Consumer, Receiver
from worker.flow.processor import Processor
from worker.flow.retry import RetryPolicy
from worker.flow.rollouts import Rollouts
from worker.flow.sorter import Sorter
from worker.flow.sweeper import Sweeper
from worker.interfaces import Claims, DeadLetters, EntryQueue, Fleet, JobSender, Model, Observer, Sink, Source


class JobSource(Source, Protocol):
    """A receiver of a queue of jobs."""

    @property
    def queue(self) -> str: ...


class Ports(Protocol):
    """What the core works with; several sources of one queue are as many receivers."""

    @property
    def model(self) -> Model: ...
    @property
    def sink(self) -> Sink: ...
    @property
    def fleet(self) -> Fleet | None:
        """None where results do not lie in Blob storage."""

    @property
    def claims(self) -> Claims | None: ...
    @property
    def sources(self) -> Sequence[JobSource]: ...
    @property
    def entry(self) -> EntryQueue | None:
        """The queue whose jobs are sorted, None where there is nothing to sort."""

    @property
    def senders(self) -> Mapping[str, JobSender]:
        """To the queue of each model."""

    def dead_letters(self, queue: str, observer: Observer) -> AbstractAsyncContextManager[DeadLetters]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Conduct:
    """How often and for how long, in seconds: the settings of the same names. `models` are those that the jobs of
    each queue ask for, None and of a queue that is not named: any; where there are none its jobs are refused.
    `sorted_bytes` bounds what the sorter holds."""

    models: Mapping[str, frozenset[str] | None]
    attempts: int
    unfit_answers: int = 0
    parking: float
    max_age: float
    grace: float
    sweep_every: float
    pod: str
    sorted_bytes: float = math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Core:
    """A worker that is wired and does not run yet."""

    admission: Admission
    processor: Processor
    consumer: Consumer
    sorter: Sorter | None
    sweepers: Sequence[Sweeper]
    batches: Batches

    async def run(self) -> None:
        """Until it is stopped and everything held is settled."""
        async with asyncio.TaskGroup() as around:
            watching = around.create_task(self.batches.run(), name="batches")
            await self._work()
            watching.cancel()

    async def _work(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.admission.run(), name="admission")
            tasks.create_task(self.consumer.run(), name="consumer")
            if self.sorter is not None:
                tasks.create_task(self.sorter.run(), name="sorter")
            for sweeper in self.sweepers:
                tasks.create_task(sweeper.run(), name=f"sweeper of {sweeper.queue}")


def build_core(
    ports: Ports,
    admission: Admission,
    rollouts: Rollouts,
    observer: Observer,
    conduct: Conduct,
    *,
    clock: Callable[[], float] = time.time,
    chance: Callable[[], float] = random.random,
) -> Core:
    """`clock` is Unix time, `chance` draws from [0, 1) for jitter."""
    batches = Batches(ports.fleet, conduct.pod, waits_for=admission.waits, clock=clock)
    caller = Caller(
        model=ports.model,
        admission=admission,
        policy=RetryPolicy(attempts=conduct.attempts),
        parking=conduct.parking,
        unfit_answers=conduct.unfit_answers,
        rollouts=rollouts,
        batches=batches,
        observer=observer,
        models=conduct.models,
        clock=clock,
        chance=chance,
    )
    processor = Processor(
        caller=caller,
        sink=ports.sink,
        claims=ports.claims,
        admission=admission,
        observer=observer,
        pod=conduct.pod,
        max_age=conduct.max_age,
        clock=clock,
        chance=chance,
    )
    consumer = Consumer(
        receivers=[
            Receiver(source=source, intake=admission.intake(source.queue, conduct.models.get(source.queue)))
            for source in ports.sources
        ],
        processor=processor,
        rollouts=rollouts,
        admission=admission,
        observer=observer,
        chance=chance,
        grace=conduct.grace,
        clock=clock,
    )
    sorter = _build_sorter(ports, admission, consumer, observer, conduct, chance, clock)
    sweepers = [
        Sweeper(
            queue=queue,
            open_dead_letters=partial(ports.dead_letters, queue, observer),
            sink=ports.sink,
            claims=ports.claims,
            admission=admission,
            observer=observer,
            pod=conduct.pod,
            every=conduct.sweep_every,
            chance=chance,
            clock=clock,
        )
        for queue in dict.fromkeys(
            source.queue for source in [*ports.sources, *([ports.entry] if ports.entry else [])]
        )
    ]
    return Core(
        admission=admission,
        processor=processor,
        consumer=consumer,
        sorter=sorter,
        sweepers=sweepers,
        batches=batches,
    )


def _build_sorter(
    ports: Ports,
    admission: Admission,
    consumer: Consumer,
    observer: Observer,
    conduct: Conduct,
    chance: Callable[[], float],
    clock: Callable[[], float],
) -> Sorter | None:
    if ports.entry is None:
        return None
    # what it gives to the consumer takes no slot: it is refused, or set aside, or one of few
    intake = QueueIntake(ports.entry.queue, None)
    return Sorter(
        source=ports.entry,
        senders=ports.senders,
        work_in_place=lambda delivery, verdict: consumer.work(delivery, intake, verdict),
        claims=ports.claims,
        admission=admission,
        observer=observer,
        bytes_limit=conduct.sorted_bytes,
        chance=chance,
        clock=clock,
    )
