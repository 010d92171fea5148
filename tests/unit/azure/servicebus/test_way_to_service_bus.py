"""How Service Bus is reached: by which transport, at which address, and what is told where it cannot be."""

import aiohttp
import pytest
from aiohttp.client_reqrep import ConnectionKey
from azure.core.exceptions import ServiceRequestError
from azure.servicebus.exceptions import ServiceBusConnectionError, ServiceBusError
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from worker.azure.servicebus.faults import cause_of_fault, describe_fault, find_unopened
from worker.cli.advice import explain
from worker.environment import load
from worker.errors import Cause, InvalidSettings, TokenUnavailable
from worker.operations.check.checks import describe_settings, run
from worker.settings import WorkerSettings

NAMESPACE = "my-namespace.servicebus.windows.net"
ENOUGH = {
    "AOAI_WORKER_SERVICEBUS_NAMESPACE": NAMESPACE,
    "AOAI_WORKER_MODELS": "passthrough",
    "AOAI_WORKER_SINK": "queue",
    "AZURE_OPENAI_ENDPOINT": "https://my-account.openai.azure.com",
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy", "AZURE_FEDERATED_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ENOUGH.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


@pytest.mark.parametrize(
    ("transport", "endpoint", "address"),
    [
        (None, None, (NAMESPACE, 5671)),
        ("amqp", None, (NAMESPACE, 5671)),
        ("websockets", None, (NAMESPACE, 443)),
        ("websockets", "private.example:8443", ("private.example", 8443)),
        ("amqp", "[::1]:5671", ("::1", 5671)),
    ],
)
def test_each_transport_has_its_port_unless_an_endpoint_is_named(
    environment: pytest.MonkeyPatch, transport: str | None, endpoint: str | None, address: tuple[str, int]
) -> None:
    if transport:
        environment.setenv("AOAI_WORKER_SERVICEBUS_TRANSPORT", transport)
    if endpoint:
        environment.setenv("AOAI_WORKER_SERVICEBUS_ENDPOINT", endpoint)
    assert load(WorkerSettings).servicebus_address == address


def test_another_transport_is_refused(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("AOAI_WORKER_SERVICEBUS_TRANSPORT", "https")
    with pytest.raises(InvalidSettings, match=r"SERVICEBUS_TRANSPORT='https': must be 'amqp' or 'websockets'"):
        load(WorkerSettings)


@pytest.mark.parametrize(
    ("transport", "proxy", "words"),
    [
        ("amqp", None, f"{NAMESPACE} by AMQP at {NAMESPACE}:5671, jobs"),
        ("amqp", "http://proxy.example:3128", "by AMQP at " + NAMESPACE + ":5671, past the proxy, jobs"),
        ("websockets", None, f"by WebSockets at {NAMESPACE}:443 through no proxy, jobs"),
        ("websockets", "http://a:b@proxy.example:3128", "through the proxy http://proxy.example:3128, jobs"),
    ],
)
def test_check_says_which_way_it_goes(
    environment: pytest.MonkeyPatch, transport: str, proxy: str | None, words: str
) -> None:
    environment.setenv("AOAI_WORKER_SERVICEBUS_TRANSPORT", transport)
    if proxy:
        environment.setenv("HTTPS_PROXY", proxy)
    assert words in describe_settings(load(WorkerSettings)).detail


def test_check_refuses_a_proxy_that_websockets_cannot_take(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("AOAI_WORKER_SERVICEBUS_TRANSPORT", "websockets")
    environment.setenv("HTTPS_PROXY", "socks5://proxy.example:1080")
    report = run()
    assert report.exit_code(strict=False) == 2
    assert [finding.detail[:30] for finding in report.findings] == ["HTTPS_PROXY=socks5://proxy.exa"]


# Where it cannot be reached

KEY = ConnectionKey(NAMESPACE, 443, True, True, None, None, None)
REFUSED = aiohttp.ClientConnectorError(KEY, ConnectionRefusedError(111, "Connect call failed"))


def answered(kind: type[aiohttp.ClientResponseError], status: int, message: str) -> aiohttp.ClientResponseError:
    url = URL(f"wss://{NAMESPACE}/$servicebus/websocket")
    request = aiohttp.RequestInfo(url, "GET", CIMultiDictProxy(CIMultiDict()), url)
    return kind(request, (), status=status, message=message)


def wrapped(error: Exception) -> ServiceBusError:
    """As the SDK wraps what aiohttp raises."""
    return ServiceBusConnectionError(message="Failed to authenticate the connection", error=error)


@pytest.mark.parametrize(
    ("error", "what", "next_step"),
    [
        (REFUSED, f"to {NAMESPACE}:443: Connect call failed", "port 443 of the namespace"),
        (aiohttp.ConnectionTimeoutError("Connection timeout to host"), "Connection timeout to host", "let this"),
        (
            answered(aiohttp.ClientHttpProxyError, 407, "Authentication Required"),
            f"{NAMESPACE}:443 answered 407 Authentication Required (the proxy)",
            "http://user:password@host:port",
        ),
        (answered(aiohttp.WSServerHandshakeError, 403, "no"), f"{NAMESPACE}:443 answered 403 no", "firewall"),
        (answered(aiohttp.WSServerHandshakeError, 404, "no\nmore"), "answered 404 no", "SERVICEBUS_ENDPOINT"),
        (answered(aiohttp.WSServerHandshakeError, 502, ""), ":443 answered 502", "SERVICEBUS_ENDPOINT"),
    ],
)
def test_what_failed_and_what_to_do_is_told(error: Exception, what: str, next_step: str) -> None:
    unopened = find_unopened(wrapped(error))
    assert unopened is not None
    assert unopened.what.startswith("cannot connect by WebSockets to ")
    assert unopened.what.endswith(what)
    assert next_step in unopened.next_step
    assert describe_fault(wrapped(error)) == f"{unopened.what}; {unopened.next_step}"
    first, following = explain(wrapped(error)).splitlines()
    assert first == f"Service Bus cannot be reached: {unopened.what}"
    assert following.startswith(f"Next: {unopened.next_step}.")


def test_a_token_that_cannot_be_fetched_is_not_the_transports_fault() -> None:
    no_token = TokenUnavailable("https://servicebus.azure.net//.default", "no route", code="none")
    no_token.__cause__ = ServiceRequestError("no route", error=REFUSED)
    assert find_unopened(wrapped(no_token)) is None
    assert explain(wrapped(no_token)) == explain(no_token)


def test_administration_over_https_is_not_the_transports_fault() -> None:
    assert find_unopened(ServiceRequestError("no route", error=REFUSED)) is None


def test_a_fault_of_amqp_is_told_as_before() -> None:
    assert find_unopened(ServiceBusConnectionError(message="refused")) is None
    assert describe_fault(ServiceBusConnectionError(message="refused")) == "refused"


def test_what_keeps_a_websocket_from_opening_has_a_cause() -> None:
    assert cause_of_fault(wrapped(REFUSED)) is Cause.UNREACHABLE
    assert cause_of_fault(wrapped(answered(aiohttp.WSServerHandshakeError, 403, "no"))) is Cause.NETWORK_CLOSED
    assert cause_of_fault(wrapped(answered(aiohttp.WSServerHandshakeError, 404, "no"))) is Cause.WRONG_ENDPOINT
    assert cause_of_fault(wrapped(answered(aiohttp.ClientHttpProxyError, 407, "no"))) is Cause.PROXY_REFUSED
