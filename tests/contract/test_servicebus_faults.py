"""Faults of the embedded Service Bus, met by the unmodified SDK and by the worker's own adapters."""

import asyncio
from collections.abc import Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from azure.servicebus import ServiceBusMessage
from azure.servicebus.exceptions import (
    MessageLockLostError,
    MessageNotFoundError,
    MessageSizeExceededError,
    MessagingEntityAlreadyExistsError,
    MessagingEntityDisabledError,
    MessagingEntityNotFoundError,
    OperationTimeoutError,
    ServiceBusAuthenticationError,
    ServiceBusAuthorizationError,
    ServiceBusCommunicationError,
    ServiceBusConnectionError,
    ServiceBusError,
    ServiceBusQuotaExceededError,
    ServiceBusServerBusyError,
    SessionCannotBeLockedError,
    SessionLockLostError,
)

from tests.support.local_azure import Bus
from tests.support.patience import PATIENCE
from tests.support.service_bus import HELD, a_job, disturb, jobs_queue, service_of, settings_for
from worker.azure.servicebus.jobs_queue import connect
from worker.azure.servicebus.results_queue import ResultsQueue
from worker.errors import LockLost, SinkUnavailable, SourceUnavailable
from worker.interfaces import Delivery
from worker.jobs.outcomes import Complete
from worker.testing import job_line, result_of

BUSY = "com.microsoft:server-busy"
ONCE: dict[str, Any] = {"retry_total": 0}


def active(bus: Bus, queue: str = "jobs") -> int:
    return service_of(bus).broker.entity(queue).counts().active


async def send(bus: Bus, *bodies: bytes, queue: str = "jobs", **options: Any) -> None:
    async with bus.client(**options) as client, client.get_queue_sender(queue) as sender:
        for body in bodies:
            await sender.send_messages(ServiceBusMessage(body))


async def take_one(bus: Bus, **options: Any) -> bytes:
    async with bus.client(**options) as client, client.get_queue_receiver("jobs") as receiver:
        messages = await receiver.receive_messages(1, max_wait_time=PATIENCE)
        for message in messages:
            await receiver.complete_message(message)
        return b"".join(b"".join(message.body) for message in messages)


# Refusals: every condition that the SDK has an exception for

CONDITIONS = {
    "amqp:internal-error": ServiceBusError,
    "amqp:link:message-size-exceeded": MessageSizeExceededError,
    "amqp:resource-limit-exceeded": ServiceBusQuotaExceededError,
    "amqp:unauthorized-access": ServiceBusAuthorizationError,
    "amqp:not-implemented": ServiceBusError,
    "amqp:not-allowed": ServiceBusError,
    "amqp:not-found": MessagingEntityNotFoundError,
    "amqp:link:detach-forced": ServiceBusConnectionError,
    "com.microsoft:message-lock-lost": MessageLockLostError,
    "com.microsoft:message-not-found": MessageNotFoundError,
    "com.microsoft:auth-failed": ServiceBusAuthorizationError,
    "com.microsoft:entity-disabled": MessagingEntityDisabledError,
    "com.microsoft:entity-already-exists": MessagingEntityAlreadyExistsError,
    "com.microsoft:server-busy": ServiceBusServerBusyError,
    "com.microsoft:session-cannot-be-locked": SessionCannotBeLockedError,
    "com.microsoft:session-lock-lost": SessionLockLostError,
    "com.microsoft:argument-error": ServiceBusError,
    "com.microsoft:argument-out-of-range": ServiceBusError,
    "com.microsoft:precondition-failed": ServiceBusError,
    "com.microsoft:timeout": OperationTimeoutError,
    "com.microsoft:container-close": ServiceBusError,
}


@pytest.mark.parametrize("condition", CONDITIONS)
async def test_every_condition_reaches_a_sender_as_the_sdks_exception(bus: Bus, condition: str) -> None:
    disturb(bus, {"kind": "refuse", "on": "send", "condition": condition})
    with pytest.raises(ServiceBusError) as raised:
        await send(bus, b"x", **ONCE)
    assert type(raised.value) is CONDITIONS[condition]
    assert active(bus) == 0


