"""A link to the jobs queue, which is one receiver of the SDK: receive through it, keep the locks of what came, and
settle it."""

import asyncio
import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

from azure.servicebus import ServiceBusReceivedMessage
from azure.servicebus.aio import ServiceBusReceiver
from azure.servicebus.exceptions import MessageLockLostError, ServiceBusError

from worker.azure.servicebus.faults import FAULTS, describe_fault
from worker.azure.servicebus.messages import end_of_lock, open_envelope
from worker.azure.servicebus.private import (
    complete_on_link,
    renew_locks,
    settle_by_token,
    settle_on_link,
    withdraw_credit,
)
from worker.errors import LockLost, SourceUnavailable
from worker.interfaces import LocksNotRenewed, LocksRenewed, Observer, ReceiverRestarted
from worker.jobs.job import Envelope
from worker.jobs.outcomes import Complete, Settlement
from worker.waits import EARLY, Bell, loop_time

SETTLE_WITHIN = 30.0
"""Seconds for a settlement from when its turn comes. Its turn comes as long as the link confirms others; a link
that confirms nothing lets the whole line through at once."""

SETTLE_TIMEOUT = 8.0
"""Seconds for each of its three tries: on the link, over the management link, and over that of a new connection.
What is left of the half minute is for closing the old connection and opening the new one."""

WITHDRAW_TIMEOUT = 1.0
"""Seconds for a frame that nobody answers; what was received waits for it."""

SETTLE_TOGETHER = 32
"""Settlements of one link that wait for their confirmations at once. Each that waits reads the connection for all
and wakes all, so the cost of one grows with their number: at 1,000 in flight a job took 2.4 ms of CPU without this
limit and 1.5 ms with it. A confirmation takes 0.02 s, so 32 are 1,000 a second and more."""

HUNG_AFTER = 30.0
"""Seconds beyond its wait after which a receive counts as hung and its link as dead: the SDK's keep-alive task can
die silently, and a connection that NAT has dropped says nothing."""

PROVE_AFTER = 15.0
"""Seconds without a message after which a link must show that it is alive. An empty queue looks like a connection
that a NAT has dropped: the SDK asks for no heartbeats, and TCP gives up only after a quarter of an hour."""

COMPLETE_TOGETHER = 100
"""Messages that are completed with one wait: what comes back is looked up among all that are awaited."""

RENEW_AT = 0.5
"""Share of a lock's life after which it is renewed; the other half is for trying again."""

LONGEST_LOCK = 300.0
"""Seconds that Service Bus locks a message for at the most. A pod whose clock is behind believes in no more."""

SOONEST_RENEWAL = 0.25
"""Seconds between renewals at the least, whatever the clocks of pod and broker make of a lock's end."""

RENEW_TOGETHER = 100
"""Locks in one request; 100 take 0.02 s."""

RENEW_AGAIN = 2.0
"""Seconds before a failed renewal is tried again."""


class LockedMessage:
    """A delivery under a lock that lasts until `locked_until` (Unix seconds, by the broker's clock).

    `renew_at` is by the loop's clock, which nobody sets back.
    """

    def __init__(
        self, message: ServiceBusReceivedMessage, queue: str, settlements: "Settlements", now: float
    ) -> None:
        self.message = message
        self.envelope = open_envelope(message, queue)
        self.token = str(message.lock_token)
        self.renew_at = 0.0
        self.is_lost = False
        self._settlements = settlements
        self._callback: Callable[[], None] | None = None
        self.note_renewed(end_of_lock(message), now)

    def when_lost(self, callback: Callable[[], None]) -> None:
        self._callback = callback
        if self.is_lost:
            callback()

    async def settle(self, settlement: Settlement) -> None:
        await self._settlements.settle(self, settlement)

    @property
    def settlements(self) -> "Settlements":
        """Of the link that it came through."""
        return self._settlements

    def note_renewed(self, locked_until: float, now: float) -> None:
        self.locked_until = locked_until
        left = min(LONGEST_LOCK, locked_until - now)
        self.renew_at = loop_time() + max(SOONEST_RENEWAL, left * RENEW_AT)

    def lose(self) -> None:
        self.is_lost = True
        if self._callback is not None:
            self._callback()


