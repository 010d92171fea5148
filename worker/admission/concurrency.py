"""How many calls may be under way at once, and how long to pause after a 429 that names no time.

Arithmetic only; every time is an argument, in seconds of one clock that never goes back.
"""

import math

STRAY = 0.3
"""The share of refused calls up to which a 429 that names no time says nothing about the next call. Strays of 5 %
never reach it by chance."""
FIRST_PAUSE, LAST_PAUSE = 1.0, 10.0
"""Seconds; Azure counts requests over 1 s and 10 s."""


class UnadvisedPause:
    """How long to leave a deployment alone that refuses calls and names no time.

    A gateway or an overloaded service may refuse one call among many that succeed. Pausing for each would stop the
    work at a few strays a second. So nothing pauses until three in ten of the last calls, some 20, were refused;
    then the pause doubles for as long as the first calls after it are refused too.
    """

    def __init__(self) -> None:
        self._refused = 0.0
        self._pause = 0.0

    def succeed(self, *, after_pause: bool) -> None:
        """`after_pause`: the call was admitted since the last pause ended."""
        self._refused *= 1.0 - FORGETTING
        if after_pause:
            self._pause = 0.0

    def refuse(self) -> float:
        """Seconds to pause; 0 for a stray."""
        self._refused += FORGETTING * (1.0 - self._refused)
        if self._refused <= STRAY:
            return 0.0
        self._pause = min(max(FIRST_PAUSE, 2 * self._pause), LAST_PAUSE)
        return self._pause


LEAST_LIMIT = 1.0
CUT = 0.7
"""What is left of the limit after a sign of overload."""
REOPENING = 10.0
"""Seconds over which a gate that was closed comes back to its limit: the window in which Azure counts a burst."""
FAILING = 0.1
"""The share of failed calls from which failures are taken for a sign of overload. Below it they are bad luck, and
a limit that gave way to each would come down to what luck allows."""
FORGETTING = 0.05


class Concurrency:
    """How many calls may be under way at once: additive increase while they are used, multiplicative decrease.

    It begins with as many as there are slots, as somebody has configured them: with calls of minutes, feeling one's
    way up would take hours.
    Report each call as success, failure or overload, and none that says nothing about load. Overload counts once
    for all calls that were under way when it showed.
    """

    def __init__(self, ceiling: int) -> None:
        self.limit = float(ceiling)
        self.in_flight = 0
        self._ceiling = float(ceiling)
        self._step = max(1.0, ceiling / 20)
        self._cut_at = -math.inf
        self._reopened_at = -math.inf
        self._reopening = REOPENING
        self._failing = 0.0

    def ready_at(self, now: float) -> float:
        """When one more may go; infinity where a call must end first."""
        if now < self._reopened_at + self._reopening:
            due = self._reopened_at + self._reopening * self.in_flight / self.limit
            return due if self._has_room else math.inf
        return -math.inf if self._has_room else math.inf

    def enter(self) -> None:
        self.in_flight += 1

    def leave(self) -> None:
        self.in_flight -= 1

    @property
    def failing(self) -> float:
        """The share of the last calls, some 20, that failed on the way."""
        return self._failing

    def recover(self) -> None:
        """What failed before says nothing any more."""
        self._failing = 0.0

    def succeed(self) -> None:
        """Grow, if what there is was used at least by half."""
        self._failing *= 1.0 - FORGETTING
        if 2 * self.in_flight >= self.limit:
            self.limit = min(self.limit + self._step / self.limit, self._ceiling)

    def fail(self, admitted_at: float, now: float) -> None:
        """A time-out or a 5xx."""
        self._failing += FORGETTING * (1.0 - self._failing)
        if self._failing > FAILING:
            self.overload(admitted_at, now)

    def overload(self, admitted_at: float, now: float) -> None:
        """The service said that it is too much."""
        if admitted_at < self._cut_at:
            return
        self._cut_at = now
        self.limit = max(LEAST_LIMIT, self.limit * CUT)

    def reopen(self, at: float, over: float = REOPENING) -> None:
        """From `at` on the limit is come back to step by step, in so many seconds."""
        self._reopened_at, self._reopening = at, over

    @property
    def _has_room(self) -> bool:
        return self.in_flight < int(self.limit)
