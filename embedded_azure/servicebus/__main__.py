"""`python -m embedded_azure.servicebus --state DIR`: the embedded Service Bus as a process of its own.

It reads the config, Entra's public key and the server's certificate from the state directory, which the supervisor
fills. How it says that it is ready and when it stops is in `embedded_azure.process`.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

from embedded_azure.config import Config
from embedded_azure.entra.tokens import AccessTokens, issuer_of
from embedded_azure.process import announce_until_stopped, run_to_the_end, server_context
from embedded_azure.servicebus.server import serve
from embedded_azure.state import StateDirectory


def main() -> int:
    arguments = _arguments()
    state = StateDirectory(arguments.state)
    run_to_the_end(partial(_run, state, arguments))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m embedded_azure.servicebus", description="Embedded Service Bus")
    parser.add_argument("--state", type=Path, required=True, help="state directory of the embedded Azure")
    parser.add_argument("--port", type=int, default=0, help="plaintext port (default: any free one)")
    parser.add_argument("--tls-port", type=int, default=0, help="TLS port (default: any free one)")
    parser.add_argument("--https-port", type=int, default=0, help="HTTPS port (default: any free one)")
    return parser.parse_args()


async def _run(state: StateDirectory, arguments: argparse.Namespace) -> None:
    config = Config.load(state.config)
    tokens = AccessTokens(state.entra_public_key.read_bytes(), issuer_of(config.tenant_id))
    async with serve(
        config,
        tokens,
        tls=server_context(state),
        tls_port=arguments.tls_port,
        plain_port=arguments.port,
        https_port=arguments.https_port,
    ) as served:
        await announce_until_stopped("servicebus", **served.ports)


if __name__ == "__main__":
    sys.exit(main())