class Link:
    """One receiver of the SDK, the locks of what came through it, and their settlements.

    One coroutine at a time uses its management link: concurrent requests get the same delivery-id, and the
    service drops the connection.
    """

    def __init__(
        self, receiver: ServiceBusReceiver, queue: str, observer: Observer, clock: Callable[[], float]
    ) -> None:
        self.receiver = receiver
        self.is_retired = False
        self._queue = queue
        self._observer = observer
        self._clock = clock
        self._management = asyncio.Lock()
        self._locks = Locks(receiver, self._management, observer, clock)
        self._settlements = Settlements(receiver, self._management, self._locks, self._give_up)
        self._is_receiving = False
        self._alive_at = loop_time()

    async def receive(self, count: int, wait: float) -> Sequence[LockedMessage]:
        """Raises SourceUnavailable; the link is retired then."""
        self._is_receiving = True
        try:
            async with asyncio.timeout(wait + HUNG_AFTER):
                messages = await self.receiver.receive_messages(max_message_count=count, max_wait_time=wait)
            await withdraw_credit(self.receiver, timeout=WITHDRAW_TIMEOUT)
            await self._prove_alive(heard=bool(messages))
        except FAULTS as error:
            self._give_up(error)
            raise SourceUnavailable(self._describe(error)) from error
        else:
            now = self._clock()
            taken = [LockedMessage(message, self._queue, self._settlements, now) for message in messages]
            self._locks.keep(taken)
            return taken
        finally:
            self._is_receiving = False
            self._locks.look()

    async def _prove_alive(self, *, heard: bool) -> None:
        now = loop_time()
        if not heard:
            if now - self._alive_at < PROVE_AFTER:
                return
            async with self._management:
                await self.receiver.peek_messages(1, sequence_number=1, timeout=SETTLE_TIMEOUT)
        self._alive_at = now

    async def peek(self, following: int, count: int) -> Sequence[Envelope]:
        """Raises SourceUnavailable; the link is retired then."""
        # the SDK takes 0 for "after the one received last"
        first = max(1, following)
        try:
            async with self._management:
                messages = await self.receiver.peek_messages(count, sequence_number=first, timeout=SETTLE_TIMEOUT)
        except FAULTS as error:
            self.retire()
            raise SourceUnavailable(self._describe(error)) from error
        return [open_envelope(message, self._queue) for message in messages]

    def retire(self) -> None:
        """Receive nothing more through it; what came is kept until it is settled."""
        self.is_retired = True
        self._locks.look()

    def forget(self) -> None:
        """Renew nothing more: what is unsettled comes again when its lock lapses."""
        self._locks.forget()

    async def keep_locks_renewed(self) -> None:
        """Keep every lock renewed until the link is retired and its last delivery settled. Closes the receiver."""
        try:
            while len(self._locks) or self._is_receiving or not self.is_retired:
                await self._locks.keep_locks_renewed()
        finally:
            await close(self.receiver)

    def _give_up(self, error: BaseException) -> None:
        """Retire it because it failed, which is told once."""
        if not self.is_retired:
            self.retire()
            self._observer(ReceiverRestarted(queue=self._queue, detail=self._describe(error)))

    def _describe(self, error: BaseException) -> str:
        return f"queue {self._queue!r}: {describe_fault(error)}"


