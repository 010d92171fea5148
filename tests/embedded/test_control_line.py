"""The line between a socket and its connection, in virtual time: cut, slow, or not there at all."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedded_azure.faults import Faults
from embedded_azure.servicebus.faults.control import FAULTS
from embedded_azure.servicebus.faults.timing import MAX_DELAYED, Line
from tests.support.wire import Wire


class Peer(asyncio.Protocol):
    """Behind the line: remembers what arrived and when."""

    def __init__(self) -> None:
        self.transport: asyncio.BaseTransport | None = None
        self.arrived: list[tuple[float, bytes]] = []
        self.paused = 0
        self.lost = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.arrived.append((asyncio.get_running_loop().time(), data))

    def pause_writing(self) -> None:
        self.paused += 1

    def resume_writing(self) -> None:
        self.paused -= 1

    def connection_lost(self, error: Exception | None) -> None:
        self.lost += 1

    @property
    def data(self) -> bytes:
        return b"".join(data for _, data in self.arrived)


class Bench:
    def __init__(self, *faults: dict[str, object]) -> None:
        self.faults = Faults(*FAULTS, initial=list(faults), clock=asyncio.get_running_loop().time)
        self.peer = Peer()
        self.wire = Wire()
        self.line = Line(self.peer, self.faults)
        self.line.connection_made(self.wire)


async def test_without_a_fault_everything_passes_at_once() -> None:
    bench = Bench()
    bench.line.data_received(b"in")
    bench.line.write(b"out")
    assert (bench.peer.data, bench.wire.written) == (b"in", b"out")
    bench.line.connection_lost(None)
    assert bench.peer.lost == 1


async def test_a_connection_that_is_refused_never_comes_about() -> None:
    bench = Bench({"kind": "refuse_connections", "count": 1})
    assert bench.wire.closed
    assert bench.peer.transport is None
    bench.line.connection_lost(None)
    assert bench.peer.lost == 0


@pytest.mark.parametrize("after", [0, 3, 100])
async def test_what_is_sent_is_cut_off_and_nothing_follows(after: int) -> None:
    bench = Bench({"kind": "cut", "after_bytes": after})
    bench.line.write(b"0123456789")
    bench.line.write(b"more")
    bench.line.data_received(b"in")
    assert bench.wire.written == b"0123456789"[:after]
    assert bench.wire.closed
    assert bench.peer.data == b""


async def test_what_is_received_is_cut_off_and_nothing_is_answered() -> None:
    bench = Bench({"kind": "cut", "after_bytes": 4, "direction": "in"})
    bench.line.write(b"before")
    bench.line.data_received(b"0123456789")
    bench.line.data_received(b"more")
    bench.line.write(b"answer")
    assert bench.peer.data == b"0123"
    assert bench.wire.written == b"before"


@pytest.mark.looptime
async def test_latency_holds_for_each_direction_and_the_order_is_kept(looptime: float) -> None:
    bench = Bench({"kind": "slow", "latency": 2})
    bench.line.data_received(b"a")
    await asyncio.sleep(1)
    bench.line.data_received(b"b")
    bench.line.write(b"c")
    bench.faults.clear()
    bench.line.data_received(b"d")  # no longer slow, but behind what is
    await asyncio.sleep(3)
    assert [(data, round(at, 6)) for at, data in bench.peer.arrived] == [(b"a", 2), (b"b", 3), (b"d", 3)]
    assert bench.wire.written == b"c"


@pytest.mark.looptime
async def test_bytes_trickle_at_the_rate_and_a_close_waits_for_them(looptime: float) -> None:
    bench = Bench({"kind": "slow", "bytes_per_second": 100})
    bench.line.write(b"x" * 500)
    bench.line.close()
    await asyncio.sleep(2.5)
    assert 240 <= len(bench.wire.written) <= 250
    assert not bench.wire.closed
    await asyncio.sleep(2.6)
    assert len(bench.wire.written) == 500
    assert bench.wire.closed


@pytest.mark.looptime
async def test_a_sender_is_asked_to_wait_while_much_is_on_its_way(looptime: float) -> None:
    bench = Bench({"kind": "slow", "latency": 1})
    bench.line.write(b"x" * (MAX_DELAYED + 1))
    assert bench.peer.paused == 1
    await asyncio.sleep(1.1)
    assert bench.peer.paused == 0


@pytest.mark.looptime
async def test_an_abort_forgets_what_was_on_its_way(looptime: float) -> None:
    bench = Bench({"kind": "slow", "latency": 1})
    bench.line.write(b"x")
    bench.line.data_received(b"y")
    bench.line.abort()
    await asyncio.sleep(2)
    assert (bench.wire.written, bench.peer.data) == (b"", b"")


@given(st.lists(st.binary(max_size=50), max_size=10), st.floats(1, 1e6), st.floats(0, 2))
def test_a_slow_line_loses_doubles_and_reorders_nothing(chunks: list[bytes], rate: float, latency: float) -> None:
    async def pass_through() -> bytes:
        bench = Bench({"kind": "slow", "bytes_per_second": rate * 1e4, "latency": latency / 1e4})
        for chunk in chunks:
            bench.line.write(chunk)
        bench.line.close()
        while not bench.wire.closed:
            await asyncio.sleep(0)
        return bench.wire.written

    assert asyncio.run(pass_through()) == b"".join(chunks)


async def test_a_dropped_connection_carries_nothing_any_more_and_neither_side_is_told() -> None:
    bench = Bench({"kind": "drop"})
    bench.line.write(b"out")
    bench.faults.clear()
    bench.line.write(b"out")
    bench.line.data_received(b"in")
    assert (bench.peer.data, bench.wire.written) == (b"", b"")
    assert (bench.wire.closed, bench.peer.lost) == (False, 0)


async def test_a_connection_that_was_silent_while_others_were_dropped_goes_on() -> None:
    bench = Bench({"kind": "drop"})
    bench.faults.clear()
    bench.line.write(b"out")
    assert bench.wire.written == b"out"
