"""A deployment's quota, enforced as Azure does: requests over windows of 1 s and 10 s, tokens over a minute.

Tokens are charged at admission, on an estimate (prompt + `max_tokens`), never on what was used. Requests that
were refused count as requests too, so that hammering a closed deployment keeps it closed. Pure: no I/O, no clock
but the one that is given, so that a simulator can turn it in virtual time. `provisioned.py` has the other kind.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

_MINUTE = 60.0
_REQUEST_WINDOWS = (1.0, 10.0)
# What Azure says to a request that is larger than a whole minute's quota.
_NEVER = 86_400.0
# Azure's figure for a request without max_tokens is not published.
_ASSUMED_ANSWER_TOKENS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Exceeded:
    """`retry_after` is in seconds, to the end of the window that is full."""

    kind: Literal["call", "token", "provisioned"]
    retry_after: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a request is taken for when it comes: tokens of its prompt, and the most that its answer may have."""

    prompt: int
    answer: int

    @property
    def tokens(self) -> int:
        return self.prompt + self.answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimator:
    """The service's guess at a request, `bias` off: 0.2 takes it for a fifth more than it is, -0.2 for less."""

    bias: float = 0.0

    def estimate(self, prompt_tokens: int, max_tokens: int | None, choices: int = 1) -> Estimate:
        """`choices` is what is generated (`n` or `best_of` of each prompt), 0 where nothing is."""
        answer = choices * (_ASSUMED_ANSWER_TOKENS if max_tokens is None else max_tokens)
        scale = 1.0 + self.bias
        return Estimate(prompt=math.ceil(prompt_tokens * scale), answer=math.ceil(answer * scale))


class Allowance(Protocol):
    """What a deployment may still do."""

    def admit(self, estimate: Estimate) -> Exceeded | None:
        """Charge one request. None: admitted; call `correct` when it has ended."""

    def correct(self, estimate: Estimate, prompt: int, answer: int) -> None:
        """What an admitted request has really cost, in tokens."""

    def headers(self) -> dict[str, str]:
        """As of the last request."""


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
    """The quota of one standard deployment. None is unlimited. `clock` is in seconds and never goes back."""

    def __init__(
        self,
        requests_per_minute: int | None,
        tokens_per_minute: int | None,
        clock: Callable[[], float],
    ) -> None:
        self._clock = clock
        self._requests_per_minute = requests_per_minute
        self._tokens_per_minute = tokens_per_minute
        self._bursts = [] if requests_per_minute is None else [_Window(seconds, 0) for seconds in _REQUEST_WINDOWS]
        self._requests = None if requests_per_minute is None else _Window(_MINUTE, 0)
        self._tokens = None if tokens_per_minute is None else _Window(_MINUTE, 0)
        self.scale(1.0)

    def scale(self, factor: float) -> None:
        """From now on allow `factor` of what is configured; what has been used stays used."""
        if self._requests is not None and self._requests_per_minute is not None:
            self._requests.limit = math.ceil(self._requests_per_minute * factor)
            for window, seconds in zip(self._bursts, _REQUEST_WINDOWS, strict=True):
                window.limit = math.ceil(self._requests_per_minute * factor * seconds / _MINUTE)
        if self._tokens is not None and self._tokens_per_minute is not None:
            self._tokens.limit = math.ceil(self._tokens_per_minute * factor)

    def admit(self, estimate: Estimate | int) -> Exceeded | None:
        """Charge one request of estimated tokens. None: admitted."""
        now = self._clock()
        for window in self._windows():
            window.turn(now)
        tokens = estimate if isinstance(estimate, int) else estimate.tokens
        return self._charge_request(now) or self._charge_tokens(tokens, now)

    def correct(self, estimate: Estimate, prompt: int, answer: int) -> None:
        """Changes nothing: a standard deployment is charged what was estimated."""

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
