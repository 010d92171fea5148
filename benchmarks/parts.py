"""What each part of a job costs alone: the worker's own flow between fakes, then with one real side at a time.

    python -m benchmarks.parts --real model --slots 64 --jobs 2000

runs one of them in a process whose environment is that of a worker, and prints its CPU ms a job.
"""

import argparse
import asyncio
import json
import math
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import aiohttp
import uvloop

from benchmarks.contenders import LATENCY, make_config
from benchmarks.jobs import MODELS, job_line
from benchmarks.processes import embedded_azure, output_of
from benchmarks.report import table
from benchmarks.traffic import BATCH, connect, submit
from worker.admission.admission import Admission
from worker.app import collect_less_garbage, fan_out, give_large_blocks_back
from worker.azure.network import trust
from worker.connections import Connections, open_connections, scopes, targets
from worker.environment import load
from worker.flow.core import Conduct, JobSource, build_core
from worker.flow.rollouts import Rollouts
from worker.interfaces import DeadLetters, Event, JobEnded, JobSender, Model, Observer, Sink, Target
from worker.jobs.job import Job
from worker.jobs.outcomes import Response
from worker.settings import WorkerSettings
from worker.telemetry.logs import EventLog, set_up_logging
from worker.telemetry.metrics import Metrics
from worker.testing import FakeModel, FakeQueue, FakeSink, answer

JOBS = {64: 2_000, 256: 4_000}
ROUNDS = 3
LIMIT = 120.0
FLOW = "none"
REAL = {FLOW: (), "model": ("model",), "source": ("source",), "sink": ("sink",), "all": ("model", "source", "sink")}
"""By the name of a run: the sides that are real in it. The others are fakes in memory."""
HTTP = "http"
"""A run of its own: the calls by aiohttp alone, with neither the openai client nor a worker."""
TOLD = {
    "flow": "our flow: tasks, gates, memory, tenacity, lines, metrics, logs",
    "model": "a call: openai client, httpx2, our bridge, aiohttp",
    "http": "of that, the same request by aiohttp alone",
    "source": "receive and settle: Service Bus SDK, our links",
    "sink": "build and send a result: Service Bus SDK, our queue",
    "sum": "sum of flow, model, source and sink",
    "all": "all of them together",
}

SOME_ANSWER = answer("yes " * 100, prompt=500, completion=100)


@dataclass(frozen=True, kw_only=True)
class Sides:
    """What the core works with; a fake for each side that is not in `real`."""

    azure: Connections
    real: Sequence[str]
    fakes: FakeQueue
    fleet: None = None
    claims: None = None
    entry: None = None
    senders: Mapping[str, JobSender]

    @property
    def model(self) -> Model:
        return self.azure.model if "model" in self.real else FakeModel(_answer_later)

    @property
    def sources(self) -> Sequence[JobSource]:
        return self.azure.sources if "source" in self.real else [self.fakes]

    @property
    def sink(self) -> Sink:
        return self.azure.sink if "sink" in self.real else FakeSink()

    def dead_letters(self, queue: str, observer: Observer) -> AbstractAsyncContextManager[DeadLetters]:
        return self.azure.dead_letters(queue, observer)


async def _answer_later(job: Job, target: Target) -> Response:
    await asyncio.sleep(random.lognormvariate(math.log(LATENCY), 0.25))
    return SOME_ANSWER


async def work(real: Sequence[str], slots: int, jobs: int) -> float:
    """CPU ms of this process for each job."""
    settings = load(WorkerSettings)
    routes = targets(settings)
    places = [target for some in (routes or {}).values() for target in some]
    queue = FakeQueue(settings.jobs_queue, clock=time.time)
    for number in range(0 if "source" in real else jobs):
        queue.send(job_line(number), message_id=f"{BATCH}/q-{number}", correlation_id=BATCH)
    ended, left = asyncio.Event(), [jobs]

    def count(event: Event) -> None:
        if isinstance(event, JobEnded):
            left[0] -= 1
            if not left[0]:
                ended.set()

    metrics = Metrics(
        queues=[settings.jobs_queue],
        deployments=[target.label for target in places],
        scopes=scopes(settings).values(),
        slots=slots,
        bytes_limit=settings.in_flight_bytes,
    )
    observer = fan_out([metrics, EventLog(set_up_logging("info")), count])
    admission = Admission(
        routes,
        endpoint=settings.openai_endpoint,
        observer=observer,
        slots=slots,
        bytes_limit=settings.in_flight_bytes,
    )
    async with open_connections(settings, places, observer) as azure, asyncio.TaskGroup() as tasks:
        core = build_core(
            Sides(azure=azure, real=real, fakes=queue, senders={}),
            admission,
            Rollouts(0.0),
            observer,
            Conduct(
                models=settings.models_of_queues,
                attempts=1,
                parking=settings.parking,
                max_age=settings.max_age,
                grace=settings.grace,
                sweep_every=settings.sweep_every,
                pod="parts",
            ),
        )
        begun = time.process_time()
        tasks.create_task(core.run())
        await ended.wait()
        spent = time.process_time() - begun
        admission.stop()
    return 1_000 * spent / jobs


