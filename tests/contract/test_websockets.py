"""Service Bus over WebSockets by the worker's own adapters, directly and through a proxy.

What the promises are is told by `test_source_and_sink.py`; here the same ones are kept on the other transport.
"""

import asyncio
import gc
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from azure.servicebus import TransportType
from azure.servicebus._pyamqp.aio._client_async import AMQPClientAsync

from embedded_azure.entra.tokens import AccessTokens, issuer_of
from embedded_azure.servicebus.access import Access
from embedded_azure.servicebus.server import serve
from tests.support.connect_proxy import connect_proxy
from tests.support.local_azure import Authority, Bus, bus_config
from tests.support.patience import PATIENCE
from tests.support.service_bus import HELD, JOBS, RESULTS, a_job, disturb, send, service_of, stored
from worker.azure.servicebus.jobs_queue import SOCKET_TIMEOUT, JobsQueue, connect
from worker.azure.servicebus.results_queue import ResultsQueue
from worker.cli.advice import explain
from worker.errors import DeadLetterReason, InvalidSettings, SinkUnavailable, SourceUnavailable
from worker.interfaces import Delivery, LocksRenewed
from worker.jobs.outcomes import Abandon, Complete, DeadLetter, Release, Settlement
from worker.settings import ConnectionSettings
from worker.testing import EventList, job_line, result_of
from worker.waits import loop_time

# the SDK leaves a WebSocket that was cut, or could not be opened, to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. <function Connection.__del__")

PROXY_VARIABLES = ("HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy")


@dataclass(frozen=True)
class Front:
    """The embedded Service Bus and where it takes WebSockets."""

    bus: Bus
    port: int

    def settings(self, **changes: Any) -> ConnectionSettings:
        wanted: dict[str, Any] = {
            "servicebus_namespace": self.bus.config.namespace,
            "servicebus_endpoint": f"localhost:{self.port}",
            "servicebus_transport": "websockets",
            "sink": "queue",
            "ca_file": self.bus.authority.ca_file,
        }
        return ConnectionSettings(**wanted | changes)

    @asynccontextmanager
    async def source(
        self, queue: str = JOBS, events: EventList | None = None, **changes: Any
    ) -> AsyncIterator[JobsQueue]:
        client = connect(self.settings(**changes), self.bus.credential("owner"), retries=0)
        async with client, JobsQueue(client, queue, observer=events or EventList()) as source:
            yield source

    @asynccontextmanager
    async def sink(self) -> AsyncIterator[ResultsQueue]:
        client = connect(self.settings(), self.bus.credential("owner"), retries=0)
        async with client, ResultsQueue(client, RESULTS) as sink:
            yield sink

    def active(self, queue: str = JOBS) -> int:
        return service_of(self.bus).broker.entity(queue).counts().active


@pytest.fixture
async def front(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Front]:
    # Closing a receiver waits out a second's sleep of its keep-alive task, which no test here needs.
    monkeypatch.setattr(AMQPClientAsync, "_keep_alive_async", lambda client: asyncio.sleep(0))
    for name in PROXY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
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
    gc.collect()  # while its complaints are expected


async def refusal(opening: AbstractAsyncContextManager[JobsQueue]) -> SourceUnavailable:
    async with opening as source:
        with pytest.raises(SourceUnavailable) as raised:
            await source.open()
    return raised.value


# What is kept of the promises