class Settlements:
    """What is told to the broker, many at once: on the link, or else over the management link.

    What goes unanswered for the whole of its time is not asked again for each message. Once a link does not confirm
    a settlement in time, `on_timed_out` is called, and the others go over the management link at once. Where nobody
    answers there either, settlements fail, after no more than the renewal under way, until a renewal is answered.
    """

    def __init__(
        self,
        receiver: ServiceBusReceiver,
        management: asyncio.Lock,
        locks: "Locks",
        on_timed_out: Callable[[BaseException], None],
    ) -> None:
        self._receiver = receiver
        self._management = management
        self._locks = locks
        self._on_timed_out = on_timed_out
        self._places = asyncio.Semaphore(SETTLE_TOGETHER)
        self._link_timed_out = False

    async def settle(self, locked: LockedMessage, settlement: Settlement) -> None:
        """Raises LockLost or SourceUnavailable, the latter half a minute after its turn at the latest."""
        try:
            await self._settle_once(locked.message, settlement)
        except MessageLockLostError as error:
            raise LockLost(f"lock lost before {type(settlement).__name__}") from error
        except FAULTS as error:
            raise SourceUnavailable(f"unconfirmed {type(settlement).__name__}: {describe_fault(error)}") from error
        finally:
            self._locks.drop(locked)

    async def complete(self, several: Sequence[LockedMessage]) -> Sequence[LockedMessage]:
        """Those that are confirmed. Many with one wait; what the link does not confirm is settled one by one."""
        confirmed, others = list[LockedMessage](), list[LockedMessage]()
        for first in range(0, len(several), COMPLETE_TOGETHER):
            some = several[first : first + COMPLETE_TOGETHER]
            try:
                refusals = await self._complete_on_link([locked.message for locked in some])
            except FAULTS:
                others += some
                continue
            for locked, refusal in zip(some, refusals, strict=True):
                if refusal is None:
                    confirmed.append(locked)
                elif not isinstance(refusal, MessageLockLostError):
                    others.append(locked)
                    continue
                self._locks.drop(locked)
        singly = await asyncio.gather(*[self._is_completed(locked) for locked in others])
        return [*confirmed, *(locked for locked, is_completed in zip(others, singly, strict=True) if is_completed)]

    async def _is_completed(self, locked: LockedMessage) -> bool:
        try:
            await self.settle(locked, Complete())
        except (LockLost, SourceUnavailable):
            return False
        return True

    async def _complete_on_link(
        self, messages: Sequence[ServiceBusReceivedMessage]
    ) -> Sequence[ServiceBusError | None]:
        async with self._places:
            with self._noting_time_outs():
                async with asyncio.timeout(SETTLE_WITHIN):
                    return await complete_on_link(self._receiver, messages, timeout=SETTLE_TIMEOUT)

    async def _settle_once(self, message: ServiceBusReceivedMessage, settlement: Settlement) -> None:
        gives_up_at = math.inf
        try:
            async with self._places:
                gives_up_at = loop_time() + SETTLE_WITHIN
                async with asyncio.timeout_at(gives_up_at):
                    await self._settle_on_link(message, settlement)
        except MessageLockLostError:
            raise
        except FAULTS:
            # the link is gone or does not answer; over the management link the lock's token still counts
            async with asyncio.timeout_at(gives_up_at), self._management:
                await self._settle_by_token(message, settlement)

    async def _settle_on_link(self, message: ServiceBusReceivedMessage, settlement: Settlement) -> None:
        with self._noting_time_outs():
            await settle_on_link(self._receiver, message, settlement, timeout=SETTLE_TIMEOUT)

    @contextlib.contextmanager
    def _noting_time_outs(self) -> Iterator[None]:
        """Of the link; once it has timed out, nothing is tried on it."""
        if self._link_timed_out:
            raise TimeoutError("the link confirms nothing")
        started = loop_time()
        try:
            yield
        except FAULTS as error:
            if _went_unanswered(started):
                self._link_timed_out = True
                self._on_timed_out(error)
            raise

    async def _settle_by_token(self, message: ServiceBusReceivedMessage, settlement: Settlement) -> None:
        """Twice if need be: over a dead connection the first try fails and makes the SDK open another."""
        if self._locks.management_timed_out:
            raise TimeoutError("nobody answers, not even over a new connection")
        try:
            await settle_by_token(self._receiver, message, settlement, timeout=SETTLE_TIMEOUT)
        except MessageLockLostError:
            raise
        except FAULTS:
            started = loop_time()
            try:
                await settle_by_token(self._receiver, message, settlement, timeout=SETTLE_TIMEOUT)
            except BaseException:  # the end of the half minute counts too
                if _went_unanswered(started):
                    self._locks.note_management_timed_out()
                raise


def _nobody() -> None:
    pass


