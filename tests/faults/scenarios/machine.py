"""The machine: a process that is frozen, an event loop that stands still, a full disk, little memory."""

import asyncio
import signal
from functools import partial

from benchmarks.processes import rss_mib
from tests.faults.scenario import QUESTION, Scenario
from tests.faults.scenarios.processes import SINKS
from tests.faults.stage import BATCH, Stage
from tests.support.processes import process

SLOTS = 16
BLOCKED = 10.0
"""Seconds, twice as long as the locks last."""
DISK = 20_000
"""Bytes that the collector's file may have."""
RUN_WORKER = "runpy.run_module('worker', run_name='__main__', alter_sys=True)"
ANSWER_TOKENS = 20_000
LARGEST_ANSWER = 300_000
GROWTH_MIB = 40.0
"""What the process may take more for 100 such answers than for the first eight; together they are 20 MiB."""


async def freeze(seconds: float, stage: Stage) -> None:
    """Another worker takes over what is frozen; then both go on."""
    one = await stage.start(slots=str(SLOTS))
    await stage.holds(one, SLOTS)
    one.process.child.send_signal(signal.SIGSTOP)
    try:
        await stage.start(slots=str(SLOTS))
        await asyncio.sleep(seconds)  # what is measured is a clock's time: the locks lapse meanwhile
    finally:
        one.process.child.send_signal(signal.SIGCONT)
    stage.note_end_of_fault()


async def freeze_alone(seconds: float, stage: Stage) -> None:
    """Nobody else is there: the same worker has its jobs again."""
    one = await stage.start(slots=str(SLOTS))
    await stage.holds(one, SLOTS)
    one.process.child.send_signal(signal.SIGSTOP)
    try:
        await asyncio.sleep(seconds)  # as above
    finally:
        one.process.child.send_signal(signal.SIGCONT)
    stage.note_end_of_fault()


async def block(stage: Stage) -> None:
    """One call stands still without giving way: no lock is renewed and no probe is answered meanwhile."""
    one = await stage.start(slots=str(SLOTS), block=f"{2 * SLOTS}:{BLOCKED:g}")
    await stage.reaches(one, "aoai_worker_locks_lost_total", 1)
    stage.note_end_of_fault()


async def disk_full(stage: Stage) -> None:
    """The collector's file may not grow; then it may, and the same command goes on."""
    await stage.start(slots=str(SLOTS))
    collect = ("collect", BATCH, "-o", str(stage.results_file), "--follow")
    limited = f"import resource, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, ({DISK}, {DISK})); {RUN_WORKER}"
    async with process("-c", limited, *collect, environment=stage.cloud.environment("producer")) as running:
        code = await running.ended()
    assert code not in (0, 4), f"the disk of {DISK:,} bytes was large enough"
    assert "Traceback" not in running.output, running.output
    assert str(stage.results_file) in running.output, running.output
    stage.note_end_of_fault()
    code, output = await stage.command(*collect)
    assert code == 0, output


async def large_answers(stage: Stage) -> None:
    """Answers of 200 KB come to a worker that may hold 1 MiB: calls wait, and its memory stays where it is."""
    one = await stage.start(slots="64", in_flight_bytes=str(1 << 20))
    await stage.reaches(one, "aoai_worker_jobs_total", 8)
    highest = 0.0
    before = rss_mib(one.process.child.pid)
    while await one.metric("aoai_worker_jobs_total") < stage.jobs:
        highest = max(highest, await one.metric("aoai_worker_in_flight_bytes"))
        await asyncio.sleep(0.1)  # one sample
    limit = await one.metric("aoai_worker_in_flight_bytes_limit")
    assert highest <= limit + LARGEST_ANSWER, f"{highest:,.0f} bytes were in flight; {limit:,.0f} are allowed"
    assert rss_mib(one.process.child.pid) < before + GROWTH_MIB, "the worker's memory has grown"
    stage.note_end_of_fault()


FROZEN = tuple(
    Scenario(
        name=name,
        injected="SIGSTOP for 10 s, locks of 5 s",
        inject=partial(inject, 10.0),
        sink=sink,
        jobs=400,
        latency=0.5,
        paid_twice=SLOTS,
        in_subset=inject is freeze_alone and sink == "blob",
    )
    for name, inject in (("frozen beside another", freeze), ("frozen alone", freeze_alone))
    for sink in SINKS
)

SCENARIOS = (
    *FROZEN,
    *[
        Scenario(
            name="event loop blocked",
            injected=f"the event loop stands still for {BLOCKED:g} s, locks of 5 s",
            inject=block,
            sink=sink,
            latency=0.5,
            paid_twice=2 * SLOTS,
            in_subset=False,
        )
        for sink in SINKS
    ],
    *[
        Scenario(
            name="disk full for collect",
            injected=f"files of `collect` may have {DISK:,} bytes, then more",
            inject=disk_full,
            sink=sink,
            in_subset=sink == "queue",
        )
        for sink in SINKS
    ],
    Scenario(
        name="large answers in little memory",
        injected=f"answers of {ANSWER_TOKENS:,} tokens, AOAI_WORKER_IN_FLIGHT_BYTES of 1 MiB",
        inject=large_answers,
        jobs=100,
        ask=f"{QUESTION} [[tokens:{ANSWER_TOKENS}]]",
        extra={"max_completion_tokens": 2 * ANSWER_TOKENS},
        lock_duration=60.0,
        in_subset=False,
    ),
)
