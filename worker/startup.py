"""What must be true before anything is received, and the waiting until it is."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from worker.azure_roles import Role
from worker.errors import WorkerError
from worker.intake import Intake
from worker.interfaces import Observer, SetupCheckFailed, Target
from worker.retry import RetryPolicy
from worker.waits import loop_time

CHECK_AGAIN = RetryPolicy(base=2.0, cap=60.0)
"""Between start-up's checks: a new role assignment takes minutes to count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """`prove` raises a WorkerError where `what` is not as it must be. `role` is the one that it needs.

    `about` is the queue's name, the container's url, the token's scope or the deployment, as the settings have it.
    """

    what: str
    about: str | Target
    prove: Callable[[], Awaitable[object]]
    role: Role | None = None


async def prove(pending: Sequence[Check], intake: Intake, observer: Observer, chance: Callable[[], float]) -> None:
    """Run the checks together, and those that failed again, until all have passed or it is stopping."""
    failures = 0
    while pending and not intake.is_stopping:
        details = await asyncio.gather(*[failure_of(check) for check in pending])
        wrong = [(check, detail) for check, detail in zip(pending, details, strict=True) if detail]
        pending = [check for check, _ in wrong]
        if not wrong:
            break
        failures += 1
        for check, detail in wrong:
            observer(SetupCheckFailed(what=check.what, detail=detail))
        intake.close("start-up", "; ".join(f"{check.what}: {detail}" for check, detail in wrong))
        await intake.stopping(loop_time() + CHECK_AGAIN.backoff(failures, chance()))
    if not pending:
        intake.open("start-up")


async def failure_of(check: Check) -> str | None:
    """What is wrong, or None."""
    try:
        await check.prove()
    except WorkerError as error:
        return str(error)
    return None
