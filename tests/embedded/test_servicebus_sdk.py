"""The embedded Service Bus, seen through the unmodified azure-servicebus over TLS: what the SDK promises holds."""

import asyncio
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from azure.servicebus import NEXT_AVAILABLE_SESSION, ServiceBusMessage, ServiceBusReceiveMode, ServiceBusSubQueue
from azure.servicebus._pyamqp.error import TokenAuthFailure
from azure.servicebus.aio import ServiceBusReceiver
from azure.servicebus.exceptions import (
    MessageLockLostError,
    MessageNotFoundError,
    MessageSizeExceededError,
    OperationTimeoutError,
    ServiceBusAuthorizationError,
    ServiceBusConnectionError,
    ServiceBusError,
    ServiceBusQuotaExceededError,
    SessionCannotBeLockedError,
    SessionLockLostError,
)
from cryptography.hazmat.primitives.asymmetric import rsa

from embedded_azure.certificates import private_pem
from embedded_azure.servicebus.server import ServiceBus
from tests.support.local_azure import Bus
from tests.support.patience import PATIENCE

WAIT: dict[str, Any] = {"max_wait_time": 5}
NOTHING: dict[str, Any] = {"max_wait_time": 0.2}


def service(bus: Bus) -> ServiceBus:
    assert bus.service is not None
    return bus.service


def body_of(message: Any) -> bytes:
    return b"".join(message.body)


async def send(bus: Bus, queue: str, *messages: ServiceBusMessage) -> None:
    async with bus.client() as client, client.get_queue_sender(queue) as sender:
        for message in messages:
            await sender.send_messages(message)


async def receive(receiver: ServiceBusReceiver, count: int = 1) -> list[Any]:
    """Exactly `count` messages."""
    messages: list[Any] = []
    while len(messages) < count:
        more = await receiver.receive_messages(count - len(messages), **WAIT)
        assert more, f"{len(messages)} of {count} messages arrived"
        messages += more
    return messages


async def hand_back(receiver: ServiceBusReceiver, message: Any) -> None:
    await receiver._handler.settle_messages_async(
        message._delivery_id, message._delivery_tag, "released", await_outcome=True
    )


# Sending and receiving


async def test_a_message_arrives_as_it_was_sent(bus: Bus) -> None:
    sent = ServiceBusMessage(
        b'{"custom_id": "1"}',
        message_id="batch/1",
        correlation_id="batch",
        content_type="application/json",
        subject="job",
        time_to_live=timedelta(hours=1),
        application_properties={"job-id": "x/1", "n": 7, "deadline": "2030-01-01T00:00:00Z", "ok": True},
    )
    async with bus.client() as client, client.get_queue_receiver("jobs") as receiver:
        await send(bus, "jobs", sent)
        (message,) = await receive(receiver)
        assert (message.message_id, message.correlation_id) == ("batch/1", "batch")
        assert (message.content_type, message.subject) == ("application/json", "job")
        assert message.time_to_live == timedelta(hours=1)
        assert message.application_properties == {
            b"job-id": b"x/1",
            b"n": 7,
            b"deadline": b"2030-01-01T00:00:00Z",
            b"ok": True,
        }
        assert body_of(message) == b'{"custom_id": "1"}'
        assert (message.delivery_count, message.sequence_number) == (0, 1)
        assert abs(message.enqueued_time_utc - datetime.now(UTC)) < timedelta(seconds=30)
        assert timedelta(seconds=270) < message.locked_until_utc - datetime.now(UTC) <= timedelta(seconds=300)
        await receiver.complete_message(message)
        assert await receiver.peek_messages(sequence_number=1) == []


async def test_a_batch_is_split_into_its_messages(bus: Bus) -> None:
    async with bus.client() as client, AsyncExitStack() as stack:
        sender = await stack.enter_async_context(client.get_queue_sender("jobs"))
        receiver = await stack.enter_async_context(client.get_queue_receiver("jobs"))
        batch = await sender.create_message_batch()
        for number in range(100):
            batch.add_message(ServiceBusMessage(b"%d" % number, message_id=f"m{number}"))
        await sender.send_messages(batch)
        messages = await receive(receiver, 100)
        assert [(m.message_id, body_of(m)) for m in messages] == [(f"m{n}", b"%d" % n) for n in range(100)]
        await asyncio.gather(*(receiver.complete_message(message) for message in messages))
        assert await receiver.receive_messages(1, **NOTHING) == []


