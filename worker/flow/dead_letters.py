"""A pass over a dead-letter queue, of which some messages go and the others stay.

Service Bus has no way to take a message by its sequence number. So what lies before a wanted one is received too,
held under lock, and released at the end of the pass, which leaves it where it was. Several may do this at once: a
message is under one lock only, and who comes later does not find it.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Self

from worker.errors import LockLost, SourceUnavailable
from worker.interfaces import DeadLetters, Delivery
from worker.jobs.job import Envelope
from worker.jobs.outcomes import Complete, Release

HELD = 2_000
"""Of those that stay a pass holds about so many at most, to reach what lies behind them."""


async def pages(dead_letters: DeadLetters, count: int) -> AsyncIterator[Sequence[Envelope]]:
    """All that is there, up to `count` at once; nothing is locked. Raises SourceUnavailable."""
    following = 0
    while envelopes := await dead_letters.peek(following, count):
        yield envelopes
        following = envelopes[-1].sequence_number + 1


class Pass:
    """An async context manager; at its end all that is `held`, by sequence number, is released.

    Each receive brings `count` at most and waits up to `wait` seconds. Little more than `held_bytes` of bodies are
    held.
    """

    def __init__(self, dead_letters: DeadLetters, *, count: int, wait: float, held_bytes: int) -> None:
        self.held: dict[int, Delivery] = {}
        self._dead_letters = dead_letters
        self._count = count
        self._wait = wait
        self._held_bytes = held_bytes

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """A lock that cannot be given back lapses."""
        releases = [delivery.settle(Release()) for delivery in self.held.values()]
        for outcome in await asyncio.gather(*releases, return_exceptions=True):
            if isinstance(outcome, BaseException) and not isinstance(outcome, (LockLost, SourceUnavailable)):
                raise outcome

    @property
    def is_full(self) -> bool:
        size = sum(len(delivery.envelope.body) for delivery in self.held.values())
        return len(self.held) >= HELD or size >= self._held_bytes

    async def receive(self) -> Sequence[Delivery]:
        """Hold more; empty if there are no more, or it is full. Raises SourceUnavailable."""
        if self.is_full:
            return []
        deliveries = await self._dead_letters.receive(self._count, wait=self._wait)
        self.held |= {delivery.envelope.sequence_number: delivery for delivery in deliveries}
        return deliveries

    async def complete(self, delivery: Delivery) -> bool:
        """Take away one that is held. False where its lock was lost, so that it may still be there.

        Raises SourceUnavailable where the broker did not confirm it.
        """
        del self.held[delivery.envelope.sequence_number]
        try:
            await delivery.settle(Complete())
        except LockLost:
            return False
        return True
