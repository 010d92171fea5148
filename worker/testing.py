"""Fakes that keep the promises of `interfaces.py`, for this project's tests and for yours.

`tests/contract` holds `FakeQueue` and `FakeSink` to the same promises as the real adapters. Time is the event
loop's, so a virtual clock governs them too.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import TypeVar

import orjson

from worker.errors import ClaimUnavailable, LockLost, ResultTooLarge, SinkUnavailable, SourceUnavailable
from worker.interfaces import AnswerMemory, Delivery, Event, Forward, Target
from worker.jobs.batch_records import PodReport
from worker.jobs.claims import invalid_claim, make_claim
from worker.jobs.job import Claim, Envelope, Job
from worker.jobs.outcomes import Abandon, Complete, DeadLetter, Release, Response, Settlement, Usage
from worker.jobs.results import Result, ResultSummary, result_id
from worker.waits import EARLY, Bell, loop_time


class FakeDelivery:
    """A message of a `FakeQueue`. `lose()` takes its lock away."""

    def __init__(self, envelope: Envelope, queue: "FakeQueue") -> None:
        self.envelope = envelope
        self.is_lost = False
        self._queue = queue
        self._callback: Callable[[], None] | None = None

    def when_lost(self, callback: Callable[[], None]) -> None:
        self._callback = callback
        if self.is_lost:
            callback()

    async def settle(self, settlement: Settlement) -> None:
        await asyncio.sleep(0)
        self._queue.settle(self, settlement)

    def lose(self) -> None:
        self.is_lost = True
        if self._callback is not None:
            self._callback()


class FakeQueue:
    """A `Source` in memory. `settled` tells what became of each delivery, in order.

    `down`: receiving raises SourceUnavailable; `mute`: settlements are never confirmed. A message delivered too
    often leaves the queue for `dead`, without a settlement of ours. It is a `DeadLetters` too, of what was `sent`
    with a reason.
    """

    def __init__(self, name: str = "jobs", *, clock: Callable[[], float], max_delivery_count: int = 20) -> None:
        self.queue = name
        self.max_delivery_count = max_delivery_count
        self.down = False
        self.mute = False
        self.settled: list[tuple[str | None, Settlement]] = []
        self.dead: list[tuple[Envelope, DeadLetter | None]] = []
        self.locked: list[FakeDelivery] = []
        self._clock = clock
        self._waiting: list[Envelope] = []
        self._numbers = count(1)
        self._bell = Bell()

    def __len__(self) -> int:
        return len(self._waiting)

    def send(
        self,
        body: bytes,
        *,
        message_id: str | None = None,
        correlation_id: str | None = "batch",
        properties: Mapping[str, object] | None = None,
        delivery_count: int = 0,
        content_type: str | None = "application/json",
        dead_letter_reason: str | None = None,
        time_to_live: float | None = None,
    ) -> None:
        now = self._clock()
        self._put(
            Envelope(
                body=body,
                queue=self.queue,
                sequence_number=next(self._numbers),
                enqueued_at=now,
                message_id=message_id,
                correlation_id=correlation_id,
                content_type=content_type,
                delivery_count=delivery_count,
                dead_letter_reason=dead_letter_reason,
                expires_at=None if time_to_live is None else now + time_to_live,
                properties=properties or {},
            )
        )

    async def receive(self, count: int, *, wait: float) -> Sequence[Delivery]:
        if self.down:
            raise SourceUnavailable(f"queue {self.queue!r}: down")
        until = loop_time() + wait
        # who comes too late waits on, before those who have just received, as at a broker
        while not self._waiting and loop_time() + EARLY < until:
            await self._bell.wait(until)
        taken = [FakeDelivery(envelope, self) for envelope in self._waiting[:count]]
        del self._waiting[:count]
        self.locked += taken
        return taken

    async def complete(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        confirmed = []
        for delivery in deliveries:
            try:
                await delivery.settle(Complete())
            except (LockLost, SourceUnavailable):
                continue
            confirmed.append(delivery)
        return confirmed

    async def peek(self, following: int, count: int) -> Sequence[Envelope]:
        await asyncio.sleep(0)
        if self.down:
            raise SourceUnavailable(f"queue {self.queue!r}: down")
        return [envelope for envelope in self._waiting if envelope.sequence_number >= following][:count]

    def settle(self, delivery: FakeDelivery, settlement: Settlement) -> None:
        """What `FakeDelivery.settle` comes to."""
        if delivery.is_lost or delivery not in self.locked:
            raise LockLost("the lock lapsed")
        if self.mute:
            raise SourceUnavailable("unconfirmed")
        self.locked.remove(delivery)
        self.settled.append((delivery.envelope.message_id, settlement))
        self._follow(delivery.envelope, settlement)

    def lapse(self, delivery: FakeDelivery) -> None:
        """The broker's view of a lost lock: the message is available again, its count raised."""
        self.locked.remove(delivery)
        delivery.lose()
        self._put(_redelivered(delivery.envelope, 1))

    def _follow(self, envelope: Envelope, settlement: Settlement) -> None:
        match settlement:
            case Release():
                self._put(_redelivered(envelope, 0))
            case Abandon():
                self._put(_redelivered(envelope, 1))
            case DeadLetter():
                self.dead.append((envelope, settlement))
            case Complete():
                pass

    def _put(self, envelope: Envelope) -> None:
        if envelope.delivery_count >= self.max_delivery_count:
            self.dead.append((envelope, None))
            return
        self._waiting.append(envelope)
        self._waiting.sort(key=lambda waiting: waiting.sequence_number)
        self._bell.ring()


