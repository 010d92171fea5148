"""The worker with every slot taken by a long call, one lock each: what it holds, and what that costs.

The worker's gates let more calls in with each round trip, which long calls would draw out. So short ones fill its
slots first, and the calls that are measured are made long by a fault (docs/fault-injection.md).
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.contenders import Contender, make_config, require_paid_once, started
from benchmarks.processes import cpu_ms, embedded_azure, foreign_cpu_ms, peak_rss_mib
from benchmarks.traffic import collect, connect, submit

SHORT = 3.0
"""Seconds of a call before: at 2,000 slots and 700 jobs/s, fewer would not take every slot."""
FIRST_JOBS = 4
"""For each slot, before what is measured."""
LOOK_EVERY = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LongCalls:
    """`slots` of one receiver; `jobs` calls of `latency` seconds under locks of `lock_duration`."""

    slots: int
    jobs: int
    latency: float
    lock_duration: float = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """The most of each at once, as the worker's gauges say at a look, and its last metrics."""

    calls: float
    deliveries: float
    peak_rss_mib: float
    cpu_ms_per_job: float
    seconds: float
    others: float
    metrics: Mapping[str, float]


async def hold(folder: Path, plan: LongCalls) -> Held:
    """Raises BenchmarkFailed unless every job is answered, once."""
    config = make_config(latency=SHORT, sigma=0.0, lock_duration=plan.lock_duration)
    first = FIRST_JOBS * plan.slots
    async with (
        embedded_azure(folder, config) as azure,
        connect(azure.environment("producer")) as client,
        started("worker", azure, plan.slots) as worker,
    ):
        await submit(client, first)
        await watch(worker, first)
        await azure.disturb_model({"kind": "answer", "latency": plan.latency - SHORT})
        await submit(client, plan.jobs, number_from=first)
        held = await _measure(worker, azure.process.pid, first, plan.jobs)
        require_paid_once(await azure.model_stats())
        await collect(client, first + plan.jobs)
    return held


async def _measure(worker: Contender, azure_pid: int, first: int, jobs: int) -> Held:
    pid, loop = worker.process.pid, asyncio.get_running_loop()
    begun, cpu, foreign = loop.time(), cpu_ms(pid), foreign_cpu_ms(pid, azure_pid)
    looks = await watch(worker, first + jobs)
    seconds = loop.time() - begun
    return Held(
        calls=max(look["calls_in_flight"] for look in looks),
        deliveries=max(look["deliveries_held"] for look in looks),
        peak_rss_mib=peak_rss_mib(pid),
        cpu_ms_per_job=(cpu_ms(pid) - cpu) / jobs,
        seconds=seconds,
        others=max(0.0, (foreign_cpu_ms(pid, azure_pid) - foreign) / seconds / 10),
        metrics=looks[-1],
    )


async def watch(worker: Contender, jobs: int) -> list[Mapping[str, float]]:
    """A look now and then until so many jobs are settled."""
    looks = [await worker.metrics()]
    while looks[-1]["settlements_total"] < jobs:
        await asyncio.sleep(LOOK_EVERY)
        worker.process.require_alive()
        looks.append(await worker.metrics())
    return looks
