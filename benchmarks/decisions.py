"""What one decision of the admission costs, however many jobs wait: `plan` looks at the heads of lines only."""

import asyncio
import time
from collections import deque
from itertools import chain
from pathlib import Path
from typing import Any

from benchmarks.report import at_most, table
from worker.admission.admission import Admission, Permit
from worker.admission.costs import Cost
from worker.admission.plan import Wait, plan
from worker.interfaces import Target
from worker.waits import loop_time

WAITING = (10, 100, 1_000, 10_000)
MODELS = 3
COST = Cost(100, 100)
ROUNDS = 2_000
NO_GROWTH = 2.0
"""Times what it costs with 10 waiters: more than noise is."""


async def measure_decisions(folder: Path, share: float) -> str:
    rounds = max(1, round(ROUNDS * share))
    costs = {waiting: await decide(waiting, rounds) for waiting in WAITING}
    rows = [
        (f"{waiting:,}", f"{deciding:.1f}", f"{finishing:.1f}") for waiting, (deciding, finishing) in costs.items()
    ]
    growth = max(costs[1_000][0] / costs[10][0], costs[1_000][1] / costs[10][1])
    circumstances = (
        f"{MODELS} models whose deployments are full, a receiver that asks, {rounds:,} times: CPU microseconds of "
        "one look at the state, and of a call's end with the permit that follows."
    )
    targets = at_most("1,000 waiters against 10", growth, NO_GROWTH, "times")
    return "\n\n".join((circumstances, table(("jobs that wait", "one look", "a call ends"), rows), targets))


async def decide(waiting: int, rounds: int) -> tuple[float, float]:
    """CPU microseconds of a decision, and of the end of a call until the next job has its permit."""
    targets = {
        f"model-{number}": [Target(deployment=f"d{number}", endpoint="https://a")] for number in range(MODELS)
    }
    admission = Admission(targets, slots=4, observer=lambda _: None)
    running = asyncio.get_running_loop().create_task(admission.run())
    models = list(targets)
    permits = [await admission.admit(model, COST) for model in models for _ in range(4)]
    lines = [deque[asyncio.Future[Permit]]() for _ in models]
    for number in range(waiting):
        lines[number % MODELS].append(asyncio.ensure_future(admission.admit(models[number % MODELS], COST)))
    asking = asyncio.ensure_future(admission.room(admission.intake("jobs", frozenset(targets))))
    await asyncio.sleep(0.01)
    state, now = admission.state, loop_time()
    assert isinstance(plan(state, now), Wait), "nothing can be done but wait"
    begun = time.process_time()
    for _ in range(rounds):
        plan(state, now)
    deciding = time.process_time() - begun
    permit, line = permits[0], lines[0]
    begun = time.process_time()
    for _ in range(rounds):
        permit.__exit__(None, None, None)
        permit = await line.popleft()
        line.append(asyncio.ensure_future(admission.admit(models[0], COST)))
    finishing = time.process_time() - begun
    tasks: list[asyncio.Future[Any]] = [running, asking, *chain.from_iterable(lines)]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return deciding / rounds * 1e6, finishing / rounds * 1e6