class FakeSender:
    """A `JobSender` to a FakeQueue, which drops what it has seen before by its message-id.

    `trouble`: nothing can be sent, for this reason. `unconfirmed`: so many sendings arrive and are not confirmed.
    `largest`: bytes of a body that is refused if it has more. A sending takes `seconds`.
    """

    def __init__(self, queue: FakeQueue, *, largest: int | None = None, seconds: float = 0.02) -> None:
        self.trouble: str | None = None
        self.unconfirmed = 0
        self.duplicates = 0
        self.sendings: list[int] = []
        self._target = queue
        self._largest = largest
        self._seconds = seconds
        self._seen: set[str] = set()

    @property
    def queue(self) -> str:
        return self._target.queue

    async def send_on(
        self,
        forwards: Sequence[Forward],
        *,
        sent: Callable[[Sequence[Forward]], None],
        refuse: Callable[[Forward], None],
    ) -> None:
        await asyncio.sleep(self._seconds)
        if self.trouble:
            raise SourceUnavailable(self.trouble, subject=f"queue {self.queue!r}")
        fitting = []
        for forward in forwards:
            if self._largest is not None and len(forward.delivery.envelope.body) > self._largest:
                refuse(forward)
            else:
                fitting.append(forward)
                self._arrive(forward)
        self.sendings.append(len(fitting))
        if self.unconfirmed:
            self.unconfirmed -= 1
            raise SourceUnavailable("unconfirmed", subject=f"queue {self.queue!r}")
        if fitting:
            sent(fitting)

    def _arrive(self, forward: Forward) -> None:
        envelope, copy = forward.delivery.envelope, forward.copy
        if copy.message_id in self._seen:
            self.duplicates += 1
            return
        self._seen.add(copy.message_id)
        self._target.send(
            envelope.body,
            message_id=copy.message_id,
            correlation_id=envelope.correlation_id,
            content_type=envelope.content_type,
            properties=copy.apply(envelope.properties),
            time_to_live=copy.time_to_live,
        )


class FakeFleet:
    """A `Fleet` in memory. `cancelled`: batches by id, each with the last replay that is. `down`: it raises
    SinkUnavailable. `looks` are the batch ids that were asked for."""

    def __init__(self) -> None:
        self.cancelled: dict[str, int] = {}
        self.looks: list[str] = []
        self.reports: list[PodReport] = []
        self.withdrawn = False
        self.down = False

    async def cancelled_up_to(self, batch_id: str) -> int | None:
        self.looks.append(batch_id)
        self._require_up()
        return self.cancelled.get(batch_id)

    async def report(self, report: PodReport) -> None:
        self._require_up()
        self.reports.append(report)

    async def withdraw(self) -> None:
        self._require_up()
        self.withdrawn = True

    def _require_up(self) -> None:
        if self.down:
            raise SinkUnavailable("the fake fleet is down")


