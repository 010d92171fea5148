"""The life of one job as a protocol: queues with locks and duplicate detection, workers that can die at each step.

A worker's way through a message is a tuple of steps, so another order is another protocol. What is written here is
the contract of docs/architecture.md; that the code keeps to this order is tested where the code is
(tests/unit/flow), and with real processes in tests/faults.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from tests.model.explorer import Step

ENTRY, MODEL = "jobs", "jobs-m"
DEAD = "/dead letters"
MAX_DELIVERIES = 2
WORKERS = 2
FAULTS = 3
"""Crashes, stops, lapsed locks and lost confirmations in one history, all in all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """The steps by which a message is sorted, worked and swept. `looks_for_results`: whether a sink can tell."""

    sort: tuple[str, ...] = ("send on", "complete")
    work: tuple[str, ...] = ("look", "call", "write", "complete")
    sweep: tuple[str, ...] = ("write error", "complete")
    detects_duplicates: bool = True
    replay_has_its_own_id: bool = True
    sorted_copy_says_look: bool = True
    resubmission_says_look: bool = True
    stop_tells_of_writes: bool = True
    """Whether a job that is handed back after a write without a confirmation counts as delivered."""


class Message(NamedTuple):
    """`deliveries`: those that ended without a settlement. `look`: a result may be there, so look before paying."""

    queue: str
    replay: int
    deliveries: int = 0
    look: bool = False
    holder: int | None = None


class Worker(NamedTuple):
    """Within a message. `step`: what it does next, of the way that the queue says."""

    queue: str
    replay: int
    look: bool
    step: int = 0
    has_answer: bool = False
    may_have_written: bool = False
    """A write whose confirmation was lost."""


class World(NamedTuple):
    messages: tuple[Message, ...] = ()
    remembered: frozenset[tuple[str, int]] = frozenset()
    """Queue and id of what duplicate detection still knows."""
    sent: frozenset[int] = frozenset()
    """Replays that somebody was told of as sent; 0 is the job itself."""
    results: frozenset[tuple[int, str]] = frozenset()
    calls: tuple[int, int] = (0, 0)
    excused: tuple[int, int] = (0, 0)
    """Faults after which a call may be paid again: a death between call and write, or a lock that lapsed."""
    workers: tuple[Worker | None, ...] = (None,) * WORKERS
    faults: int = 0
    submissions: int = 0
    retries: int = 0
    was_forgotten: bool = False


