"""From the entry queue to the queues of the models: receive many, send them on in batches, then complete them.

The problem: a queue is first in, first out, so jobs of a throttled model would stand before all others. The idea:
nobody works off the entry queue. Whatever gates, slots and the sink say, each job goes to the queue of its model,
which waits for that model only. `jobs/sorting.py` decides where a message goes and what its copy looks like.

A crash between sending and completing sends a job twice: the copy has the same message-id, so the model's queue
drops the second. Each model's queue has its own coroutine and its own line of held messages, so one that is full,
missing or refused holds up no other, until its line is as long as we can keep under locks. While suspects run apart
(`admission/suspects.py`), what cannot be sent on is handed back: they may take the process, and a delivery of all
that it holds, again and again.
"""

import asyncio
import math
import random
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from worker.admission.admission import Admission
from worker.admission.closures import Closure
from worker.admission.memory import Memory, Reservation
from worker.errors import ClaimUnavailable, LockLost, NotAJob, SourceUnavailable
from worker.flow.retry import RetryPolicy
from worker.interfaces import (
    Claims,
    Delivery,
    EntryQueue,
    Forward,
    JobSender,
    JobsReceived,
    JobsSorted,
    Observer,
    Settled,
    SortingFailed,
)
from worker.jobs.job import Claim
from worker.jobs.outcomes import Complete, Failed, Release, Settlement
from worker.jobs.sorting import EXPIRED, Decision, Fetch, SendOn, WorkHere, decide, has_expired, sorted_copy
from worker.waits import Bell, loop_time

TOGETHER = 256
"""Messages in one receive at most. At one round trip of some 30 ms each for receiving, sending and completing, that
is more than a core can sort."""

HELD_AT_MOST = 1_000
"""Of one model, while its queue cannot be used: every lock must be renewed."""

FIRST_SIZE = 1 << 20
"""Bytes that a message is taken for until some have come, so that the first receive is within the limit too: the
largest of the premium tier, unless larger ones are enabled."""

RECEIVE_WAIT = 1.0
"""Seconds that one receive may wait for a first message. It must not be cancelled, so it bounds the drain."""

WorkInPlace = Callable[[Delivery, Failed | None], Coroutine[Any, Any, None]]
"""Take a delivery through its life as the consumer does; with a verdict it is not called but refused."""


@dataclass(slots=True, eq=False)
class _Held:
    """A message under our lock. `since`: the loop's time when it came."""

    delivery: Delivery
    memory: Reservation
    since: float
    is_over: bool = False
    """Settled, given to another, or its lock is lost."""


@dataclass(slots=True, eq=False)
class _Line:
    """What is held for one model. `trouble`: why its queue could not be used last."""

    model: str
    sender: JobSender
    waiting: list[_Held] = field(default_factory=list)
    held: int = 0
    """Those that wait, are being sent or completed."""
    trouble: str | None = None
    bell: Bell = field(default_factory=Bell)


