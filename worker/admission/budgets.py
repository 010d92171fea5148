"""How much a deployment may be asked for: what a job will be charged, how fast, and how many at once.

Arithmetic only; every time is an argument, in seconds of one clock that never goes back.

Azure charges a request when it comes, by an estimate of its own, and counts in windows whose edges nobody tells:
a minute for tokens, 1 s and 10 s for requests. So jobs are spread evenly, a little below the budget, and the
pace is corrected once a minute by what the service says, so that the error of our estimate and the other pods
need not be told apart.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from worker.jobs.job import Job, Operation

FILL, LEAST_FILL = 0.98, 0.955
"""The part of a budget that is aimed at: the rest is for a minute that catches a job of each pod more than most."""

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

CHARACTERS_PER_TOKEN = 4
ASSUMED_ANSWER = 256
"""Tokens of an answer whose job names no limit. Azure's own figure is not published; the bias makes up for it."""
ASSUMED_ATTACHMENT = 1_000
"""Tokens of an image or a file within a prompt."""

_LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")


@dataclass(frozen=True, slots=True)
class Cost:
    """Our estimate, in tokens, of what the service charges for a job when it comes."""

    prompt: int
    answer: int = 0

    @property
    def tokens(self) -> int:
        return self.prompt + self.answer


def estimate(job: Job) -> Cost:
    """Four characters of the prompt to a token, and the longest answer that the job allows, as often as it asks."""
    body = job.line.body
    prompt = _characters(body) // CHARACTERS_PER_TOKEN + 1
    if job.line.operation is Operation.EMBEDDINGS:
        return Cost(prompt)
    longest = next((limit for name in _LIMITS if (limit := _count(body, name))), ASSUMED_ANSWER)
    return Cost(prompt, longest * max(1, _count(body, "n"), _count(body, "best_of")))


def _count(body: Mapping[str, object], name: str) -> int:
    """What the service will refuse anyway counts as absent."""
    value = body.get(name)
    return value if type(value) is int and 0 < value < 10_000_000 else 0


def _characters(value: object) -> int:
    """Of every text, without the names of fields; a token given as a number is as long as one of text."""
    if isinstance(value, str):
        return ASSUMED_ATTACHMENT * CHARACTERS_PER_TOKEN if value.startswith("data:") else len(value)
    if isinstance(value, dict):
        return sum([_characters(part) for part in value.values()])
    if isinstance(value, list):
        if value and type(value[0]) is int:
            return CHARACTERS_PER_TOKEN * len(value)
        return sum([_characters(part) for part in value])
    return 0


class Pace:
    """A budget a minute, of tokens or of requests, spread evenly over it.

    `limit` is the whole fleet's, None while unknown: then everything is admitted. `tolerance` is how many seconds
    of its rate may come at once. In any W seconds at one rate it admits at most `rate x (W + tolerance)` and the
    last one: what is admitted is paid for afterwards, so a large job goes first and makes the next wait longer.
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
        self._tolerance = tolerance
        self._fill = FILL
        self._debt = 0.0
        self._paid_at = -math.inf
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
        if self.limit is None:
            return -math.inf
        rate = self.rate
        wait = (self._debt - rate * (now - self._paid_at)) / rate - self._tolerance
        return now + wait if wait > 1e-6 else -math.inf  # what is nearer than a timer can tell is now

    def take(self, amount: float, now: float) -> float:
        """Charge an admitted one. Returns its mark, which `observe` wants back with the answer."""
        self._total += amount
        self.typical += (amount - self.typical) * (MEMORY if self.typical else 1.0)
        if self.limit is not None:
            self._debt = max(0.0, self._debt - self.rate * (now - self._paid_at)) + amount
            self._paid_at = now
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
        self._debt = 0.0  # what was refused was not charged
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
    A call succeeds, fails or is overload; whose ending says nothing about load is told to none of these. Overload
    counts once for all calls that were under way when it showed.
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
