"""What the pod says of itself over HTTP: /livez, /readyz, /statez and /metrics."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import orjson
from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from worker.errors import WorkerError

PATIENCE = 30.0
"""Seconds after which a connection is closed that has not sent the whole head of its first or next request."""

Reasons = Callable[[], dict[str, str]]
"""Why the pod is not ready; empty when it is."""


class CannotServe(WorkerError):
    """The address of the probes and metrics cannot be had."""

    def __init__(self, host: str, port: int, error: OSError) -> None:
        super().__init__(
            f"/livez, /readyz and /metrics cannot be served at {host} port {port}: "
            f"{os.strerror(error.errno or 0)}. Next: set AOAI_WORKER_HTTP_PORT to a free port (0: any), or "
            "AOAI_WORKER_HTTP_HOST to an address of this machine"
        )


@asynccontextmanager
async def serve_health(
    *,
    host: str,
    port: int,
    registry: CollectorRegistry,
    not_ready: Reasons,
    state: Callable[[], dict[str, Any]],
    patience: float = PATIENCE,
) -> AsyncIterator[int]:
    """Serve until the block ends; yields the port, which the system chooses where `port` is 0.

    Raises CannotServe.
    """
    # aiohttp's keep-alive is its only time-out for a head that does not end; of itself it waits an hour
    runner = web.AppRunner(
        build_app(registry, not_ready, state), access_log=None, keepalive_timeout=patience, lingering_time=patience
    )
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise CannotServe(host, port, error) from error
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


def build_app(
    registry: CollectorRegistry, not_ready: Reasons, state: Callable[[], dict[str, Any]]
) -> web.Application:
    async def livez(_: web.Request) -> web.Response:
        """The event loop turns; all else is for /readyz, as a restart would fix none of it."""
        return web.Response(text="alive\n")

    async def readyz(_: web.Request) -> web.Response:
        reasons = not_ready()
        return _json({"ready": not reasons, "reasons": reasons}, status=503 if reasons else 200)

    async def statez(_: web.Request) -> web.Response:
        return _json({**state(), "tasks": len(asyncio.all_tasks())})

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
