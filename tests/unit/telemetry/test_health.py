"""What the pod says of itself over HTTP."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestClient, TestServer
from aiohttp.web import Application, Request
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.parser import text_string_to_metric_families

from tests.support.slow_clients import HALF_A_BODY, HALF_A_HEAD, WHOLE, wait_for_close
from worker.telemetry.health import CannotServe, build_app, serve_health


@dataclass
class Pod:
    """What would be said now."""

    reasons: dict[str, str] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def app(self) -> Application:
        return build_app(self.registry, lambda: self.reasons, lambda: self.state)


@pytest.fixture
def pod() -> Pod:
    return Pod()


@pytest.fixture
async def client(pod: Pod) -> AsyncIterator[TestClient[Request, Application]]:
    async with TestClient(TestServer(pod.app())) as made:
        yield made


Client = TestClient[Request, Application]


async def test_a_pod_is_alive_even_when_it_is_not_ready(pod: Pod, client: Client) -> None:
    pod.reasons = {"setup": "403"}
    response = await client.get("/livez")
    assert (response.status, await response.text()) == (200, "alive\n")
    assert response.content_type == "text/plain"


async def test_a_pod_with_nothing_wrong_is_ready(client: Client) -> None:
    response = await client.get("/readyz")
    assert response.status == 200
    assert response.content_type == "application/json"
    assert await response.json() == {"ready": True, "reasons": {}}


async def test_a_pod_that_is_not_ready_says_why(pod: Pod, client: Client) -> None:
    pod.reasons = {"setup": "403 from mini-1: the role is missing", "sink": "the results queue is full"}
    response = await client.get("/readyz")
    assert response.status == 503
    assert response.content_type == "application/json"
    assert await response.json() == {"ready": False, "reasons": pod.reasons}
    pod.reasons = {}
    assert (await client.get("/readyz")).status == 200


async def test_the_state_is_told_as_json_for_people(pod: Pod, client: Client) -> None:
    pod.state = {"slots": 4, "gates": [{"deployment": "mini-1", "open": False, "opens_in_seconds": 1.5}]}
    response = await client.get("/statez")
    assert response.status == 200
    assert response.content_type == "application/json"
    document = await response.json()
    assert document.pop("tasks") >= 2, "the test's own and the server's"
    assert document == pod.state
    text = await response.text()
    assert text.startswith('{\n  "slots": 4')
    assert text.endswith("}\n")


async def test_metrics_are_served_as_text_to_whoever_does_not_say(pod: Pod, client: Client) -> None:
    Counter("jobs", "Jobs", registry=pod.registry).inc(3)
    response = await client.get("/metrics")
    assert response.status == 200
    assert response.headers["Content-Type"].startswith("text/plain; version=")
    samples = [
        sample for family in text_string_to_metric_families(await response.text()) for sample in family.samples
    ]
    assert ("jobs_total", 3.0) in [(sample.name, sample.value) for sample in samples]


async def test_metrics_are_served_as_openmetrics_to_prometheus(pod: Pod, client: Client) -> None:
    Counter("jobs", "Jobs", registry=pod.registry).inc(3)
    response = await client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert response.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    text = await response.text()
    assert "jobs_total 3.0\n" in text
    assert text.endswith("# EOF\n")


@pytest.mark.parametrize("path", ["/", "/healthz", "/livez/", "/metrics/x"])
async def test_there_is_nothing_else(client: Client, path: str) -> None:
    assert (await client.get(path)).status == 404


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/statez", "/metrics"])
async def test_it_can_be_looked_at_and_not_changed(client: Client, path: str) -> None:
    assert (await client.post(path)).status == 405
    assert (await client.head(path)).status == 200


def serve(pod: Pod, port: int = 0) -> AbstractAsyncContextManager[int]:
    return serve_health(
        host="127.0.0.1", port=port, registry=pod.registry, not_ready=lambda: pod.reasons, state=lambda: pod.state
    )


async def test_it_is_served_until_the_block_ends(pod: Pod) -> None:
    async with aiohttp.ClientSession() as session:
        async with serve(pod) as port:
            url = f"http://127.0.0.1:{port}/livez"
            async with session.get(url) as response:
                assert response.status == 200
        with pytest.raises(aiohttp.ClientConnectorError):
            await session.get(url)


async def test_a_port_that_is_taken_is_an_error_and_leaves_nothing_open(pod: Pod) -> None:
    async with serve(pod) as port:
        with pytest.raises(CannotServe, match=f"port {port}: Address already in use.*AOAI_WORKER_HTTP_PORT"):
            async with serve(pod, port):
                raise AssertionError("it must not be served")


@pytest.mark.parametrize(
    ("parts", "answers"),
    [((b"",), 0), ((HALF_A_HEAD,), 0), ((WHOLE,), 1), ((WHOLE, HALF_A_HEAD), 1), ((HALF_A_BODY,), 1)],
    ids=["nothing", "half a head", "nothing more", "half a second head", "half a body"],
)
async def test_a_client_that_sends_half_a_request_and_waits_is_hung_up_on(
    pod: Pod, parts: tuple[bytes, ...], answers: int
) -> None:
    async with serve_health(
        host="127.0.0.1",
        port=0,
        registry=pod.registry,
        not_ready=lambda: pod.reasons,
        state=lambda: pod.state,
        patience=0.2,
    ) as port:
        received = await wait_for_close(port, *parts)
    assert received.count(b"HTTP/1.1 200 OK") == answers
