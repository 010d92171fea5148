"""Which names one page of a listing has: prefix, delimiter, marker and page size. Pure, over any ordered store.

Names are in the order of their code points, as they lie in the store. With a delimiter, names that share what
stands before its next occurrence are one entry, and the store is asked to go on behind all of them: a folder of
100,000 blobs costs one question, not 100,000 rows.
"""

import base64
import binascii
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from embedded_azure.blob.refusals import Refused

LARGEST_PAGE = 5_000
_LOOK_AHEAD = 64
"""Rows that are read at once where a delimiter may make most of them needless."""
_MARKER = "2!"


class Named(Protocol):
    @property
    def name(self) -> str: ...


_Entry = TypeVar("_Entry", bound=Named)


@dataclass(frozen=True, slots=True)
class Prefix:
    """Stands for all names that begin so."""

    name: str


@dataclass(frozen=True, slots=True)
class Page(Generic[_Entry]):
    """`next_name` is where the next page begins; None where this is the last."""

    entries: Sequence[_Entry | Prefix]
    next_name: str | None


def read_page(
    seek: Callable[[str, int], Sequence[_Entry]], *, prefix: str, delimiter: str, start: str, size: int
) -> Page[_Entry]:
    """`seek(name, count)` gives up to `count` entries in order, from `name` on; fewer only at the end."""
    entries: list[_Entry | Prefix] = []
    wanted: str | None = max(start, prefix)
    while wanted is not None:
        room = size + 1 - len(entries)
        rows = seek(wanted, min(room, _LOOK_AHEAD) if delimiter else room)
        wanted, full = None, len(rows) == (min(room, _LOOK_AHEAD) if delimiter else room)
        for row in rows:
            if not row.name.startswith(prefix):
                full = False
                break
            if len(entries) == size:
                return Page(entries, row.name)
            end = row.name.find(delimiter, len(prefix)) if delimiter else -1
            if end < 0:
                entries.append(row)
                continue
            folder = row.name[: end + len(delimiter)]
            entries.append(Prefix(folder))
            wanted = name_after(folder)
            break
        else:
            wanted = f"{rows[-1].name}\0" if full else None
    return Page(entries, None)


def name_after(prefix: str) -> str | None:
    """The least string that is greater than all that begin with `prefix`; None where there is none."""
    for length in range(len(prefix), 0, -1):
        code = ord(prefix[length - 1]) + 1
        if code <= 0x10FFFF:
            # surrogates are no characters, and cannot be stored
            return prefix[: length - 1] + chr(0xE000 if 0xD800 <= code <= 0xDFFF else code)
    return None


def make_marker(name: str) -> str:
    return _MARKER + base64.urlsafe_b64encode(name.encode()).decode()


def read_marker(text: str) -> str:
    """Raises Refused where it is not one of ours. An empty one is the beginning."""
    if not text:
        return ""
    try:
        if not text.startswith(_MARKER):
            raise ValueError("not a marker")
        return base64.b64decode(text.removeprefix(_MARKER), altchars=b"-_", validate=True).decode()
    except (ValueError, binascii.Error) as error:
        detail = f"marker is {text!r:.200}; it is the NextMarker of the page before"
        raise Refused("InvalidQueryParameterValue", detail) from error


def read_page_size(text: str | None) -> int:
    """More than 5,000 is taken for 5,000, as Azure does. Raises Refused."""
    if text is None or text == "":
        return LARGEST_PAGE
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        raise Refused("InvalidQueryParameterValue", f"maxresults is {text!r:.200}; it is a number from 1")
    if int(text) < 1:
        raise Refused("OutOfRangeQueryParameterValue", "maxresults is 0; it is a number from 1")
    return min(int(text), LARGEST_PAGE)
