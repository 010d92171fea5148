"""Workers that are told to stop (SIGTERM), as when a fleet shrinks: no delivery count may rise by it, but of jobs
whose result may have arrived in the sink."""

import asyncio
import signal
from collections.abc import Awaitable, Callable

from tests.faults.scenario import Scenario
from tests.faults.scenarios.processes import SINKS
from tests.faults.stage import Sink, Stage

SLOTS = 16


async def stop_and_look(stage: Stage, *, grace: str) -> None:
    one = await stage.start(slots=str(SLOTS), grace=grace)
    await stage.holds(one, SLOTS)
    await stage.terminate(one)
    await stage.no_delivery_counts_have_risen()


async def under_load(stage: Stage) -> None:
    await stop_and_look(stage, grace="5")


async def with_too_short_a_grace(stage: Stage) -> None:
    await stop_and_look(stage, grace="0.2")


async def throttled(stage: Stage) -> None:
    await stage.fault("openai", {"kind": "answer", "status": 429, "retry_after": 60})
    one = await stage.start(slots=str(SLOTS), grace="0.5")
    await stage.reaches(one, "aoai_worker_gate_closed_seconds_total", 1)
    await stage.terminate(one)
    await stage.fault("openai")
    stage.note_end_of_fault()
    await stage.no_delivery_counts_have_risen()


async def with_the_sink_down(stage: Stage) -> None:
    one = await stage.start(slots=str(SLOTS), grace="0.5")
    await stage.holds(one, SLOTS)
    await stage.break_sink()  # not before: without it no worker starts
    await stage.answers_reach(SLOTS)
    await stage.terminate(one)
    await stage.mend_sink()
    stage.note_end_of_fault()


async def with_writing_unconfirmed(stage: Stage) -> None:
    """The results are there, and the worker does not know."""
    one = await stage.start(slots=str(SLOTS), grace="0.5")
    await stage.holds(one, SLOTS)
    await stage.fault("blob", {"kind": "lose_every_answer", "operation": "put_blob"})
    await stage.answers_reach(SLOTS)
    await stage.terminate(one)
    await stage.fault("blob")
    stage.note_end_of_fault()


async def twice(stage: Stage) -> None:
    one = await stage.start(slots=str(SLOTS))
    await stage.holds(one, SLOTS)
    one.process.child.send_signal(signal.SIGTERM)
    await one.process.printed('"event":"draining"')
    await stage.terminate(one)
    await stage.no_delivery_counts_have_risen()


async def again_and_again(stage: Stage) -> None:
    """A fleet that grows and shrinks: of three workers the oldest leaves and another comes, six times."""
    fleet = [await stage.start(slots="8", grace="0.2") for _ in range(3)]
    for _ in range(6):
        oldest = fleet.pop(0)
        await stage.holds(oldest, 1)
        await stage.terminate(oldest)
        fleet.append(await stage.start(slots="8", grace="0.2"))
    await asyncio.gather(*[stage.terminate(one) for one in fleet])
    await stage.no_delivery_counts_have_risen()


def stopped(
    name: str,
    inject: Callable[[Stage], Awaitable[None]],
    sink: Sink,
    *,
    jobs: int = 60,
    latency: float = 1.0,
    paid_twice: int = 0,
    in_subset: bool = False,
) -> Scenario:
    return Scenario(
        name=f"stopped {name}",
        injected="SIGTERM",
        inject=inject,
        sink=sink,
        jobs=jobs,
        lock_duration=60.0,
        latency=latency,
        paid_twice=paid_twice,
        in_subset=in_subset,
    )


SCENARIOS = (
    *[stopped("under full load", under_load, sink) for sink in SINKS],
    *[
        stopped("with too short a grace", with_too_short_a_grace, sink, latency=6.0, in_subset=sink == "queue")
        for sink in SINKS
    ],
    *[stopped("while throttled", throttled, sink) for sink in SINKS],
    *[
        stopped("with the sink down", with_the_sink_down, sink, paid_twice=SLOTS, in_subset=sink == "blob")
        for sink in SINKS
    ],
    stopped("with writing unconfirmed", with_writing_unconfirmed, "blob"),
    *[stopped("twice", twice, sink) for sink in SINKS],
    # a call that the grace cuts off may have been answered in that moment
    *[stopped("again and again", again_and_again, sink, jobs=2_000, paid_twice=9 * 8) for sink in SINKS],
)