async def test_messages_larger_than_a_frame_travel_in_several(bus: Bus) -> None:
    body = bytes(range(256)) * 900
    async with bus.client() as client, client.get_queue_receiver("jobs") as receiver:
        await send(bus, "jobs", ServiceBusMessage(body, message_id="big"), ServiceBusMessage(b"small"))
        big, small = await receive(receiver, 2)
        assert body_of(big) == body
        assert body_of(small) == b"small"
        await receiver.complete_message(big)
        await receiver.complete_message(small)


async def test_receive_and_delete_leaves_nothing(bus: Bus) -> None:
    mode = ServiceBusReceiveMode.RECEIVE_AND_DELETE
    async with bus.client() as client, client.get_queue_receiver("jobs", receive_mode=mode) as receiver:
        await send(bus, "jobs", ServiceBusMessage(b"1"), ServiceBusMessage(b"2"))
        assert [body_of(message) for message in await receive(receiver, 2)] == [b"1", b"2"]
        assert await receiver.peek_messages(sequence_number=1) == []


async def test_prefetched_messages_that_were_not_wanted_are_there_for_others(bus: Bus) -> None:
    await send(bus, "jobs", *(ServiceBusMessage(b"%d" % number) for number in range(5)))
    async with bus.client() as client:
        async with client.get_queue_receiver("jobs", prefetch_count=10) as receiver:
            (message,) = await receive(receiver)
            await receiver.complete_message(message)
        async with client.get_queue_receiver("jobs") as receiver:
            messages = await receive(receiver, 4)
            assert sorted((body_of(m), m.delivery_count) for m in messages) == [
                (b"%d" % number, 0) for number in range(1, 5)
            ]


async def test_two_receivers_share_what_arrives(bus: Bus) -> None:
    async with bus.client() as client, AsyncExitStack() as stack:
        receivers = [await stack.enter_async_context(client.get_queue_receiver("jobs")) for _ in range(2)]
        waiting = [asyncio.ensure_future(receiver.receive_messages(100, **WAIT)) for receiver in receivers]
        sender = await stack.enter_async_context(client.get_queue_sender("jobs"))
        while not all(len(dispatch._outlets) == 2 for dispatch in service(bus)._dispatches.values()):
            await asyncio.sleep(0)
        await sender.send_messages([ServiceBusMessage(b"%d" % number) for number in range(40)])
        shares = [len(messages) for messages in await asyncio.gather(*waiting)]
        assert shares == [20, 20]


# Settling


async def test_an_abandoned_message_comes_back_with_its_count_raised(bus: Bus) -> None:
    await send(bus, "jobs", ServiceBusMessage(b"x"))
    async with bus.client() as client, client.get_queue_receiver("jobs") as receiver:
        for count in range(3):
            (message,) = await receive(receiver)
            assert message.delivery_count == count
            await receiver.abandon_message(message)


async def test_a_message_handed_back_comes_back_with_its_count_unchanged(bus: Bus) -> None:
    await send(bus, "jobs", ServiceBusMessage(b"x"))
    async with bus.client() as client, client.get_queue_receiver("jobs") as receiver:
        for _ in range(3):
            (message,) = await receive(receiver)
            assert message.delivery_count == 0
            await hand_back(receiver, message)


async def test_a_deferred_message_is_received_by_its_number(bus: Bus) -> None:
    await send(bus, "jobs", ServiceBusMessage(b"later"))
    async with bus.client() as client, client.get_queue_receiver("jobs") as receiver:
        (message,) = await receive(receiver)
        await receiver.defer_message(message)
        assert await receiver.receive_messages(1, **NOTHING) == []
        (peeked,) = await receiver.peek_messages(sequence_number=message.sequence_number)
        assert peeked.state.name == "DEFERRED"
        (deferred,) = await receiver.receive_deferred_messages([message.sequence_number])
        assert body_of(deferred) == b"later"
        await receiver.complete_message(deferred)
        with pytest.raises(MessageNotFoundError):
            await receiver.receive_deferred_messages([message.sequence_number])


