"""Topics, rules, forwarding and keys of the embedded Service Bus, seen through the unmodified azure-servicebus."""

import asyncio
import dataclasses
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any
from uuid import UUID

import pytest
from azure.core.credentials import AzureNamedKeyCredential
from azure.servicebus import ServiceBusMessage, ServiceBusSubQueue
from azure.servicebus._pyamqp.error import TokenAuthFailure
from azure.servicebus.aio import ServiceBusClient
from azure.servicebus.exceptions import MessageSizeExceededError, ServiceBusAuthorizationError, ServiceBusError

from embedded_azure.config import Config, SharedAccessRule
from embedded_azure.entra.tokens import AccessTokens, issuer_of
from embedded_azure.servicebus.server import serve
from tests.support.local_azure import Authority, Bus, bus_config

WAIT: dict[str, Any] = {"max_wait_time": 5}
NOTHING: dict[str, Any] = {"max_wait_time": 0.2}


def bodies(messages: list[Any]) -> list[bytes]:
    return [b"".join(message.body) for message in messages]


async def publish(bus: Bus, *messages: ServiceBusMessage) -> None:
    async with bus.client() as client, client.get_topic_sender("events") as sender:
        await sender.send_messages(list(messages))


async def test_a_topic_gives_each_subscription_what_its_rules_match(bus: Bus) -> None:
    await publish(
        bus,
        ServiceBusMessage(b"small", subject="order", application_properties={"n": 3}),
        ServiceBusMessage(b"big", subject="order", application_properties={"n": 4}),
        ServiceBusMessage(b"other", subject="offer", application_properties={"n": 4}),
    )
    async with bus.client() as client, AsyncExitStack() as stack:
        every = await stack.enter_async_context(client.get_subscription_receiver("events", "all"))
        big = await stack.enter_async_context(client.get_subscription_receiver("events", "big"))
        assert bodies(await every.receive_messages(3, **WAIT)) == [b"small", b"big", b"other"]
        (message,) = await big.receive_messages(3, **WAIT)
        assert (bodies([message]), message.sequence_number, message.enqueued_sequence_number) == ([b"big"], 1, 2)
        await big.dead_letter_message(message, reason="test")
        dead = client.get_subscription_receiver("events", "big", sub_queue=ServiceBusSubQueue.DEAD_LETTER)
        async with dead:
            (found,) = await dead.receive_messages(1, **WAIT)
            assert found.dead_letter_reason == "test"


async def test_roles_on_topics_and_subscriptions_are_kept_apart(bus: Bus) -> None:
    async with bus.client("sender") as client, client.get_topic_sender("events") as sender:
        await sender.send_messages(ServiceBusMessage(b"x"))
        with pytest.raises(ServiceBusAuthorizationError, match="'Listen' claim"):
            async with client.get_subscription_receiver("events", "all"):
                pass
    async with bus.client("receiver") as client:
        async with client.get_subscription_receiver("events", "all") as receiver:
            assert bodies(await receiver.receive_messages(1, **WAIT)) == [b"x"]
        for refused in (client.get_subscription_receiver("events", "big"), client.get_topic_sender("events")):
            with pytest.raises(ServiceBusAuthorizationError):
                async with refused:
                    pass


async def manage(receiver: Any, operation: str, body: Mapping[str, Any]) -> tuple[int, Any]:
    """The status and the map of the answer; the SDK has no client of its own for rules over AMQP."""

    def read(status: int, message: Any, _description: Any, **_options: Any) -> tuple[int, Any]:
        return status, message.value

    answer: tuple[int, Any] = await receiver._mgmt_request_response(
        f"com.microsoft:{operation}".encode(), dict(body), read
    )
    return answer


