"""The worker and the textbook worker, taking turns: CPU per job, jobs per second, memory."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from benchmarks.contenders import CONTENDERS, LATENCY, Load, Run, Sink, make_config, measure
from benchmarks.report import at_least, at_most, describe_disturbance, table
from embedded_azure.config import Config

JOBS = {64: 2_000, 256: 4_000, 1_000: 4_000}
"""By what is in flight: enough for a run of several seconds."""
ROUNDS = 3
FURTHER_JOBS = {256: 3_000}
FURTHER_AWAY = 0.004
"""Seconds more for a round trip, to the model and to Service Bus."""
CPU_TARGETS = {64: 1.2, 256: 1.0}
FASTER_TARGET = 3.5
SINKS: tuple[Sink, ...] = ("queue", "blob")
SINK_SLOTS, SINK_JOBS = 256, 4_000
HEADINGS = (
    "in flight",
    "contender",
    "CPU ms a job",
    "jobs/s",
    "peak RSS MiB",
    "stand-ins' CPU ms a job",
    "peak calls at the model",
)


async def compare(folder: Path, share: float) -> str:
    """Both contenders as near as the loopback device."""
    runs = await run_pairs(folder, make_config(), JOBS, share)
    return describe(runs, f"{LATENCY:g} s of model latency")


async def compare_further_away(folder: Path, share: float) -> str:
    """The same at 256 in flight with a longer round trip."""
    faults = {
        "servicebus": {"kind": "slow", "latency": FURTHER_AWAY / 2},  # in each direction
        "openai": {"kind": "answer", "latency": FURTHER_AWAY},
    }
    runs = await run_pairs(folder, make_config(faults=faults), FURTHER_JOBS, share)
    more = f"{1_000 * FURTHER_AWAY:g} ms more round trip to Service Bus and to the model"
    return describe(runs, f"{LATENCY:g} s of model latency, {more}")


async def run_pairs(folder: Path, config: Config, jobs: Mapping[int, int], share: float) -> list[Run]:
    """Both contenders in each round, taking turns at going first."""
    rounds = range(ROUNDS if share == 1 else 1)
    loads = [Load(slots=slots, jobs=max(100, round(count * share)), config=config) for slots, count in jobs.items()]
    return [
        await measure(name, folder / f"{load.slots}-{number}-{name}", load)
        for load in loads
        for number in rounds
        for name in sorted(CONTENDERS, reverse=number % 2 == 0)
    ]


def describe(runs: Sequence[Run], circumstances: str) -> str:
    levels = dict.fromkeys(run.slots for run in runs)
    targets = [
        line
        for slots in levels
        for line in _targets(slots, _of(runs, slots, "worker"), _of(runs, slots, "textbook"))
    ]
    rounds = len(_of(runs, runs[0].slots, "worker"))
    counts = ", ".join(f"{_of(runs, slots, 'worker')[0].results.count:,} at {slots:,}" for slots in levels)
    return "\n\n".join(
        (
            f"Rounds: {rounds}; medians. Jobs in each run: {counts}. {circumstances}. "
            + describe_disturbance([run.others for run in runs]),
            table(HEADINGS, [_cells(_of(runs, slots, name)) for slots in levels for name in CONTENDERS]),
            "\n".join(targets),
        )
    )


def _of(runs: Sequence[Run], slots: int, contender: str) -> list[Run]:
    return [run for run in runs if (run.slots, run.contender) == (slots, contender)]


def _cells(runs: Sequence[Run]) -> Sequence[str]:
    return (
        f"{runs[0].slots:,}",
        runs[0].contender,
        f"{median(run.cpu_ms_per_job for run in runs):.2f}",
        f"{median(run.jobs_per_second for run in runs):,.0f}",
        f"{median(run.peak_rss_mib for run in runs):.0f}",
        f"{median(run.azure_cpu_ms_per_job for run in runs):.2f}",
        f"{median(run.peak_in_flight for run in runs):,.0f}",
    )


def _targets(slots: int, ours: Sequence[Run], theirs: Sequence[Run]) -> Sequence[str]:
    """The ratios are of the pairs of a round."""
    cpu = median(run.cpu_ms_per_job for run in ours)
    ratios = [own.jobs_per_second / other.jobs_per_second for own, other in zip(ours, theirs, strict=True)]
    listed = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    faster = f"jobs/s at {slots:,} in flight, worker to textbook worker (in pairs {listed})"
    if slots == 256:
        faster = at_least(faster, median(ratios), FASTER_TARGET, "times")
    else:
        faster = f"- {faster}: {median(ratios):.2f} times"
    if (target := CPU_TARGETS.get(slots)) is None:
        return (faster,)
    return at_most(f"CPU of a job at {slots:,} in flight", cpu, target, "ms"), faster


async def compare_sinks(folder: Path, share: float) -> str:
    """The worker alone, with results as messages and as blobs, taking turns."""
    load = Load(slots=SINK_SLOTS, jobs=max(100, round(SINK_JOBS * share)), config=make_config())
    runs: dict[Sink, list[Run]] = {sink: [] for sink in SINKS}
    for number in range(ROUNDS if share == 1 else 1):
        for sink in SINKS if number % 2 else reversed(SINKS):
            runs[sink].append(await measure("worker", folder / f"{number}-{sink}", load, sink=sink))
    rows = [(sink, *_cells(of)[2:]) for sink, of in runs.items()]
    others = [run.others for of in runs.values() for run in of]
    return "\n\n".join(
        (
            f"Rounds: {len(others) // 2}; medians. {load.jobs:,} jobs at {SINK_SLOTS} in flight, {LATENCY:g} s of "
            f"model latency. {describe_disturbance(others)}",
            table(("sink", *HEADINGS[2:]), rows),
        )
    )