class Locks:
    """The locks of a link's deliveries, renewed many in one request.

    `management_timed_out`: nobody answers over the management link; until a renewal is answered.
    """

    def __init__(
        self,
        receiver: ServiceBusReceiver,
        management: asyncio.Lock,
        observer: Observer,
        clock: Callable[[], float],
    ) -> None:
        self.management_timed_out = False
        self._receiver = receiver
        self._management = management
        self._observer = observer
        self._clock = clock
        self._deliveries: dict[str, LockedMessage] = {}
        self._bell = Bell()

    def __len__(self) -> int:
        return len(self._deliveries)

    def keep(self, deliveries: Iterable[LockedMessage]) -> None:
        """Renew these too, from the next `look` on."""
        self._deliveries.update((locked.token, locked) for locked in deliveries)

    def drop(self, locked: LockedMessage) -> None:
        """It is settled. Only who waits for the last one is woken, as each wakening costs."""
        self._deliveries.pop(locked.token, None)
        # who is told of a lost lock mostly holds the delivery: a cycle, which would keep the message until the
        # garbage collector's rare full run
        locked.when_lost(_nobody)
        if not self._deliveries:
            self.look()

    def forget(self) -> None:
        self._deliveries.clear()
        self.look()

    def look(self) -> None:
        """Something has changed: `keep_locks_renewed` returns."""
        self._bell.ring()

    def note_management_timed_out(self) -> None:
        """Until a renewal is answered, which is tried from now on."""
        self.management_timed_out = True
        for locked in self._deliveries.values():
            locked.renew_at = loop_time()
        self.look()

    async def keep_locks_renewed(self) -> None:
        """Renew what is due; where nothing is, wait until something is or has changed."""
        due_at = min((locked.renew_at for locked in self._deliveries.values()), default=math.inf)
        if due_at > loop_time() + EARLY:
            await self._bell.wait(until=due_at)
        else:
            await self._renew_due()

    async def _renew_due(self) -> None:
        """Renew what is due, and what soon will be, in as few requests as possible."""
        soon = loop_time() + RENEW_AGAIN
        due = [locked for locked in self._deliveries.values() if locked.renew_at <= soon]
        lost = 0
        for first in range(0, len(due), RENEW_TOGETHER):
            lost += await self._renew(due[first : first + RENEW_TOGETHER])
        if lost:
            self._observer(LocksRenewed(count=0, lost=lost, seconds=0.0))

    async def _renew(self, due: Sequence[LockedMessage]) -> int:
        """How many were lost."""
        due = [locked for locked in due if locked.token in self._deliveries]
        if not due:
            return 0
        started = loop_time()
        try:
            async with self._management:
                expirations = await renew_locks(
                    self._receiver, [locked.message for locked in due], timeout=SETTLE_TIMEOUT
                )
        except MessageLockLostError:
            return await self._find_lost(due)
        except FAULTS as error:
            return self._postpone(due, error)
        else:
            self.management_timed_out = False
            now = self._clock()
            for locked, expiration in zip(due, expirations, strict=True):
                locked.note_renewed(expiration, now)
            self._observer(LocksRenewed(count=len(due), lost=0, seconds=loop_time() - started))
        return 0

    async def _find_lost(self, due: Sequence[LockedMessage]) -> int:
        """One lost lock fails the request for all: halve it until the lost ones stand alone."""
        if len(due) == 1:
            return self._lose(due[0])
        middle = len(due) // 2
        return await self._renew(due[:middle]) + await self._renew(due[middle:])

    def _postpone(self, due: Sequence[LockedMessage], error: BaseException) -> int:
        now = self._clock()
        lost = 0
        for locked in due:
            locked.renew_at = loop_time() + RENEW_AGAIN
            if locked.locked_until <= now:
                lost += self._lose(locked)
        self._observer(LocksNotRenewed(count=len(due), detail=describe_fault(error)))
        return lost

    def _lose(self, locked: LockedMessage) -> int:
        """1 if it was not known before."""
        if self._deliveries.pop(locked.token, None) is None:
            return 0
        locked.lose()
        return 1


def _went_unanswered(started: float) -> bool:
    """Whether what failed just now has waited for an answer; a refusal or a lost connection fails sooner.

    Half of the time-out, as the SDK has a clock and parts of a second of its own.
    """
    return loop_time() - started > SETTLE_TIMEOUT / 2


async def close(receiver: ServiceBusReceiver) -> None:
    with contextlib.suppress(*FAULTS):  # it is being thrown away
        await receiver.close()
