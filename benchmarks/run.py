"""`make bench`: the worker beside the textbook worker, in pairs, on an embedded Azure of its own for each run.

`docs/benchmarks.md` says what is measured and how, and has the numbers.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from benchmarks.processes import (
    Azure,
    BenchmarkFailed,
    Child,
    child,
    cpu_ms,
    embedded_azure,
    peak_rss_mib,
)
from benchmarks.traffic import collect, connect, submit
from worker.local.world import Deployment, World, default_world

CONTENDERS = {
    "worker": (["-m", "worker", "run"], '"event":"started"'),
    "textbook": (["-m", "benchmarks.textbook"], "ready"),
}
LATENCY = 0.2
LONG_LATENCY, LONG_SLOTS, LONG_JOBS = 20.0, 1_000, 2_000
IDLE_SECONDS = 20.0
LOOK_EVERY = 0.5
QUIET_MS = 40.0
"""CPU in LOOK_EVERY below which a contender has settled its last message and is idle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One contender's way through all jobs. CPU is from ready to done; the peak is what the model saw."""

    contender: str
    slots: int
    cpu_ms_per_job: float
    azure_cpu_ms_per_job: float
    jobs_per_second: float
    peak_rss_mib: float
    peak_in_flight: float
    start_seconds: float


def world(latency: float) -> World:
    """The demo's Azure with one deployment."""
    deployment = Deployment(name="gpt-4o-mini", model="gpt-4o-mini", latency=latency)
    return replace(default_world(), deployments=(deployment,))


@asynccontextmanager
async def started(contender: str, azure: Azure, slots: int) -> AsyncIterator[tuple[Child, float]]:
    """The contender, ready, and the seconds that it took."""
    arguments, says = CONTENDERS[contender]
    environment = azure.environment("worker") | {
        "AOAI_WORKER_SLOTS": str(slots),
        "AOAI_WORKER_MODELS": json.dumps({"gpt-4o-mini": ["gpt-4o-mini"]}),
        "AOAI_WORKER_HTTP_HOST": "127.0.0.1",
        "AOAI_WORKER_HTTP_PORT": "0",
    }
    begun = time.monotonic()
    async with child(*arguments, environment=environment, says=says) as process:
        yield process, time.monotonic() - begun


async def measure(contender: str, folder: Path, *, slots: int, jobs: int, latency: float = LATENCY) -> Run:
    """Submit, then start the contender, wait until it is done, stop it, then count. Raises BenchmarkFailed."""
    limit = 120 + jobs * 0.05 + 2 * latency * jobs / slots
    try:
        async with asyncio.timeout(limit):
            return await _measure(contender, folder, slots, jobs, latency)
    except TimeoutError:
        raise BenchmarkFailed(f"{contender}: {jobs:,} jobs were not done within {limit:.0f} s") from None


async def _measure(contender: str, folder: Path, slots: int, jobs: int, latency: float) -> Run:
    async with embedded_azure(folder, world(latency)) as azure, connect(azure.environment("producer")) as client:
        await submit(client, jobs)
        async with started(contender, azure, slots) as (process, start_seconds):
            own, azures = cpu_ms(process.pid), azure.cpu_ms()
            peak_in_flight = await until_done(process, azure, jobs)
            own, azures = cpu_ms(process.pid) - own, azure.cpu_ms() - azures
            rss = peak_rss_mib(process.pid)
        results = await collect(client, jobs)
    return Run(
        contender=contender,
        slots=slots,
        cpu_ms_per_job=own / jobs,
        azure_cpu_ms_per_job=azures / jobs,
        jobs_per_second=(jobs - 1) / results.seconds,
        peak_rss_mib=rss,
        peak_in_flight=peak_in_flight,
        start_seconds=start_seconds,
    )


async def until_done(process: Child, azure: Azure, jobs: int) -> float:
    """Until the model has answered every job and the contender does nothing more; the peak of calls in flight.

    Looks now and then, because the contenders have no common way to say that they have settled their last message.
    """
    used = cpu_ms(process.pid)
    while True:
        await asyncio.sleep(LOOK_EVERY)
        process.require_alive()
        before, used = used, cpu_ms(process.pid)
        stats = await azure.model_stats()
        if stats["by_status"].get("200", 0) >= jobs and used - before < QUIET_MS:
            break
    if stats["answered_more_than_once"]:
        raise BenchmarkFailed(f"{stats['answered_more_than_once']:,} answers were paid for twice")
    return float(stats["concurrent_peak"])


