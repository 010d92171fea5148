"""What must be true before anything is received, and the waiting until it is."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from worker.admission.admission import Admission
from worker.admission.closures import Closure
from worker.errors import Unavailable, WorkerError
from worker.flow.retry import RetryPolicy
from worker.interfaces import Observer, SetupCheckFailed, Target
from worker.roles import Role
from worker.waits import loop_time

CHECK_AGAIN = RetryPolicy(base=2.0, cap=20.0)
"""Between start-up's checks. A new role assignment takes minutes to count; the pod is to be ready soon after."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """`prove` raises a WorkerError where `what` is not as it must be. `role` is the one that it needs.

    `about` is the queue's name, the container's url, the token's scope or the deployment, as the settings have it.
    """

    what: str
    about: str | Target
    prove: Callable[[], Awaitable[object]]
    role: Role | None = None


async def prove(
    checks: Sequence[Check],
    admission: Admission,
    observer: Observer,
    chance: Callable[[], float],
    *,
    routes: Mapping[str, Sequence[Target]] | None = None,
) -> None:
    """Run the checks together, and those that failed again, until all have passed or it is stopping.

    A deployment of `routes` that cannot be reached does not count while another of each model that it carries has
    passed: a pod that starts in a region's outage is of use. One that is there and refuses us always counts, so
    that a wrong set-up stops a rollout.
    """
    pending = list(checks)
    passed: set[str | Target] = set()
    failures = 0
    while pending and not admission.state.is_stopping:
        errors = await _failures_unless_stopping(pending, admission)
        if errors is None:
            return
        failed = [(check, error) for check, error in zip(pending, errors, strict=True) if error is not None]
        passed.update(check.about for check, error in zip(pending, errors, strict=True) if error is None)
        for check, error in failed:
            observer(SetupCheckFailed(what=check.what, detail=str(error)))
        wrong = [(check, error) for check, error in failed if not _is_spared(check, error, passed, routes or {})]
        pending = [check for check, _ in wrong]
        if not pending:
            break
        failures += 1
        admission.close(Closure.START_UP, "; ".join(f"{check.what}: {error}" for check, error in wrong))
        await admission.stopping(loop_time() + CHECK_AGAIN.backoff(failures, chance()))
    if not pending:
        admission.open(Closure.START_UP)


async def _failures_unless_stopping(
    checks: Sequence[Check], admission: Admission
) -> Sequence[WorkerError | None] | None:
    """What is wrong with each; None if it is stopping before all is known.

    The checks are cancelled then: nothing is held yet, and a network that swallows packets keeps one for a minute,
    longer than a pod has for its end.
    """
    async with asyncio.TaskGroup() as tasks:
        failures = tasks.create_task(_failures_of(checks))
        stopping = tasks.create_task(admission.stopping(math.inf))
        await asyncio.wait([failures, stopping], return_when=asyncio.FIRST_COMPLETED)
        failures.cancel()
        stopping.cancel()
    return None if failures.cancelled() else failures.result()


async def _failures_of(checks: Sequence[Check]) -> Sequence[WorkerError | None]:
    return await asyncio.gather(*[failure_of(check) for check in checks])


def _is_spared(
    check: Check, error: WorkerError, passed: set[str | Target], routes: Mapping[str, Sequence[Target]]
) -> bool:
    """Whether it is out of reach, and every model that needs it has something else."""
    needing = [targets for targets in routes.values() if check.about in targets]
    is_needed = not needing or not all(passed.intersection(targets) for targets in needing)
    return isinstance(error, Unavailable) and not is_needed


async def failure_of(check: Check) -> WorkerError | None:
    """What is wrong, or None."""
    try:
        await check.prove()
    except WorkerError as error:
        return error
    return None
