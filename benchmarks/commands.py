"""A command of the producer's as a process of its own: how long it takes, its CPU, and its memory at the peak."""

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import Azure, BenchmarkFailed, family_cpu_ms, foreign_cpu_ms, peak_rss_mib

HERE = Path(__file__).parent.parent
LOOK_EVERY = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What one took. `others`: per cent of a core that went to processes of neither it, stand-ins nor benchmark;
    `said`: what it printed, errors included."""

    seconds: float
    cpu_seconds: float
    peak_rss_mib: float
    others: float
    said: str


async def run_command(
    azure: Azure,
    *arguments: str | Path,
    ends_with: int = 0,
    settings: Mapping[str, str] | None = None,
    tree: Path = HERE,
) -> Command:
    """`aoai-worker <arguments>` of the checkout `tree`. Raises BenchmarkFailed where it ends with another code."""
    environment = azure.environment("producer") | {"PYTHONPATH": str(tree), **(settings or {})}
    command = [sys.executable, "-P", "-m", "worker", *map(str, arguments)]
    begun, foreign = time.monotonic(), foreign_cpu_ms(azure.process.pid)
    process = await asyncio.create_subprocess_exec(
        *command,
        env=environment,
        cwd=tree,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    looking = asyncio.ensure_future(_look(process))
    try:
        said, _ = await process.communicate()
        peak, cpu = await looking
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    seconds = time.monotonic() - begun
    if process.returncode != ends_with:
        raise BenchmarkFailed(f"{arguments[0]} ended with {process.returncode}:\n{said.decode()}")
    strangers = (foreign_cpu_ms(azure.process.pid) - foreign) / 1_000 - cpu
    return Command(
        seconds=seconds,
        cpu_seconds=cpu,
        peak_rss_mib=peak,
        others=max(0.0, 100 * strangers / seconds),
        said=said.decode(),
    )


async def _look(process: asyncio.subprocess.Process) -> tuple[float, float]:
    """Peak RSS in MiB and CPU seconds, as seen last before it ended."""
    peak = cpu = 0.0
    while process.returncode is None:
        with contextlib.suppress(OSError, ValueError):  # it has just ended
            peak, cpu = max(peak, peak_rss_mib(process.pid)), family_cpu_ms(process.pid) / 1_000
        await asyncio.sleep(LOOK_EVERY)
    return peak, cpu
