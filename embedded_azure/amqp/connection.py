"""Connections (2.4), the server's side: protocol headers, SASL (ANONYMOUS, PLAIN), open, sessions, idle time-out.

An `asyncio.Protocol`: frames are handled as they arrive, and what is written while handling them goes out in one
write. Who the peer is and what it may do is not decided here; the `Container` is asked about each link.
"""

import asyncio
from collections.abc import Callable
from enum import Enum
from typing import Final, Protocol, cast

from embedded_azure.amqp.codec import DecodeError, Symbol
from embedded_azure.amqp.frames import (
    EMPTY_FRAME,
    MIN_MAX_FRAME_SIZE,
    PROTOCOL_AMQP,
    PROTOCOL_SASL,
    SASL_FRAME,
    Frame,
    FrameReader,
    encode_frame,
)
from embedded_azure.amqp.links import IncomingLink, OutgoingLink
from embedded_azure.amqp.performatives import (
    Attach,
    Begin,
    Close,
    Composite,
    Detach,
    Disposition,
    End,
    Error,
    Flow,
    Open,
    SaslInit,
    SaslMechanisms,
    SaslOutcome,
    Transfer,
    decode_performative,
)
from embedded_azure.amqp.session import ConnectionFailure, Session

MAX_FRAME_SIZE: Final = 65_536
CHANNEL_MAX: Final = 255
MAX_UNWRITTEN: Final = 1 << 18
"""Bytes that may wait for the end of the loop's tick, and for the socket before `writable` says no."""
SASL_OK: Final = 0
SASL_AUTH_FAILED: Final = 1


class Container(Protocol):
    """What is behind a connection."""

    def on_attach(self, link: IncomingLink | OutgoingLink) -> None:
        """Accept or refuse it, now or later."""

    def on_closed(self) -> None:
        """The connection is gone. Called once, after all its links were detached."""


class Phase(Enum):
    HEADER = "protocol header"
    SASL = "sasl-init"
    AMQP_HEADER = "AMQP protocol header"
    OPEN = "open"
    OPENED = "opened"
    CLOSED = "closed"


