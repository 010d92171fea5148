"""What each receiver of a queue has taken of the slots: state that `plan.py` decides on."""

import asyncio
import math

FIRST_BACKOFF = 1.0
LAST_BACKOFF = 30.0
"""Seconds without receiving after a job was handed back that cannot be kept here: doubling from the first to the
last. The broker would give us the same job at once, again and again."""


class QueueIntake:
    """One receiver's share of the slots. `models` are those that its jobs may ask for; None: all."""

    def __init__(self, queue: str, models: frozenset[str] | None) -> None:
        self.queue = queue
        self.models = models
        self.in_flight = 0
        """Deliveries that take a slot."""
        self.reserved = 0
        """Messages that are asked for."""
        self.has_backlog = True
        self.trouble: str | None = None
        """Why it could not be received last."""
        self.asks: asyncio.Future[int] | None = None
        """Brings how many messages to ask for; None while nobody wants to know."""
        self.asked = 0
        """The ticket of that question: who asked first is served first."""
        self.backed_off_until = -math.inf
        self._backoff = 0.0

    @property
    def is_owed(self) -> bool:
        """Whether there is something to receive, as far as is known, and a way to."""
        return self.has_backlog and self.trouble is None

    def back_off(self, now: float) -> None:
        """Receive nothing for a while, longer each time: jobs that cannot be kept would come again at once."""
        if now >= self.backed_off_until:
            self._backoff = min(max(FIRST_BACKOFF, 2 * self._backoff), LAST_BACKOFF)
            self.backed_off_until = now + self._backoff

    def reset_backoff(self) -> None:
        """A job of this queue could be called."""
        self._backoff = 0.0
