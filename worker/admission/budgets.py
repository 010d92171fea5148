"""How fast a deployment's budget may be spent.

Arithmetic only; every time is an argument, in seconds of one clock that never goes back.

Azure charges a request when it comes, by an estimate of its own, and counts in windows whose edges it does not
publish: a minute for tokens, 1 s and 10 s for requests. So jobs are spread evenly, a little below the budget
(`TokenBucket`), and the pace is corrected once a minute by what the service says (`PaceController`), so that the
error of our estimate and the other pods need not be distinguished.
"""

import math
from dataclasses import dataclass

FILL, LEAST_FILL = 0.98, 0.955
"""Target utilisation of a budget, at most and at least. The margin absorbs one extra job per pod in a window."""

MINUTE = 60.0
LONGEST_MINUTE = 75.0
"""Seconds after which a minute is closed though the service's was not seen to begin anew."""

MOST_BIAS = 8.0
"""How far, as a factor either way, the service's estimate may be from ours."""

USED = 0.85
"""Of the pace: who takes less than that lacks jobs, not budget."""

FIRST_GROWTH, LAST_GROWTH = 0.005, 0.25
"""Of the pace, after a minute without a word from the service: doubling, until a 429 shows that it is enough."""

MEMORY = 0.05
"""The weight of the newest in what is typical."""


class TokenBucket:
    """What has been spent and is not paid for yet, at a rate that each question names.

    `tolerance` is how many seconds of the rate may come at once. In any W seconds at one rate it admits at most
    `rate x (W + tolerance)` and the last one: what is admitted is paid for afterwards, so a large job goes first
    and makes the next wait longer.
    """

    def __init__(self, tolerance: float) -> None:
        self._tolerance = tolerance
        self._debt = 0.0
        self._paid_at = -math.inf

    def ready_at(self, rate: float, now: float) -> float:
        """When the next one may go, however large it is."""
        wait = (self._debt - rate * (now - self._paid_at)) / rate - self._tolerance
        return now + wait if wait > 1e-6 else -math.inf  # what is nearer than a timer can tell is now

    def take(self, amount: float, rate: float, now: float) -> None:
        self._debt = max(0.0, self._debt - rate * (now - self._paid_at)) + amount
        self._paid_at = now

    def refill(self) -> None:
        """Nothing is owed any more."""
        self._debt = 0.0


