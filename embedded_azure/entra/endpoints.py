"""The endpoints of the embedded Entra's process: Entra itself, IMDS in plaintext, and the cluster's token proxy.

Each has a port of its own, announced as `port`, `imds_port` and `token_proxy_port`, and its own `/local/faults`.
"""

import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from aiohttp import web

from embedded_azure.entra.identity_binding import build_proxy_app, load_token_proxy, proxy_context
from embedded_azure.entra.imds import InstanceMetadata
from embedded_azure.entra.imds import build_app as build_imds_app
from embedded_azure.entra.service import build_app, load_entra
from embedded_azure.process import LOOPBACK, announce_until_stopped, server_context
from embedded_azure.state import StateDirectory

# A handler that is told to hang must not hold up the stop.
_GRACE = 0.1


async def open_endpoints(state: StateDirectory, port: int) -> None:
    """Serve on loopback until told to stop; `port` is Entra's, and 0 takes a free one, as the others do."""
    entra = load_entra(state)
    async with AsyncExitStack() as stack:
        open_door = stack.enter_async_context
        ports = {
            "port": await open_door(_door(build_app(entra), server_context(state), port)),
            "imds_port": await open_door(_door(build_imds_app(InstanceMetadata(entra.config, entra)))),
            "token_proxy_port": await open_door(
                _door(build_proxy_app(load_token_proxy(state)), proxy_context(state))
            ),
        }
        await announce_until_stopped("entra", **ports)


@asynccontextmanager
async def _door(app: web.Application, tls: ssl.SSLContext | None = None, port: int = 0) -> AsyncIterator[int]:
    """Serve `app`; yields its port."""
    runner = web.AppRunner(
        app, access_log=None, handler_cancellation=True, shutdown_timeout=_GRACE, keepalive_timeout=300
    )
    await runner.setup()
    try:
        site = web.TCPSite(runner, LOOPBACK, port, ssl_context=tls, backlog=2_048)
        await site.start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()
