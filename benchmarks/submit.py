"""`aoai-worker submit`: seconds, CPU and peak memory, for small lines and for lines of all lengths, to both sinks.

`BESIDE=<folder>` names another checkout: its `submit` takes turns with this one's, with the same packages.
"""

import json
import os
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.commands import HERE, Command, run_command
from benchmarks.contenders import make_config
from benchmarks.processes import embedded_azure
from benchmarks.report import at_most, describe_disturbance, table

LINES, VARIED_BYTES = 100_000, 200_000_000
FURTHER_AWAY = 0.02
"""Seconds more for a round trip, as from an office to a region of Azure."""
ROUNDS = 2
SECONDS_TARGET, PEAK_TARGET = 15.0, 95.4
"""The peak is 100 MB."""
PLACES = {"queue": (), "Blob, 20 ms away": ("--sink", "blob")}
"""Options of `aoai-worker local` by sink."""
FIGURES = ("seconds", "cpu_seconds", "peak_rss_mib")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    file: str
    place: str
    contender: str
    took: Command


async def measure_submit(folder: Path, share: float) -> str:
    """Raises BenchmarkFailed where a submission fails."""
    files = {"small": _small_lines(round(LINES * share)), "varied": _varied_lines(round(VARIED_BYTES * share))}
    for name, lines in files.items():
        (folder / name).write_text("".join(lines))
    trees = _trees()
    runs = [
        await _submit(folder / f"{file}-{place}-{number}-{name}", file, place, name, trees[name])
        for file in files
        for place in PLACES
        for number in range(ROUNDS if share == 1 else 1)
        for name in sorted(trees, reverse=number % 2 == 1)
    ]
    return describe(runs, share)


def _trees() -> Mapping[str, Path]:
    beside = os.environ.get("BESIDE")
    return {"submit": HERE} | ({"before": Path(beside).resolve()} if beside else {})


def _small_lines(count: int) -> Iterator[str]:
    chance = random.Random(1)
    return (_line(number, chance.randint(700, 1_000)) for number in range(count))


def _varied_lines(left: int) -> Iterator[str]:
    chance = random.Random(2)
    for number in range(left):
        line = _line(number, chance.choice([300, 900, 3_000, chance.randint(1, 120_000)]))
        yield line
        left -= len(line)
        if left <= 0:
            return


def _line(number: int, size: int) -> str:
    body = {"model": "gpt-5.4-mini", "messages": [{"role": "user", "content": "ask " * (size // 4)}]}
    job = {"custom_id": f"q{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
    return json.dumps(job) + "\n"


async def _submit(new: Path, file: str, place: str, contender: str, tree: Path) -> Run:
    slow = {"servicebus": {"kind": "slow", "latency": FURTHER_AWAY / 2}}  # in each direction
    config = make_config(faults=slow if "away" in place else None)
    async with embedded_azure(new, config, *PLACES[place]) as azure:
        took = await run_command(azure, "submit", new.parent / file, tree=tree)
    return Run(file=file, place=place, contender=contender, took=took)


def describe(runs: list[Run], share: float) -> str:
    groups: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.file, run.place, run.contender), []).append(run)
    rows = [
        (*names, *(f"{median(getattr(run.took, field) for run in of):.1f}" for field in FIGURES))
        for names, of in sorted(groups.items(), key=lambda group: list(groups).index(group[0]))
    ]
    ours = [run for run in runs if run.contender == "submit"]
    small = median(run.took.seconds for run in ours if (run.file, run.place) == ("small", "queue"))
    return "\n\n".join(
        (
            f"small: {LINES * share:,.0f} lines of about 1 KB; varied: {VARIED_BYTES * share / 1e6:,.0f} MB of "
            "lines up to 120 KB. Seconds are from start to end of the process, medians. "
            + describe_disturbance([run.took.others for run in runs]),
            table(("file", "sink", "contender", "seconds", "CPU s", "peak RSS MiB"), rows),
            at_most("small lines, queue sink", small, SECONDS_TARGET, "s")
            + "\n"
            + at_most("the largest peak RSS", max(run.took.peak_rss_mib for run in ours), PEAK_TARGET, "MiB"),
        )
    )
