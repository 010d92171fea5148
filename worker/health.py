"""What the pod says of itself over HTTP: /livez, /readyz, /statez and /metrics."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import orjson
from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

Reasons = Callable[[], dict[str, str]]
"""Why the pod is not ready; empty when it is."""


@asynccontextmanager
async def serve_health(
    *,
    host: str,
    port: int,
    registry: CollectorRegistry,
    not_ready: Reasons,
    state: Callable[[], dict[str, Any]],
) -> AsyncIterator[int]:
    """Serve until the block ends; yields the port, which the system chooses where `port` is 0."""
    runner = web.AppRunner(build_app(registry, not_ready, state), access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


def build_app(
    registry: CollectorRegistry, not_ready: Reasons, state: Callable[[], dict[str, Any]]
) -> web.Application:
    async def livez(_: web.Request) -> web.Response:
        """The event loop turns; all else is for /readyz, as a restart would mend none of it."""
        return web.Response(text="alive\n")

    async def readyz(_: web.Request) -> web.Response:
        reasons = not_ready()
        return _json({"ready": not reasons, "reasons": reasons}, status=503 if reasons else 200)

    async def statez(_: web.Request) -> web.Response:
        return _json(state())

    async def metrics(request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(registry), headers={"Content-Type": content_type})

    app = web.Application()
    app.add_routes(
        [
            web.get("/livez", livez),
            web.get("/readyz", readyz),
            web.get("/statez", statez),
            web.get("/metrics", metrics),
        ]
    )
    return app


def _json(document: dict[str, Any], *, status: int = 200) -> web.Response:
    body = orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    return web.Response(body=body, status=status, content_type="application/json")
