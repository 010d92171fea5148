"""What it costs that jobs go through the entry queue: CPU beside jobs sent straight to the queues of their models,
how many one pod sorts in a second, and whether memory stays flat meanwhile.

The first two runs work the jobs off. The third only sorts: its one slot is taken by a call that does not end.
"""

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.contenders import make_config, started, until_done
from benchmarks.jobs import JOB_BYTES
from benchmarks.memory import GROWTH_TARGET
from benchmarks.processes import BenchmarkFailed, cpu_ms, embedded_azure, foreign_cpu_ms, rss_mib
from benchmarks.report import at_least, at_most, describe_disturbance, table
from benchmarks.traffic import ENTRY, collect, connect, submit
from embedded_azure.models import LARGE, SMALL

MODELS = (SMALL, LARGE)
SLOTS, WORKED, SORTED = 256, 10_000, 100_000
NEVER = 3_600.0
"""Seconds of a call in the run that only sorts."""
LOOK_EVERY = 0.5
SHARES = (0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
CPU_TARGET, SPEED_TARGET = 0.35, 1_500.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Worked:
    """A way through all jobs; `others`: per cent of a core that went to strangers."""

    cpu_ms_per_job: float
    others: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """At the worker that only sorts, after so many seconds."""

    seconds: float
    done: float
    cpu_ms: float
    rss_mib: float
    locks_lost: float


async def measure_sorting(folder: Path, share: float) -> str:
    """Raises BenchmarkFailed unless every job is answered, once, in the first two runs, and moved in the third."""
    jobs = 2 * round(WORKED * share / 2)
    direct = await _work(folder / "direct", jobs, sort=False)
    through = await _work(folder / "through", jobs, sort=True)
    looks = await _only_sort(folder / "only", round(SORTED * share))
    return describe(direct, through, looks, jobs)


async def _work(folder: Path, jobs: int, *, sort: bool) -> Worked:
    config = make_config(models=MODELS)
    async with embedded_azure(folder, config) as azure, connect(azure.environment("producer")) as client:
        if sort:
            await submit(client, jobs, models=MODELS)
        else:
            for place, model in enumerate(MODELS):
                count = jobs // len(MODELS)
                queue = f"{ENTRY}-{model}"
                await submit(client, count, number_from=place * count, queue=queue, models=[model])
        async with started("worker", azure, SLOTS, models=MODELS) as worker:
            pid, since = worker.process.pid, time.monotonic()
            own, foreign = cpu_ms(pid), foreign_cpu_ms(pid, azure.process.pid)
            await until_done(worker.process, azure, jobs)
            own, foreign = cpu_ms(pid) - own, foreign_cpu_ms(pid, azure.process.pid) - foreign
            seconds = time.monotonic() - since
        await collect(client, jobs)
    return Worked(cpu_ms_per_job=own / jobs, others=max(0.0, foreign / seconds / 10))


async def _only_sort(folder: Path, jobs: int) -> Sequence[Look]:
    """A look twice a second until the last job is moved."""
    config = make_config(models=MODELS, latency=NEVER, sigma=0.0)
    async with embedded_azure(folder, config) as azure, connect(azure.environment("producer")) as client:
        await submit(client, jobs, models=MODELS)
        async with started("worker", azure, 1, models=MODELS, grace="0.5") as worker:
            pid, begun = worker.process.pid, time.monotonic()
            looks = list[Look]()
            while not looks or looks[-1].done < jobs:
                await asyncio.sleep(LOOK_EVERY if looks else 0)
                worker.process.require_alive()
                metrics = await worker.metrics()
                looks.append(
                    Look(
                        seconds=time.monotonic() - begun,
                        done=metrics["jobs_sorted_total"],
                        cpu_ms=cpu_ms(pid),
                        rss_mib=rss_mib(pid),
                        locks_lost=metrics["locks_lost_total"],
                    )
                )
    if looks[-1].locks_lost:
        raise BenchmarkFailed(f"{looks[-1].locks_lost:,.0f} locks were lost while jobs were sorted")
    return looks


def describe(direct: Worked, through: Worked, looks: Sequence[Look], jobs: int) -> str:
    first, last = looks[0], looks[-1]
    count = last.done - first.done
    speed = count / (last.seconds - first.seconds)
    marks = {share: _after(looks, share * last.done) for share in SHARES}
    return "\n\n".join(
        (
            f"{jobs:,} jobs of {JOB_BYTES:,} bytes and {len(MODELS)} models at {SLOTS} in flight; then "
            f"{last.done:,.0f} that are only sorted. {describe_disturbance([direct.others, through.others])}",
            table(
                ("", "CPU ms a job"),
                [
                    ("sent straight to the queue of the model", f"{direct.cpu_ms_per_job:.2f}"),
                    ("sorted and then answered", f"{through.cpu_ms_per_job:.2f}"),
                    ("only sorted", f"{(last.cpu_ms - first.cpu_ms) / count:.2f}"),
                ],
            ),
            table(
                ("jobs sorted", "share", "RSS MiB"),
                [(f"{look.done:,.0f}", f"{share:.0%}", f"{look.rss_mib:.1f}") for share, look in marks.items()],
            ),
            "\n".join(
                (
                    at_most(
                        "CPU of a sorted job above one sent straight",
                        through.cpu_ms_per_job - direct.cpu_ms_per_job,
                        CPU_TARGET,
                        "ms",
                    ),
                    at_least("sorted by one pod", speed, SPEED_TARGET, "jobs/s"),
                    at_most(
                        "RSS at 100 %, of that at 20 %", last.rss_mib / marks[0.2].rss_mib, GROWTH_TARGET, "times"
                    ),
                )
            ),
        )
    )


def _after(looks: Sequence[Look], done: float) -> Look:
    """The first look at which so many were sorted."""
    return next(look for look in looks if look.done >= math.floor(done))