async def test_rules_are_added_listed_and_removed_over_amqp(bus: Bus) -> None:
    async with bus.client() as client, client.get_subscription_receiver("events", "all") as receiver:
        by_label = {"correlation-filter": {"label": "order", "properties": {"region": "eu"}}}
        for name, description in (("sql", {"sql-filter": {"expression": "n = 1"}}), ("label", by_label)):
            status, _ = await manage(receiver, "add-rule", {"rule-name": name, "rule-description": description})
            assert status == 200
        assert (await manage(receiver, "remove-rule", {"rule-name": "$Default"}))[0] == 200
        window = {"skip": {"TYPE": "INT", "VALUE": 0}, "top": {"TYPE": "INT", "VALUE": 10}}
        status, answer = await manage(receiver, "enumerate-rules", window)
        (sql, label) = [each[b"rule-description"] for each in answer[b"rules"]]
        assert (sql[0], sql[1], sql[2]) == ([b"n = 1"], [], b"sql")
        assert (label[0][4], label[0][8], label[2]) == (b"order", {b"region": b"eu"}, b"label")
        await publish(
            bus,
            ServiceBusMessage(b"one", application_properties={"n": 1}),
            ServiceBusMessage(b"two", application_properties={"n": 2}),
            ServiceBusMessage(b"eu", subject="order", application_properties={"region": "eu"}),
        )
        assert bodies(await receiver.receive_messages(3, **WAIT)) == [b"one", b"eu"]


@pytest.mark.parametrize(
    ("operation", "body", "refused"),
    [
        ("add-rule", {"rule-name": "$Default", "rule-description": {"sql-filter": {"expression": "1=1"}}}, 409),
        ("add-rule", {"rule-name": "x", "rule-description": {"sql-filter": {"expression": "n ="}}}, 400),
        ("add-rule", {"rule-name": "x", "rule-description": {}}, 400),
        ("add-rule", {"rule-name": "x", "rule-description": {"correlation-filter": {"label": 5}}}, 400),
        ("remove-rule", {"rule-name": "nowhere"}, 404),
    ],
)
async def test_a_rule_that_cannot_be_has_a_status(
    bus: Bus, operation: str, body: dict[str, Any], refused: int
) -> None:
    async with bus.client() as client, client.get_subscription_receiver("events", "all") as receiver:
        status, _ = await manage(receiver, operation, body)
        assert status == refused


async def test_a_queue_has_no_rules(bus: Bus) -> None:
    async with bus.client() as client, client.get_queue_receiver("jobs") as receiver:
        status, _ = await manage(receiver, "remove-rule", {"rule-name": "x"})
        assert status == 400


async def test_messages_and_dead_letters_are_passed_on(bus: Bus) -> None:
    async with bus.client() as client, client.get_queue_receiver("jobs") as receiver:
        for queue in ("onward", "mourned"):
            async with client.get_queue_sender(queue) as sender:
                await sender.send_messages(ServiceBusMessage(queue.encode()))
        async with client.get_queue_receiver("mourned") as mourned:
            (message,) = await mourned.receive_messages(1, **WAIT)
            await mourned.dead_letter_message(message, reason="sad")
        with pytest.raises(ServiceBusError, match="auto-forwarding"):
            async with client.get_queue_receiver("onward"):
                pass
        first, second = await receiver.receive_messages(2, **WAIT)
        assert bodies([first, second]) == [b"onward", b"mourned"]
        assert (second.dead_letter_source, second.dead_letter_reason) == ("mourned", "sad")


async def test_a_lock_token_is_a_delivery_annotation_too(bus: Bus) -> None:
    async with bus.client() as client, client.get_queue_receiver("jobs") as receiver:
        async with client.get_queue_sender("jobs") as sender:
            await sender.send_messages(ServiceBusMessage(b"x"))
        (message,) = await receiver.receive_messages(1, **WAIT)
        annotations = message.raw_amqp_message.delivery_annotations
        assert annotations == {b"x-opt-lock-token": message.lock_token}
        assert isinstance(message.lock_token, UUID)


async def test_large_messages_are_taken_where_they_are_allowed_and_batches_up_to_a_megabyte(bus: Bus) -> None:
    async with bus.client() as client, client.get_queue_sender("large") as sender:
        await sender.send_messages(ServiceBusMessage(b"x" * (2 << 20)))
        batch = await sender.create_message_batch()
        assert batch.max_size_in_bytes == 1 << 20
        # what the SDK would not put into one batch
        with pytest.raises(MessageSizeExceededError):
            await sender.send_messages([ServiceBusMessage(b"x" * 600_000) for _ in range(2)])
        async with client.get_queue_receiver("large") as receiver:
            (message,) = await receiver.receive_messages(1, **WAIT)
            assert len(bodies([message])[0]) == 2 << 20


# Keys