@pytest.mark.parametrize("condition", CONDITIONS)
async def test_every_condition_reaches_a_management_request_as_the_sdks_exception(bus: Bus, condition: str) -> None:
    disturb(bus, {"kind": "refuse", "on": "management", "condition": condition})
    async with bus.client(**ONCE) as client, client.get_queue_receiver("jobs") as receiver:
        with pytest.raises(ServiceBusError) as raised:
            await receiver.peek_messages(1)
    assert type(raised.value) is CONDITIONS[condition]


async def test_an_attach_is_refused_as_often_as_was_asked_and_the_sdk_tries_again(bus: Bus) -> None:
    disturb(bus, {"kind": "refuse", "on": "attach", "condition": "com.microsoft:timeout", "count": 1})
    with pytest.raises(OperationTimeoutError):
        await send(bus, b"x", **ONCE)
    await send(bus, b"x")
    assert active(bus) == 1


async def test_a_fault_of_another_entity_is_not_met(bus: Bus) -> None:
    disturb(bus, {"kind": "refuse", "on": "send", "entity": "Results"})
    await send(bus, b"x", **ONCE)
    disturb(bus, {"kind": "refuse", "on": "send", "entity": "JOBS"})
    with pytest.raises(ServiceBusServerBusyError):
        await send(bus, b"x", **ONCE)


async def test_a_receiver_that_asks_for_messages_is_refused(bus: Bus) -> None:
    await send(bus, b"x")
    disturb(bus, {"kind": "refuse", "on": "receive", "condition": "amqp:link:detach-forced", "count": 1})
    with pytest.raises(ServiceBusError):
        await take_one(bus, **ONCE)
    assert await take_one(bus, **ONCE) == b"x"


async def test_a_throttled_namespace_says_so_in_azures_words_on_sending_and_on_settling(bus: Bus) -> None:
    words = "namespace local is being throttled. Error code : 50009. Please wait 2 seconds and try again"
    await send(bus, b"x")
    disturb(bus, {"kind": "refuse", "on": "send"}, {"kind": "refuse", "on": "settle"})
    with pytest.raises(ServiceBusServerBusyError, match=words):
        await send(bus, b"y", **ONCE)
    async with bus.client(**ONCE) as client, client.get_queue_receiver("jobs") as receiver:
        (message,) = await receiver.receive_messages(1, max_wait_time=PATIENCE)
        with pytest.raises(ServiceBusServerBusyError, match=words):
            await receiver.complete_message(message)
    assert active(bus) == 1


async def test_a_refused_settlement_leaves_the_message_locked(bus: Bus) -> None:
    await send(bus, b"x")
    fault = {"kind": "refuse", "on": "settle", "condition": "com.microsoft:message-lock-lost", "count": 1}
    disturb(bus, fault)
    async with bus.client(**ONCE) as client, client.get_queue_receiver("jobs") as receiver:
        (message,) = await receiver.receive_messages(1, max_wait_time=PATIENCE)
        with pytest.raises(MessageLockLostError):
            await receiver.complete_message(message)
    assert active(bus) == 1


async def test_a_token_is_refused(bus: Bus) -> None:
    fault = {"kind": "refuse", "on": "put-token", "condition": "amqp:unauthorized-access", "entity": "jobs"}
    disturb(bus, fault)
    with pytest.raises((ServiceBusAuthenticationError, ServiceBusAuthorizationError, ServiceBusConnectionError)):
        await send(bus, b"x", **ONCE)


async def test_one_operation_of_management_is_refused_and_the_others_are_not(bus: Bus) -> None:
    await send(bus, b"x")
    operation = "com.microsoft:renew-lock"
    disturb(bus, {"kind": "refuse", "on": "management", "operation": operation})
    async with bus.client(**ONCE) as client, client.get_queue_receiver("jobs") as receiver:
        (message,) = await receiver.receive_messages(1, max_wait_time=PATIENCE)
        with pytest.raises(ServiceBusServerBusyError):
            await receiver.renew_message_lock(message)
        assert len(await receiver.peek_messages(1, sequence_number=1)) == 1


# Lost answers


