"""The contenders, and one way of each through many jobs: what it costs, with the stand-ins and others beside it.

Every run has an embedded Azure of its own. The jobs are submitted before the contender starts, and it is stopped
before its results are counted, so nobody else works meanwhile.
"""

import asyncio
import json
import os
import re
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from aiohttp import ClientSession
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.commands import run_command
from benchmarks.jobs import MODELS
from benchmarks.processes import (
    Azure,
    BenchmarkFailed,
    Child,
    child,
    cpu_ms,
    embedded_azure,
    foreign_cpu_ms,
    peak_rss_mib,
)
from benchmarks.traffic import BATCH, Results, collect, connect, read_results, submit
from embedded_azure.config import Config, Deployment, default_config

CONTENDERS = {
    "worker": ([sys.executable, "-m", "worker", "run"], '"event":"started"'),
    "textbook": ([sys.executable, "-m", "benchmarks.textbook"], "ready"),
}
Sink = Literal["queue", "blob"]
NO_MANIFEST = 3
"""Exit code of `collect`: the benchmark submits none, so it cannot know that all is there."""
LATENCY = 0.2
LOOK_EVERY = 0.5
QUIET_MS = 40.0
"""CPU in LOOK_EVERY below which a contender may have settled its last message and be idle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """So many jobs through so many slots, in that config."""

    slots: int
    jobs: int
    config: Config

    @property
    def patience(self) -> float:
        """Seconds after which no run of it is worth waiting for."""
        return 120 + self.jobs * 0.05 + 2 * self.config.deployments[0].latency * self.jobs / self.slots


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A contender's way through its load. CPU is from ready to done; the peak in flight is what the model saw.
    `others`: per cent of a core that went to processes of neither contender, stand-ins nor benchmark."""

    contender: str
    slots: int
    cpu_ms_per_job: float
    azure_cpu_ms_per_job: float
    jobs_per_second: float
    peak_rss_mib: float
    peak_in_flight: float
    start_seconds: float
    others: float
    results: Results


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A contender that is ready, and the seconds that it took. Only the worker has a `port`, of its metrics."""

    name: str
    process: Child
    start_seconds: float
    port: int | None

    async def metrics(self) -> Mapping[str, float]:
        """The sum of each sample's series, without the prefix."""
        async with ClientSession() as session, session.get(f"http://127.0.0.1:{self.port}/metrics") as answer:
            text = await answer.text()
        sums: defaultdict[str, float] = defaultdict(float)
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                sums[sample.name.removeprefix("aoai_worker_")] += sample.value
        return sums


def make_config(
    *,
    latency: float = LATENCY,
    sigma: float = 0.25,
    lock_duration: float = 300.0,
    models: Sequence[str] = MODELS,
    faults: Mapping[str, Any] | None = None,
) -> Config:
    """The demo's Azure with a deployment for each model, none of which reasons. `faults`: of its start, by service.

    With several models, they must be of those whose queues the demo has.
    """
    config = default_config()
    deployments = [
        Deployment(name=model, model=MODELS[0], latency=latency, latency_sigma=sigma) for model in models
    ]
    queues = tuple(
        replace(queue, lock_duration=lock_duration) if queue.name == "jobs" else queue for queue in config.queues
    )
    return replace(config, deployments=tuple(deployments), queues=queues, faults=dict(faults or {}))


@asynccontextmanager
async def started(
    name: str,
    azure: Azure,
    slots: int,
    *,
    models: Sequence[str] = MODELS,
    tokens_per_minute: int | None = None,
    **settings: str,
) -> AsyncIterator[Contender]:
    """Each model has a deployment of its name with that budget. `settings`: `grace="1"` for AOAI_WORKER_GRACE=1."""
    command, says = CONTENDERS[name]
    environment = azure.environment("worker") | {
        "AOAI_WORKER_SLOTS": str(slots),
        "AOAI_WORKER_MODELS": json.dumps(
            {model: [{"name": model, "tokens_per_minute": tokens_per_minute}] for model in models}
        ),
        "AOAI_WORKER_HTTP_HOST": "127.0.0.1",
        "AOAI_WORKER_HTTP_PORT": "0",
        **{f"AOAI_WORKER_{setting.upper()}": value for setting, value in settings.items()},
    }
    begun = time.monotonic()
    async with child(*command, environment=environment, says=says) as process:
        seconds = time.monotonic() - begun
        served = re.search(r'"port":(\d+)', process.last_words)
        port = int(served[1]) if served else None
        yield Contender(name=name, process=process, start_seconds=seconds, port=port)


