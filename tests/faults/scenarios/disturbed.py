"""What the scenarios with a disturbed service have in common: a worker is busy, faults strike, and are gone."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tests.faults.scenario import Scenario
from tests.faults.stage import Sink, Stage
from tests.support.processes import Service, Worker

SLOTS = 16
Fault = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Sign:
    """A metric that the fault must bring so high. Without it a scenario could pass undisturbed."""

    metric: str
    at_least: float = 1
    labels: Mapping[str, str] = field(default_factory=dict)


RESTARTED = Sign(metric="aoai_worker_receiver_restarts_total")


def closed(reason: str) -> Sign:
    """Nothing is received, for this reason of `/readyz`."""
    return Sign(metric="aoai_worker_intake_closed", labels={"reason": reason})


def called(status: int | str, times: int = 1) -> Sign:
    return Sign(metric="aoai_worker_calls_total", at_least=times, labels={"status": str(status)})


async def appears(stage: Stage, one: Worker, sign: Sign) -> None:
    await stage.reaches(one, sign.metric, sign.at_least, **sign.labels)


async def strike(
    stage: Stage, service: Service, faults: Sequence[Fault], *, seconds: float = 0.0, times: int = 1
) -> None:
    """Faults that have a count last until it is used up, others so many seconds; `times` one after the other."""
    for _ in range(times):
        await stage.fault(service, *map(dict, faults))
        if all("count" in fault for fault in faults):
            await stage.used_up(service)
        await asyncio.sleep(seconds)  # what is measured is a clock's time
    await stage.fault(service)
    stage.note_end_of_fault()


async def disturb(
    service: Service,
    faults: Sequence[Fault],
    seconds: float,
    times: int,
    sign: Sign | None,
    settings: Mapping[str, str],
    stage: Stage,
) -> None:
    one = await stage.start(**{"slots": str(SLOTS), **settings})
    await stage.holds(one, SLOTS)
    await strike(stage, service, faults, seconds=seconds, times=times)
    if sign is not None:
        await appears(stage, one, sign)


def disturbed(
    name: str,
    service: Service,
    *faults: Fault,
    sink: Sink = "blob",
    jobs: int = 160,
    latency: float = 0.5,
    seconds: float = 0.0,
    times: int = 1,
    sign: Sign | None = None,
    settings: Mapping[str, str] | None = None,
    in_subset: bool = False,
    **options: Any,
) -> Scenario:
    kinds = ", ".join(dict.fromkeys(f"`{fault.get('kind', 'answer')}`" for fault in faults))
    counts = [fault["count"] for fault in faults if "count" in fault]
    amount = f", {max(counts) * times} times" if counts else f" for {seconds:g} s" if seconds and times == 1 else ""
    return Scenario(
        name=name,
        injected=options.pop(
            "injected", f"{service} fault {kinds}{amount}{f', {times} times' if times > 1 and not counts else ''}"
        ),
        inject=partial(disturb, service, faults, seconds, times, sign, settings or {}),
        sink=sink,
        jobs=jobs,
        latency=latency,
        in_subset=in_subset,
        lock_duration=options.pop("lock_duration", 10.0),
        **options,
    )
