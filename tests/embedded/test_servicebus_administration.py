"""The administration API, seen through the unmodified ServiceBusAdministrationClient over TLS, async and sync."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from aiohttp import ClientSession, TCPConnector
from azure.core.credentials import AccessToken
from azure.core.exceptions import (
    ClientAuthenticationError,
    HttpResponseError,
    ResourceExistsError,
    ResourceNotFoundError,
)
from azure.servicebus import ServiceBusMessage, TransportType
from azure.servicebus.aio import ServiceBusClient
from azure.servicebus.aio.management import ServiceBusAdministrationClient
from azure.servicebus.exceptions import (
    MessagingEntityDisabledError,
    MessagingEntityNotFoundError,
    ServiceBusError,
)
from azure.servicebus.management import (
    CorrelationRuleFilter,
    FalseRuleFilter,
    SqlRuleFilter,
    TrueRuleFilter,
)
from azure.servicebus.management import (
    ServiceBusAdministrationClient as SyncAdministrationClient,
)

from embedded_azure.certificates import make_signing_key, private_pem
from embedded_azure.entra.tokens import AccessTokens, issuer_of
from embedded_azure.servicebus.server import serve
from tests.support.local_azure import Authority, Bus, bus_config
from tests.support.patience import PATIENCE


@dataclass(frozen=True)
class Front:
    bus: Bus
    port: int

    def client(self, identity: str = "owner", **options: Any) -> ServiceBusAdministrationClient:
        return ServiceBusAdministrationClient(
            f"localhost:{self.port}",
            options.pop("credential", None) or self.bus.credential(identity),
            connection_verify=str(self.bus.authority.ca_file),
            retry_total=0,
            **options,
        )

    def over_websockets(self, **options: Any) -> ServiceBusClient:
        return self.bus.client(
            custom_endpoint_address=f"sb://localhost:{self.port}",
            transport_type=TransportType.AmqpOverWebsocket,
            **options,
        )

    @asynccontextmanager
    async def raw(self) -> AsyncIterator[tuple[ClientSession, str]]:
        """Without the SDK, as an owner."""
        token = (await self.bus.credential().get_token("https://servicebus.azure.net/.default")).token
        async with ClientSession(
            connector=TCPConnector(ssl=self.bus.authority.trust()), headers={"Authorization": f"Bearer {token}"}
        ) as session:
            yield session, f"https://localhost:{self.port}"


@pytest.fixture
async def front(authority: Authority) -> AsyncIterator[Front]:
    config = bus_config()
    tokens = AccessTokens(authority.entra_public, issuer_of(config.tenant_id))
    async with serve(config, tokens, tls=authority.tls(), https_port=0) as served:
        assert served.https_port is not None
        bus = Bus(
            tls_port=served.tls_port,
            plain_port=served.plain_port,
            config=config,
            authority=authority,
            service=served.bus,
        )
        yield Front(bus, served.https_port)


# Queues


async def test_the_counts_that_keda_scales_by_are_true(front: Front) -> None:
    async with front.bus.client() as client, client.get_queue_sender("jobs") as sender:
        await sender.send_messages([ServiceBusMessage(b"x" * 100) for _ in range(5)])
        await sender.schedule_messages(ServiceBusMessage(b"later"), datetime.now(UTC) + timedelta(hours=1))
        async with client.get_queue_receiver("jobs") as receiver:
            dead, deferred, locked = await receiver.receive_messages(3, max_wait_time=PATIENCE)
            await receiver.dead_letter_message(dead)
            await receiver.defer_message(deferred)
            async with front.client() as administration:
                counts = await administration.get_queue_runtime_properties("jobs")
            assert locked.locked_until_utc is not None
    assert counts.active_message_count == 4  # locked and deferred ones are active, as in Azure
    assert counts.dead_letter_message_count == 1
    assert counts.scheduled_message_count == 1
    assert counts.transfer_message_count == 0
    assert counts.transfer_dead_letter_message_count == 0
    assert counts.total_message_count == 6
    assert 500 < (counts.size_in_bytes or 0) < 2_000
    now = datetime.now(UTC)
    for moment in (counts.created_at_utc, counts.updated_at_utc, counts.accessed_at_utc):
        assert moment is not None
        assert abs(now - moment) < timedelta(minutes=1)
    assert counts.accessed_at_utc > counts.created_at_utc  # type: ignore[operator]  # neither is None: see above


async def test_a_queue_is_created_as_described_used_changed_and_deleted(front: Front) -> None:
    async with front.client() as administration, front.bus.client() as client:
        created = await administration.create_queue(
            "new",
            lock_duration=timedelta(seconds=20),
            max_delivery_count=7,
            requires_session=True,
            requires_duplicate_detection=True,
            duplicate_detection_history_time_window=timedelta(minutes=3),
            default_message_time_to_live=timedelta(days=2, seconds=1.5),
            dead_lettering_on_message_expiration=True,
            max_size_in_megabytes=2048,
            user_metadata="a & <b>",
        )
        queue = await administration.get_queue("NEW")
        for name in ("lock_duration", "max_delivery_count", "requires_session", "requires_duplicate_detection"):
            assert getattr(queue, name) == getattr(created, name)
        assert queue.lock_duration == timedelta(seconds=20)
        assert queue.max_delivery_count == 7
        assert queue.duplicate_detection_history_time_window == timedelta(minutes=3)
        assert queue.default_message_time_to_live == timedelta(days=2, seconds=1.5)
        assert (queue.requires_session, queue.dead_lettering_on_message_expiration) == (True, True)
        assert (queue.max_size_in_megabytes, queue.user_metadata) == (2048, "a & <b>")
        async with client.get_queue_sender("new") as sender:
            await sender.send_messages(ServiceBusMessage(b"x", session_id="s"))
        queue.max_delivery_count = 9
        await administration.update_queue(queue)
        changed = await administration.get_queue("new")
        assert (changed.max_delivery_count, changed.lock_duration) == (9, timedelta(seconds=20))
        assert (await administration.get_queue_runtime_properties("new")).active_message_count == 1
        await administration.delete_queue("new")
        with pytest.raises(ResourceNotFoundError):
            await administration.get_queue("new")
        with pytest.raises(ServiceBusError):
            async with client.get_queue_sender("new") as sender:
                await sender.send_messages(ServiceBusMessage(b"x"))


async def test_a_queue_without_terms_gets_those_of_azure(front: Front) -> None:
    async with front.client() as administration:
        queue = await administration.create_queue("plain")
    assert queue.lock_duration == timedelta(minutes=1)
    assert queue.max_delivery_count == 10
    assert (queue.requires_session, queue.requires_duplicate_detection) == (False, False)
    assert queue.dead_lettering_on_message_expiration is False
    assert isinstance(queue.default_message_time_to_live, timedelta)
    assert queue.default_message_time_to_live > timedelta(days=10_000_000)


async def test_all_queues_are_listed_page_by_page(front: Front) -> None:
    async with front.client() as administration:
        for number in range(5):
            await administration.create_queue(f"more-{number}")
        names = [queue.name async for queue in administration.list_queues(max_page_size=3)]
        assert names == [
            *(queue.name for queue in front.bus.config.queues),
            *(f"more-{number}" for number in range(5)),
        ]
        runtimes = [each.name async for each in administration.list_queues_runtime_properties()]
        assert runtimes == names


async def test_a_queue_passes_on_to_another(front: Front) -> None:
    async with front.client() as administration, front.bus.client() as client:
        await administration.create_queue("target")
        source = await administration.create_queue("source", forward_to="target")
        assert (source.forward_to or "").endswith("target")
        async with client.get_queue_sender("source") as sender:
            await sender.send_messages(ServiceBusMessage(b"x"))
        assert (await administration.get_queue_runtime_properties("target")).active_message_count == 1
        assert (await administration.get_queue_runtime_properties("source")).active_message_count == 0


async def test_the_namespace_tells_its_name_and_tier(front: Front) -> None:
    async with front.client() as administration:
        properties = await administration.get_namespace_properties()
    assert (properties.name, properties.messaging_sku) == ("local", "Standard")


async def test_who_waits_for_messages_of_a_deleted_queue_is_told(front: Front) -> None:
    async with front.client() as administration, front.bus.client(retry_total=0) as client:
        async with client.get_queue_receiver("held") as receiver:
            waiting = asyncio.ensure_future(receiver.receive_messages(1, max_wait_time=30))
            assert front.bus.service is not None
            dispatches = front.bus.service._dispatches
            while not any(outlet.link.credit for dispatch in dispatches.values() for outlet in dispatch._outlets):
                await asyncio.sleep(0)
            await administration.delete_queue("held")
            with pytest.raises(MessagingEntityNotFoundError):
                await waiting
        assert dispatches == {}


# Topics, subscriptions, rules


async def test_a_topic_with_subscriptions_and_rules_is_created_used_and_deleted(front: Front) -> None:
    async with front.client() as administration, front.bus.client() as client:
        await administration.create_topic("news", default_message_time_to_live=timedelta(hours=1))
        await administration.create_subscription("news", "all", lock_duration=timedelta(seconds=30))
        await administration.create_subscription("news", "red")
        await administration.delete_rule("news", "red", "$Default")
        await administration.create_rule(
            "news", "red", "by-colour", filter=CorrelationRuleFilter(properties={"colour": "red", "n": 1})
        )
        async with client.get_topic_sender("news") as sender:
            await sender.send_messages(ServiceBusMessage(b"1", application_properties={"colour": "red", "n": 1}))
            await sender.send_messages(ServiceBusMessage(b"2", application_properties={"colour": "blue"}))
        everything = await administration.get_subscription_runtime_properties("news", "all")
        red = await administration.get_subscription_runtime_properties("news", "red")
        assert (everything.active_message_count, red.active_message_count) == (2, 1)
        assert (everything.total_message_count, red.dead_letter_message_count) == (2, 0)
        topic = await administration.get_topic_runtime_properties("news")
        assert (topic.name, topic.subscription_count) == ("news", 2)
        names = [each.name async for each in administration.list_subscriptions("news")]
        assert names == ["all", "red"]
        subscription = await administration.get_subscription("news", "all")
        assert subscription.lock_duration == timedelta(seconds=30)
        subscription.max_delivery_count = 3
        await administration.update_subscription("news", subscription)
        assert (await administration.get_subscription("news", "all")).max_delivery_count == 3
        described = await administration.get_topic("news")
        assert described.default_message_time_to_live == timedelta(hours=1)
        described.default_message_time_to_live = timedelta(hours=2)
        await administration.update_topic(described)
        assert (await administration.get_topic("news")).default_message_time_to_live == timedelta(hours=2)
        await administration.delete_subscription("news", "red")
        await administration.delete_topic("news")
        assert "news" not in [each.name async for each in administration.list_topics()]


async def test_rules_come_back_as_they_were_given(front: Front) -> None:
    filters: dict[str, Any] = {
        "true": TrueRuleFilter(),
        "false": FalseRuleFilter(),
        "sql": SqlRuleFilter("colour = 'red' AND n > 2"),
        "correlation": CorrelationRuleFilter(
            correlation_id="c", label="l", properties={"s": "x", "i": 2, "l": 1 << 40, "d": 1.5, "b": True}
        ),
    }
    async with front.client() as administration:
        await administration.create_topic("t")
        await administration.create_subscription("t", "s")
        for name, given in filters.items():
            await administration.create_rule("t", "s", name, filter=given)
        rules = {rule.name: rule async for rule in administration.list_rules("t", "s")}
        assert set(rules) == {"$Default", *filters}
        assert [type(rules[name].filter) for name in filters] == [type(each) for each in filters.values()]
        assert rules["sql"].filter.sql_expression == "colour = 'red' AND n > 2"  # type: ignore[union-attr]  # as above
        correlation: Any = rules["correlation"].filter
        assert correlation.properties == filters["correlation"].properties
        assert (correlation.correlation_id, correlation.label) == ("c", "l")
        rule = await administration.get_rule("t", "s", "sql")
        rule.filter = SqlRuleFilter("n = 7")
        await administration.update_rule("t", "s", rule)
        changed: Any = await administration.get_rule("t", "s", "sql")
        assert changed.filter.sql_expression == "n = 7"


# Refusals


@pytest.mark.parametrize("identity", ["sender", "receiver", "stranger"])
async def test_only_an_owner_may_administer(front: Front, identity: str) -> None:
    async with front.client(identity) as administration:
        with pytest.raises(ClientAuthenticationError) as raised:
            await administration.get_queue_runtime_properties("jobs")
    assert raised.value.status_code == 401
    assert "Manage,EntityRead claims required for this operation." in str(raised.value)


async def test_a_token_that_entra_did_not_sign_is_refused(front: Front) -> None:
    forged = replace(front.bus.credential(), private_key=private_pem(make_signing_key()))
    async with front.client(credential=forged) as administration:
        with pytest.raises(ClientAuthenticationError):
            await administration.get_queue("jobs")


async def test_what_is_there_already_conflicts(front: Front) -> None:
    async with front.client() as administration:
        with pytest.raises(ResourceExistsError) as raised:
            await administration.create_queue("Jobs")
    assert raised.value.status_code == 409
    assert "SubCode=40900" in str(raised.value)


async def test_what_is_not_there_is_not_found(front: Front) -> None:
    async with front.client() as administration:
        with pytest.raises(ResourceNotFoundError):
            await administration.get_queue("nowhere")
        with pytest.raises(ResourceNotFoundError):
            await administration.delete_queue("nowhere")
        with pytest.raises(ResourceNotFoundError):
            await administration.get_subscription("nowhere", "s")
        queue = await administration.get_queue("jobs")
        queue.name = "nowhere"
        with pytest.raises(ResourceNotFoundError):
            await administration.update_queue(queue)


async def test_a_disabled_entity_refuses_senders_or_receivers_or_both(front: Front) -> None:
    async with front.client() as administration, front.bus.client(retry_total=0) as client:
        queue = await administration.create_queue("paused", status="SendDisabled")
        assert queue.status == "SendDisabled"
        with pytest.raises(MessagingEntityDisabledError):
            await client.get_queue_sender("paused").send_messages(ServiceBusMessage(b"1"))
        sender, receiver = client.get_queue_sender("paused"), client.get_queue_receiver("paused")
        for status in ("Active", "ReceiveDisabled"):  # both links are open when the status changes
            queue.status = status
            await administration.update_queue(queue)
            await sender.send_messages(ServiceBusMessage(b"1"))
            if status == "Active":
                (message,) = await receiver.receive_messages(1, max_wait_time=5)
                await receiver.complete_message(message)
        with pytest.raises(MessagingEntityDisabledError):
            await receiver.receive_messages(1, max_wait_time=5)
        queue.status = "Disabled"
        await administration.update_queue(queue)
        with pytest.raises(MessagingEntityDisabledError):
            await sender.send_messages(ServiceBusMessage(b"1"))
        with pytest.raises(MessagingEntityDisabledError):
            await client.get_queue_receiver("paused").receive_messages(1, max_wait_time=5)


async def test_a_disabled_subscription_still_collects_what_it_will_give_later(front: Front) -> None:
    async with front.client() as administration, front.bus.client(retry_total=0) as client:
        subscription = await administration.create_subscription("events", "paused", status="Disabled")
        await client.get_topic_sender("events").send_messages(ServiceBusMessage(b"1"))
        with pytest.raises(MessagingEntityDisabledError):
            await client.get_subscription_receiver("events", "paused").receive_messages(1, max_wait_time=5)
        subscription.status = "Active"
        await administration.update_subscription("events", subscription)
        assert await client.get_subscription_receiver("events", "paused").receive_messages(1, max_wait_time=5)


async def test_answers_have_no_prefixes_and_name_the_entity_by_its_path(front: Front) -> None:
    async with front.raw() as (session, url):
        for path, entity in (
            ("jobs", "jobs"),
            ("events/Subscriptions/big", "events/Subscriptions/big"),
            ("EVENTS/subscriptions/big/rules/big", "events/Subscriptions/big/Rules/big"),
        ):
            async with session.get(f"{url}/{path}?api-version=2021-05") as response:
                text = await response.text()
            assert text.startswith('<entry xmlns="http://www.w3.org/2005/Atom"><id>')
            assert f"<id>https://{front.bus.config.namespace}/{entity}?api-version=2021-05</id>" in text
            assert "ns0:" not in text
        async with session.get(f"{url}/$Resources/queues") as response:
            assert f"<id>https://{front.bus.config.namespace}/held?" in await response.text()


@pytest.mark.parametrize(
    "terms",
    [
        {"lock_duration": timedelta(minutes=6)},
        {"lock_duration": timedelta(0)},
        {"max_delivery_count": 0},
        {"forward_to": "source"},
        {"status": "Renaming"},
    ],
    ids=str,
)
async def test_terms_that_cannot_be_are_refused_by_name(front: Front, terms: dict[str, Any]) -> None:
    async with front.client() as administration:
        with pytest.raises(HttpResponseError) as raised:
            await administration.create_queue("source", **terms)
        assert raised.value.status_code in {400, 404}
        assert [queue.name async for queue in administration.list_queues()] == [
            queue.name for queue in front.bus.config.queues
        ]


async def test_what_is_fixed_at_creation_cannot_be_changed(front: Front) -> None:
    async with front.client() as administration:
        queue = await administration.get_queue("jobs")
        queue.requires_session = True
        with pytest.raises(HttpResponseError) as raised:
            await administration.update_queue(queue)
    assert raised.value.status_code == 400


BOMB = b"""<!DOCTYPE entry [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>
<entry xmlns="http://www.w3.org/2005/Atom"><content>&b;</content></entry>"""


@pytest.mark.parametrize(
    "body",
    [b"", b"<", BOMB, b"<a/>" * 9, b"\xff\xfe", b"<entry/>", b"<a>" * 40 + b"</a>" * 40, b"x" * (1 << 19)],
    ids=["empty", "cut", "entities", "several", "encoding", "no-namespace", "deep", "large"],
)
async def test_a_body_that_is_no_description_is_refused(front: Front, body: bytes) -> None:
    async with front.raw() as (session, url):
        async with session.put(f"{url}/new?api-version=2021-05", data=body) as response:
            assert response.status == 400
            assert "<Code>400</Code>" in await response.text()
        async with session.get(f"{url}/jobs?api-version=2021-05") as response:
            assert response.status == 200


async def test_the_counts_have_the_names_that_other_clients_look_for(front: Front) -> None:
    """KEDA's scaler reads the elements of CountDetails by these names."""
    async with front.raw() as (session, url), session.get(f"{url}/jobs?api-version=2021-05") as response:
        body = await response.text()
        assert response.headers["Content-Type"].startswith("application/atom+xml")
    assert "http://schemas.microsoft.com/netservices/2011/06/servicebus" in body
    for name in ("ActiveMessageCount", "DeadLetterMessageCount", "ScheduledMessageCount"):
        assert f"{name}>0<" in body


async def test_a_fault_is_answered_in_place_of_the_administration(front: Front) -> None:
    async with front.raw() as (session, url):
        async with session.put(
            f"{url}/local/faults", json={"kind": "answer", "status": 503, "count": 1}
        ) as response:
            assert response.status == 200
        async with front.client() as administration:
            with pytest.raises(HttpResponseError) as raised:
                await administration.get_queue("jobs")
            assert raised.value.status_code == 503
            assert (await administration.get_queue("jobs")).name == "jobs"


async def test_while_the_service_is_down_only_its_faults_can_be_reached(front: Front) -> None:
    async with front.raw() as (session, url):
        fault = {"kind": "restart", "seconds": 30}
        async with session.put(f"{url}/local/faults", data=json.dumps(fault)) as response:
            assert await response.json() == []
        async with front.client() as administration:
            with pytest.raises(Exception, match=r"(?i)disconnect|reset|closed"):
                await administration.get_queue("jobs")
        async with session.get(f"{url}/local/faults/kinds") as response:
            assert {"refuse", "lose_answer", "cut", "slow", "restart"} <= set(await response.json())


# The sync client


class SyncCredential:
    def __init__(self, token: AccessToken) -> None:
        self._token = token

    def get_token(self, *_scopes: str, **_options: Any) -> AccessToken:
        return self._token


async def test_the_sync_client_does_the_same(front: Front) -> None:
    token = await front.bus.credential().get_token("https://servicebus.azure.net/.default")

    def administer() -> tuple[Any, list[str]]:
        with SyncAdministrationClient(
            f"localhost:{front.port}",
            SyncCredential(token),
            connection_verify=str(front.bus.authority.ca_file),
            retry_total=0,
        ) as administration:
            administration.create_queue("sync", max_delivery_count=4)
            names = [queue.name for queue in administration.list_queues(max_page_size=2)]
            with pytest.raises(ResourceNotFoundError):
                administration.get_queue("nowhere")
            return administration.get_queue("sync").max_delivery_count, names

    count, names = await asyncio.to_thread(administer)
    assert count == 4
    assert names == [*(queue.name for queue in front.bus.config.queues), "sync"]


# AMQP over WebSockets, at the same port


async def test_the_sdk_sends_and_receives_over_websockets(front: Front) -> None:
    body = bytes(range(256)) * 500
    async with front.over_websockets() as client, client.get_queue_receiver("jobs") as receiver:
        async with client.get_queue_sender("jobs") as sender:
            await sender.send_messages(ServiceBusMessage(body))
        (message,) = await receiver.receive_messages(1, max_wait_time=PATIENCE)
        assert b"".join(message.body) == body
        await receiver.renew_message_lock(message)
        await receiver.complete_message(message)
        assert await receiver.peek_messages(1, sequence_number=1) == []


async def test_a_websocket_is_cut_and_opened_anew_as_a_socket_is(front: Front) -> None:
    async with front.over_websockets() as client, client.get_queue_sender("jobs") as sender:
        await sender.send_messages(ServiceBusMessage(b"1"))
        assert front.bus.service is not None
        front.bus.service.faults.set(b'{"kind": "cut"}')
        await sender.send_messages(ServiceBusMessage(b"2"))
        assert front.bus.service.broker.entity("jobs").counts().active == 2


async def test_a_websocket_without_the_subprotocol_is_refused(front: Front) -> None:
    async with front.raw() as (session, url), session.get(f"{url}/$servicebus/websocket") as response:
        assert response.status == 400
        assert "AMQPWSB10" in await response.text()