@pytest.mark.parametrize(
    ("settlement", "count", "dead"),
    [
        (Complete(), None, []),
        (Release(), 0, []),
        (Abandon(), 1, []),
        (DeadLetter(reason=DeadLetterReason.INVALID_JSON, description="fix it"), None, ["InvalidJson"]),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_a_delivery_is_settled_as_over_amqp(
    front: Front, settlement: Settlement, count: int | None, dead: Sequence[str]
) -> None:
    body = job_line("a") + b" " * 100_000  # larger than a message of the WebSocket
    await send(front.bus, JOBS, body)
    async with front.source() as source:
        [delivery] = await source.receive(10, wait=2)
        assert delivery.envelope.body == body
        await delivery.settle(settlement)
        again = await source.receive(10, wait=0.3)
    assert [one.envelope.delivery_count for one in again] == ([] if count is None else [count])
    letters = service_of(front.bus).broker.entity(f"{JOBS}/$DeadLetterQueue").peek(0, 10)
    assert [letter.dead_letter_reason for letter in letters] == dead


async def test_many_settlements_wait_at_once_beside_a_receive(front: Front) -> None:
    await send(front.bus, JOBS, *[job_line(f"{number}") for number in range(50)])
    async with front.source() as source:
        deliveries: list[Delivery] = []
        while len(deliveries) < 50:
            deliveries += await source.receive(50, wait=2)
        receiving = asyncio.ensure_future(source.receive(10, wait=1))
        await asyncio.gather(*[delivery.settle(Complete()) for delivery in deliveries])
        assert await receiving == []
    assert front.active() == 0


async def test_the_receiver_reads_in_short_turns_as_over_amqp(front: Front) -> None:
    """The SDK's own turns are five times as long over WebSockets: a settlement would take a second."""
    async with front.source() as source:
        await source.open()
        assert source._link is not None
        handler = source._link.receiver._handler
        assert handler._socket_timeout == SOCKET_TIMEOUT
        assert handler._transport_type is TransportType.AmqpOverWebsocket


async def test_locks_are_kept_for_many_lock_durations(front: Front) -> None:
    events = EventList()
    async with front.source(HELD, events) as source:
        await send(front.bus, HELD, *[job_line(f"{number}") for number in range(5)])
        deliveries: list[Delivery] = []
        while len(deliveries) < 5:
            deliveries += await source.receive(5, wait=1)
        ends = loop_time() + 4.5
        while loop_time() < ends:
            assert await source.receive(5, wait=0.5) == [], "a lock has lapsed"
        await asyncio.gather(*[delivery.settle(Complete()) for delivery in deliveries])
    assert front.active(HELD) == 0
    assert events.of(LocksRenewed) != []


async def test_a_delivery_can_be_settled_after_its_connection_was_lost(front: Front) -> None:
    await send(front.bus, JOBS, job_line("a"))
    async with front.source() as source:
        [delivery] = await source.receive(1, wait=2)
        service_of(front.bus).drop_connections()
        await delivery.settle(Complete())
    assert front.active() == 0


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "cut"},
        {"kind": "cut", "after_bytes": 3, "count": 2},
        {"kind": "restart", "seconds": 0.3},
        {"kind": "detach"},
    ],
    ids=lambda fault: "-".join(map(str, fault.values())),
)
async def test_the_jobs_queue_gets_over_it(front: Front, fault: dict[str, Any]) -> None:
    async with front.source(HELD) as source:
        await send(front.bus, HELD, job_line("a"), job_line("b"))
        [warm] = await source.receive(1, wait=2)
        await warm.settle(Complete())
        disturb(front.bus, fault)
        async with asyncio.timeout(PATIENCE):
            while front.active(HELD):
                await take_and_complete(source)
        disturb(front.bus)


async def take_and_complete(source: JobsQueue) -> None:
    try:
        for delivery in await source.receive(1, wait=0.5):
            await delivery.settle(Complete())
    except SourceUnavailable:
        await asyncio.sleep(0.1)


async def test_results_are_written_and_written_again_after_the_connection_was_lost(front: Front) -> None:
    large = b"2" * 100_000
    async with front.sink() as sink:
        await sink.write(result_of(a_job("a"), b"1"))
        service_of(front.bus).drop_connections()
        async with asyncio.timeout(PATIENCE):
            while not await is_written(sink, large):
                await asyncio.sleep(0.1)
    assert sorted(await stored(front.bus)) == [b"1", large]


async def is_written(sink: ResultsQueue, line: bytes) -> bool:
    try:
        return await sink.write(result_of(a_job("b"), line))
    except SinkUnavailable:
        return False


async def test_a_role_that_is_missing_is_told_as_over_amqp(front: Front) -> None:
    client = connect(front.settings(), front.bus.credential("stranger"), retries=0)
    async with client, JobsQueue(client, JOBS, observer=EventList()) as source:
        with pytest.raises(SourceUnavailable, match="'Listen' claim"):
            await source.open()


