"""The producer's commands, killed at any point and given again."""

from functools import partial

from tests.faults.scenario import Scenario
from tests.faults.scenarios.processes import SINKS
from tests.faults.stage import BATCH, Sink, Stage

SLOW = {"kind": "slow", "latency": 0.05}
"""Makes a command take long enough to be killed in its midst, and not only before and after it."""
KILLS = 4


async def kill_and_repeat(stage: Stage, *arguments: str, allowed: tuple[int, ...] = (0,)) -> None:
    """Each time somewhat later, by chance, then once to its end."""
    killed = 0
    for number in range(KILLS):
        # from the import, through reading and the first requests, to the last ones
        killed += await stage.command_killed_after(0.4 + (number + stage.chance.random()) * 0.4, *arguments)
    assert killed > 1, f"`{' '.join(arguments)}` ended before it was killed"
    code, output = await stage.command(*arguments)
    assert code in allowed, output


async def killed_submit(stage: Stage) -> None:
    await stage.fault("servicebus", SLOW)
    await kill_and_repeat(stage, "submit", str(stage.batch_file), "--batch", BATCH)
    await stage.fault("servicebus")


async def nothing(stage: Stage) -> None: ...


async def killed_collect(stage: Stage) -> None:
    await stage.start(slots="16")
    await stage.fault("servicebus", SLOW)
    await kill_and_repeat(stage, "collect", BATCH, "-o", str(stage.results_file), "--follow")
    await stage.fault("servicebus")


async def killed_cancel(stage: Stage) -> None:
    await stage.start(slots="16")
    await stage.answers_reach(16)
    await stage.fault("blob", {"kind": "answer", "latency": 0.3})
    await kill_and_repeat(stage, "cancel", BATCH)
    await stage.fault("blob")
    stage.note_end_of_fault()
    left = await stage.queues_are_empty()
    assert not left, f"{left} jobs of a cancelled batch are still in the queue"


async def killed_retry(stage: Stage) -> None:
    """Half of the jobs were refused; `retry` is killed, given again, killed ..."""
    await stage.fault("openai", {"kind": "answer", "status": 400, "count": stage.jobs // 2})
    await stage.start(slots="16")
    left = await stage.queues_are_empty()
    assert not left, f"{left} jobs are still in the queue"
    await stage.fault("servicebus", SLOW)
    await stage.fault("blob", {"kind": "answer", "latency": 0.1})
    await kill_and_repeat(stage, "retry", BATCH, str(stage.batch_file))
    await stage.fault("servicebus")
    await stage.fault("blob")
    stage.note_end_of_fault()


def killed(command: str, sink: Sink, *, jobs: int = 1_000) -> Scenario:
    submits = command == "submit"
    injections = {"submit": nothing, "collect": killed_collect, "cancel": killed_cancel, "retry": killed_retry}
    scenario = partial(
        Scenario,
        name=f"{command} killed",
        injected=f"kill -9 of `{command}` at {KILLS} points, given again each time",
        inject=injections[command],
        sink=sink,
        jobs=jobs,
        may_fail="batch_cancelled" if command == "cancel" else None,
        in_subset=(command, sink) in {("submit", "queue"), ("retry", "blob")},
    )
    return scenario(submit=killed_submit) if submits else scenario()


SCENARIOS = (
    *[killed(command, sink) for command in ("submit", "collect") for sink in SINKS],
    *[killed(command, "blob") for command in ("cancel", "retry")],
)
