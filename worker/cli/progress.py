"""How far a command is: a bar where somebody watches, elsewhere lines."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from worker.cli.terminal import Heartbeat, complain

if TYPE_CHECKING:
    from worker.client import Progress

WAITING_AFTER = 60.0
"""Seconds without a new result after which a log says what is waited for."""


@contextmanager
def progress_of(verb: str, heartbeat: Heartbeat | None = None) -> "Iterator[Callable[[Progress], None]]":
    """A bar where somebody watches; elsewhere a line for each tenth."""
    if not sys.stderr.isatty():
        yield ProgressLines(verb, heartbeat.say if heartbeat else complain)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeElapsedColumn(),
    )
    speed = _Speed()
    with Bars(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(verb, total=None, speed="")

        def move(now: "Progress") -> None:
            described = speed.describe(now)
            bar.update(task, completed=_shown(now), total=now.total, description=_label(verb, now), speed=described)
            if heartbeat:
                heartbeat.note_said()

        yield move


def _shown(now: "Progress") -> int:
    return now.done if now.total is None else min(now.done, now.total)


class _Speed:
    """Jobs a second since the first progress, which may begin in the middle, and the time left at that speed."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began: tuple[float, int] | None = None

    def describe(self, now: "Progress") -> str:
        """`9,000/s, 0:01:30 left`; empty where nothing is known yet."""
        if now.total is None or now.held:
            return ""
        moment = self._clock()
        began, before = self._began = self._began or (moment, now.done)
        if moment <= began or now.done <= before:
            return ""
        rate = (now.done - before) / (moment - began)
        left = timedelta(seconds=round(max(0, now.total - now.done) / rate))
        return f"{rate:,.0f}/s" + (f", {left} left" if now.done < now.total else "")


class ProgressLines:
    """Progress for a log: a line when another tenth is done, and when nothing has come for a minute."""

    def __init__(
        self, verb: str, say: Callable[[str], None] = complain, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._verb = verb
        self._say = say
        self._clock = clock
        self._speed = _Speed(clock)
        self._told = ""
        self._done = -1
        self._done_at = clock()

    def __call__(self, now: "Progress") -> None:
        if now.done != self._done:
            self._done, self._done_at = now.done, self._clock()
        text, speed = self._describe(now), self._speed.describe(now)
        if text != self._told:
            self._told = text
            self._say(f"{text} ({now.done:,}{'; ' if speed else ''}{speed})")

    def _describe(self, now: "Progress") -> str:
        label = _label(self._verb, now)
        if label != self._verb or not now.total:
            return label
        if now.done < now.total and self._clock() - self._done_at >= WAITING_AFTER:
            return f"waiting for the other {now.total - now.done:,} of {now.total:,} results"
        return f"{label}: {min(10, now.done * 10 // now.total) * 10} %"


def _label(verb: str, now: "Progress") -> str:
    if now.held:
        return "waiting for another collector to end"
    if now.total is None:
        return "waiting for the batch's manifest"
    return verb
