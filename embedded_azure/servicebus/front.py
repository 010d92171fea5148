"""The HTTPS side of the embedded Service Bus: administration, AMQP over WebSockets, and the control of its faults.

In Azure all but the last are at port 443 of the namespace.
"""

import asyncio
from collections.abc import Awaitable, Callable

from aiohttp import web

from embedded_azure.faults import AnswerFault, Faults, add_fault_routes
from embedded_azure.servicebus.administration.atom import ERROR_TYPE, LARGEST, make_error
from embedded_azure.servicebus.administration.service import Administration, Request
from embedded_azure.servicebus.websocket import PATH, serve_websocket

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def build_front(
    administration: Administration,
    faults: Faults,
    connection: Callable[[], asyncio.Protocol],
    is_down: Callable[[], bool],
) -> web.Application:
    """While `is_down` only the faults can be reached. `connection` makes a protocol for a new AMQP connection."""

    async def administer(request: web.Request) -> web.StreamResponse:
        if fault := faults.take(AnswerFault):
            await asyncio.sleep(fault.latency)
            if fault.status is not None:
                body = make_error(fault.status, "SubCode=00000. This fault was asked for.")
                return web.Response(
                    status=fault.status, body=body, headers={"Content-Type": ERROR_TYPE} | fault.headers()
                )
        reply = administration.answer(await _read(request))
        return web.Response(status=reply.status, body=reply.body, headers={"Content-Type": reply.content_type})

    async def connect(request: web.Request) -> web.StreamResponse:
        return await serve_websocket(request, connection())

    @web.middleware
    async def stay_silent_while_down(request: web.Request, handler: _Handler) -> web.StreamResponse:
        if is_down() and not request.path.startswith("/local/"):
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionResetError("the service is down")
        return await handler(request)

    app = web.Application(middlewares=[stay_silent_while_down], client_max_size=LARGEST)
    add_fault_routes(app, faults)
    app.router.add_get(PATH, connect)
    for method in ("GET", "PUT", "DELETE"):
        app.router.add_route(method, "/{path:.*}", _with_errors(administer))
    return app


def _with_errors(handler: _Handler) -> _Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except web.HTTPRequestEntityTooLarge:
            body = make_error(400, f"SubCode=40000. Bad Request. At most {LARGEST} bytes are read.")
            return web.Response(status=400, body=body, headers={"Content-Type": ERROR_TYPE})

    return handle


async def _read(request: web.Request) -> Request:
    """Raises HTTPRequestEntityTooLarge."""
    return Request(
        method=request.method,
        path=request.path.strip("/"),
        url=str(request.url.with_query(None)),
        query=request.query,
        body=await request.read(),
        token=request.headers.get("Authorization", ""),
        is_update="If-Match" in request.headers,
    )