async def ask_by_aiohttp(slots: int, jobs: int) -> float:
    """As `work`, of the calls alone."""
    settings = load(WorkerSettings)
    numbers = iter(range(jobs))
    connector = aiohttp.TCPConnector(ssl=trust(settings.ca_file), limit=slots)
    async with (
        open_connections(settings, [], lambda _: None) as azure,
        aiohttp.ClientSession(connector=connector) as session,
    ):
        headers = {"Authorization": f"Bearer {await azure.tokens.bearer(settings.openai_scope)}"}

        async def ask() -> None:
            for number in numbers:
                body = json.loads(job_line(number))["body"]
                async with session.post(
                    f"{settings.openai_endpoint}/openai/v1/chat/completions", json=body, headers=headers
                ) as got:
                    await got.read()

        begun = time.process_time()
        await asyncio.gather(*[ask() for _ in range(slots)])
        return 1_000 * (time.process_time() - begun) / jobs


async def measure_parts(folder: Path, share: float) -> str:
    rounds = ROUNDS if share == 1 else 1
    found: dict[tuple[str, int], float] = {}
    for slots, count in JOBS.items():
        jobs = max(100, round(count * share))
        for name in (*REAL, HTTP):
            several = [
                await _run(name, folder / f"{name}-{slots}-{number}", slots, jobs) for number in range(rounds)
            ]
            found[name, slots] = median(several)
    return describe(found, rounds)


async def _run(name: str, folder: Path, slots: int, jobs: int) -> float:
    async with embedded_azure(folder, make_config()) as azure:
        if "source" in REAL.get(name, ()):
            async with connect(azure.environment("producer")) as client:
                await submit(client, jobs)
        environment = azure.environment("worker") | {
            "AOAI_WORKER_MODELS": json.dumps({model: [model] for model in MODELS}),
            "AOAI_WORKER_SLOTS": str(slots),
        }
        arguments = ("--real", name, "--slots", str(slots), "--jobs", str(jobs))
        async with asyncio.timeout(LIMIT):
            return float(await output_of("benchmarks.parts", *arguments, environment=environment))


def describe(found: Mapping[tuple[str, int], float], rounds: int) -> str:
    """`found`: CPU ms a job by run and slots. A side costs what its run takes above the flow between fakes."""
    columns = {
        slots: _column({name: cpu for (name, of), cpu in found.items() if of == slots}) for _, slots in found
    }
    rows = [(text, *(f"{column[part]:.2f}" for column in columns.values())) for part, text in TOLD.items()]
    circumstances = f"CPU ms a job, medians of {rounds} rounds with {LATENCY:g} s of model latency."
    return f"{circumstances}\n\n{table(('part', *(f'{slots} in flight' for slots in columns)), rows)}"


def _column(runs: Mapping[str, float]) -> Mapping[str, float]:
    flow = runs[FLOW]
    sides = {side: runs[side] - flow for side in ("model", "source", "sink")}
    return {"flow": flow, **sides, "http": runs[HTTP], "sum": flow + sum(sides.values()), "all": runs["all"]}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parts", description=__doc__)
    parser.add_argument("--real", choices=[*REAL, HTTP], required=True)
    parser.add_argument("--slots", type=int, required=True)
    parser.add_argument("--jobs", type=int, required=True)
    given = parser.parse_args()
    collect_less_garbage()
    give_large_blocks_back()
    run = (
        ask_by_aiohttp(given.slots, given.jobs)
        if given.real == HTTP
        else work(REAL[given.real], given.slots, given.jobs)
    )
    print(uvloop.run(run))


if __name__ == "__main__":
    main()
