"""What a scenario's fault is injected into: an embedded Azure, a batch in its queue, and real workers."""

import asyncio
import contextlib
import json
import random
import signal
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tests.support.administration import administration
from tests.support.blob_processes import bus_of, result_names
from tests.support.patience import PATIENCE
from tests.support.processes import Azure, Service, Worker, process, until, worker

BATCH = "a-batch"
Sink = Literal["blob", "queue"]


@dataclass
class Stage:
    """`chance` is the scenario's seed: nothing else in an injection may be random."""

    cloud: Azure
    folder: Path
    sink: Sink
    jobs: int
    models: tuple[str, ...]
    chance: random.Random
    stack: AsyncExitStack
    workers: list[Worker] = field(default_factory=list)
    fault_ended: float | None = None
    """Unix time; None until it is over."""

    @property
    def batch_file(self) -> Path:
        return self.folder / "in.jsonl"

    @property
    def results_file(self) -> Path:
        return self.folder / "out.jsonl"

    @property
    def patience(self) -> float:
        """Seconds for a command that goes over all jobs."""
        return PATIENCE + self.jobs / 100

    # The producer

    async def submit(self) -> None:
        code, output = await self.command("submit", str(self.batch_file), "--batch", BATCH, within=self.patience)
        assert code == 0, output

    async def collect(self) -> Path:
        """All results that there are, once the queues are empty; where it has them."""
        options = ("-o", str(self.results_file), "--follow", "--timeout", "10s")
        code, output = await self.command("collect", BATCH, *options, within=self.patience)
        assert code in (0, 3, 4), output
        file = self.results_file if code != 3 else self.results_file.with_suffix(".jsonl.partial")
        file.touch()  # there is none where nothing at all was found
        return file

    async def command(self, *arguments: str, within: float = PATIENCE) -> tuple[int, str]:
        async with process("-m", "worker", *arguments, environment=self.cloud.environment("producer")) as running:
            return await running.ended(within), running.output

    async def command_killed_after(self, seconds: float, *arguments: str) -> bool:
        """Whether the producer's command was killed; it may have ended before."""
        async with process("-m", "worker", *arguments, environment=self.cloud.environment("producer")) as running:
            try:
                async with asyncio.timeout(seconds):
                    await running.child.wait()
            except TimeoutError:
                running.child.kill()
            return await running.ended() == -signal.SIGKILL

    # Workers

    async def start(self, *, kill_at: str = "", poison: str = "", block: str = "", **settings: str) -> Worker:
        """A worker that serves, and lives until the scenario's end unless something ends it.

        `kill_at`, `poison` and `block` are the fail-points of `tests/faults/worker.py`.
        """
        wanted = {"models": self._models_setting(), "sweep_every": "1", "grace": "5", **settings}
        if kill_at:
            wanted["FAULTS_KILL_AT"] = kill_at
        if poison:
            wanted["FAULTS_POISON"] = poison
        if block:
            wanted["FAULTS_BLOCK"] = block
        module = "tests.faults.worker" if kill_at or poison or block else "worker"
        one = await self.stack.enter_async_context(worker(self.cloud, module=module, **wanted))
        self.workers.append(one)
        return one

    def _models_setting(self) -> str:
        return json.dumps({model: [model] for model in self.models})

    @property
    def alive(self) -> list[Worker]:
        return [one for one in self.workers if one.process.child.returncode is None]

    async def has_died(self, one: Worker) -> None:
        code = await one.process.ended()
        assert code == -signal.SIGKILL, f"the worker was not killed, it ended with {code}:\n{one.process.output}"

    async def kill(self, one: Worker) -> None:
        one.process.child.kill()
        await self.has_died(one)

    async def terminate(self, one: Worker) -> None:
        """SIGTERM; the worker must end in order."""
        one.process.child.send_signal(signal.SIGTERM)
        await self.has_ended(one)

    async def has_ended(self, one: Worker) -> None:
        code = await one.process.ended()
        assert code == 0, f"the worker ended with {code}:\n{one.process.output}"

    async def holds(self, one: Worker, jobs: int) -> None:
        await self.reaches(one, "aoai_worker_jobs_in_flight", jobs)

    async def holding(self) -> list[Worker]:
        """Workers that hold jobs: one or more."""
        found: list[Worker] = []

        async def some() -> bool:
            found[:] = [one for one in self.alive if await one.metric("aoai_worker_jobs_in_flight")]
            return bool(found)

        await until(some)
        return found

    async def reaches(self, one: Worker, metric: str, at_least: float, **labels: str) -> None:
        async def reached() -> bool:
            return await one.metric(metric, **labels) >= at_least

        try:
            await until(reached)
        except TimeoutError:
            seen = await one.metric(metric, **labels)
            raise AssertionError(
                f"{metric}{labels or ''} is {seen:g}; the fault should bring it to {at_least:g}"
            ) from None

    # Azure

    async def fault(self, service: Service, *faults: dict[str, Any]) -> None:
        """Replaces the faults of the service, once they have struck; none clears them."""
        await self.have_struck(service)
        await self._faults(service, list(faults))

    async def add_fault(self, service: Service, fault: dict[str, Any]) -> None:
        await self._faults(service, fault, adds=True)

    async def have_struck(self, service: Service, times: int = 1) -> None:
        """Each fault that is set there has, so often. Without it a scenario could pass undisturbed."""
        unstruck: list[dict[str, Any]] = []

        async def none_left() -> bool:
            unstruck[:] = [fault for fault in await self._faults(service) if fault["struck"] < times]
            return not unstruck

        try:
            await until(none_left)
        except TimeoutError:
            raise AssertionError(f"faults of {service} struck less than {times} times: {unstruck}") from None

    async def used_up(self, service: Service) -> None:
        """Every fault of the service that has a count has struck so often."""

        async def none_left() -> bool:
            return not await self._faults(service)

        await until(none_left)

    async def _faults(self, service: Service, document: Any = None, *, adds: bool = False) -> list[dict[str, Any]]:
        """Those that are set then."""
        address = {} if service == "openai" else {service: True}
        return list(await self.cloud.control("/local/faults", document, adds=adds, **address))

    async def break_sink(self) -> None:
        if self.sink == "blob":
            await self.fault("blob", {"kind": "answer", "code": "ServerBusy", "operation": "put_blob"})
        else:
            await self.fault("servicebus", {"kind": "refuse", "on": "send", "entity": "results"})

    async def mend_sink(self) -> None:
        await self.fault("blob" if self.sink == "blob" else "servicebus")

    def note_end_of_fault(self) -> None:
        """From here on the recovery is measured."""
        self.fault_ended = time.time()

    async def answers(self) -> dict[str, int]:
        """How often each prompt was answered, which is how often it was paid for."""
        stats = await self.cloud.control("/local/stats")
        return dict(stats["answers"])

    async def answers_reach(self, count: int) -> None:
        async def reached() -> bool:
            return sum((await self.answers()).values()) >= count

        await until(reached)

    @property
    def queues(self) -> list[str]:
        return [queue.name for queue in self.cloud.config.queues if queue.name != "results"]

    async def messages_left(self) -> int:
        """Of all queues of jobs: waiting, locked and dead-lettered."""
        async with administration(self.cloud) as client:
            found = [await client.get_queue_runtime_properties(queue) for queue in self.queues]
        return sum((queue.active_message_count or 0) + (queue.dead_letter_message_count or 0) for queue in found)

    async def queues_are_empty(self) -> int:
        """What is left in them in the end."""
        left = 0

        async def empty() -> bool:
            nonlocal left
            left = await self.messages_left()
            return not left

        with contextlib.suppress(TimeoutError):
            await until(empty)
        return left

    async def no_delivery_counts_have_risen(self) -> None:
        """Of what waits in the first queue, which must not be empty."""
        counts: list[int] = []
        async with bus_of(self.cloud) as client, client.get_queue_receiver(self.queues[0]) as receiver:
            async with asyncio.timeout(PATIENCE):
                following = 0
                while page := await receiver.peek_messages(250, sequence_number=following):
                    counts += [message.delivery_count or 0 for message in page]
                    following = (page[-1].sequence_number or 0) + 1
        assert counts, "the queue is empty: the fault came too late to show anything"
        risen = [count for count in counts if count]
        assert not risen, f"{len(risen)} of {len(counts)} messages have a raised delivery count, up to {max(risen)}"

    async def result_blobs(self) -> list[str]:
        return await result_names(self.cloud, BATCH)
