"""The worker without its edges: from what talks to Azure, or fakes of it, to a worker that runs."""

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from worker.admission.admission import Admission
from worker.flow.caller import Caller
from worker.flow.consumer import Consumer, Receiver
from worker.flow.processor import Processor
from worker.flow.retry import RetryPolicy
from worker.flow.rollouts import Rollouts
from worker.flow.sweeper import Sweeper
from worker.interfaces import Claims, DeadLetters, Model, Observer, Sink, Source


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
    def claims(self) -> Claims | None: ...
    @property
    def sources(self) -> Sequence[JobSource]: ...
    def dead_letters(self, queue: str, observer: Observer) -> AbstractAsyncContextManager[DeadLetters]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Conduct:
    """How often and for how long, in seconds: the settings of the same names. `models` are those that the jobs of
    each queue may ask for, None and of a queue that is not named: all."""

    models: Mapping[str, frozenset[str] | None]
    attempts: int
    parking: float
    max_age: float
    grace: float
    sweep_every: float
    pod: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Core:
    """A worker that is wired and does not run yet."""

    admission: Admission
    processor: Processor
    consumer: Consumer
    sweepers: Sequence[Sweeper]

    async def run(self) -> None:
        """Until it is stopped and everything held is settled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.admission.run(), name="admission")
            tasks.create_task(self.consumer.run(), name="consumer")
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
    caller = Caller(
        model=ports.model,
        admission=admission,
        policy=RetryPolicy(attempts=conduct.attempts),
        parking=conduct.parking,
        rollouts=rollouts,
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
        for queue in dict.fromkeys(source.queue for source in ports.sources)
    ]
    return Core(admission=admission, processor=processor, consumer=consumer, sweepers=sweepers)
