"""A machine that stands still: the worker's process is frozen for longer than its locks last."""

import asyncio
import signal
from functools import partial

from tests.faults.scenario import Scenario
from tests.faults.scenarios.processes import SINKS
from tests.faults.stage import Stage

SLOTS = 16


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


SCENARIOS = tuple(
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
