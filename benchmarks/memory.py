"""Whether memory stays flat: the worker's RSS along many jobs, small and large, at 1,000 in flight."""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.contenders import Contender, make_config, require_paid_once, started
from benchmarks.processes import BenchmarkFailed, embedded_azure, rss_mib
from benchmarks.report import at_most, table
from benchmarks.traffic import collect, connect, submit

SLOTS, LATENCY = 1_000, 1.0
JOBS = {2_048: 100_000, 25_000: 16_000}
"""By their bytes; the broker holds them all, in a gigabyte."""
LOOK_EVERY = 1.0
SHARES = (0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
GROWTH_TARGET = 1.05
"""What of the RSS at 100 % and at 20 % still counts as flat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    done: float
    rss_mib: float


async def measure_memory(folder: Path, share: float) -> str:
    """Raises BenchmarkFailed unless every job is answered, once."""
    return "\n\n".join(
        [await _measure(folder / f"azure-{size}", size, round(jobs * share)) for size, jobs in JOBS.items()]
    )


async def _measure(folder: Path, size: int, jobs: int) -> str:
    async with (
        embedded_azure(folder, make_config(latency=LATENCY)) as azure,
        connect(azure.environment("producer")) as client,
    ):
        await submit(client, jobs, size=size)
        async with started("worker", azure, SLOTS) as worker:
            moments = await watch(worker, jobs)
        require_paid_once(await azure.model_stats())
        await collect(client, jobs)
    return describe(moments, jobs, size)


async def watch(worker: Contender, jobs: int) -> Sequence[Moment]:
    """A look each second until the last job is settled."""
    moments = [Moment(done=0, rss_mib=rss_mib(worker.process.pid))]
    while moments[-1].done < jobs:
        await asyncio.sleep(LOOK_EVERY)
        worker.process.require_alive()
        done = (await worker.metrics())["settlements_total"]
        moments.append(Moment(done=done, rss_mib=rss_mib(worker.process.pid)))
    return moments


def describe(moments: Sequence[Moment], jobs: int, size: int) -> str:
    rows = [(f"{share:.0%}", moment) for share in SHARES for moment in [_after(moments, share * jobs)]]
    grown = _after(moments, jobs).rss_mib / _after(moments, 0.2 * jobs).rss_mib
    return "\n\n".join(
        (
            f"{jobs:,} jobs of {size:,} bytes, {SLOTS:,} in flight, {LATENCY:g} s of model latency, one worker: "
            f"{moments[0].rss_mib:.0f} MiB when it was ready.",
            table(
                ("jobs done", "share", "RSS MiB"),
                [(f"{moment.done:,.0f}", share, f"{moment.rss_mib:.1f}") for share, moment in rows],
            ),
            at_most(f"RSS at 100 % of {size:,}-byte jobs, of that at 20 %", grown, GROWTH_TARGET, "times"),
        )
    )


def _after(moments: Sequence[Moment], done: float) -> Moment:
    """The first look at which so many were done."""
    found = next((moment for moment in moments if moment.done >= math.floor(done)), None)
    if found is None:
        raise BenchmarkFailed(f"only {moments[-1].done:,.0f} jobs were settled")
    return found