async def test_a_dead_lettered_message_tells_why(bus: Bus) -> None:
    await send(bus, "jobs", ServiceBusMessage(b"{", message_id="bad", application_properties={"mine": "kept"}))
    async with bus.client() as client, AsyncExitStack() as stack:
        receiver = await stack.enter_async_context(client.get_queue_receiver("jobs"))
        (message,) = await receive(receiver)
        await receiver.dead_letter_message(
            message, reason="InvalidJson", error_description="line 1: expected a name"
        )
        dead_letters = await stack.enter_async_context(
            client.get_queue_receiver("jobs", sub_queue=ServiceBusSubQueue.DEAD_LETTER)
        )
        (dead,) = await receive(dead_letters)
        assert (dead.message_id, body_of(dead)) == ("bad", b"{")
        assert (dead.dead_letter_reason, dead.dead_letter_error_description) == (
            "InvalidJson",
            "line 1: expected a name",
        )
        assert dead.application_properties[b"mine"] == b"kept"
        await dead_letters.complete_message(dead)
        assert await dead_letters.peek_messages(sequence_number=1) == []


async def test_too_many_failed_deliveries_end_in_the_dead_letter_queue(bus: Bus) -> None:
    await send(bus, "brief", ServiceBusMessage(b"poison"))
    async with bus.client() as client, client.get_queue_receiver("brief") as receiver:
        for _ in range(3):
            (message,) = await receive(receiver)
            await receiver.abandon_message(message)
        async with client.get_queue_receiver("brief", sub_queue=ServiceBusSubQueue.DEAD_LETTER) as dead_letters:
            (dead,) = await receive(dead_letters)
            assert dead.dead_letter_reason == "MaxDeliveryCountExceeded"


# Locks


async def test_a_lock_that_lapses_gives_the_message_to_the_next(bus: Bus) -> None:
    await send(bus, "brief", ServiceBusMessage(b"x"))
    async with bus.client() as client, AsyncExitStack() as stack:
        first = await stack.enter_async_context(client.get_queue_receiver("brief"))
        second = await stack.enter_async_context(client.get_queue_receiver("brief"))
        (held,) = await receive(first)
        (again,) = await receive(second)
        assert (again.message_id, again.delivery_count) == (held.message_id, 1)
        await second.complete_message(again)
        with pytest.raises(MessageLockLostError):
            await first.complete_message(held)


async def test_the_service_itself_refuses_to_settle_under_a_lapsed_lock(bus: Bus) -> None:
    await send(bus, "brief", ServiceBusMessage(b"x"))
    async with bus.client() as client, AsyncExitStack() as stack:
        first = await stack.enter_async_context(client.get_queue_receiver("brief"))
        second = await stack.enter_async_context(client.get_queue_receiver("brief"))
        (held,) = await receive(first)
        await receive(second)
        with pytest.raises(Exception, match="message-lock-lost"):
            await first._handler.settle_messages_async(
                held._delivery_id, held._delivery_tag, "accepted", await_outcome=True
            )
        with pytest.raises(MessageLockLostError):
            await first._renew_locks(held.lock_token)


async def test_renewing_keeps_a_message(bus: Bus) -> None:
    await send(bus, "brief", ServiceBusMessage(b"x"))
    async with bus.client() as client, client.get_queue_receiver("brief") as receiver:
        (message,) = await receive(receiver)
        first_end = message.locked_until_utc
        while datetime.now(UTC) < first_end:
            assert await receiver.receive_messages(1, max_wait_time=0.1) == []
            assert await receiver.renew_message_lock(message) > first_end
        await receiver.complete_message(message)


async def test_a_hundred_locks_are_renewed_in_one_request(bus: Bus) -> None:
    async with bus.client() as client, AsyncExitStack() as stack:
        sender = await stack.enter_async_context(client.get_queue_sender("jobs"))
        receiver = await stack.enter_async_context(client.get_queue_receiver("jobs"))
        await sender.send_messages([ServiceBusMessage(b"x") for _ in range(100)])
        messages = await receive(receiver, 100)
        answer = await receiver._renew_locks(*(message.lock_token for message in messages))
        assert len(answer[b"expirations"]) == 100
        assert all(end / 1000 >= messages[0].locked_until_utc.timestamp() for end in answer[b"expirations"])


