"""The line between a socket and its connection: where faults cut it, slow it down or do not let it come about.

To the connection it is the transport, to the socket the protocol. Without a fault it hands everything on.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final, cast

from embedded_azure.faults import Faults
from embedded_azure.servicebus.faults.control import CutFault, DropFault, RefuseConnectionsFault, SlowFault

MAX_DELAYED: Final = 1 << 18
"""Bytes that may be on their way in one direction before the sender is asked to wait."""
_SLICE: Final = 0.05
"""Seconds for which a slow line takes bytes at a time."""


class Line(asyncio.Protocol):
    def __init__(self, connection: asyncio.Protocol, faults: Faults) -> None:
        self._connection = connection
        self._faults = faults
        self._socket: asyncio.Transport | None = None
        self._made = False
        self._closing = False
        self._dropped = False
        loop = asyncio.get_running_loop()
        self._out = _Pipe(loop, self._send, connection.pause_writing, connection.resume_writing)
        self._in = _Pipe(loop, self._receive, self._pause_reading, self._resume_reading)

    # What the socket calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._socket = cast(asyncio.Transport, transport)
        if self._faults.take(RefuseConnectionsFault):
            self._socket.abort()
            return
        self._made = True
        # a line has what the connection uses of a transport
        self._connection.connection_made(cast(asyncio.Transport, self))

    def data_received(self, data: bytes) -> None:
        if self._closing or self._is_dropped():
            return
        cut = self._faults.take(CutFault, direction="in")
        if cut is None:
            self._in.put(data, self._faults.take(SlowFault))
            return
        self._connection.data_received(data[: cut.after_bytes])
        self.abort()

    def eof_received(self) -> bool | None:
        return self._connection.eof_received() if self._made else False

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        self._in.stop()
        self._out.stop()
        self._socket = None
        if self._made:
            self._connection.connection_lost(error)

    # What the connection calls

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        if self._socket is not None:
            self._socket.set_write_buffer_limits(high, low)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default if self._socket is None else self._socket.get_extra_info(name, default)

    def write(self, data: bytes) -> None:
        if self._closing or self._is_dropped():
            return
        cut = self._faults.take(CutFault, direction="out")
        slow = self._faults.take(SlowFault)
        if cut is None:
            self._out.put(data, slow)
        else:
            self._out.put(data[: cut.after_bytes], slow)
            self.close()

    def close(self) -> None:
        """What was written still leaves."""
        self._closing = True
        self._out.when_empty(self._close_socket)

    def abort(self) -> None:
        self._closing = True
        self._in.stop()
        self._out.stop()
        if self._socket is not None:
            self._socket.abort()

    def _is_dropped(self) -> bool:
        if not self._dropped:
            self._dropped = self._faults.take(DropFault) is not None
        return self._dropped

    # The ends of the pipes

    def _send(self, data: bytes) -> None:
        if self._socket is not None:
            self._socket.write(data)

    def _receive(self, data: bytes) -> None:
        if not self._closing:
            self._connection.data_received(data)

    def _close_socket(self) -> None:
        if self._socket is not None:
            self._socket.close()

    def _pause_reading(self) -> None:
        if self._socket is not None:
            self._socket.pause_reading()

    def _resume_reading(self) -> None:
        if self._socket is not None and not self._closing:
            self._socket.resume_reading()


class _Pipe:
    """One direction: bytes come out in the order they were put in, each at its time."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        deliver: Callable[[bytes], None],
        pause: Callable[[], None],
        resume: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._deliver = deliver
        self._pause = pause
        self._resume = resume
        self._delayed: deque[tuple[float, bytes]] = deque()
        self._size = 0
        self._paused = False
        self._free_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._when_empty: Callable[[], None] | None = None

    def put(self, data: bytes, slow: SlowFault | None) -> None:
        if slow is None and not self._delayed:
            self._deliver(data)
            return
        for piece, due in self._plan(data, slow or SlowFault()):
            self._delayed.append((due, piece))
        self._size += len(data)
        if not self._paused and self._size > MAX_DELAYED:
            self._paused = True
            self._pause()
        self._set_timer()

    def when_empty(self, callback: Callable[[], None]) -> None:
        self._when_empty = callback
        if not self._delayed:
            callback()

    def stop(self) -> None:
        self._delayed.clear()
        self._size = 0
        self._when_empty = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _plan(self, data: bytes, slow: SlowFault) -> list[tuple[bytes, float]]:
        """Pieces with the time at which each arrives, if those before it have."""
        rate = slow.bytes_per_second
        size = len(data) if rate is None else max(1, int(rate * _SLICE))
        pieces = [data[at : at + size] for at in range(0, len(data), size)]
        self._free_at = max(self._free_at, self._loop.time())
        plan = []
        for piece in pieces:
            self._free_at += 0.0 if rate is None else len(piece) / rate
            plan.append((piece, self._free_at + slow.latency))
        return plan

    def _set_timer(self) -> None:
        if self._timer is None and self._delayed:
            self._timer = self._loop.call_at(self._delayed[0][0], self._flush)

    def _flush(self) -> None:
        self._timer = None
        now = self._loop.time()
        while self._delayed and self._delayed[0][0] <= now:
            _, data = self._delayed.popleft()
            self._size -= len(data)
            self._deliver(data)
        if self._paused and self._size <= MAX_DELAYED // 2:
            self._paused = False
            self._resume()
        self._set_timer()
        if not self._delayed and self._when_empty is not None:
            self._when_empty()