async def test_tokens_and_links_name_the_namespace_wherever_the_socket_goes(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    named: list[str] = []
    put_token = Access.put_token

    def note(access: Access, audience: str, token: str) -> Any:
        named.append(audience)
        return put_token(access, audience, token)

    monkeypatch.setattr(Access, "put_token", note)
    async with front.source() as source:
        await source.open()
    assert named == [f"sb://{front.bus.config.namespace}/{JOBS}"]


# Where it cannot be reached


async def test_an_authority_that_is_not_trusted_is_told(front: Front) -> None:
    error = await refusal(front.source(ca_file=None))
    assert f"localhost:{front.port}: its certificate is not trusted: unable to get local issuer" in str(error)
    assert "set AOAI_WORKER_CA_FILE" in str(error)


async def test_a_port_where_nobody_listens_is_told(front: Front) -> None:
    error = await refusal(front.source(servicebus_endpoint="localhost:1"))
    assert "queue 'jobs': cannot connect by WebSockets to localhost:1: Connect call failed" in str(error)
    assert "port 443 of the namespace" in str(error)


async def test_the_port_of_amqp_is_told_apart(front: Front) -> None:
    error = await refusal(front.source(servicebus_endpoint=f"localhost:{front.bus.tls_port}"))
    assert f"cannot connect by WebSockets to Service Bus: localhost:{front.bus.tls_port} answered 400" in str(error)
    assert "AOAI_WORKER_SERVICEBUS_ENDPOINT" in str(error)


async def test_without_an_endpoint_the_namespace_itself_is_asked_at_port_443(front: Front) -> None:
    error = await refusal(front.source(servicebus_namespace="nobody.servicebus.invalid", servicebus_endpoint=None))
    assert "cannot connect by WebSockets to nobody.servicebus.invalid:443: " in str(error)


async def test_a_person_is_told_the_next_step(front: Front) -> None:
    error = await refusal(front.source(servicebus_endpoint="localhost:1"))
    first, following = explain(error).splitlines()
    assert first.startswith("Service Bus cannot be reached: cannot connect by WebSockets to localhost:1: ")
    assert following.startswith("Next: let this network reach it")


# Through a proxy


async def work_one_job(front: Front, **changes: Any) -> None:
    await send(front.bus, JOBS, job_line("a"))
    async with front.source(**changes) as source:
        [delivery] = await source.receive(1, wait=2)
        await delivery.settle(Complete())
    assert front.active() == 0


async def test_websockets_go_through_the_proxy_of_the_environment(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connect_proxy() as proxy:
        monkeypatch.setenv("https_proxy", proxy.url)
        await work_one_job(front)
    assert proxy.asked == [f"localhost:{front.port}"]


async def test_what_no_proxy_names_is_reached_without_it(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    async with connect_proxy() as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        monkeypatch.setenv("NO_PROXY", f"other.example, localhost:{front.port}")
        await work_one_job(front)
    assert proxy.asked == []


async def test_no_proxy_of_others_does_not_lead_past_it(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    async with connect_proxy() as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        monkeypatch.setenv("NO_PROXY", "other.example,localhost:1")
        await work_one_job(front)
    assert len(proxy.asked) == 1


async def test_amqp_goes_past_the_proxy(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    async with connect_proxy() as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        await work_one_job(
            front, servicebus_transport="amqp", servicebus_endpoint=f"localhost:{front.bus.tls_port}"
        )
    assert proxy.asked == []


# the SDK hands user and password to aiohttp in a way that aiohttp 4 will not take
@pytest.mark.filterwarnings("ignore:.*(proxy_auth|BasicAuth).*deprecated:DeprecationWarning")
async def test_a_proxy_gets_its_user_and_password(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    async with connect_proxy("batch:p@ss word") as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://batch:p%40ss%20word@127.0.0.1:{proxy.port}")
        await work_one_job(front)
    assert proxy.asked == [f"localhost:{front.port}"]


async def test_a_proxy_that_refuses_is_told(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    async with connect_proxy("batch:secret") as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        error = await refusal(front.source())
    assert f"127.0.0.1:{proxy.port} answered 407 Proxy Authentication Required (the proxy)" in str(error)
    assert "http://user:password@host:port" in str(error)


async def test_a_proxy_that_is_not_there_is_named(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    error = await refusal(front.source())
    assert "cannot connect by WebSockets to 127.0.0.1:1: Connect call failed" in str(error)
    assert "HTTPS_PROXY" in str(error)


async def test_behind_a_proxy_an_authority_that_is_not_trusted_is_refused_too(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connect_proxy() as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        error = await refusal(front.source(ca_file=None))
    assert proxy.asked == [f"localhost:{front.port}"]
    assert "its certificate is not trusted" in str(error)


async def test_a_proxy_of_another_kind_is_refused_without_its_password(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "socks5://batch:secret@proxy.example:1080")
    with pytest.raises(
        InvalidSettings, match=r"HTTPS_PROXY=socks5://\.\.\.@proxy\.example:1080: must be http://host:port"
    ) as raised:
        connect(front.settings(), front.bus.credential("owner"))
    assert "secret" not in str(raised.value)
