"""`python -m worker.local.servicebus --state DIR`: the embedded Service Bus as a process of its own.

It reads `world.json`, `entra.pub.pem`, `tls/server.pem` and `tls/server.key` from the state directory, and writes
one line of JSON to stdout when it listens. It stops on SIGTERM, SIGINT, and when stdin closes: its parent has died.
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import ssl
import sys
from pathlib import Path

from worker.local.servicebus.server import Served, serve
from worker.local.tokens import AccessTokens, issuer_of
from worker.local.world import World


def main() -> int:
    arguments = _arguments()
    world = World.load(arguments.state / "world.json")
    tokens = AccessTokens((arguments.state / "entra.pub.pem").read_bytes(), issuer_of(world.tenant_id))
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_run(world, tokens, arguments))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m worker.local.servicebus", description="Embedded Service Bus")
    parser.add_argument("--state", type=Path, required=True, help="state directory of the embedded Azure")
    parser.add_argument("--port", type=int, default=0, help="plaintext port (default: any free one)")
    parser.add_argument("--tls-port", type=int, default=0, help="TLS port (default: any free one)")
    return parser.parse_args()


def _loop_factory() -> "type[asyncio.AbstractEventLoop] | None":
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.Loop


async def _run(world: World, tokens: AccessTokens, arguments: argparse.Namespace) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    _watch_stdin(loop, stop)
    tls = _tls(arguments.state / "tls")
    async with serve(world, tokens, tls=tls, tls_port=arguments.tls_port, plain_port=arguments.port) as served:
        _announce(served)
        await stop.wait()


def _watch_stdin(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    """The supervisor holds the other end of our stdin; when it dies, stdin ends."""

    def on_readable() -> None:
        if not os.read(sys.stdin.fileno(), 4096):
            loop.remove_reader(sys.stdin.fileno())
            stop.set()

    # A file or /dev/null cannot be watched: then nobody holds the other end.
    with contextlib.suppress(OSError):
        loop.add_reader(sys.stdin.fileno(), on_readable)


def _tls(directory: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "server.pem", directory / "server.key")
    return context


def _announce(served: Served) -> None:
    ready = {"service": "servicebus", "tls_port": served.tls_port, "plain_port": served.plain_port}
    sys.stdout.write(json.dumps(ready) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
