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
from worker.waits import loop_time

CHECK_AGAIN = RetryPolicy(base=2.0, cap=20.0)
"""Between start-up's checks. A new role assignment takes minutes to count; the pod is to be ready soon after."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenScope:
    """What a token is asked for; `service` is what people call it."""

    service: str
    scope: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """`namespace` is its host name. A queue of results needs sessions, one of jobs must not have them.
    `is_sent_to`: it is about sending to it, else about receiving from it."""

    namespace: str
    name: str
    with_sessions: bool
    is_sent_to: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """`url` as in the settings: of Azure's hosts, or with the account before the container, as Azurite's."""

    url: str


Place = TokenScope | Queue | Container | Target
"""What a check is about; a Target is a deployment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """`prove` raises a WorkerError where `place` is not as it must be."""

    what: str
    place: Place
    prove: Callable[[], Awaitable[object]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What is wrong with what a check is about."""

    check: Check
    error: WorkerError

    def __str__(self) -> str:
        cause = f"{self.error.cause}: " if self.error.cause else ""
        return f"{self.check.what}: {cause}{self.error}"


Routes = Mapping[str, Sequence[Target]]


async def prove(
    checks: Sequence[Check],
    admission: Admission,
    observer: Observer,
    chance: Callable[[], float],
    *,
    routes: Routes | None = None,
) -> None:
    """Run the checks together, and those that failed again, until all have passed or it is stopping.

    A deployment of `routes` that cannot be reached does not count while another of each model that it carries has
    passed: a pod that starts in a region's outage is of use. One that is there and refuses us always counts, so
    that a wrong set-up stops a rollout.
    """
    pending, passed, rounds = list(checks), set[Place](), 0
    while not admission.state.is_stopping:
        failures = await _failures_unless_stopping(pending, admission)
        if failures is None:
            return
        for failure in failures:
            error = failure.error
            observer(SetupCheckFailed(what=failure.check.what, cause=error.cause, detail=str(error)))
        failed = [failure.check for failure in failures]
        passed.update(check.place for check in pending if check not in failed)
        blocking = blocking_failures(failures, passed, routes or {})
        if not blocking:
            admission.open(Closure.START_UP)
            return
        pending = [failure.check for failure in blocking]
        rounds += 1
        admission.close(Closure.START_UP, "; ".join(map(str, blocking)))
        await admission.stopping(loop_time() + CHECK_AGAIN.backoff(rounds, chance()))


def blocking_failures(failures: Sequence[Failure], passed: set[Place], routes: Routes) -> Sequence[Failure]:
    """Those that keep the pod from starting: all but a deployment out of reach whose models have another each."""

    def is_spared(failure: Failure) -> bool:
        needing = [targets for targets in routes.values() if failure.check.place in targets]
        has_others = bool(needing) and all(passed.intersection(targets) for targets in needing)
        return isinstance(failure.error, Unavailable) and has_others

    return [failure for failure in failures if not is_spared(failure)]


async def _failures_unless_stopping(checks: Sequence[Check], admission: Admission) -> Sequence[Failure] | None:
    """What is wrong; None if it is stopping before all is known.

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


async def _failures_of(checks: Sequence[Check]) -> Sequence[Failure]:
    found = await asyncio.gather(*[failure_of(check) for check in checks])
    return [failure for failure in found if failure is not None]


async def failure_of(check: Check) -> Failure | None:
    """What is wrong, or None."""
    try:
        await check.prove()
    except WorkerError as error:
        return Failure(check=check, error=error)
    return None