@pytest.mark.parametrize("applied", [True, False])
async def test_a_settlement_whose_answer_is_lost_is_settled_by_the_sdk_over_management(
    bus: Bus, applied: bool
) -> None:
    """Applied already: the second try finds no lock. Never applied: the second try settles it."""
    await send(bus, b"x")
    disturb(bus, {"kind": "lose_answer", "on": "settle", "applied": applied, "count": 1})
    async with bus.client(**ONCE) as client, client.get_queue_receiver("jobs", timeout=1.5) as receiver:
        (message,) = await receiver.receive_messages(1, max_wait_time=PATIENCE)
        outcome = await asyncio.gather(receiver.complete_message(message), return_exceptions=True)
    assert [type(error) for error in outcome] == [MessageLockLostError if applied else type(None)]
    assert active(bus) == 0


@pytest.mark.parametrize("applied", [True, False])
async def test_a_send_whose_answer_is_lost_has_been_stored_or_not(bus: Bus, applied: bool) -> None:
    disturb(bus, {"kind": "lose_answer", "on": "send", "applied": applied, "count": 1})
    async with bus.client(**ONCE) as client, client.get_queue_sender("jobs") as sender:
        with pytest.raises(OperationTimeoutError):
            await sender.send_messages(ServiceBusMessage(b"x"), timeout=1.5)
    assert active(bus) == int(applied)


@pytest.mark.parametrize("applied", [True, False])
async def test_a_management_request_whose_answer_is_lost_was_done_or_not(bus: Bus, applied: bool) -> None:
    disturb(bus, {"kind": "lose_answer", "on": "management", "applied": applied, "count": 1})
    async with bus.client(**ONCE) as client, client.get_queue_sender("jobs") as sender:
        later = datetime.now(UTC) + timedelta(hours=1)
        with pytest.raises(OperationTimeoutError):
            await sender.schedule_messages(ServiceBusMessage(b"x"), later, timeout=1.5)
    assert service_of(bus).broker.entity("jobs").counts().scheduled == int(applied)


# Connections


async def test_a_link_is_detached_at_once_and_the_sdk_attaches_anew(bus: Bus) -> None:
    async with bus.client() as client, client.get_queue_receiver("jobs") as receiver:
        assert await receiver.receive_messages(1, max_wait_time=0.2) == []
        disturb(bus, {"kind": "detach", "entity": "jobs"})
        await send(bus, b"x")
        (message,) = await receiver.receive_messages(1, max_wait_time=PATIENCE)
        await receiver.complete_message(message)


async def test_cut_connections_are_opened_anew_by_the_sdk(bus: Bus) -> None:
    async with bus.client() as client, client.get_queue_sender("jobs") as sender:
        await sender.send_messages(ServiceBusMessage(b"1"))
        disturb(bus, {"kind": "cut"})
        await sender.send_messages(ServiceBusMessage(b"2"))
    assert active(bus) == 2


@pytest.mark.parametrize("after_bytes", [0, 5, 30])
async def test_a_delivery_cut_off_mid_frame_is_delivered_again(bus: Bus, after_bytes: int) -> None:
    await send(bus, b"x" * 1000)
    service_of(bus).broker.entity("jobs").spec = _with_short_locks(service_of(bus).broker.entity("jobs").spec)
    async with bus.client() as client, client.get_queue_receiver("jobs") as receiver:
        disturb(bus, {"kind": "cut", "after_bytes": after_bytes, "count": 1})
        messages: Sequence[Any] = []
        while not messages:
            with suppress(ServiceBusError):
                messages = await receiver.receive_messages(1, max_wait_time=2)
        await receiver.complete_message(messages[0])
        assert messages[0].delivery_count == 1
    assert active(bus) == 0


def _with_short_locks(spec: Any) -> Any:
    return replace(spec, lock_duration=1.5)


async def test_a_frame_cut_off_on_its_way_in_is_not_taken_and_the_sdk_sends_again(bus: Bus) -> None:
    async with bus.client() as client, client.get_queue_sender("jobs") as sender:
        disturb(bus, {"kind": "cut", "after_bytes": 20, "direction": "in", "count": 1})
        await sender.send_messages(ServiceBusMessage(b"x" * 1000))
    assert active(bus) == 1