async def measure_idle(contender: str, folder: Path, *, slots: int) -> float:
    """Per cent of a core with nothing to do."""
    async with embedded_azure(folder, world(LATENCY)) as azure, started(contender, azure, slots) as (process, _):
        await asyncio.sleep(2.0)  # what belongs to the start
        before = cpu_ms(process.pid)
        await asyncio.sleep(IDLE_SECONDS)
        return (cpu_ms(process.pid) - before) / IDLE_SECONDS / 10


async def paired(folder: Path, *, slots: int, jobs: int, rounds: int) -> list[Run]:
    """Both contenders in each round, taking turns at going first."""
    runs = []
    for number in range(rounds):
        order = list(CONTENDERS) if number % 2 == 0 else list(reversed(CONTENDERS))
        for contender in order:
            run = await measure(contender, folder / f"{slots}-{number}-{contender}", slots=slots, jobs=jobs)
            report(f"round {number + 1} of {rounds}", run)
            runs.append(run)
    return runs


def report(what: str, run: Run) -> None:
    print(
        f"{what}, {run.slots:>5,} in flight, {run.contender:<8}: {run.cpu_ms_per_job:.2f} ms CPU a job "
        f"(stand-ins {run.azure_cpu_ms_per_job:.2f}), {run.jobs_per_second:,.0f} jobs/s, "
        f"peak {run.peak_in_flight:,.0f} in flight, {run.peak_rss_mib:.0f} MiB, "
        f"ready in {run.start_seconds:.2f} s; load {os.getloadavg()[0]:.1f}",
        file=sys.stderr,
        flush=True,
    )


HEADINGS = (
    "in flight",
    "contender",
    "CPU ms a job",
    "jobs/s",
    "peak RSS MiB",
    "start to ready s",
    "stand-ins' CPU ms a job",
    "peak calls at the model",
)


def table(runs: Sequence[Run]) -> str:
    """Markdown; medians over the rounds."""
    lines = [_row(HEADINGS), "|" + "---|" * len(HEADINGS)]
    for slots, contender in dict.fromkeys((run.slots, run.contender) for run in runs):
        same = [run for run in runs if (run.slots, run.contender) == (slots, contender)]
        lines.append(
            _row(
                (
                    f"{slots:,}",
                    contender,
                    f"{median(run.cpu_ms_per_job for run in same):.2f}",
                    f"{median(run.jobs_per_second for run in same):,.0f}",
                    f"{median(run.peak_rss_mib for run in same):.0f}",
                    f"{median(run.start_seconds for run in same):.2f}",
                    f"{median(run.azure_cpu_ms_per_job for run in same):.2f}",
                    f"{median(run.peak_in_flight for run in same):,.0f}",
                )
            )
        )
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


async def bench(arguments: argparse.Namespace, folder: Path) -> None:
    runs = []
    for slots in arguments.in_flight:
        runs += await paired(folder, slots=slots, jobs=arguments.jobs, rounds=arguments.rounds)
    print(
        f"\n{arguments.jobs:,} jobs, rounds: {arguments.rounds}, {LATENCY} s of latency\n\n{table(runs)}\n",
        flush=True,
    )
    if arguments.pairs_only:
        return
    long = []
    for contender in CONTENDERS:
        run = await measure(
            contender, folder / f"long-{contender}", slots=LONG_SLOTS, jobs=LONG_JOBS, latency=LONG_LATENCY
        )
        report(f"{LONG_LATENCY:g} s of latency", run)
        long.append(run)
    print(f"\n{LONG_JOBS:,} jobs, one round, {LONG_LATENCY:g} s of latency\n\n{table(long)}\n", flush=True)
    for contender in CONTENDERS:
        idle = await measure_idle(contender, folder / f"idle-{contender}", slots=64)
        print(f"idle over {IDLE_SECONDS:g} s, {contender}: {idle:.1f} % of a core", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--jobs", type=int, default=3_000, help="in each run (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of both contenders (default: %(default)s)")
    parser.add_argument("--in-flight", type=int, nargs="+", default=[64, 256], help="(default: 64 256)")
    parser.add_argument("--pairs-only", action="store_true", help="leave out long latency and idling")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="aoai-worker-bench-") as folder:
        try:
            asyncio.run(bench(arguments, Path(folder)))
        except BenchmarkFailed as error:
            print(f"no result: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
