"""Whether one receiver keeps 2,000 locks of 60 s through calls of 150 s."""

from pathlib import Path

from benchmarks.long_calls import Held, LongCalls, hold
from benchmarks.report import at_least, at_most, describe_disturbance, table

LOCKS, LOCK_DURATION, LATENCY = 2_000, 60.0, 150.0
COUNTED = (
    ("lock_renewals_total", "locks renewed"),
    ("lock_renewal_failures_total", "renewals that failed"),
    ("locks_lost_total", "locks lost"),
    ("jobs_redelivered_total", "jobs delivered again"),
    ("receiver_restarts_total", "receivers opened anew"),
)


async def measure_locks(folder: Path, share: float) -> str:
    locks = round(LOCKS * share)
    plan = LongCalls(slots=locks, jobs=locks, latency=LATENCY, lock_duration=LOCK_DURATION)
    return describe(plan, await hold(folder / "azure", plan))


def describe(plan: LongCalls, held: Held) -> str:
    rows = [
        ("calls at once", f"{held.calls:,.0f}"),
        *[(text, f"{held.metrics[name]:,.0f}") for name, text in COUNTED],
        ("CPU ms a job, its renewals included", f"{held.cpu_ms_per_job:.2f}"),
        ("peak RSS MiB", f"{held.peak_rss_mib:.0f}"),
    ]
    targets = (
        at_least("locks held at once", held.deliveries, plan.jobs, "locks"),
        at_most("locks lost", held.metrics["locks_lost_total"], 0, "locks"),
    )
    circumstances = (
        f"{plan.jobs:,} calls of {plan.latency:g} s under locks of {plan.lock_duration:g} s, one worker with one "
        f"receiver. {describe_disturbance([held.others])}"
    )
    return "\n\n".join((circumstances, table(("", "measured"), rows), "\n".join(targets)))