# Looking, scheduling, duplicates, limits


async def test_peeking_shows_and_takes_nothing(bus: Bus) -> None:
    await send(bus, "jobs", *(ServiceBusMessage(b"%d" % number) for number in range(3)))
    async with bus.client() as client, client.get_queue_receiver("jobs") as receiver:
        peeked = await receiver.peek_messages(10)
        assert [body_of(message) for message in peeked] == [b"0", b"1", b"2"]
        assert [body_of(m) for m in await receiver.peek_messages(10, sequence_number=2)] == [b"1", b"2"]
        assert len(await receive(receiver, 3)) == 3


async def test_a_scheduled_message_waits_for_its_time(bus: Bus) -> None:
    async with bus.client() as client, AsyncExitStack() as stack:
        sender = await stack.enter_async_context(client.get_queue_sender("jobs"))
        receiver = await stack.enter_async_context(client.get_queue_receiver("jobs"))
        due = datetime.now(UTC) + timedelta(seconds=0.7)
        far = datetime.now(UTC) + timedelta(hours=1)
        await sender.schedule_messages(ServiceBusMessage(b"soon"), due)
        (number,) = await sender.schedule_messages(ServiceBusMessage(b"never"), far)
        assert [m.state.name for m in await receiver.peek_messages(10)] == ["SCHEDULED", "SCHEDULED"]
        await sender.cancel_scheduled_messages(number)
        (message,) = await receive(receiver)
        assert body_of(message) == b"soon"
        assert datetime.now(UTC) >= due
        assert await receiver.peek_messages(10, sequence_number=message.sequence_number + 1) == []
        with pytest.raises(MessageNotFoundError):
            await sender.cancel_scheduled_messages(number)


async def test_a_duplicate_is_dropped_silently(bus: Bus) -> None:
    await send(bus, "jobs", *(ServiceBusMessage(body, message_id="same") for body in (b"first", b"second")))
    async with bus.client() as client, client.get_queue_receiver("jobs") as receiver:
        assert [body_of(message) for message in await receiver.peek_messages(10)] == [b"first"]


async def test_a_message_too_large_is_refused(bus: Bus) -> None:
    async with bus.client() as client, client.get_queue_sender("small") as sender:
        with pytest.raises(MessageSizeExceededError):
            await sender.send_messages(ServiceBusMessage(b"x" * 3_000))
        await sender.send_messages(ServiceBusMessage(b"x" * 1_000))


async def test_a_full_queue_refuses(bus: Bus) -> None:
    async with bus.client() as client, client.get_queue_sender("narrow") as sender:
        await sender.send_messages(ServiceBusMessage(b"x" * 2_000))
        with pytest.raises(ServiceBusQuotaExceededError):
            await sender.send_messages(ServiceBusMessage(b"x" * 2_000))


async def test_an_unknown_queue_is_missed_when_a_token_is_put_for_it(bus: Bus) -> None:
    # Azure's own tests of the SDK expect an authentication error of a queue that is not there.
    async with bus.client() as client:
        for open_link in (client.get_queue_sender, client.get_queue_receiver):
            with pytest.raises(ServiceBusError) as caught:
                async with open_link("nowhere"):
                    pass
            assert isinstance(caught.value.inner_exception, TokenAuthFailure)
            assert caught.value.inner_exception.status_code == 404
            assert b"nowhere" in caught.value.inner_exception.status_description


# Sessions


async def test_a_session_is_held_by_one_and_keeps_its_state(bus: Bus) -> None:
    await send(bus, "chat", *(ServiceBusMessage(b"%d" % number, session_id="s1") for number in range(3)))
    async with bus.client() as client:
        async with client.get_queue_receiver("chat", session_id="s1") as receiver:
            assert receiver.session.session_id == "s1"
            assert await receiver.session.get_state() is None
            await receiver.session.set_state(b"page 2")
            assert await receiver.session.renew_lock() > datetime.now(UTC)
            messages = await receive(receiver, 3)
            assert [(body_of(m), m.session_id) for m in messages] == [(b"%d" % n, "s1") for n in range(3)]
            await receiver.complete_message(messages[0])
            async with bus.client(retry_total=0) as other:
                with pytest.raises(SessionCannotBeLockedError):
                    async with other.get_queue_receiver("chat", session_id="s1"):
                        pass
        async with client.get_queue_receiver("chat", session_id="s1") as receiver:
            assert await receiver.session.get_state() == b"page 2"
            assert [body_of(message) for message in await receive(receiver, 2)] == [b"1", b"2"]