class PaceController:
    """A budget a minute, of tokens or of requests, spread evenly over it at a pace that is learnt.

    `limit` is the whole fleet's, None while unknown: then everything is admitted. `tolerance` is that of the
    `TokenBucket`.
    """

    def __init__(self, limit: float | None, *, fleet_size: int = 1, tolerance: float = 1.0) -> None:
        self.limit: float | None = None
        self.share = 0.0
        """Of this pod, a minute, as the service counts: from an equal part up to the whole limit."""
        self.bias = 1.0
        """What the service charges for one of ours."""
        self.remaining: float | None = None
        """What the service said last; None: nothing, or not in this minute."""
        self.typical = 0.0
        """What one takes, of late."""
        self._configured = limit
        self._said_limit: float | None = None
        self._fleet_size = fleet_size
        self._fill = FILL
        self._bucket = TokenBucket(tolerance)
        self._total = 0.0
        self._growth = 4 * FIRST_GROWTH  # before the first 429 more may be missing than after it
        self._minute = _Minute(began_at=-math.inf, began_with=0.0)
        self._note_limit(limit)

    @property
    def rate(self) -> float:
        """Ours a second; infinite without a limit."""
        return math.inf if self.limit is None else self._fill * self.share / self.bias / MINUTE

    def ready_at(self, now: float) -> float:
        """When the next one may go, however large it is."""
        return -math.inf if self.limit is None else self._bucket.ready_at(self.rate, now)

    def take(self, amount: float, now: float) -> float:
        """Charge an admitted one. Returns its mark, which `observe` wants back with the answer."""
        self._total += amount
        self.typical += (amount - self.typical) * (MEMORY if self.typical else 1.0)
        if self.limit is not None:
            self._bucket.take(amount, self.rate, now)
            if now - self._minute.began_at >= LONGEST_MINUTE:
                self._begin_minute(now, self._total)
        return self._total

    def observe(self, limit: float | None, remaining: float | None, *, admitted_at: float, mark: float) -> None:
        """What an answer says, to a call that was admitted then. Its limit stands in for one that nobody set."""
        if limit is not None and limit != self._said_limit:
            self._said_limit = limit
            self._note_limit(limit if self._configured is None else min(limit, self._configured))
        if remaining is None or self.limit is None or admitted_at < self._minute.began_at:
            return
        least = self._minute.least
        if least is not None and remaining > least + self._whole / 5:
            self._begin_minute(admitted_at, mark)
        self.remaining = remaining
        self._minute.least = remaining if self._minute.least is None else min(self._minute.least, remaining)

    def overdraw(self, retry_after: float | None, now: float) -> None:
        """The service refused for this budget until `retry_after` has passed, which is where its minute ends.

        At this pace the minute's quota was used up early; the pace that would have lasted is in proportion.
        """
        if self.limit is None:
            return
        lasted = 0.9 if retry_after is None or retry_after >= MINUTE else 1.0 - retry_after / MINUTE
        self._correct(min(max(lasted, 0.7), self._fill))
        self._growth = FIRST_GROWTH
        self._bucket.refill()  # what was refused was not charged
        self._minute = _Minute(began_at=now + min(retry_after or 0.0, MINUTE), began_with=self._total)

    @property
    def _whole(self) -> float:
        """The service's limit, which may be more than we are to use of it."""
        return self._said_limit or self.limit or 0.0

    def _note_limit(self, limit: float | None) -> None:
        self.limit = limit
        if limit is not None:
            self.share = limit / self._fleet_size

    def _begin_minute(self, now: float, mark: float) -> None:
        """Close the minute, correct the pace by it, and begin another."""
        minute, self._minute = self._minute, _Minute(began_at=now, began_with=mark)
        self.remaining = None
        lasted = now - minute.began_at
        if self.limit is not None and MINUTE / 2 <= lasted < math.inf:
            kept_up = (mark - minute.began_with) / lasted / self.rate
            # it lasts longer where the pace lets a job in every few minutes, or where jobs were lacking
            if lasted <= 2 * LONGEST_MINUTE or kept_up >= USED:
                self._judge(self.limit, minute.least, kept_up)
            job = self._fleet_size * self.typical * self.bias / self.limit
            self._fill = min(FILL, max(LEAST_FILL, 1.0 - job))

    def _judge(self, limit: float, least: float | None, kept_up: float) -> None:
        """`kept_up`: what was taken of what the pace allowed."""
        if least is None:
            if kept_up >= USED:
                self._probe()
            return
        fitting = self._fill * limit / max(self._whole - least, 1.0)
        if kept_up >= USED:
            fitting *= kept_up
        if self._whole > limit:  # others use the rest of the quota, and need not be given way to
            fitting = max(fitting, limit / self._fleet_size / self.share)
        if fitting < 1.0 or kept_up >= USED:
            self._correct(fitting)

    def _probe(self) -> None:
        """Nothing was said and nothing refused: there may be more."""
        self._correct(1.0 + self._growth)
        self._growth = min(2 * self._growth, LAST_GROWTH)

    def _correct(self, factor: float) -> None:
        """Change the pace. A share grows to the whole limit before the estimate is doubted, and shrinks to an equal
        part."""
        assert self.limit is not None, "without a limit there is no pace"
        factor = min(max(factor, 0.5), 2.0)
        share = min(max(self.share * factor, self.limit / self._fleet_size), self.limit)
        rest = factor * self.share / share
        self.share = share
        self.bias = min(max(self.bias / rest, 1 / MOST_BIAS), MOST_BIAS)


@dataclass(slots=True)
class _Minute:
    """What is known of the service's minute. `began_with` is the total that had been charged before it; `least`
    what the service said remained."""

    began_at: float
    began_with: float
    least: float | None = None