async def test_new_connections_are_refused_and_those_that_exist_stay(bus: Bus) -> None:
    async with bus.client() as client, client.get_queue_sender("jobs") as sender:
        disturb(bus, {"kind": "refuse_connections"})
        await sender.send_messages(ServiceBusMessage(b"1"))
        with pytest.raises((ServiceBusConnectionError, ServiceBusCommunicationError)):
            await send(bus, b"2", **ONCE)
    disturb(bus)
    await send(bus, b"3", **ONCE)
    assert active(bus) == 2


async def test_a_slow_line_carries_everything_in_order_and_late(bus: Bus) -> None:
    await send(bus, *[b"%d" % number for number in range(5)])
    disturb(bus, {"kind": "slow", "latency": 0.05, "bytes_per_second": 20_000})
    async with bus.client() as client, client.get_queue_receiver("jobs") as receiver:
        loop = asyncio.get_running_loop()
        started = loop.time()
        bodies: list[bytes] = []
        while len(bodies) < 5:
            for message in await receiver.receive_messages(5, max_wait_time=PATIENCE):
                bodies.append(b"".join(message.body))
                await receiver.complete_message(message)
        assert bodies == [b"%d" % number for number in range(5)]
        assert loop.time() - started >= 5 * 2 * 0.05  # never less: there and back for each settlement
        disturb(bus)


@pytest.mark.parametrize(("messages", "left"), [("kept", 1), ("lost", 0)])
async def test_a_restart_keeps_the_ports_and_the_messages_or_loses_them(bus: Bus, messages: str, left: int) -> None:
    await send(bus, b"x")
    disturb(bus, {"kind": "restart", "messages": messages, "seconds": 0.3})
    with pytest.raises((ServiceBusConnectionError, ServiceBusCommunicationError)):
        await send(bus, b"y", **ONCE)
    assert active(bus) == left
    await send(bus, b"z", retry_total=10, retry_backoff_factor=0.1)
    assert active(bus) == left + 1


# The worker's adapters


@asynccontextmanager
async def results(bus: Bus) -> Any:
    async with (
        connect(settings_for(bus), bus.credential("owner"), retries=0) as client,
        ResultsQueue(client, "chat") as sink,
    ):
        yield sink


async def receive_until_there(source: Any) -> Sequence[Delivery]:
    """As the consumer does: an unavailable source is asked again."""
    async with asyncio.timeout(PATIENCE):
        while True:
            with suppress(SourceUnavailable):
                if deliveries := await source.receive(10, wait=1):
                    return list(deliveries)


async def take_and_complete(source: Any) -> None:
    """A settlement that stays unconfirmed is made good by the redelivery."""
    for delivery in await receive_until_there(source):
        with suppress(SourceUnavailable, LockLost):
            await delivery.settle(Complete())


async def written(sink: Any) -> bool:
    try:
        await sink.write(result_of(a_job("a"), b"{}"))
    except SinkUnavailable:
        return False
    return True


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "refuse", "on": "attach", "condition": BUSY, "count": 2},
        {"kind": "refuse", "on": "receive", "condition": BUSY, "count": 2},
        {"kind": "refuse", "on": "put-token", "condition": BUSY, "count": 1},
        {"kind": "refuse_connections", "count": 2},
        {"kind": "cut", "after_bytes": 3, "count": 2},
        {"kind": "cut", "after_bytes": 3, "direction": "in", "count": 1},
        {"kind": "restart", "seconds": 0.3},
        {"kind": "detach"},
        {"kind": "slow", "latency": 0.05},
    ],
    ids=lambda fault: "-".join(str(value) for key, value in fault.items() if key in {"kind", "on", "direction"}),
)
async def test_the_jobs_queue_gets_over_it(bus: Bus, fault: dict[str, Any]) -> None:
    """What is on its way to a link that breaks is locked; on this queue for two seconds."""
    async with jobs_queue(bus, HELD) as source:
        await send(bus, job_line("a"), queue=HELD)
        [warm] = await receive_until_there(source)
        await warm.settle(Complete())
        await send(bus, job_line("b"), queue=HELD)
        disturb(bus, fault)
        async with asyncio.timeout(PATIENCE):
            while active(bus, HELD):
                await take_and_complete(source)
        disturb(bus)