def connection_string(port: int | None, key: str = "SAS_KEY_VALUE") -> str:
    return (
        f"Endpoint=sb://127.0.0.1:{port};SharedAccessKeyName=RootManageSharedAccessKey;"
        f"SharedAccessKey={key};UseDevelopmentEmulator=true;"
    )


async def test_the_emulators_connection_string_opens_the_plaintext_port(bus: Bus) -> None:
    async with (
        ServiceBusClient.from_connection_string(connection_string(bus.plain_port)) as client,
        client.get_queue_sender("jobs") as sender,
        client.get_queue_receiver("jobs") as receiver,
    ):
        await sender.send_messages(ServiceBusMessage(b"x"))
        assert bodies(await receiver.receive_messages(1, **WAIT)) == [b"x"]


async def test_another_key_does_not(bus: Bus) -> None:
    wrong = connection_string(bus.plain_port, "wrong")
    async with ServiceBusClient.from_connection_string(wrong, retry_total=0) as client:
        with pytest.raises(ServiceBusError) as caught:
            async with client.get_queue_sender("jobs"):
                pass
        assert isinstance(caught.value.inner_exception, TokenAuthFailure)
        assert b"InvalidSignature" in caught.value.inner_exception.status_description


async def told_at_the_door(bus: Bus, name: str, key: str, queue: str = "jobs") -> bytes:
    """What put-token is refused with over TLS."""
    async with bus.client(credential=AzureNamedKeyCredential(name, key), retry_total=0) as client:
        with pytest.raises(ServiceBusError) as caught:
            async with client.get_queue_sender(queue):
                pass
    failure = caught.value.inner_exception
    assert isinstance(failure, TokenAuthFailure)
    return bytes(failure.status_description)


async def test_over_tls_keys_are_refused_where_the_namespace_has_none(bus: Bus) -> None:
    assert b"local (SAS) authentication is disabled" in await told_at_the_door(
        bus, "RootManageSharedAccessKey", "SAS_KEY_VALUE"
    )


def config_with_keys() -> Config:
    rules = (
        SharedAccessRule(name="read", key="one", rights=("Listen",)),
        SharedAccessRule(name="jobs", key="two", rights=("Send",), path="jobs"),
    )
    return dataclasses.replace(bus_config(), shared_access_rules=rules)


async def test_a_key_has_its_rights_and_its_place_and_no_more(authority: Authority) -> None:
    config = config_with_keys()
    tokens = AccessTokens(authority.entra_public, issuer_of(config.tenant_id))
    async with serve(config, tokens, tls=authority.tls()) as served:
        bus = Bus(tls_port=served.tls_port, plain_port=None, config=config, authority=authority)
        async with bus.client(credential=AzureNamedKeyCredential("read", "one")) as client:
            async with client.get_queue_receiver("jobs") as receiver:
                assert await receiver.receive_messages(1, **NOTHING) == []
            with pytest.raises(ServiceBusAuthorizationError, match="'Send' claim"):
                async with client.get_queue_sender("jobs"):
                    pass
        async with (
            bus.client(credential=AzureNamedKeyCredential("jobs", "two")) as client,
            client.get_queue_sender("jobs") as sender,
        ):
            await sender.send_messages(ServiceBusMessage(b"x"))
        assert b"a token with a wrong audience" in await told_at_the_door(bus, "jobs", "two", "held")
        assert b"InvalidSignature" in await told_at_the_door(bus, "jobs", "one")


async def test_delivery_ids_out_of_sequence_are_let_pass_where_the_config_says_so(authority: Authority) -> None:
    config = dataclasses.replace(bus_config(), strict_delivery_ids=False)
    tokens = AccessTokens(authority.entra_public, issuer_of(config.tenant_id))
    async with serve(config, tokens, tls=authority.tls()) as served:
        bus = Bus(tls_port=served.tls_port, plain_port=None, config=config, authority=authority)
        async with bus.client() as client, client.get_queue_receiver("jobs") as receiver:
            async with client.get_queue_sender("jobs") as sender:
                await sender.send_messages([ServiceBusMessage(b"x") for _ in range(10)])
            peeked = await asyncio.gather(*(receiver.peek_messages(sequence_number=n) for n in range(1, 11)))
            assert [len(messages) for messages in peeked] == [1] * 10
