"""The dead-letter queue for people: look through it, send its messages again, take them away."""

import os
import sys
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import BinaryIO, Protocol, cast

from azure.servicebus.aio import ServiceBusClient, ServiceBusSender

from worker.azure.identity import open_broker
from worker.azure.servicebus.forwarding import copy_of
from worker.azure.servicebus.jobs_queue import SERVICEBUS_SCOPE, JobsQueue, connect
from worker.azure.servicebus.links import LockedMessage
from worker.azure.servicebus.messages import read_structure
from worker.flow.dead_letters import Pass, pages
from worker.interfaces import DeadLetters, Delivery
from worker.jobs.copies import Copy
from worker.jobs.job import Envelope
from worker.jobs.replays import DeadLetter, Survey, dead_letter_of
from worker.operations.dead_letters.texts import saved_line
from worker.settings import ServiceBusSettings

TOGETHER = 50
"""Dead letters that are received or looked at together."""

LOOKED_AT = 10_000
LOOKED_AT_BYTES = 256 << 20
"""Of dead letters one command looks at about so many at most: looking brings the whole message here."""

HELD_BYTES = 64 << 20
"""Of unwanted ones a pass holds about so many bytes at most."""

RECEIVE_WAIT = 5.0
SEND_TIMEOUT = 30.0
"""Seconds. What was not confirmed is sent again by the next replay under the same message-id."""


class Act(Protocol):
    """Make the message safe elsewhere: when it returns, the dead letter goes. Raises what ends the pass."""

    async def __call__(self, delivery: Delivery, /) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """How a pass ended, by sequence number. `unconfirmed`: acted on, but the lock was lost, so it may still be
    there; `missing`: did not come, because somebody else holds it or took it. `is_full`: more could not be held."""

    done: int
    unconfirmed: Collection[int]
    missing: Collection[int]
    is_full: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterQueue:
    """A queue's dead letters, and the way back into it. Nothing is opened before it is used."""

    queue: str
    dead_letters: JobsQueue
    senders: ServiceBusClient

    @asynccontextmanager
    async def resending(self, replays: Mapping[int, Copy]) -> AsyncIterator[Act]:
        """Raises the SDK's ServiceBusError at once where we may not send."""
        async with self.senders.get_queue_sender(self.queue) as sender:
            yield Resending(sender, replays)


@asynccontextmanager
async def open_dead_letters(
    settings: ServiceBusSettings, queue: str | None = None
) -> AsyncIterator[DeadLetterQueue]:
    """Of `queue`, or of the settings' queue of jobs."""
    name = queue or settings.jobs_queue
    async with open_broker(settings, _ignore) as tokens:
        # the broker's own refusal, at once; the SDK would wrap it
        await tokens.get_token(SERVICEBUS_SCOPE)
        async with (
            connect(settings, tokens) as senders,
            connect(settings, tokens, retries=0) as receivers,
            JobsQueue(receivers, name, observer=_ignore, dead_letters=True) as dead_letters,
        ):
            yield DeadLetterQueue(queue=name, dead_letters=dead_letters, senders=senders)


async def survey(dead_letters: DeadLetters) -> Survey:
    """Look at what is there; nothing is locked. Raises SourceUnavailable."""
    letters: list[DeadLetter] = []
    size = 0
    async for envelopes in pages(dead_letters, TOGETHER):
        if len(letters) >= LOOKED_AT or size >= LOOKED_AT_BYTES:
            return Survey(letters=letters, is_whole=False)
        letters += map(dead_letter_of, envelopes)
        size += sum(len(envelope.body) for envelope in envelopes)
    return Survey(letters=letters, is_whole=True)


async def look_at(dead_letters: DeadLetters, sequence_number: int) -> Envelope | None:
    """Raises SourceUnavailable."""
    for envelope in await dead_letters.peek(sequence_number, 1):
        if envelope.sequence_number == sequence_number:
            return envelope
    return None


async def take(
    dead_letters: DeadLetters, wanted: Collection[int], act: Act, report: Callable[[Envelope], None]
) -> Taken:
    """One pass: `act` on each wanted dead letter, then complete it, then report it.

    A crash after the act leaves a dead letter that was acted on. Raises SourceUnavailable, and what `act` raises;
    all that is held is then released, or comes back when its lock lapses.
    """
    left, done, unconfirmed = set(wanted), 0, list[int]()
    async with Pass(dead_letters, count=TOGETHER, wait=RECEIVE_WAIT, held_bytes=HELD_BYTES) as one_pass:
        while left and await one_pass.receive():
            for number in sorted(left & one_pass.held.keys()):
                delivery = one_pass.held[number]
                await act(delivery)
                left.discard(number)
                if await one_pass.complete(delivery):
                    report(delivery.envelope)
                    done += 1
                else:
                    unconfirmed.append(number)
        is_full = bool(left) and one_pass.is_full
    return Taken(done=done, unconfirmed=unconfirmed, missing=sorted(left), is_full=is_full)


class Resending:
    """Sends a dead letter to its queue again, and returns when the broker has confirmed."""

    def __init__(self, sender: ServiceBusSender, replays: Mapping[int, Copy]) -> None:
        self._sender = sender
        self._replays = replays

    async def __call__(self, delivery: Delivery, /) -> None:
        replay = self._replays[delivery.envelope.sequence_number]
        message = copy_of(cast(LockedMessage, delivery).message, replay)
        await self._sender.send_messages(message, timeout=SEND_TIMEOUT)


class Saving:
    """Writes a dead letter as a line of JSON, and returns when it is on the disk."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    async def __call__(self, delivery: Delivery, /) -> None:
        value = read_structure(cast(LockedMessage, delivery).message)
        self._file.write(saved_line(delivery.envelope, value=value) + b"\n")
        self._file.flush()
        if self._file is not sys.stdout.buffer:
            os.fsync(self._file.fileno())


@contextmanager
def saving(path: str) -> Iterator[Saving]:
    """Adds to the file; `-` is standard output. Raises OSError."""
    if path == "-":
        yield Saving(sys.stdout.buffer)
        return
    with open(path, "ab") as file:
        yield Saving(file)


def _ignore(_: object) -> None:
    """Nobody listens."""