async def test_the_next_available_session_is_waited_for(bus: Bus) -> None:
    async with bus.client() as client:
        receiver = client.get_queue_receiver("chat", session_id=NEXT_AVAILABLE_SESSION, max_wait_time=PATIENCE)
        opening = asyncio.ensure_future(receiver.__aenter__())
        while not any(dispatch._waiting for dispatch in service(bus)._dispatches.values()):
            await asyncio.sleep(0)
        await send(bus, "chat", ServiceBusMessage(b"hi", session_id="s7"))
        async with await opening:
            assert receiver.session.session_id == "s7"
            (message,) = await receive(receiver)
            assert body_of(message) == b"hi"


async def test_no_session_in_time_is_a_timeout(bus: Bus) -> None:
    async with bus.client(retry_total=0) as client:
        with pytest.raises(OperationTimeoutError):
            async with client.get_queue_receiver("chat", session_id=NEXT_AVAILABLE_SESSION, max_wait_time=1):
                pass


async def test_a_session_lost_by_time_is_said_to_be_lost(bus: Bus) -> None:
    await send(bus, "brief-chat", ServiceBusMessage(b"x", session_id="s"))
    async with bus.client() as client, client.get_queue_receiver("brief-chat", session_id="s") as receiver:
        (message,) = await receive(receiver)
        with pytest.raises(SessionLockLostError):
            await receiver.receive_messages(1, **WAIT)
        with pytest.raises(SessionLockLostError):
            await receiver.complete_message(message)


async def test_a_session_lost_by_time_is_taken_from_a_receiver_that_does_nothing(bus: Bus) -> None:
    await send(bus, "brief-chat", ServiceBusMessage(b"x", session_id="s"))
    async with bus.client() as client, AsyncExitStack() as stack:
        idle = await stack.enter_async_context(client.get_queue_receiver("brief-chat", session_id="s"))
        next_one = await stack.enter_async_context(
            client.get_queue_receiver("brief-chat", session_id=NEXT_AVAILABLE_SESSION, max_wait_time=PATIENCE)
        )
        assert next_one.session.session_id == "s"
        (dispatch,) = service(bus)._dispatches.values()
        (holder,) = (outlet for outlet in dispatch._outlets if not outlet.lost)
        assert next_one._handler._link is not None
        assert holder.link.name == next_one._handler._link.name
        with pytest.raises(SessionLockLostError):
            await idle.receive_messages(1, **WAIT)


async def test_who_waits_when_its_session_is_lost_is_told(bus: Bus) -> None:
    async with bus.client(retry_total=0) as client, client.get_queue_receiver("brief-chat", session_id="s") as idle:
        with pytest.raises(SessionLockLostError):
            await idle.receive_messages(1, max_wait_time=20)


async def test_a_queue_with_sessions_needs_one(bus: Bus) -> None:
    async with bus.client(retry_total=0) as client:
        with pytest.raises(ServiceBusError, match="requires sessions"):
            async with client.get_queue_receiver("chat"):
                pass


# Who may do what


async def test_no_role_is_refused_in_the_words_of_the_service(bus: Bus) -> None:
    async with bus.client("receiver", retry_total=0) as client:
        with pytest.raises(ServiceBusAuthorizationError, match=r"'Send' claim\(s\) are required"):
            async with client.get_queue_sender("jobs"):
                pass
    async with bus.client("sender", retry_total=0) as client:
        with pytest.raises(ServiceBusAuthorizationError, match=r"'Listen' claim\(s\) are required"):
            async with client.get_queue_receiver("jobs"):
                pass
    async with bus.client("stranger", retry_total=0) as client:
        with pytest.raises(ServiceBusAuthorizationError):
            async with client.get_queue_receiver("jobs"):
                pass


