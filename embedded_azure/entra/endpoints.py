"""The endpoints of the embedded Entra's process: Entra itself, IMDS in plaintext, and the cluster's token proxy.

Each has a port of its own, announced as `port`, `imds_port` and `token_proxy_port`, and its own `/local/faults`.
"""

from contextlib import AsyncExitStack

from embedded_azure.entra.identity_binding import build_proxy_app, load_token_proxy, proxy_context
from embedded_azure.entra.imds import InstanceMetadata
from embedded_azure.entra.imds import build_app as build_imds_app
from embedded_azure.entra.service import build_app, load_entra
from embedded_azure.process import announce_until_stopped, server_context, serving
from embedded_azure.state import StateDirectory


async def open_endpoints(state: StateDirectory, port: int) -> None:
    """Serve on loopback until told to stop; `port` is Entra's, and 0 takes a free one, as the others do."""
    entra = load_entra(state)
    async with AsyncExitStack() as stack:
        opened = stack.enter_async_context
        ports = {
            "port": await opened(serving(build_app(entra), tls=server_context(state), port=port)),
            "imds_port": await opened(serving(build_imds_app(InstanceMetadata(entra.config, entra)))),
            "token_proxy_port": await opened(
                serving(build_proxy_app(load_token_proxy(state)), tls=proxy_context(state))
            ),
        }
        await announce_until_stopped("entra", **ports)
