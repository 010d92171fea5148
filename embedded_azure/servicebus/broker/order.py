"""The three orders the broker keeps: by sequence number, by availability, and by time.

Each is a dict for what is in it and a list for the order. Entries leave the dict at once and the list
lazily; the list is rebuilt when mostly stale, so every operation is O(log n) over time and memory
follows what is really there.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush
from math import inf
from typing import Generic, TypeVar

from embedded_azure.servicebus.broker.messages import Message

Key = TypeVar("Key", int, str)


def _mostly_stale(kept: int, live: int) -> bool:
    return kept > 2 * live + 64


class Ledger:
    """Every message a queue holds, in sequence order. Numbers are added in rising order only."""

    def __init__(self) -> None:
        self._messages: dict[int, Message] = {}
        self._numbers: list[int] = []

    def __len__(self) -> int:
        return len(self._messages)

    def add(self, message: Message) -> None:
        self._messages[message.sequence_number] = message
        self._numbers.append(message.sequence_number)

    def get(self, number: int) -> Message | None:
        return self._messages.get(number)

    def remove(self, number: int) -> Message:
        message = self._messages.pop(number)
        if _mostly_stale(len(self._numbers), len(self._messages)):
            self._numbers = list(self._messages)
        return message

    def starting_at(self, number: int) -> Iterator[Message]:
        for position in range(bisect_left(self._numbers, number), len(self._numbers)):
            message = self._messages.get(self._numbers[position])
            if message is not None:
                yield message


class Backlog:
    """Messages waiting to be taken, oldest first. One that comes back takes its old place."""

    def __init__(self) -> None:
        self._waiting: dict[int, Message] = {}
        self._heap: list[int] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, message: Message) -> None:
        self._waiting[message.sequence_number] = message
        heappush(self._heap, message.sequence_number)

    def pop(self) -> Message | None:
        while self._heap:
            message = self._waiting.pop(heappop(self._heap), None)
            if message is not None:
                return message
        return None

    def discard(self, message: Message) -> None:
        self._waiting.pop(message.sequence_number, None)
        if _mostly_stale(len(self._heap), len(self._waiting)):
            self._heap = sorted(self._waiting)


class Agenda(Generic[Key]):
    """What falls due when: at most one time for a key. `on_due(key, at)` is called by `strike`."""

    def __init__(self, on_due: Callable[[Key, float], None]) -> None:
        self._on_due: Callable[[Key, float], None] = on_due
        self._times: dict[Key, float] = {}
        self._heap: list[tuple[float, Key]] = []

    def __len__(self) -> int:
        return len(self._times)

    def put(self, key: Key, at: float) -> None:
        """Replaces the time `key` had."""
        self._times[key] = at
        heappush(self._heap, (at, key))
        self._compact()

    def drop(self, key: Key) -> None:
        self._times.pop(key, None)
        self._compact()

    def next_at(self) -> float:
        """The earliest time, `inf` if there is none."""
        while self._heap and self._times.get(self._heap[0][1]) != self._heap[0][0]:
            heappop(self._heap)
        return self._heap[0][0] if self._heap else inf

    def strike(self) -> None:
        """Takes the earliest entry off and reports it. Call it only when `next_at()` is finite."""
        at, key = heappop(self._heap)
        del self._times[key]
        self._on_due(key, at)

    def _compact(self) -> None:
        if _mostly_stale(len(self._heap), len(self._times)):
            self._heap = [(at, key) for key, at in self._times.items()]
            heapify(self._heap)