class Connection(asyncio.Protocol):
    """`container_for` is called once it is made; `idle_time_out` is in seconds, and ours to the peer.

    `strict_delivery_ids` closes connections whose deliveries are not numbered one after the other (2.6.12).
    `check_key` says whether a name and a key are good; without it there is no SASL PLAIN.
    """

    def __init__(
        self,
        container_for: Callable[["Connection"], Container],
        *,
        container_id: str,
        idle_time_out: float = 240.0,
        strict_delivery_ids: bool = True,
        check_key: Callable[[str, str], bool] | None = None,
    ) -> None:
        self._container_for = container_for
        self._check_key = check_key
        self._container: Container | None = None
        self._container_id = container_id
        self._idle_time_out = idle_time_out
        self.strict_delivery_ids = strict_delivery_ids
        self._reader = FrameReader(MAX_FRAME_SIZE)
        self._phase = Phase.HEADER
        self._sessions: dict[int, Session] = {}
        self._ended: set[int] = set()
        self._out: list[bytes] = []
        self._out_size = 0
        self._transport: asyncio.Transport | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._heard = 0.0
        self._peer_patience: float | None = None
        self.peer_max_frame_size = MIN_MAX_FRAME_SIZE
        self.writable = True
        """The socket takes more; False while the peer does not read."""

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not asyncio's, they only look like them
        self._transport = cast(asyncio.Transport, transport)
        self._container = self._container_for(self)
        self._transport.set_write_buffer_limits(MAX_UNWRITTEN)
        self._loop = asyncio.get_running_loop()
        self._heard = self._loop.time()
        self._watch()

    def data_received(self, data: bytes) -> None:
        assert self._loop is not None
        self._heard = self._loop.time()
        self._reader.feed(data)
        try:
            while self._phase is not Phase.CLOSED and self._read_next():
                pass
        except DecodeError as error:
            self.close(Error(condition="amqp:decode-error", description=str(error)))
        except ConnectionFailure as failure:
            self.close(failure.error)
        self._flush()

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True
        for session in list(self._sessions.values()):
            session.wake()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._phase = Phase.CLOSED
        if self._timer is not None:
            self._timer.cancel()
        self._out.clear()
        for session in self._sessions.values():
            session.forget()
        self._sessions.clear()
        self._transport = None
        if self._container is not None:
            self._container.on_closed()

    def now(self) -> float:
        """Seconds of the loop."""
        return 0.0 if self._loop is None else self._loop.time()

    # Writing

    def write(self, frame: bytes) -> None:
        """Everything written in one tick of the loop leaves in one write, if it is not too much."""
        if not self._out and self._loop is not None:
            self._loop.call_soon(self._flush)
        self._out.append(frame)
        self._out_size += len(frame)
        if self._out_size > MAX_UNWRITTEN:
            self._flush()

    def _flush(self) -> None:
        if self._out and self._transport is not None:
            data = self._out[0] if len(self._out) == 1 else b"".join(self._out)
            self._out.clear()
            self._out_size = 0
            self._transport.write(data)

    def close(self, error: Error | None = None) -> None:
        """Says goodbye, with the reason, and closes the socket. Does nothing when it is closed already."""
        if self._phase is Phase.CLOSED:
            return
        if self._phase in (Phase.OPEN, Phase.OPENED):
            if self._phase is Phase.OPEN:
                self._send_open()
            self.write(encode_frame(Close(error=error)))
        self._phase = Phase.CLOSED
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Drops the connection without a word, as a broken network does."""
        if self._transport is not None:
            self._transport.abort()

    # Reading

    def _read_next(self) -> bool:
        """False when more bytes are needed."""
        if self._phase in (Phase.HEADER, Phase.AMQP_HEADER):
            header = self._reader.next_protocol_header()
            if header is not None:
                self._on_header(header)
            return header is not None
        frame = self._reader.next_frame()
        if frame is not None and frame.body:
            self._on_frame(frame)
        return frame is not None

    def _on_header(self, header: bytes) -> None:
        expected = PROTOCOL_SASL if self._phase is Phase.HEADER else PROTOCOL_AMQP
        self.write(expected)
        if header != expected:
            # The answer to a header we do not speak is the one we do, and the end (2.2).
            self.close()
        elif self._phase is Phase.HEADER:
            names = ("ANONYMOUS",) if self._check_key is None else ("PLAIN", "ANONYMOUS")
            mechanisms = SaslMechanisms(sasl_server_mechanisms=tuple(Symbol(name) for name in names))
            self.write(encode_frame(mechanisms, kind=SASL_FRAME))
            self._phase = Phase.SASL
        else:
            self._phase = Phase.OPEN

    def _on_frame(self, frame: Frame) -> None:
        performative, end = decode_performative(frame.body)
        if (frame.kind == SASL_FRAME) != (self._phase is Phase.SASL):
            raise ConnectionFailure(
                "amqp:connection:framing-error",
                f"a frame of type {frame.kind} in phase '{self._phase.value}'",
            )
        if self._phase is Phase.OPENED:
            self._dispatch(frame, performative, end)
        elif self._phase is Phase.SASL:
            self._on_sasl(performative)
        elif isinstance(performative, Open):
            self._on_open(performative)
        else:
            raise ConnectionFailure("amqp:not-allowed", f"{type(performative).__name__} before Open")

    def _on_sasl(self, performative: Composite) -> None:
        if not isinstance(performative, SaslInit):
            raise ConnectionFailure("amqp:not-allowed", f"{type(performative).__name__} instead of sasl-init")
        admitted = performative.mechanism == "ANONYMOUS" or self._has_key(performative)
        outcome = SaslOutcome(code=SASL_OK if admitted else SASL_AUTH_FAILED)
        self.write(encode_frame(outcome, kind=SASL_FRAME))
        if admitted:
            self._phase = Phase.AMQP_HEADER
        else:
            self.close()

    def _has_key(self, init: SaslInit) -> bool:
        if init.mechanism != "PLAIN" or self._check_key is None:
            return False
        _, name, key = (*(init.initial_response or b"").split(b"\0"), b"", b"", b"")[:3]  # RFC 4616
        return self._check_key(name.decode(errors="replace"), key.decode(errors="replace"))

    def _on_open(self, peer: Open) -> None:
        if peer.max_frame_size < MIN_MAX_FRAME_SIZE:
            raise ConnectionFailure(
                "amqp:invalid-field",
                f"max-frame-size {peer.max_frame_size} is below the least allowed, {MIN_MAX_FRAME_SIZE}",
            )
        self.peer_max_frame_size = min(peer.max_frame_size, MAX_FRAME_SIZE)
        if peer.idle_time_out:
            self._peer_patience = peer.idle_time_out / 1000
        self._send_open()
        self._phase = Phase.OPENED
        self._watch()

    def _send_open(self) -> None:
        ours = Open(
            container_id=self._container_id,
            max_frame_size=MAX_FRAME_SIZE,
            channel_max=CHANNEL_MAX,
            idle_time_out=int(self._idle_time_out * 1000),
        )
        self.write(encode_frame(ours))

    def _dispatch(self, frame: Frame, performative: Composite, end: int) -> None:
        if isinstance(performative, Close):
            self.close()
        elif isinstance(performative, Begin):
            self._on_begin(frame.channel, performative)
        elif session := self._sessions.get(frame.channel):
            self._in_session(session, frame, performative, end)
        elif frame.channel not in self._ended:
            raise ConnectionFailure(
                "amqp:not-allowed", f"{type(performative).__name__} on channel {frame.channel} without a session"
            )

    def _in_session(self, session: Session, frame: Frame, performative: Composite, end: int) -> None:
        match performative:
            case Disposition():
                session.on_disposition(performative)
            case Transfer():
                session.on_transfer(performative, frame.body[end:])
            case Flow():
                session.on_flow(performative)
            case Attach():
                session.on_attach(performative)
            case Detach():
                session.on_detach(performative)
            case End():
                self._on_end(frame.channel, session)
            case _:
                raise ConnectionFailure("amqp:not-allowed", f"{type(performative).__name__} in an open connection")

    def _on_begin(self, channel: int, begin: Begin) -> None:
        if channel in self._sessions or channel > CHANNEL_MAX:
            raise ConnectionFailure(
                "amqp:not-allowed", f"channel {channel} is in use, or above channel-max {CHANNEL_MAX}"
            )
        self._ended.discard(channel)
        self._sessions[channel] = Session(self, channel, begin)

    def _on_end(self, channel: int, session: Session) -> None:
        # The SDK sends the detaches of its management links after the end: they are overheard.
        self._ended.add(channel)
        del self._sessions[channel]
        session.forget()
        session.send(End())

    def attach(self, link: IncomingLink | OutgoingLink) -> None:
        assert self._container is not None
        self._container.on_attach(link)

    # Idle time-out (2.4.5)

    def _watch(self) -> None:
        """Closes the connection when the peer is silent for too long, and shows it that we are alive."""
        assert self._loop is not None
        if self._timer is not None:
            self._timer.cancel()
        if self._phase is Phase.CLOSED:
            return
        silent = self._loop.time() - self._heard
        if silent >= self._idle_time_out:
            self.close(
                Error(
                    condition="amqp:connection:forced",
                    description=f"The connection was inactive for more than {self._idle_time_out:g} s.",
                )
            )
            return
        pause = self._idle_time_out - silent
        if self._phase is Phase.OPENED and self._peer_patience is not None:
            self.write(EMPTY_FRAME)
            pause = min(pause, self._peer_patience / 2)
        self._timer = self._loop.call_later(pause, self._watch)
