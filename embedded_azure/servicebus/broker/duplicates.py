"""Duplicate detection: the message ids a queue accepted within its window.

As in Service Bus, an id counts from the moment its message was accepted, whatever becomes of the
message, and a repetition does not prolong it.
"""

from collections import deque


class DuplicateHistory:
    """Memory is one entry for each id of the last `window` seconds; None keeps nothing."""

    def __init__(self, window: float | None) -> None:
        self._window = window
        self._numbers: dict[str, int] = {}
        self._accepted: deque[tuple[float, str]] = deque()

    def __len__(self) -> int:
        return len(self._numbers)

    def number_of(self, message_id: str | None, now: float) -> int | None:
        """The sequence number under which the id was accepted, None if it is new."""
        self._forget(now)
        return self._numbers.get(message_id) if message_id else None

    def remember(self, message_id: str | None, number: int, now: float) -> None:
        if self._window is not None and message_id:
            self._numbers[message_id] = number
            self._accepted.append((now, message_id))

    def _forget(self, now: float) -> None:
        while self._window is not None and self._accepted and self._accepted[0][0] + self._window <= now:
            del self._numbers[self._accepted.popleft()[1]]
