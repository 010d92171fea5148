"""`python -m tests.faults.worker run`: the worker, but that it kills itself where its environment says.

The worker has no setting and no code for this: what its core is made of is wrapped before it is made.
`FAULTS_KILL_AT=answered:7` is at the seventh passing of that step; `FAULTS_POISON=q-250` at each call of that job.
`FAULTS_BLOCK=20:10` kills nobody: at the 20th call the event loop stands still for 10 s.
"""

import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

from worker import app
from worker.__main__ import main
from worker.admission.admission import Admission
from worker.azure.openai.model import AzureOpenAI
from worker.azure.servicebus.forwarding import ForwardingSender
from worker.connections import Connections
from worker.flow.core import Conduct, Core, Ports, build_core
from worker.flow.rollouts import Rollouts
from worker.interfaces import (
    AnswerMemory,
    CallEnded,
    Event,
    Forward,
    JobEnded,
    JobSender,
    JobsReceived,
    JobsSorted,
    JobStarted,
    Model,
    Observer,
    ResultWritten,
    Settled,
    Target,
)
from worker.jobs.job import Job
from worker.jobs.outcomes import Response

CALLED, SENT_ON = "called", "sent-on"
EVENTS: dict[str, type[Event]] = {
    "received": JobsReceived,
    "decoded": JobStarted,
    "answered": CallEnded,
    "written": ResultWritten,
    "concluded": JobEnded,
    "settled": Settled,
    "sorted": JobsSorted,
}
"""Steps that the core reports as it passes them. Besides, `called` is after the admission and before the call, and
`sent-on` is when a model's queue has a job and the entry queue has it still."""


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class FailPoint:
    def __init__(self, wanted: str) -> None:
        self.step, _, times = wanted.partition(":")
        self._left = int(times or 0)

    def passed(self, step: str) -> None:
        if step == self.step:
            self._left -= 1
            if self._left == 0:
                die()

    def observer(self, inner: Observer) -> Observer:
        awaited = EVENTS.get(self.step)

        def tell(event: Event) -> None:
            inner(event)
            is_empty = isinstance(event, JobsReceived) and not event.count
            if awaited and isinstance(event, awaited) and not is_empty:
                self.passed(self.step)

        return tell


class FailingModel:
    def __init__(self, inner: Model, point: FailPoint, poison: str | None, block: str) -> None:
        self._inner = inner
        self._point = point
        self._poison = poison
        calls, _, seconds = block.partition(":")
        self._calls_to_block = int(calls or 0)
        self._block_seconds = float(seconds or 0)

    async def complete(self, job: Job, target: Target, room: AnswerMemory) -> Response:
        if job.line.custom_id == self._poison:
            die()
        self._point.passed(CALLED)
        self._calls_to_block -= 1
        if self._calls_to_block == 0:
            time.sleep(self._block_seconds)  # noqa: ASYNC251 - the fault is that the event loop stands still
        return await self._inner.complete(job, target, room)


class FailingSender:
    def __init__(self, inner: JobSender, point: FailPoint) -> None:
        self._inner = inner
        self._point = point

    @property
    def queue(self) -> str:
        return self._inner.queue

    async def send_on(
        self,
        forwards: Sequence[Forward],
        *,
        sent: Callable[[Sequence[Forward]], None],
        refuse: Callable[[Forward], None],
    ) -> None:
        def confirmed(some: Sequence[Forward]) -> None:
            self._point.passed(SENT_ON)
            sent(some)

        await self._inner.send_on(forwards, sent=confirmed, refuse=refuse)


def build_failing_core(
    ports: Ports, admission: Admission, rollouts: Rollouts, observer: Observer, conduct: Conduct, **options: Any
) -> Core:
    point = FailPoint(os.environ.get("FAULTS_KILL_AT", ""))
    model = FailingModel(ports.model, point, os.environ.get("FAULTS_POISON"), os.environ.get("FAULTS_BLOCK", ""))
    senders = {name: FailingSender(sender, point) for name, sender in ports.senders.items()}
    failing = replace(
        cast(Connections, ports),
        model=cast(AzureOpenAI, model),
        senders=cast(dict[str, ForwardingSender], senders),
    )
    return build_core(failing, admission, rollouts, point.observer(observer), conduct, **options)


if __name__ == "__main__":
    setattr(app, "build_core", build_failing_core)  # noqa: B010 - the name is imported there, not exported
    main()