class JobProtocol:
    """`steps`, `always` and `at_rest` for the explorer."""

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol

    def steps(self, world: World) -> Iterator[Step[World]]:
        yield from self._producer(world)
        yield from _broker(world)
        for number, worker in enumerate(world.workers):
            if worker is None:
                yield from _receive(world, number)
            else:
                yield self._advance(world, number, worker)
                if world.faults < FAULTS:
                    yield from self._faults(world, number, worker)

    def _faults(self, world: World, number: int, worker: Worker) -> Iterator[Step[World]]:
        is_unwritten = worker.has_answer and not worker.may_have_written
        dead = self._unlock(world, number, is_excuse=is_unwritten)
        yield Step(f"worker {number} dies", _set_worker(dead, number, None), is_fault=True)
        if self._way(worker)[worker.step] == "write" and not worker.may_have_written:
            written = _write(world, worker.replay, "answer")._replace(faults=world.faults + 1)
            unsure = _set_worker(written, number, worker._replace(may_have_written=True))
            yield Step(f"worker {number} writes and hears nothing", unsure, is_fault=True)
        if _held_by(world, number):
            late = self._unlock(world, number, is_excuse=self._will_pay(worker))
            yield Step(f"the lock of worker {number} lapses", late, is_fault=True)
            if worker.queue == ENTRY or self._will_pay(
                worker
            ):  # what is written is completed, and never handed back
                counts = worker.may_have_written and self._protocol.stop_tells_of_writes
                stopped = self._unlock(world, number, is_excuse=is_unwritten, counts=counts)
                yield Step(f"worker {number} stops", _set_worker(stopped, number, None), is_fault=True)

    def always(self, world: World) -> str | None:
        for replay in world.sent:
            is_there = any(message.replay == replay for message in world.messages)
            if not is_there and not _has_result(world, replay):
                return f"replay {replay} is lost: no queue has its message, and there is no result"
        for replay in (0, 1):
            if world.calls[replay] > 1 + world.excused[replay]:
                return f"replay {replay} was paid {world.calls[replay]} times after {world.excused[replay]} faults"
        return None

    def at_rest(self, world: World) -> str | None:
        missing = [replay for replay in world.sent if not _has_result(world, replay)]
        if missing:
            return f"nothing goes on, and replay {missing[0]} has no result"
        if world.messages:
            return f"nothing goes on, and {world.messages[0].queue} has a message"
        return None

    def _producer(self, world: World) -> Iterator[Step[World]]:
        if world.submissions < 2:
            look = world.submissions > 0 and self._protocol.resubmission_says_look
            sent = self._send(world, Message(ENTRY, 0, look=look))._replace(
                sent=world.sent | {0}, submissions=world.submissions + 1
            )
            yield Step("the producer submits", sent)
        if (0, "error") in world.results and (0, "answer") not in world.results and world.retries < 2:
            look = world.retries > 0
            sent = self._send(world, Message(ENTRY, 1, look=look))._replace(
                sent=world.sent | {1}, retries=world.retries + 1
            )
            yield Step("the producer retries", sent)

    def _send(self, world: World, message: Message) -> World:
        number = message.replay if self._protocol.replay_has_its_own_id else 0
        known = (message.queue, number)
        if self._protocol.detects_duplicates and known in world.remembered:
            return world
        return world._replace(messages=_sorted([*world.messages, message]), remembered=world.remembered | {known})

    def _advance(self, world: World, number: int, worker: Worker) -> Step[World]:
        way = self._way(worker)
        name = way[worker.step]
        world, worker = self._do(name, world, number, worker)
        is_done = worker.step + 1 >= len(way)
        world = _set_worker(world, number, None if is_done else worker._replace(step=worker.step + 1))
        return Step(f"worker {number}, {worker.queue}: {name}", world)

    def _way(self, worker: Worker) -> tuple[str, ...]:
        if worker.queue.endswith(DEAD):
            return self._protocol.sweep
        return self._protocol.sort if worker.queue == ENTRY else self._protocol.work

    def _do(self, name: str, world: World, number: int, worker: Worker) -> tuple[World, Worker]:
        replay = worker.replay
        match name:
            case "send on":
                look = worker.look and self._protocol.sorted_copy_says_look
                return self._send(world, Message(MODEL, replay, look=look)), worker
            case "look" if worker.look and _has_result(world, replay):
                return world, worker._replace(step=len(self._protocol.work) - 2)  # it only completes the message
            case "look":
                return world, worker
            case "call":
                calls = _raised(world.calls, replay)
                return world._replace(calls=calls), worker._replace(has_answer=True)
            case "write":
                return _write(world, replay, "answer"), worker._replace(has_answer=False, may_have_written=False)
            case "write error":
                return _write(world, replay, "error"), worker
            case "complete":
                kept = [message for message in world.messages if message.holder != number]
                return world._replace(messages=tuple(kept)), worker
        raise ValueError(f"no step is called {name!r}")

    def _unlock(self, world: World, number: int, *, is_excuse: bool, counts: bool = True) -> World:
        """The lock is gone, and where it `counts` the delivery count rises. Who held it may not know yet."""
        world = world._replace(faults=world.faults + 1)
        held = _held_by(world, number)
        if held is None:
            return world
        others = [message for message in world.messages if message.holder != number]
        return world._replace(
            messages=_sorted([*others, _delivered_again(held) if counts else held._replace(holder=None)]),
            excused=_raised(world.excused, held.replay) if is_excuse else world.excused,
        )

    def _will_pay(self, worker: Worker) -> bool:
        """Or has, and has not written it. Who loses the lock then calls the model without knowing."""
        return worker.queue == MODEL and "write" in self._protocol.work[worker.step :]


def _held_by(world: World, number: int) -> Message | None:
    return next((message for message in world.messages if message.holder == number), None)


def _broker(world: World) -> Iterator[Step[World]]:
    """The window of duplicate detection is as long as a job may live, so it ends when the job's messages have."""
    if world.remembered and not world.messages and not any(world.workers) and not world.was_forgotten:
        yield Step(
            "duplicate detection forgets", world._replace(remembered=frozenset(), was_forgotten=True), is_fault=True
        )


def _receive(world: World, number: int) -> Iterator[Step[World]]:
    for message in dict.fromkeys(world.messages):
        if message.holder is None:
            rest = list(world.messages)
            rest.remove(message)
            taken = world._replace(messages=_sorted([*rest, message._replace(holder=number)]))
            worker = Worker(message.queue, message.replay, message.look or message.deliveries > 0)
            yield Step(f"worker {number} receives from {message.queue}", _set_worker(taken, number, worker))


def _delivered_again(message: Message) -> Message:
    deliveries = message.deliveries + 1
    if message.queue.endswith(DEAD):
        return message._replace(holder=None)
    if deliveries == MAX_DELIVERIES:
        return Message(f"{message.queue}{DEAD}", message.replay)
    return message._replace(deliveries=deliveries, holder=None)


def _write(world: World, replay: int, what: str) -> World:
    """Under a name of its own, created only if nothing is there: writing again changes nothing."""
    return world._replace(results=world.results | {(replay, what)})


def _has_result(world: World, replay: int) -> bool:
    return any(number == replay for number, _ in world.results)


def _raised(counts: tuple[int, int], replay: int) -> tuple[int, int]:
    return (counts[0] + 1, counts[1]) if replay == 0 else (counts[0], counts[1] + 1)


def _set_worker(world: World, number: int, worker: Worker | None) -> World:
    workers = list(world.workers)
    workers[number] = worker
    return world._replace(workers=tuple(workers))


def _sorted(messages: list[Message]) -> tuple[Message, ...]:
    return tuple(sorted(messages, key=repr))
