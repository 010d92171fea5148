"""What a pod needs before any throughput: seconds to start, CPU to idle, memory for 1,000 long calls."""

import asyncio
from pathlib import Path
from statistics import median

from benchmarks.contenders import CONTENDERS, make_config, started
from benchmarks.long_calls import Held, LongCalls, hold
from benchmarks.processes import Azure, cpu_ms, embedded_azure
from benchmarks.report import at_least, at_most, describe_disturbance, table

STARTS = 5
IDLE_SECONDS = 30.0
BELONGS_TO_START = 2.0
LATENCY, SLOTS, JOBS = 20.0, 1_000, 2_000
RSS_TARGET, START_TARGET = 256.0, 3.0


async def measure_footprint(folder: Path, share: float) -> str:
    async with embedded_azure(folder / "idle", make_config()) as azure:
        starts = {name: [await _start(name, azure) for _ in range(STARTS)] for name in CONTENDERS}
        idle = {name: await _idle(name, azure, max(2.0, IDLE_SECONDS * share)) for name in CONTENDERS}
    plan = LongCalls(slots=SLOTS, jobs=max(SLOTS, round(JOBS * share)), latency=LATENCY)
    held = await hold(folder / "long", plan)
    return describe(starts, idle, plan, held)


async def _start(name: str, azure: Azure) -> float:
    async with started(name, azure, 64) as contender:
        return contender.start_seconds


async def _idle(name: str, azure: Azure, seconds: float) -> float:
    """Per cent of a core with nothing to do."""
    async with started(name, azure, 64) as contender:
        await asyncio.sleep(BELONGS_TO_START)
        before = cpu_ms(contender.process.pid)
        await asyncio.sleep(seconds)
        return (cpu_ms(contender.process.pid) - before) / seconds / 10


def describe(starts: dict[str, list[float]], idle: dict[str, float], plan: LongCalls, held: Held) -> str:
    rows = [(name, f"{median(starts[name]):.2f}", f"{idle[name]:.1f}") for name in CONTENDERS]
    long = (
        f"The worker with {plan.slots:,} slots and {plan.jobs:,} calls of {plan.latency:g} s: "
        f"{held.calls:,.0f} at once, {held.peak_rss_mib:.0f} MiB at the most, {held.cpu_ms_per_job:.2f} ms of CPU "
        f"a job, in which the waiting counts too. {describe_disturbance([held.others])}"
    )
    targets = (
        at_most("start to ready", median(starts["worker"]), START_TARGET, "s"),
        at_least("calls in flight", held.calls, plan.slots, "calls"),
        at_most(f"peak RSS with {plan.slots:,} slots", held.peak_rss_mib, RSS_TARGET, "MiB"),
    )
    headings = ("contender", f"start to ready s (median of {STARTS})", f"idle over {IDLE_SECONDS:g} s, % of a core")
    return "\n\n".join((table(headings, rows), long, "\n".join(targets)))
