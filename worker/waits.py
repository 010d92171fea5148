"""Waiting that ends when it should: a bell to wake waiters, an interrupt to end a block from outside, and how long
to wait after a failure."""

import asyncio
import math
import traceback
from types import TracebackType
from typing import Self

from worker.errors import Interrupted

EARLY = 0.001
"""Seconds by which a timer may ring before its time: uvloop's clock has milliseconds. Who looks at the clock after
a wait must count that much as elapsed, or it looks again and again until the clock moves."""


def release_frames(error: BaseException) -> None:
    """Let go of what the ended functions on an error's way held; the trace itself stays, for the log.

    An error that is kept by an object which a function on its way had in hand, such as a future, is in a
    reference cycle with it, and with all else that these functions had in hand: a job, its body, its answer.
    """
    seen: set[int] = set()
    follow: BaseException | None = error
    while follow is not None and id(follow) not in seen:
        seen.add(id(follow))
        traceback.clear_frames(follow.__traceback__)
        follow = follow.__cause__ or follow.__context__


def backoff(failures: int, *, base: float, cap: float, factor: float = 2.0) -> float:
    """Seconds to wait after so many failures in a row, 1 or more: `base`, then `factor` times as long, up to `cap`.

    Without jitter, which is the caller's to take off where many might come back together.
    """
    # beyond 64 a float could overflow, and every cap is long reached
    return min(cap, base * factor ** min(failures - 1, 64))


def loop_time() -> float:
    return asyncio.get_running_loop().time()


class Bell:
    """Wakes all who wait on it, those first who have waited longest."""

    def __init__(self) -> None:
        self._waiting: dict[asyncio.Future[None], None] = {}

    def ring(self) -> None:
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self, until: float = math.inf) -> None:
        """Return when it rings, or when the loop's clock reaches `until`, give or take EARLY."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        timer = loop.call_at(until, _finish, waiter) if until < math.inf else None
        self._waiting[waiter] = None
        try:
            await waiter
        finally:
            del self._waiting[waiter]
            if timer is not None:
                timer.cancel()


def _finish(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class Interrupt:
    """`async with interrupt:` runs a block that `interrupt.by(error)` ends with that error.

    Made as `asyncio.timeout` is: the task is cancelled, and the cancellation that we caused, and only that one,
    becomes the error. The first reason stands. Used once.
    """

    def __init__(self) -> None:
        self._task: asyncio.Task[object] | None = None
        self._cancellations = 0
        self._error: Interrupted | None = None

    def by(self, error: Interrupted) -> None:
        """Before the block it keeps it from starting; after it nothing happens."""
        if self._error is None:
            self._error = error
            if self._task is not None:
                self._task.cancel()

    async def __aenter__(self) -> Self:
        if self._error is not None:
            raise self._error
        self._task = asyncio.current_task()
        assert self._task is not None, "an interrupt belongs into a task"
        self._cancellations = self._task.cancelling()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        task, self._task = self._task, None
        if task is None or self._error is None:
            return
        if task.uncancel() <= self._cancellations and exc_type is asyncio.CancelledError:
            error, self._error = self._error, None
            try:
                raise error from exc_value
            finally:
                del (
                    error,
                    exc_value,
                    task,
                )  # the trace holds this frame, which must hold nothing that holds the error
