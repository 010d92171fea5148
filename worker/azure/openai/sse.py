"""Server-sent events out of bytes, however they were cut into chunks.

The rules are those of the HTML standard, section 9.2.6 "Interpreting an event stream", as far as they concern data
and event names, with one departure: an event that only the end of the stream ends counts, as Azure has sent such
(github.com/sozercan/vekil/pull/267). Memory is bounded by whoever bounds the bytes.
"""

from dataclasses import dataclass

_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """`name` is empty where the stream gave none."""

    name: bytes
    data: bytes


class EventStream:
    """`feed` it the chunks as they come; after the last one `end` it."""

    def __init__(self) -> None:
        self._unfinished: list[bytes] = []
        self._is_after_cr = False
        self._is_first_line = True
        self._name = b""
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> list[ServerEvent]:
        """The events that `chunk` completes."""
        if self._is_after_cr and chunk.startswith(b"\n"):
            chunk = chunk[1:]  # the other half of a line end that fell between two chunks
            self._is_after_cr = False
        if not chunk:
            return []
        self._is_after_cr = chunk.endswith(b"\r")
        return [event for line in self._lines(chunk) if (event := self._take(line))]

    def end(self) -> list[ServerEvent]:
        """The event that was still open, if any."""
        if self._unfinished:
            self._take(b"".join(self._unfinished))
            self._unfinished = []
        event = self._dispatch()
        return [event] if event else []

    def _lines(self, chunk: bytes) -> list[bytes]:
        if b"\n" not in chunk and b"\r" not in chunk:
            self._unfinished.append(chunk)  # joined once, or a long line would be copied again and again
            return []
        lines = chunk.splitlines()
        if self._unfinished:
            lines[0] = b"".join([*self._unfinished, lines[0]])
            self._unfinished = []
        if not chunk.endswith((b"\n", b"\r")):
            self._unfinished.append(lines.pop())
        return lines

    def _take(self, line: bytes) -> ServerEvent | None:
        if self._is_first_line:
            self._is_first_line = False
            line = line.removeprefix(_BOM)
        if not line:
            return self._dispatch()
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
        elif field == b"event":
            self._name = value
        return None

    def _dispatch(self) -> ServerEvent | None:
        data, name = self._data, self._name
        self._name = b""
        if not data:
            return None
        self._data = []
        return ServerEvent(name, data[0] if len(data) == 1 else b"\n".join(data))
