"""Ranges of bytes, as Get Blob takes them. Pure functions."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from embedded_azure.blob.refusals import Refused

_RANGE = re.compile(r"bytes=(\d{1,19})-(\d{1,19})?", re.ASCII)


@dataclass(frozen=True, slots=True)
class ByteRange:
    """From `start` up to and without `end`."""

    start: int
    end: int

    @property
    def length(self) -> int:
        return self.end - self.start

    def header(self, size: int) -> str:
        """The Content-Range of a blob of `size` bytes."""
        return f"bytes {self.start}-{self.end - 1}/{size}"


def read_range(headers: Mapping[str, str], size: int) -> ByteRange | None:
    """The range that is asked for, cut to the blob; None where the whole is. Raises Refused.

    `x-ms-range` goes before `Range`. A `Range` that Azure does not know (a suffix, several) asks for the whole.
    """
    text = headers.get("x-ms-range")
    found = _RANGE.fullmatch((text or headers.get("Range", "")).strip())
    if found is None or _is_backwards(found):
        if text is not None:
            raise Refused(
                "InvalidHeaderValue", f"x-ms-range is {text!r:.200}; it is bytes=FIRST-LAST or bytes=FIRST-"
            )
        return None
    start = int(found[1])
    if start >= size:
        raise Refused(
            "InvalidRange",
            f"the range begins at byte {start}, and the blob has {size}",
            headers={"Content-Range": f"bytes */{size}"},
        )
    return ByteRange(start, min(size, int(found[2]) + 1) if found[2] else size)


def _is_backwards(found: re.Match[str]) -> bool:
    return found[2] is not None and int(found[2]) < int(found[1])
