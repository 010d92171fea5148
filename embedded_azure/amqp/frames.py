"""Frames (2.3): the eight bytes before each body, cut out of a stream of bytes and put before what is sent."""

import struct
from dataclasses import dataclass
from typing import Final

from embedded_azure.amqp.codec import DecodeError
from embedded_azure.amqp.performatives import Composite, encode_composite

AMQP_FRAME: Final = 0
SASL_FRAME: Final = 1
PROTOCOL_AMQP: Final = b"AMQP\x00\x01\x00\x00"
PROTOCOL_SASL: Final = b"AMQP\x03\x01\x00\x00"
MIN_MAX_FRAME_SIZE: Final = 512
"""No peer may ask for smaller frames (2.7.1)."""

_HEADER = struct.Struct(">IBBH")
EMPTY_FRAME: Final = _HEADER.pack(8, 2, AMQP_FRAME, 0)
"""Says only that the sender is alive (2.4.5)."""


@dataclass(slots=True)
class Frame:
    """`body` is empty for a keep-alive. Not frozen: freezing costs a microsecond for each message."""

    kind: int
    channel: int
    body: bytes


class FrameReader:
    """Cuts frames out of what the socket delivers, in pieces of any size.

    `max_frame_size` is what we told the peer; a larger frame raises DecodeError, as does an impossible header.
    """

    def __init__(self, max_frame_size: int) -> None:
        self._max_frame_size = max_frame_size
        self._buffer = bytearray()
        self._at = 0

    def feed(self, data: bytes) -> None:
        if self._at:
            del self._buffer[: self._at]
            self._at = 0
        self._buffer += data

    def next_protocol_header(self) -> bytes | None:
        """The eight bytes a connection starts with; None until they have arrived. Whatever they are."""
        if len(self._buffer) - self._at < 8:
            return None
        self._at += 8
        return bytes(self._buffer[self._at - 8 : self._at])

    def next_frame(self) -> Frame | None:
        """None until the next frame is complete."""
        start = self._at
        if len(self._buffer) - start < 8:
            return None
        size, offset, kind, channel = _HEADER.unpack_from(self._buffer, start)
        self._check(size, offset * 4, kind)
        if len(self._buffer) - start < size:
            return None
        self._at = start + size
        return Frame(kind, channel, bytes(self._buffer[start + offset * 4 : self._at]))

    def _check(self, size: int, offset: int, kind: int) -> None:
        if size > self._max_frame_size:
            raise DecodeError(0, f"a frame of at most {self._max_frame_size} bytes, not {size}")
        if not 8 <= offset <= size:
            raise DecodeError(4, f"a body that starts within the frame's {size} bytes, not at {offset}")
        if kind not in (AMQP_FRAME, SASL_FRAME):
            raise DecodeError(5, f"frame type 0 (AMQP) or 1 (SASL), not {kind}")


def encode_frame(
    performative: Composite, *, channel: int = 0, kind: int = AMQP_FRAME, payload: bytes = b""
) -> bytes:
    return frame_of(encode_composite(performative), channel, kind=kind, payload=payload)


def frame_of(body: bytes, channel: int, *, kind: int = AMQP_FRAME, payload: bytes = b"") -> bytes:
    """A frame around a body that is encoded already."""
    return b"%b%b%b" % (_HEADER.pack(8 + len(body) + len(payload), 2, kind, channel), body, payload)