async def test_an_idle_jobs_queue_gets_over_a_connection_that_was_dropped_silently(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.azure.servicebus.links.PROVE_AFTER", 0.5)
    monkeypatch.setattr("worker.azure.servicebus.links.SETTLE_TIMEOUT", 1.0)
    async with jobs_queue(bus) as source:
        assert await source.receive(1, wait=0.1) == []
        disturb(bus, {"kind": "drop"})
        await asyncio.gather(source.receive(1, wait=0.5), return_exceptions=True)
        disturb(bus)
        await send(bus, job_line("a"))
        async with asyncio.timeout(PATIENCE):
            while active(bus):
                await take_and_complete(source)


@pytest.mark.parametrize("applied", [True, False])
async def test_a_jobs_settlement_whose_answer_is_lost_ends_settled(
    bus: Bus, applied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.azure.servicebus.links.SETTLE_TIMEOUT", 0.3)
    await send(bus, job_line("a"))
    async with jobs_queue(bus) as source:
        [delivery] = await receive_until_there(source)
        disturb(bus, {"kind": "lose_answer", "on": "settle", "applied": applied, "count": 1})
        await asyncio.gather(delivery.settle(Complete()), return_exceptions=True)
    assert active(bus) == 0


UNCONFIRMED = {"kind": "lose_answer", "on": "settle"}


async def take(source: Any, count: int) -> Sequence[Delivery]:
    deliveries: list[Delivery] = []
    while len(deliveries) < count:
        deliveries += await source.receive(count - len(deliveries), wait=1)
    return deliveries


async def settle_all(deliveries: Sequence[Delivery]) -> set[type]:
    settlements = [delivery.settle(Complete()) for delivery in deliveries]
    return {type(outcome) for outcome in await asyncio.gather(*settlements, return_exceptions=True)}


@pytest.mark.parametrize(
    "faults",
    [
        [UNCONFIRMED, {"kind": "lose_answer", "on": "management", "operation": "com.microsoft:update-disposition"}],
        [{"kind": "slow", "latency": 600}],
    ],
    ids=["unconfirmed", "black-hole"],
)
async def test_before_a_silent_broker_a_hundred_settlements_end_together(
    bus: Bus, faults: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other they would take three minutes, at time-outs that are a twentieth of the real ones."""
    monkeypatch.setattr("worker.azure.servicebus.links.SETTLE_TIMEOUT", 0.4)
    monkeypatch.setattr("worker.azure.servicebus.links.SETTLE_WITHIN", 4.0)
    await send(bus, *[job_line(f"{number}") for number in range(100)])
    async with asyncio.timeout(PATIENCE), jobs_queue(bus) as source:
        deliveries = await take(source, 100)
        disturb(bus, *faults)
        async with asyncio.timeout(PATIENCE):
            assert await settle_all(deliveries) == {SourceUnavailable}
    disturb(bus)


async def test_what_a_mute_link_does_not_confirm_is_settled_by_the_lock(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.azure.servicebus.links.SETTLE_TIMEOUT", 0.4)
    await send(bus, *[job_line(f"{number}") for number in range(100)])
    async with jobs_queue(bus) as source:
        deliveries = await take(source, 100)
        disturb(bus, UNCONFIRMED | {"applied": False})
        async with asyncio.timeout(PATIENCE):
            assert await settle_all(deliveries) == {type(None)}
    assert active(bus) == 0


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "refuse", "on": "attach", "condition": BUSY, "count": 1},
        {"kind": "refuse", "on": "send", "condition": BUSY, "count": 1},
        {"kind": "refuse", "on": "send", "condition": "amqp:resource-limit-exceeded", "count": 1},
        {"kind": "refuse", "on": "send", "condition": "com.microsoft:timeout", "count": 1},
        {"kind": "refuse_connections", "count": 1},
        {"kind": "cut", "after_bytes": 3, "direction": "in", "count": 1},
        {"kind": "restart", "seconds": 0.3},
    ],
    ids=lambda fault: "-".join(str(value) for key, value in fault.items() if key in {"kind", "on", "condition"}),
)
async def test_the_results_queue_tells_that_it_is_unavailable_and_takes_the_same_result_again(
    bus: Bus, fault: dict[str, Any]
) -> None:
    async with results(bus) as sink:
        disturb(bus, fault)
        async with asyncio.timeout(PATIENCE):
            while not await written(sink):
                pass
    assert active(bus, "chat") == 1
