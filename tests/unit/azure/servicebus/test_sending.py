"""How long a sender tries, what it tries again, and what it says meanwhile. With a broker: `tests/contract`."""

import asyncio
from collections.abc import Iterable
from typing import Any, cast

import pytest
from azure.servicebus import ServiceBusMessage
from azure.servicebus.aio import ServiceBusClient
from azure.servicebus.exceptions import (
    OperationTimeoutError,
    ServiceBusAuthorizationError,
    ServiceBusConnectionError,
    ServiceBusError,
    ServiceBusQuotaExceededError,
    ServiceBusServerBusyError,
)

from worker.azure.servicebus.sending import CLOSE_TIMEOUT, FIRST_PATIENCE, PATIENCE, TRY_TIMEOUT, RetryingSender
from worker.errors import TokenUnavailable

pytestmark = pytest.mark.looptime

MESSAGE = ServiceBusMessage(b"x", message_id="b/a")
NEVER = object()


class Queue:
    """What the sends to it bring, one after the other: an error, `NEVER` an answer, or None. Then None for ever."""

    def __init__(self, *answers: Any, opens: Iterable[Any] = (), close: Any = None) -> None:
        self._answers = iter(answers)
        self._opens = iter(opens)
        self.close = close
        self.links = 0
        self.sent: list[ServiceBusMessage] = []

    def get_queue_sender(self, queue: str) -> "Link":
        self.links += 1
        return Link(self)

    async def open(self) -> None:
        await give(next(self._opens, None))

    async def take(self, message: ServiceBusMessage) -> None:
        self.sent.append(message)
        await give(next(self._answers, None))


class Link:
    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._is_closed = False

    async def __aenter__(self) -> "Link":
        await self._queue.open()
        return self

    async def send_messages(self, message: ServiceBusMessage, *, timeout: float) -> None:
        assert not self._is_closed
        await self._queue.take(message)

    async def close(self) -> None:
        self._is_closed = True
        await give(self._queue.close)


async def give(answer: Any) -> None:
    if answer is NEVER:
        await asyncio.Event().wait()
    if isinstance(answer, BaseException):
        raise answer


async def send(queue: Queue, waited: list[str] | None = None) -> None:
    said: list[str] = [] if waited is None else waited
    async with RetryingSender(cast(ServiceBusClient, queue), "jobs", said.append) as sender:
        await sender.send(MESSAGE)


async def test_what_is_confirmed_is_sent_once(looptime: Any) -> None:
    queue = Queue()
    await send(queue)
    assert (queue.sent, queue.links, looptime) == ([MESSAGE], 1, 0)


async def test_an_unconfirmed_message_is_sent_again_as_it_is_over_a_new_link(looptime: Any) -> None:
    queue, waited = Queue(NEVER), list[str]()
    await send(queue, waited)
    assert (queue.sent, queue.links) == ([MESSAGE, MESSAGE], 2)
    assert looptime == TRY_TIMEOUT + 1
    assert waited[0] == "queue 'jobs' to confirm a message"
    assert waited[1] == f"{waited[0]}, try 2; the last one failed: queue 'jobs' did not answer within 30 s"


@pytest.mark.parametrize(
    "fault",
    [
        ServiceBusConnectionError(message="gone"),
        ServiceBusServerBusyError(message="busy"),
        OperationTimeoutError(message="slow"),
        OSError("broken pipe"),
        AttributeError("a slip of the SDK"),
    ],
    ids=lambda fault: type(fault).__name__,
)
async def test_a_fault_is_waited_out_with_pauses_that_double(fault: Exception, looptime: Any) -> None:
    queue = Queue(*[fault] * 6)
    await send(queue)
    assert len(queue.sent) == 7
    assert looptime == 1 + 2 + 4 + 8 + 10 + 10


@pytest.mark.parametrize(
    "answer",
    [
        ServiceBusAuthorizationError(message="no role"),
        ServiceBusQuotaExceededError(message="full"),
        TokenUnavailable("servicebus", "logged out", code="none"),
        ServiceBusError("lost", error=TokenUnavailable("servicebus", "logged out", code="none")),
    ],
    ids=["no role", "full", "no token", "no token, as the SDK wraps it"],
)
async def test_an_answer_that_will_not_change_ends_it_at_once(answer: Exception, looptime: Any) -> None:
    with pytest.raises(type(answer)):
        await send(Queue(answer))
    assert looptime == 0


async def test_where_nothing_is_ever_confirmed_it_ends(looptime: Any) -> None:
    queue = Queue(*[NEVER] * 100, close=NEVER)
    with pytest.raises(OperationTimeoutError, match="queue 'jobs' did not answer within 30 s"):
        await send(queue)
    assert PATIENCE < looptime < PATIENCE + TRY_TIMEOUT + CLOSE_TIMEOUT
    assert len(queue.sent) == 4


async def test_a_queue_that_was_never_reached_is_given_up_soon(looptime: Any) -> None:
    queue = Queue(opens=[ServiceBusConnectionError(message="no such host")] * 100)
    with pytest.raises(ServiceBusConnectionError):
        await send(queue)
    assert looptime <= FIRST_PATIENCE
    assert queue.links > 2


async def test_a_queue_that_was_reached_once_is_waited_for_when_it_cannot_be_reached(looptime: Any) -> None:
    gone = ServiceBusConnectionError(message="gone")
    queue = Queue(gone, opens=[None, *[gone] * 9])
    await send(queue)
    assert looptime == 1 + 2 + 4 + 8 + 6 * 10
    assert len(queue.sent) == 2


async def test_a_cancelled_sender_ends_at_once_and_closes_its_link(looptime: Any) -> None:
    queue = Queue(NEVER)
    sending = asyncio.ensure_future(send(queue))
    await asyncio.sleep(3)
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    assert (looptime, len(queue.sent)) == (3, 1)
