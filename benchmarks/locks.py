"""Whether one receiver keeps 2,000 locks of 60 s through calls of 150 s."""

import asyncio
from collections.abc import Mapping
from pathlib import Path

from benchmarks.contenders import Contender, make_world, require_paid_once, started
from benchmarks.processes import Azure, cpu_ms, embedded_azure
from benchmarks.report import at_least, at_most, table
from benchmarks.traffic import collect, connect, submit

LOCKS, LOCK_DURATION, LATENCY = 2_000, 60.0, 150.0
LOOK_EVERY = 2.0
COUNTED = (
    ("lock_renewals_total", "locks renewed"),
    ("lock_renewal_failures_total", "renewals that failed"),
    ("locks_lost_total", "locks lost"),
    ("jobs_redelivered_total", "jobs delivered again"),
    ("receiver_restarts_total", "receivers opened anew"),
)


async def measure_locks(folder: Path, share: float) -> str:
    """Raises BenchmarkFailed unless every job is answered, once."""
    locks = round(LOCKS * share)
    world = make_world(latency=LATENCY, sigma=0.0, lock_duration=LOCK_DURATION)
    async with (
        embedded_azure(folder / "azure", world) as azure,
        connect(azure.environment("producer")) as client,
    ):
        await submit(client, locks)
        async with started("worker", azure, locks) as worker:
            before = cpu_ms(worker.process.pid)
            held, metrics = await watch(worker, locks)
            cpu = cpu_ms(worker.process.pid) - before
        stats = await in_flight(azure)
        await collect(client, locks)
    return describe(locks, held, stats, cpu, metrics)


async def in_flight(azure: Azure) -> float:
    """The most calls at once."""
    stats = await azure.model_stats()
    require_paid_once(stats)
    return float(stats["concurrent_peak"])


async def watch(worker: Contender, jobs: int) -> tuple[float, Mapping[str, float]]:
    """Until the last job is settled: the most deliveries held at once, and the last metrics."""
    held, metrics = 0.0, await worker.metrics()
    while metrics["settlements_total"] < jobs:
        await asyncio.sleep(LOOK_EVERY)
        worker.process.require_alive()
        metrics = await worker.metrics()
        held = max(held, metrics["deliveries_held"])
    return held, metrics


def describe(locks: int, held: float, calls: float, cpu: float, metrics: Mapping[str, float]) -> str:
    rows = [(text, f"{metrics[name]:,.0f}") for name, text in COUNTED]
    rows += [("calls at once", f"{calls:,.0f}"), ("CPU ms a job", f"{cpu / locks:.2f}")]
    return "\n\n".join(
        (
            f"{locks:,} jobs, calls of {LATENCY:g} s, locks of {LOCK_DURATION:g} s, one worker with one receiver.",
            table(("", "count"), rows),
            "\n".join(
                (
                    at_least("locks held at once", held, locks, "locks"),
                    at_most("locks lost", metrics["locks_lost_total"], 0, "locks"),
                )
            ),
        )
    )