async def measure(name: str, folder: Path, load: Load, *, sink: Sink = "queue") -> Run:
    """Raises BenchmarkFailed unless every job is answered, once, in good time."""
    try:
        async with asyncio.timeout(load.patience):
            run = await _measure(name, folder, load, sink)
    except TimeoutError:
        raise BenchmarkFailed(
            f"{name}: {load.jobs:,} jobs with {load.slots:,} in flight were not done within {load.patience:.0f} s"
        ) from None
    _say(run)
    return run


async def _measure(name: str, folder: Path, load: Load, sink: Sink) -> Run:
    async with (
        embedded_azure(folder, load.config, "--sink", sink) as azure,
        connect(azure.environment("producer")) as client,
    ):
        await submit(client, load.jobs)
        async with started(name, azure, load.slots) as contender:
            pid = contender.process.pid
            since, own, azures = time.monotonic(), cpu_ms(pid), azure.cpu_ms()
            foreign = foreign_cpu_ms(pid, azure.process.pid)
            peak_in_flight = await until_done(contender.process, azure, load.jobs)
            foreign = foreign_cpu_ms(pid, azure.process.pid) - foreign
            own, azures, seconds = cpu_ms(pid) - own, azure.cpu_ms() - azures, time.monotonic() - since
            rss = peak_rss_mib(pid)
        if sink == "queue":
            results = await collect(client, load.jobs)
        else:
            out = folder / "out.jsonl"
            await run_command(azure, "collect", BATCH, "-o", out, ends_with=NO_MANIFEST)
            results = read_results(out.with_name(f"{out.name}.partial"), load.jobs)
    return Run(
        contender=name,
        slots=load.slots,
        cpu_ms_per_job=own / load.jobs,
        azure_cpu_ms_per_job=azures / load.jobs,
        jobs_per_second=(load.jobs - 1) / results.seconds,
        peak_rss_mib=rss,
        peak_in_flight=peak_in_flight,
        start_seconds=contender.start_seconds,
        others=max(0.0, foreign / seconds / 10),
        results=results,
    )


async def until_done(process: Child, azure: Azure, jobs: int) -> float:
    """Until the model has answered every job and the contender does nothing more; the peak of calls in flight.

    Looks now and then, because the contenders have no common way to say that they have settled their last message,
    and asks the model only when it may be over: its counters list every question.
    """
    used = cpu_ms(process.pid)
    while True:
        await asyncio.sleep(LOOK_EVERY)
        process.require_alive()
        before, used = used, cpu_ms(process.pid)
        if used - before < QUIET_MS and (stats := await azure.model_stats())["by_status"].get("200", 0) >= jobs:
            require_paid_once(stats)
            return float(stats["concurrent_peak"])


def require_paid_once(stats: Mapping[str, Any]) -> None:
    """Raises BenchmarkFailed."""
    if stats["answered_more_than_once"]:
        raise BenchmarkFailed(f"{stats['answered_more_than_once']:,} answers were paid for twice")


def _say(run: Run) -> None:
    print(
        f"{run.slots:>5,} in flight, {run.contender:<8}: {run.cpu_ms_per_job:.2f} ms CPU a job "
        f"(stand-ins {run.azure_cpu_ms_per_job:.2f}), {run.jobs_per_second:,.0f} jobs/s, "
        f"peak {run.peak_in_flight:,.0f} in flight, {run.peak_rss_mib:.0f} MiB, "
        f"ready in {run.start_seconds:.2f} s; others {run.others:.0f} % of a core, load {os.getloadavg()[0]:.1f}",
        file=sys.stderr,
        flush=True,
    )
