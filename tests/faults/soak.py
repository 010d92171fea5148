"""`make soak`: many jobs under faults that do not end; does the worker's process stay as it is?

One job in a hundred meets a fault of its own, every few seconds a service has one, and tokens are refreshed every
5 s. What the process holds is sampled while it works. It is flat if the mean of the last fifth of the samples is at
most 1.05 times that of the second fifth: the first is for warming up.
"""

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from itertools import cycle
from pathlib import Path
from statistics import fmean
from time import monotonic

from benchmarks.processes import rss_mib
from tests.faults.curves import Curve, draw
from tests.faults.scenario import QUESTION, Scenario, run
from tests.faults.stage import Stage
from tests.support.processes import Service, Worker

JOBS = 100_000
SLOTS = 64
FLAT = 1.05
EVERY = 1.0
"""Seconds between two samples."""
DISTURB_EVERY = 10
"""Samples between two faults of a service."""
STALLED = 120
"""Samples without a job done after which the run is given up."""
DOCS = Path(__file__).parents[2] / "docs"
PICTURE, DOCUMENT = DOCS / "soak.svg", DOCS / "reliability.md"
BEGIN, END = "<!-- soak: begin -->", "<!-- soak: end -->"

PHRASES = ("status:503x1", "status:429x1", "cut-after:5x1", "status:408x1", "fail-after:5x1", "status:500x2")
"""Failures that a prompt asks for, once or twice; it is answered then."""
TOKENS = {"kind": "token", "lifetime": 120, "refresh_in": 2}
FAULTS: tuple[tuple[Service, dict[str, object]], ...] = (
    ("openai", {"kind": "connection", "how": "reset", "count": 3}),
    ("servicebus", {"kind": "detach", "entity": "jobs"}),
    ("blob", {"kind": "answer", "code": "ServerBusy", "count": 3, "operation": "put_blob"}),
    ("openai", {"kind": "answer", "status": 429, "retry_after_ms": 500, "count": 5}),
    ("servicebus", {"kind": "lose_answer", "on": "settle", "entity": "jobs", "count": 3}),
)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """`held`: deliveries that are not settled, whose locks must be renewed."""

    done: int
    rss: float
    files: int
    threads: int
    tasks: int
    held: int


NAMES = {
    "rss": "memory (RSS), MiB",
    "files": "open files",
    "threads": "threads",
    "tasks": "asyncio tasks",
    "held": "deliveries held (locks to renew)",
}


def question(number: int) -> str:
    plain = QUESTION.format(number)
    return plain if number % 100 else f"{plain} [[{PHRASES[number // 100 % len(PHRASES)]}]]"


async def sample(one: Worker) -> Sample:
    pid = one.process.child.pid
    _, text = await one.get("/statez")
    state = json.loads(text)
    return Sample(
        done=int(await one.metric("aoai_worker_jobs_total")),
        rss=rss_mib(pid),
        files=len(os.listdir(f"/proc/{pid}/fd")),
        threads=len(os.listdir(f"/proc/{pid}/task")),
        tasks=state["tasks"],
        held=state["held"],
    )


def fifth(values: Sequence[float], number: int) -> float:
    """The mean of one of five equal parts, counted from 0."""
    return fmean(values[len(values) * number // 5 : len(values) * (number + 1) // 5])


def growth(samples: Sequence[Sample], name: str) -> float:
    values = [float(getattr(one, name)) for one in samples]
    return fifth(values, 4) / max(fifth(values, 1), 1.0)


def verdict(samples: Sequence[Sample]) -> list[str]:
    """What has grown; empty when all is flat."""
    return [
        f"{NAMES[name]}: the last fifth is {factor:.3f} times the second; at most {FLAT} is flat"
        for name in NAMES
        if (factor := growth(samples, name)) > FLAT
    ]


class Soak:
    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self.seconds = 0.0
        self.locks_lost = 0
        self.refreshes = 0

    async def watch(self, stage: Stage) -> None:
        await stage.fault("entra", TOKENS)
        one = await stage.start(slots=str(SLOTS))
        await stage.holds(one, SLOTS)
        began, faults, stalled = monotonic(), cycle(FAULTS), 0
        while True:
            latest = await sample(one)
            if latest.done >= stage.jobs:
                break
            stalled = stalled + 1 if self.samples and latest.done == self.samples[-1].done else 0
            assert stalled < STALLED, f"no job was done for {STALLED * EVERY:g} s: {latest}"
            self.samples.append(latest)
            if len(self.samples) % DISTURB_EVERY == 0:
                service, fault = next(faults)
                await stage.fault(service, dict(fault))
            await asyncio.sleep(EVERY)  # the pace of the samples
        self.seconds = monotonic() - began
        for service in ("openai", "servicebus", "blob"):
            await stage.fault(service)
        self.locks_lost = int(await one.metric("aoai_worker_locks_lost_total"))
        self.refreshes = int(await one.metric("aoai_worker_token_refreshes_total", outcome="ok"))


def write(soak: Soak, jobs: int, *, paid_twice: int) -> None:
    """The picture, and the figures into the document."""
    done = [one.done / 1_000 for one in soak.samples]
    names = [field.name for field in fields(Sample) if field.name in NAMES]
    curves = [
        Curve(name=NAMES[name], x=done, y=[float(getattr(one, name)) for one in soak.samples]) for name in names
    ]
    PICTURE.write_text(draw("The worker's process over a long run", "thousand jobs done", curves))
    rows = [
        f"| {NAMES[name]} | {fifth(curve.y, 1):.1f} | {fifth(curve.y, 4):.1f} | {growth(soak.samples, name):.3f} |"
        for name, curve in zip(names, curves, strict=True)
    ]
    text = f"""\
Run on {datetime.now(UTC):%Y-%m-%d}: {jobs:,} jobs in {soak.seconds:.0f} s, {SLOTS} slots,
{soak.refreshes:,} token refreshes, {len(soak.samples) // DISTURB_EVERY} faults of services,
{jobs // 100:,} jobs with a fault of their own. Locks lost: {soak.locks_lost}. Paid twice: {paid_twice}.

| | second fifth | last fifth | factor |
|---|---|---|---|
"""
    before, _, rest = DOCUMENT.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    DOCUMENT.write_text(f"{before}{BEGIN}\n{text}" + "\n".join(rows) + f"\n{END}{after}")


async def main(jobs: int) -> int:
    soak = Soak()
    scenario = Scenario(
        name="soak",
        injected="mixed faults",
        inject=soak.watch,
        jobs=jobs,
        ask=question,
        latency=0.1,
        lock_duration=60.0,
        # one job in 600 has its answer cut off, which was paid for; a lost settlement may cost its job again
        paid_twice=jobs // 600 + SLOTS,
        in_subset=False,
    )
    with tempfile.TemporaryDirectory() as folder:
        ledger = await run(scenario, Path(folder))
    write(soak, jobs, paid_twice=ledger.paid_twice)
    problems = ledger.problems(scenario) + verdict(soak.samples)
    sys.stdout.write("\n".join(problems) or f"{jobs:,} jobs: flat, nothing lost, doubled or wrong")
    sys.stdout.write(f"\n{ledger}\n{PICTURE.relative_to(DOCS.parent)} and {DOCUMENT.relative_to(DOCS.parent)}\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(int(os.environ.get("SOAK_JOBS") or JOBS))))
