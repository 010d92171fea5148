"""A client of the embedded services that sends half of a request and waits."""

import pytest
from aiohttp import web

from embedded_azure.process import serving
from tests.support.slow_clients import HALF_A_HEAD, WHOLE, wait_for_close


@pytest.mark.parametrize(
    ("parts", "answers"),
    [((HALF_A_HEAD,), 0), ((WHOLE, HALF_A_HEAD), 1)],
    ids=["half a head", "half a second head"],
)
async def test_a_client_that_sends_half_a_head_and_waits_is_hung_up_on(
    parts: tuple[bytes, ...], answers: int
) -> None:
    async def livez(_: web.Request) -> web.Response:
        return web.Response()

    app = web.Application()
    app.router.add_get("/livez", livez)
    async with serving(app, patience=0.2) as port:
        received = await wait_for_close(port, *parts)
    assert received.count(b"HTTP/1.1 200 OK") == answers
