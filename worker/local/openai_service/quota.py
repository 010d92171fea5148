"""A deployment's quota, enforced as Azure does: requests over windows of 1 s and 10 s, tokens over a minute.

Tokens are charged at admission, on an estimate (prompt + `max_tokens`), never on what was used. Requests that
were refused count as requests too, so that hammering a closed deployment keeps it closed.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

_MINUTE = 60.0
_REQUEST_WINDOWS = (1.0, 10.0)
# What Azure says to a request that is larger than a whole minute's quota.
_NEVER = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Exceeded:
    """`retry_after` is in seconds, to the end of the window that is full."""

    kind: Literal["call", "token"]
    retry_after: float


class _Window:
    """A count that starts again at every multiple of `seconds` on the clock."""

    __slots__ = ("_index", "_seconds", "limit", "used")

    def __init__(self, seconds: float, limit: int) -> None:
        self._seconds = seconds
        self._index = -1
        self.limit = limit
        self.used = 0

    def turn(self, now: float) -> None:
        index = int(now // self._seconds)
        if index != self._index:
            self._index, self.used = index, 0

    def ends_in(self, now: float) -> float:
        return self._seconds - now % self._seconds

    @property
    def remaining(self) -> int:
        return max(0, self.limit - self.used)


class Quota:
    """The quota of one deployment. None is unlimited. `clock` is in seconds and never goes back."""

    def __init__(
        self,
        requests_per_minute: int | None,
        tokens_per_minute: int | None,
        clock: Callable[[], float],
    ) -> None:
        self._clock = clock
        self._bursts = [
            _Window(seconds, math.ceil(requests_per_minute * seconds / _MINUTE))
            for seconds in _REQUEST_WINDOWS
            if requests_per_minute is not None
        ]
        self._requests = None if requests_per_minute is None else _Window(_MINUTE, requests_per_minute)
        self._tokens = None if tokens_per_minute is None else _Window(_MINUTE, tokens_per_minute)

    def admit(self, tokens: int) -> Exceeded | None:
        """Charge one request of estimated `tokens`. None: admitted."""
        now = self._clock()
        for window in self._windows():
            window.turn(now)
        return self._charge_request(now) or self._charge_tokens(tokens, now)

    def headers(self) -> dict[str, str]:
        """`x-ratelimit-*` as of the last request; nothing about what is unlimited."""
        now = self._clock()
        headers: dict[str, str] = {}
        for name, window in (("requests", self._requests), ("tokens", self._tokens)):
            if window is not None:
                headers[f"x-ratelimit-limit-{name}"] = str(window.limit)
                headers[f"x-ratelimit-remaining-{name}"] = str(window.remaining)
                headers[f"x-ratelimit-reset-{name}"] = str(math.ceil(window.ends_in(now)))
        return headers

    def _windows(self) -> list[_Window]:
        whole = [window for window in (self._requests, self._tokens) if window is not None]
        return self._bursts + whole

    def _charge_request(self, now: float) -> Exceeded | None:
        for window in self._bursts:
            window.used += 1
        full = [window for window in self._bursts if window.used > window.limit]
        if full:
            return Exceeded(kind="call", retry_after=max(window.ends_in(now) for window in full))
        if self._requests is not None:
            self._requests.used += 1
        return None

    def _charge_tokens(self, tokens: int, now: float) -> Exceeded | None:
        window = self._tokens
        if window is None:
            return None
        if tokens > window.limit:
            return Exceeded(kind="token", retry_after=_NEVER)
        if window.used + tokens > window.limit:
            return Exceeded(kind="token", retry_after=window.ends_in(now))
        window.used += tokens
        return None