class FakeSink:
    """A `Sink` in memory: the first line of a result's id stays. `down`: writing raises SinkUnavailable.

    `knows`: it can tell what it has, as the blob sink can and the queue cannot.
    """

    def __init__(self, *, largest: int | None = None, knows: bool = False) -> None:
        self.knows = knows
        self.lines: dict[str, bytes] = {}
        self.writes = 0
        self.down = False
        self._largest = largest

    @property
    def results(self) -> dict[str, Mapping[str, object]]:
        return {name: orjson.loads(line) for name, line in self.lines.items()}

    async def has(self, job: Job) -> bool:
        await asyncio.sleep(0)
        if self.down:
            raise SinkUnavailable("the sink is down")
        return self.knows and result_id(job) in self.lines

    async def write(self, result: Result) -> bool:
        job, line = result.job, result.line
        await asyncio.sleep(0)
        if self.down:
            raise SinkUnavailable("the sink is down")
        if self._largest is not None and len(line) > self._largest:
            raise ResultTooLarge(size=len(line), allowed=self._largest)
        self.writes += 1
        is_new = result_id(job) not in self.lines
        self.lines.setdefault(result_id(job), line)
        return is_new or not self.knows


class FakeClaims:
    """A `Claims` in memory, of bodies by url. `down`: fetching raises ClaimUnavailable."""

    def __init__(self) -> None:
        self.bodies: dict[str, bytes] = {}
        self.down = False

    def require_ours(self, claim: Claim) -> None:
        """Every claim is."""

    async def fetch(self, claim: Claim) -> bytes:
        await asyncio.sleep(0)
        if self.down:
            raise ClaimUnavailable("the claims are down")
        body = self.bodies.get(claim.url)
        if body is None:
            raise invalid_claim('"claim.url" names a blob that does not exist')
        if make_claim(claim.url, body, etag=claim.etag) != claim:
            raise invalid_claim('"claim.length" or "claim.sha256" is not that of the blob')
        return body


E = TypeVar("E")
Behaviour = Callable[[Job, Target], Awaitable[Response]]


class FakeModel:
    """A `Model` that behaves as the given coroutine function says; `calls` tells what was asked where."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.calls: list[tuple[str, str]] = []
        self.in_flight = 0
        self.peak = 0
        self._behaviour = behaviour

    async def complete(self, job: Job, target: Target, room: AnswerMemory | None = None) -> Response:
        self.calls.append((job.line.custom_id, target.deployment))
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        try:
            response = await self._behaviour(job, target)
            if room is not None and len(response.body) > room.reserved:
                await room.grow(len(response.body))
            return response
        finally:
            self.in_flight -= 1


class EventList:
    """An `Observer` that remembers."""

    def __init__(self) -> None:
        self.all: list[Event] = []
        self._bell = Bell()

    def __call__(self, event: Event) -> None:
        self.all.append(event)
        self._bell.ring()

    async def next(self) -> None:
        """Wait until another event comes."""
        await self._bell.wait()

    def of(self, kind: type[E]) -> list[E]:
        return [event for event in self.all if isinstance(event, kind)]


def answer(text: str = "yes", *, prompt: int = 10, completion: int = 2) -> Response:
    """A chat completion that answers `text`."""
    body = {"object": "chat.completion", "choices": [{"index": 0, "message": {"content": text}}]}
    usage = Usage(prompt=prompt, completion=completion)
    return Response(status=200, request_id="req-1", body=orjson.dumps(body), usage=usage)


def job_line(custom_id: str = "a", *, model: str = "gpt-5.4-mini", content: str = "Is it?") -> bytes:
    """One line of a Batch input file."""
    body = {"model": model, "messages": [{"role": "user", "content": content}]}
    return orjson.dumps({"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body})


def _redelivered(envelope: Envelope, more: int) -> Envelope:
    return replace(envelope, delivery_count=envelope.delivery_count + more)


def result_of(job: Job, line: bytes, *, failed: bool = False, code: str | None = None) -> Result:
    """What a sink is given."""
    summary = ResultSummary(code=code or ("500" if failed else "200"), model=job.line.model, finished=0.0)
    return Result(job=job, line=line, failed=failed, summary=summary)
