"""A batch as its producer sees it: submitted, watched, cancelled halfway, collected, retried, collected again.

Each command is a process of its own, as at a terminal; a worker answers meanwhile. Results are in Blob storage.
"""

import asyncio
import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks.commands import Command, run_command
from benchmarks.contenders import Contender, make_config, started
from benchmarks.jobs import MODELS
from benchmarks.processes import BenchmarkFailed, embedded_azure
from benchmarks.report import at_least, at_most, describe_disturbance, table

JOBS, SLOTS, LATENCY = 100_000, 256, 0.05
BATCH = "whole"
PEAK_TARGET, SUBMIT_TARGET, STATUS_TARGET, COLLECT_TARGET = 120e6 / (1 << 20), 15.0, 5.0, 2_000.0
LOOK_EVERY = 0.5
JOBS_MISSING = 4
"""Exit code of `collect`: complete, and jobs failed or were cancelled."""


async def measure_batch(folder: Path, share: float) -> str:
    """Raises BenchmarkFailed where a command fails, or where not every job is answered once in the end."""
    jobs = round(JOBS * share)
    file, out = folder / "in.jsonl", folder / "out.jsonl"
    with file.open("w") as lines:
        lines.writelines(_lines(jobs))
    config = make_config(latency=LATENCY)
    took: dict[str, Command] = {}
    async with embedded_azure(folder / "azure", config, "--sink", "blob") as azure:
        took["submit"] = await run_command(azure, "submit", file, "--batch", BATCH)
        async with started("worker", azure, SLOTS) as worker, asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(run_command(azure, "status", BATCH, "--watch"))
            await _answered(worker, jobs // 2)
            took["cancel"] = await run_command(azure, "cancel", BATCH)
            took["status --watch, until it is cancelled"] = await watching
            await _idle(worker)
            took["collect, of half"] = await run_command(azure, "collect", BATCH, "-o", out, ends_with=JOBS_MISSING)
            took["retry, of the other half"] = await run_command(azure, "retry", BATCH, file)
            took["status --watch, until it is done"] = await run_command(azure, "status", BATCH, "--watch")
        took["status"] = await run_command(azure, "status", BATCH)
        took["list"] = await run_command(azure, "list")
        took["collect, of the other half"] = await run_command(azure, "collect", BATCH, "-o", out)
        took["collect, of all"] = await run_command(azure, "collect", BATCH, "-o", folder / "all.jsonl")
        twice = (await azure.model_stats())["answered_more_than_once"]
    for name in (out, folder / "all.jsonl"):
        _require_each_once(name, jobs)
    return describe(took, jobs, twice)


def _lines(count: int) -> Iterator[str]:
    """Of some 300 to 3,000 bytes."""
    chance = random.Random(3)
    for number in range(count):
        content = f"{number}: " + "ask " * chance.randint(20, 700)  # no two alike, so that paid twice shows
        body = {"model": MODELS[0], "messages": [{"role": "user", "content": content}]}
        job = {"custom_id": f"q{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
        yield json.dumps(job) + "\n"


async def _answered(worker: Contender, jobs: int) -> None:
    while (await worker.metrics())["result_write_seconds_count"] < jobs:
        worker.process.require_alive()
        await asyncio.sleep(LOOK_EVERY)


async def _idle(worker: Contender) -> None:
    """Until what was under way has ended, and what was received of the cancelled batch too."""
    while (await worker.metrics())["deliveries_held"]:
        worker.process.require_alive()
        await asyncio.sleep(LOOK_EVERY)


def _require_each_once(name: Path, jobs: int) -> None:
    with name.open("rb") as lines:
        ids = [json.loads(line)["custom_id"] for line in lines]
    if len(ids) != jobs or len(set(ids)) != jobs:
        raise BenchmarkFailed(f"{name.name} has {len(ids):,} results of {len(set(ids)):,} jobs, not of {jobs:,}")


def describe(took: Mapping[str, Command], jobs: int, twice: int) -> str:
    peak = max(one.peak_rss_mib for one in took.values())
    rows = [
        (name, f"{one.seconds:.1f}", f"{one.cpu_seconds:.1f}", f"{one.peak_rss_mib:.0f}")
        for name, one in took.items()
    ]
    return "\n\n".join(
        (
            f"{jobs:,} jobs of 300 to 3,000 bytes, one worker with {SLOTS} slots, answers after "
            f"{LATENCY * 1000:.0f} ms. Every job has one answer in the end; {twice:,} were paid for twice. "
            + describe_disturbance([one.others for one in took.values()]),
            table(("command", "seconds", "CPU s", "peak RSS MiB"), rows),
            "\n".join(
                (
                    at_most("submit", took["submit"].seconds, SUBMIT_TARGET, "s"),
                    at_most("status", took["status"].seconds, STATUS_TARGET, "s"),
                    at_least("collect", jobs / took["collect, of all"].seconds, COLLECT_TARGET, "results/s"),
                    at_most("the largest peak RSS", peak, PEAK_TARGET, "MiB"),
                )
            ),
        )
    )