class Sorter:
    """Sorts the queue `source`. `senders` by model. Its own `bytes_limit` bounds what it holds, as it must not wait
    for jobs that are being answered. `clock` is Unix time."""

    def __init__(
        self,
        *,
        source: EntryQueue,
        senders: Mapping[str, JobSender],
        work_in_place: WorkInPlace,
        claims: Claims | None,
        admission: Admission,
        observer: Observer,
        bytes_limit: float = math.inf,
        policy: RetryPolicy = RetryPolicy(base=1.0, cap=10.0),
        chance: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.queue = source.queue
        self._source = source
        self._lines = {model: _Line(model, sender) for model, sender in senders.items()}
        self._work_in_place = work_in_place
        self._claims = claims
        self._admission = admission
        self._observer = observer
        self._policy = policy
        self._chance = chance
        self._clock = clock
        self._bell = Bell()
        self._memory = Memory(bytes_limit, self._bell)
        self._memory.take(FIRST_SIZE).free()
        self._fetching = 0
        self._claims_trouble: str | None = None
        self._in_place = 0
        self._had_backlog = True

    async def run(self) -> None:
        """Until it is stopping and everything held is settled: what is not sent by then is given back."""
        async with asyncio.TaskGroup() as settling:
            async with asyncio.TaskGroup() as loops:
                loops.create_task(self._ring_at_stop(), name="end of the sorter")
                loops.create_task(self._receive(loops, settling), name=f"sorter of {self.queue}")
                for line in self._lines.values():
                    loops.create_task(self._send(line, settling), name=f"sorted to {line.sender.queue}")
            for line in self._lines.values():
                self._hand_back(line, settling)

    async def _ring_at_stop(self) -> None:
        await self._admission.stopping(math.inf)
        self._bell.ring()
        for line in self._lines.values():
            line.bell.ring()

    # Receiving

    async def _receive(self, loops: asyncio.TaskGroup, settling: asyncio.TaskGroup) -> None:
        failures = 0
        while count := await self._room():
            self._admission.note_sorting(count)
            try:
                deliveries = await self._source.receive(count, wait=RECEIVE_WAIT)
            except SourceUnavailable as error:
                self._admission.note_sorting(-count)
                failures += 1
                self._admission.close(Closure.SORTING, str(error))
                await self._admission.stopping(loop_time() + self._policy.backoff(failures, self._chance()))
                continue
            failures = 0
            self._admission.note_sorting(len(deliveries) - count)
            self._admission.open(Closure.SORTING)
            self._note_received(deliveries)
            for delivery in deliveries:
                held = _Held(delivery, self._memory.take(len(delivery.envelope.body)), loop_time())
                delivery.when_lost(partial(self._let_go, held))
                self._follow(held, self._decide(delivery), loops, settling)

    async def _room(self) -> int:
        """How many messages to ask for, waiting until there is room; 0 once it is stopping."""
        while await self._admission.may_sort():
            free = HELD_AT_MOST - max(
                [line.held for line in self._lines.values()] + [self._fetching, self._in_place]
            )
            if (count := int(min(TOGETHER, free, self._memory.fitting(0)))) > 0:
                return count
            if troubles := "; ".join(self._troubles()):
                self._admission.close(Closure.SORTING, f"the limit of held jobs is reached: {troubles}")
            await self._bell.wait()
        return 0

    def _troubles(self) -> Iterator[str]:
        for line in self._lines.values():
            if line.trouble:
                yield f"{line.held:,} jobs wait for {line.trouble}"
        if self._claims_trouble:
            yield f"{self._fetching:,} claims cannot be read: {self._claims_trouble}"
        if self._in_place >= HELD_AT_MOST:
            yield f"{self._in_place:,} jobs ask for models that this pod does not know"

    def _note_received(self, deliveries: Sequence[Delivery]) -> None:
        if deliveries or self._had_backlog:
            redelivered = sum(delivery.envelope.delivery_count > 0 for delivery in deliveries)
            age = self._clock() - deliveries[-1].envelope.waiting_since if deliveries else 0.0
            event = JobsReceived(
                queue=self.queue, count=len(deliveries), redelivered=redelivered, age=max(0.0, age)
            )
            self._observer(event)
        self._had_backlog = bool(deliveries)

    def _decide(self, delivery: Delivery, body: bytes | None = None) -> Decision:
        try:
            return decide(delivery.envelope, self._lines, self._clock(), body=body)
        except Exception:  # a fault of ours must cost one job; the processor makes a record of it
            return WorkHere()

    def _follow(
        self, held: _Held, decision: Decision, loops: asyncio.TaskGroup, settling: asyncio.TaskGroup
    ) -> None:
        match decision:
            case SendOn(model):
                line = self._lines[model]
                line.held += 1
                line.waiting.append(held)
                line.bell.ring()
            case Fetch(claim) if self._claims is not None:
                self._fetching += 1
                loops.create_task(self._fetch(held, claim, self._claims, loops, settling))
            case Fetch():
                self._give_to_consumer(held, None, settling)
            case WorkHere(verdict):
                self._give_to_consumer(held, verdict, settling)

    def _give_to_consumer(self, held: _Held, verdict: Failed | None, settling: asyncio.TaskGroup) -> None:
        if not held.is_over:
            self._let_go(held)
            self._in_place += 1
            settling.create_task(self._finish_in_place(held.delivery, verdict))

    async def _finish_in_place(self, delivery: Delivery, verdict: Failed | None) -> None:
        try:
            await self._work_in_place(delivery, verdict)
        finally:
            self._in_place -= 1
            self._bell.ring()

    async def _fetch(
        self,
        held: _Held,
        claim: Claim,
        claims: Claims,
        loops: asyncio.TaskGroup,
        settling: asyncio.TaskGroup,
    ) -> None:
        """Fetch until it can be read: a store that is down is no fault of the job."""
        decision: Decision | None = WorkHere()
        room = self._memory.take(0)
        try:
            claims.require_ours(claim)
            await room.hold(claim.length)
            decision = await self._read(held, claim, claims)
        except NotAJob:
            pass  # the consumer dead-letters it
        finally:
            self._fetching -= 1
            room.free()  # of the body only the model was wanted
        if decision is None:
            await self._end(held, None, Release())
        elif not held.is_over:
            self._follow(held, decision, loops, settling)

    async def _read(self, held: _Held, claim: Claim, claims: Claims) -> Decision | None:
        """None where its lock is lost, or it must be handed back, before the body could be read."""
        failures = 0
        while not held.is_over:
            try:
                decision = self._decide(held.delivery, await claims.fetch(claim))
            except ClaimUnavailable as error:
                failures += 1
                self._claims_trouble = str(error)
                self._observer(SortingFailed(queue=self.queue, held=self._fetching, detail=str(error)))
                if await self._must_hand_back(failures):
                    return None
            else:
                self._claims_trouble = None
                return decision
        return None

    # Sending

    async def _send(self, line: _Line, settling: asyncio.TaskGroup) -> None:
        failures = 0
        while not self._admission.state.is_stopping:
            forwards = self._next(line, settling)
            if not forwards:
                await line.bell.wait()
                continue
            try:
                await self._send_once(line, forwards, settling)
            except SourceUnavailable as error:
                failures += 1
                line.trouble = str(error)
                self._observer(SortingFailed(queue=line.sender.queue, held=line.held, detail=str(error)))
                self._bell.ring()
                if await self._must_hand_back(failures) and not self._admission.state.is_stopping:
                    self._hand_back(line, settling)  # at a stop it is done when nothing more is received
            else:
                failures, line.trouble = 0, None

    async def _must_hand_back(self, failures: int) -> bool:
        """Wait before the next try; whether there is none now."""
        return await self._admission.must_hand_back(loop_time() + self._policy.backoff(failures, self._chance()))

    def _hand_back(self, line: _Line, settling: asyncio.TaskGroup) -> None:
        for held in line.waiting:
            settling.create_task(self._end(held, line, Release()))
        line.waiting.clear()

    def _next(self, line: _Line, settling: asyncio.TaskGroup) -> dict[Forward, _Held]:
        """All that wait, as they are sent now."""
        now, forwards = self._clock(), dict[Forward, _Held]()
        for held in line.waiting:
            envelope = held.delivery.envelope
            if held.is_over:
                line.held -= 1
            elif has_expired(envelope, now):
                line.held -= 1
                self._give_to_consumer(held, EXPIRED.verdict, settling)
            else:
                forwards[Forward(held.delivery, sorted_copy(envelope, line.model, now))] = held
        line.waiting.clear()
        return forwards

    async def _send_once(self, line: _Line, forwards: dict[Forward, _Held], settling: asyncio.TaskGroup) -> None:
        def sent(some: Iterable[Forward]) -> None:
            confirmed = [forwards.pop(forward) for forward in some]
            settling.create_task(self._complete(confirmed, line))

        def refuse(forward: Forward) -> None:
            line.held -= 1
            self._give_to_consumer(forwards.pop(forward), None, settling)

        try:
            await line.sender.send_on(list(forwards), sent=sent, refuse=refuse)
        finally:
            line.waiting[:0] = forwards.values()  # before those that have come meanwhile

    async def _complete(self, sent: Sequence[_Held], line: _Line) -> None:
        """What is not confirmed comes again, and duplicate detection drops what was sent."""
        ours = [held for held in sent if not held.is_over]
        try:
            confirmed = await self._source.complete([held.delivery for held in ours])
        finally:
            line.held -= len(sent)
            for held in sent:
                self._let_go(held)
        for number in range(len(ours)):
            self._observer(Settled(settlement=Complete(), confirmed=number < len(confirmed)))
        seconds = loop_time() - min(held.since for held in sent)
        self._observer(JobsSorted(queue=line.sender.queue, model=line.model, count=len(sent), seconds=seconds))

    async def _end(self, held: _Held, line: _Line | None, settlement: Settlement) -> None:
        try:
            if not held.is_over:
                await held.delivery.settle(settlement)
                self._observer(Settled(settlement=settlement, confirmed=True))
        except (LockLost, SourceUnavailable):
            self._observer(Settled(settlement=settlement, confirmed=False))
        finally:
            if line is not None:
                line.held -= 1
            self._let_go(held)

    def _let_go(self, held: _Held) -> None:
        """Where it waits in a line, the line finds out when it sends next."""
        if not held.is_over:
            held.is_over = True
            held.memory.free()
            self._admission.note_sorting(-1)
        self._bell.ring()
