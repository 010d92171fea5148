"""`make bench`: measures the worker and prints Markdown, or with `--write` puts it into `docs/benchmarks.md`.

That document says how each is measured. What takes long is measured only when it is named.
"""

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cpu_profile import profile_worker
from benchmarks.decisions import measure_decisions
from benchmarks.footprint import measure_footprint
from benchmarks.locks import measure_locks
from benchmarks.memory import measure_memory
from benchmarks.pairs import compare, compare_further_away, compare_sinks
from benchmarks.parts import measure_parts
from benchmarks.processes import BenchmarkFailed, output_of
from benchmarks.quota_live import measure_quota_live
from benchmarks.report import describe_machine, stamp, write_block
from benchmarks.sorting import measure_sorting
from benchmarks.submit import measure_submit
from benchmarks.token_refresh import measure_refreshes
from benchmarks.whole_batch import measure_batch

Measure = Callable[[Path, float], Coroutine[Any, Any, str]]
"""Works in a folder of its own and does such a share of its jobs; Markdown. Raises BenchmarkFailed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """`minutes`: on a quiet machine with two cores; thrice that is its limit."""

    measure: Measure
    minutes: float
    by_default: bool = True


async def measure_quota(folder: Path, share: float) -> str:
    """`benchmarks.quota` in a process of its own, since its loop has another clock."""
    seconds = str(max(60.0, 600.0 * share))
    return await output_of("benchmarks.quota", "--warm-up", seconds, "--measured", seconds)


MEASUREMENTS = {
    "pairs": Measurement(measure=compare, minutes=6),
    "sinks": Measurement(measure=compare_sinks, minutes=1.5),
    "distance": Measurement(measure=compare_further_away, minutes=2.5),
    "footprint": Measurement(measure=measure_footprint, minutes=3),
    "tokens": Measurement(measure=measure_refreshes, minutes=2),
    "decisions": Measurement(measure=measure_decisions, minutes=0.2),
    "quota": Measurement(measure=measure_quota, minutes=0.5),
    "profile": Measurement(measure=profile_worker, minutes=1),
    "parts": Measurement(measure=measure_parts, minutes=5, by_default=False),
    "submit": Measurement(measure=measure_submit, minutes=4, by_default=False),
    "batch": Measurement(measure=measure_batch, minutes=8, by_default=False),
    "sorting": Measurement(measure=measure_sorting, minutes=4, by_default=False),
    "memory": Measurement(measure=measure_memory, minutes=10, by_default=False),
    "locks": Measurement(measure=measure_locks, minutes=4, by_default=False),
    "quota-live": Measurement(measure=measure_quota_live, minutes=9, by_default=False),
}


async def bench(chosen: list[str], folder: Path, share: float, *, write: bool) -> int:
    """One after the other; the exit code. One that fails does not keep the rest from being measured."""
    failed = False
    for name in chosen:
        try:
            text = f"{stamp()}\n\n{await measure(name, make_folder(folder, name), share)}"
            print(f"\n## {name}\n\n{text}\n", flush=True)
            if write:
                write_block(name, text)
                write_block("machine", describe_machine())
        except BenchmarkFailed as error:
            failed = True
            print(f"no result of {name}: {error}", file=sys.stderr, flush=True)
    return 1 if failed else 0


async def measure(name: str, folder: Path, share: float) -> str:
    measurement = MEASUREMENTS[name]
    limit = 180 * measurement.minutes
    begun = time.monotonic()
    try:
        async with asyncio.timeout(limit):
            text = await measurement.measure(folder, share)
    except TimeoutError:
        raise BenchmarkFailed(f"not done within {limit:.0f} s; is the machine busy?") from None
    print(f"{name}: {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    return text


def make_folder(parent: Path, name: str) -> Path:
    (folder := parent / name).mkdir()
    return folder


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=MEASUREMENTS, metavar="NAME", help=", ".join(MEASUREMENTS))
    parser.add_argument("--all", action="store_true", help="what takes long too")
    parser.add_argument("--write", action="store_true", help="put the results into docs/benchmarks.md")
    parser.add_argument("--share", type=float, default=1.0, help="of the jobs, to see that it works (default: 1)")
    arguments = parser.parse_args()
    if arguments.write and arguments.share != 1:
        parser.error("--write takes the results of whole measurements only; leave out --share")
    if not 0 < arguments.share <= 1:
        parser.error(f"--share {arguments.share:g}: must be more than 0 and at most 1")
    return arguments


def choose(arguments: argparse.Namespace) -> list[str]:
    if arguments.only:
        return list(dict.fromkeys(arguments.only))
    return [name for name, measurement in MEASUREMENTS.items() if arguments.all or measurement.by_default]


def main() -> int:
    arguments = read_arguments()
    chosen = choose(arguments)
    minutes = sum(MEASUREMENTS[name].minutes for name in chosen) * arguments.share
    print(f"{', '.join(chosen)}: about {minutes:.0f} min; load {os.getloadavg()[0]:.1f}", file=sys.stderr)
    print(describe_machine())
    with tempfile.TemporaryDirectory(prefix="aoai-worker-bench-") as folder:
        return asyncio.run(bench(chosen, Path(folder), arguments.share, write=arguments.write))


if __name__ == "__main__":
    sys.exit(main())