async def test_a_role_on_one_queue_opens_no_other(bus: Bus) -> None:
    async with bus.client("sender", retry_total=0) as client:
        async with client.get_queue_sender("jobs") as sender:
            await sender.send_messages(ServiceBusMessage(b"x"))
        with pytest.raises(ServiceBusAuthorizationError):
            async with client.get_queue_sender("small"):
                pass


async def test_a_queue_is_the_same_in_capitals_and_so_are_the_rights(bus: Bus) -> None:
    async with bus.client("sender", retry_total=0) as client:
        async with client.get_queue_sender("JOBS") as sender:
            await sender.send_messages(ServiceBusMessage(b"x"))
        with pytest.raises(ServiceBusAuthorizationError):
            async with client.get_queue_receiver("JOBS"):
                pass


async def test_the_right_to_receive_is_the_right_to_the_dead_letters(bus: Bus) -> None:
    sub_queue = ServiceBusSubQueue.DEAD_LETTER
    async with bus.client("receiver") as client, client.get_queue_receiver("jobs", sub_queue=sub_queue) as dead:
        assert await dead.peek_messages(sequence_number=1) == []


async def reason_for_refusing(bus: Bus, credential: Any) -> str:
    """With a custom endpoint the SDK makes a connection error of a refused token, and puts the truth inside."""
    async with bus.client(credential=credential, retry_total=0) as client:
        with pytest.raises(ServiceBusConnectionError) as caught:
            async with client.get_queue_receiver("jobs"):
                pass
    refusal = caught.value.inner_exception
    assert isinstance(refusal, TokenAuthFailure)
    assert refusal.status_code == 401
    return str(refusal)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"audience": "https://cognitiveservices.azure.com"}, "InvalidAudience"),
        ({"lifetimes": [-60.0]}, "ExpiredToken"),
        ({"tenant_id": "00000000-0000-4000-8000-000000000000"}, "InvalidIssuer"),
    ],
)
async def test_a_token_that_proves_nothing_is_refused(bus: Bus, options: dict[str, Any], reason: str) -> None:
    credential = bus.credential()
    for name, value in options.items():
        setattr(credential, name, value)
    assert reason in await reason_for_refusing(bus, credential)


async def test_a_token_signed_by_somebody_else_is_refused(bus: Bus) -> None:
    credential = bus.credential()
    credential.private_key = private_pem(rsa.generate_private_key(public_exponent=65537, key_size=2048))
    assert "InvalidSignature" in await reason_for_refusing(bus, credential)


async def test_a_link_ends_with_its_token_and_a_new_token_opens_a_new_one(bus: Bus) -> None:
    short_lived = bus.credential(lifetimes=[1.5, 3600.0])
    async with bus.client(credential=short_lived) as client, client.get_queue_receiver("jobs") as receiver:
        with pytest.raises(ServiceBusAuthorizationError, match="ExpiredToken"):
            await receiver.receive_messages(1, **WAIT)
        await send(bus, "jobs", ServiceBusMessage(b"still there"))
        (message,) = await receive(receiver)
        assert body_of(message) == b"still there"
        assert short_lived.asked == 2


# Faults


async def test_a_dropped_connection_is_opened_again(bus: Bus) -> None:
    async with bus.client() as client, AsyncExitStack() as stack:
        sender = await stack.enter_async_context(client.get_queue_sender("jobs"))
        receiver = await stack.enter_async_context(client.get_queue_receiver("jobs"))
        await sender.send_messages(ServiceBusMessage(b"before"))
        service(bus).drop_connections()
        await sender.send_messages(ServiceBusMessage(b"after"))
        messages = await receive(receiver, 2)
        assert [body_of(message) for message in messages] == [b"before", b"after"]
        for message in messages:
            await receiver.complete_message(message)


async def test_plaintext_is_served_too_and_checks_as_much(bus: Bus) -> None:
    plain: dict[str, Any] = {
        "use_tls": False,
        "custom_endpoint_address": f"sb://127.0.0.1:{bus.plain_port}",
        "connection_verify": None,
        "retry_total": 0,
    }
    async with bus.client("sender", **plain) as client:
        async with client.get_queue_sender("jobs") as sender:
            await sender.send_messages(ServiceBusMessage(b"x"))
        with pytest.raises(ServiceBusAuthorizationError):
            async with client.get_queue_receiver("jobs"):
                pass
