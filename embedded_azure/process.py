"""How a process of the embedded Azure lives: it serves on loopback, says where, and ends with its parent.

One JSON line on standard output says that it is ready and on which ports. SIGTERM, SIGINT or the end of
standard input (a pipe from the supervisor, which closes however the supervisor dies) stops it.
"""

import asyncio
import importlib
import json
import os
import signal
import ssl
import stat
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

from aiohttp import web

from embedded_azure.state import StateDirectory

LOOPBACK = "127.0.0.1"
# A handler that is told to hang must not hold up the stop.
_GRACE = 0.1

PATIENCE = 75.0
"""Seconds after which a connection is closed that has not sent the whole head of its first or next request; longer
than clients keep connections for another one."""


def run_to_the_end(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run `main` on uvloop where it is installed, on asyncio's own loop elsewhere."""
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(main())


async def serve(
    app: web.Application, *, service: str, state: StateDirectory, port: int, auto_decompress: bool = True
) -> None:
    """Serve `app` over TLS on loopback until told to stop. Port 0 takes a free one.

    `auto_decompress`: whether the app gets bodies as their Content-Encoding says, or as they came.
    """
    async with serving(app, tls=server_context(state), port=port, auto_decompress=auto_decompress) as opened:
        await announce_until_stopped(service, port=opened)


@asynccontextmanager
async def serving(
    app: web.Application,
    *,
    tls: ssl.SSLContext | None = None,
    host: str = LOOPBACK,
    port: int = 0,
    auto_decompress: bool = True,
    patience: float = PATIENCE,
) -> AsyncIterator[int]:
    """Serve `app` until the block ends; yields the port."""
    # handler_cancellation: a request whose client gave up costs nothing more.
    # keepalive_timeout: aiohttp's only time-out for the head of a request that does not end.
    runner = web.AppRunner(
        app,
        access_log=None,
        handler_cancellation=True,
        shutdown_timeout=_GRACE,
        keepalive_timeout=patience,
        auto_decompress=auto_decompress,
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, ssl_context=tls, backlog=2_048).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


def server_context(state: StateDirectory) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(state.server_certificate, state.server_key)
    return context


async def announce_until_stopped(service: str, **ports: int) -> None:
    """Tell that `service` is ready; return at SIGTERM, at SIGINT, or when standard input is a pipe and its other
    end is gone. It listens for the signals first: whoever reads the line may send one at once."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _stop_by, number, stopped)
    transport = await _watch_parent(loop, stopped)
    try:
        _announce(service, **ports)
        await stopped.wait()
    finally:
        if transport is not None:
            transport.close()


def _announce(service: str, **ports: int) -> None:
    sys.stdout.write(json.dumps({"service": service, **ports}) + "\n")
    sys.stdout.flush()


def _stop_by(number: signal.Signals, stopped: asyncio.Event) -> None:
    stopped.set()
    # The supervisor closes the pipe instead: a signal comes from elsewhere, and is worth a line, if anybody reads.
    # Past Python's buffer: what a broken pipe leaves in it would fail again at exit and spoil the exit code.
    with suppress(OSError):
        os.write(2, f"process {os.getpid()} stops: it received {number.name}\n".encode())


class _ParentWatch(asyncio.Protocol):
    def __init__(self, gone: asyncio.Event) -> None:
        self._gone = gone

    def connection_lost(self, error: Exception | None) -> None:
        self._gone.set()


async def _watch_parent(loop: asyncio.AbstractEventLoop, gone: asyncio.Event) -> asyncio.ReadTransport | None:
    if sys.stdin is None:
        return None
    mode = os.fstat(sys.stdin.fileno()).st_mode
    # A terminal or /dev/null is nobody's pipe: started by hand, it lives until a signal.
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        return None
    transport, _ = await loop.connect_read_pipe(lambda: _ParentWatch(gone), sys.stdin)
    return transport


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    with suppress(ImportError):
        factory: Callable[[], asyncio.AbstractEventLoop] = importlib.import_module("uvloop").new_event_loop
        return factory
    return None
