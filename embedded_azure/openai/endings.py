"""How an answer breaks: what faults and phrases ask for, in the terms of `sending.py`."""

from collections.abc import Iterable
from typing import Any

from embedded_azure.http_faults import BodyFault
from embedded_azure.openai.bodies import CHARACTERS_PER_TOKEN
from embedded_azure.openai.faults import StreamFault
from embedded_azure.openai.operations import Operation
from embedded_azure.openai.phrases import Wish
from embedded_azure.openai.refusals import stream_error, stream_throttled
from embedded_azure.openai.sending import Ending, break_off
from embedded_azure.openai.streams import Piece, StreamOptions

_Cause = StreamFault | BodyFault | Wish


def body_fault_of(wish: Wish, size: int) -> BodyFault | None:
    """How a whole answer of `size` bytes breaks; a token stands for so many bytes of it."""
    if wish.malformed:
        return BodyFault(how="malformed", after=size // 2)
    if wish.breaks is None or wish.breaks == "fail":
        return None
    return BodyFault(how=wish.breaks, after=wish.breaks_after * CHARACTERS_PER_TOKEN)


def ending_of(
    operation: Operation, document: dict[str, Any], pieces: Iterable[Piece], cause: _Cause
) -> tuple[Iterable[Piece], Ending | None]:
    """The pieces of a stream that are sent, and how it ends after them; None: as it should."""
    match cause:
        case StreamFault(after=after, how=how):
            error = stream_throttled() if how == "throttle" else stream_error()
            return _fail(operation, document, pieces, after, error)
        case BodyFault(after=after, how=how, bytes_per_second=speed):
            kept, rest = break_off(pieces, after)
            return kept, Ending(how=how, rest=rest, bytes_per_second=speed)
        case Wish(malformed=True):
            kept, rest = break_off(pieces, 1)
            return kept, Ending(how="malformed", rest=rest)
        case Wish(breaks="fail", breaks_after=after):
            return _fail(operation, document, pieces, after, stream_error())
        case Wish(breaks=("cut" | "hang") as how, breaks_after=after):
            kept, rest = break_off(pieces, after)
            return kept, Ending(how=how, rest=rest)
        case _:
            return pieces, None


def throttled_ending(operation: Operation, document: dict[str, Any]) -> tuple[list[Piece], Ending]:
    """A stream that has begun and is refused at once, as `document` would have been."""
    assert operation.pieces is not None, "an operation that throttles in its stream has pieces"
    first = next(iter(operation.pieces(document, StreamOptions(), 1)))
    last = operation.fail(document, stream_throttled(), 1)
    return [first], Ending(how="fail", rest=(), last=last)


def _fail(
    operation: Operation, document: dict[str, Any], pieces: Iterable[Piece], after: int, error: dict[str, Any]
) -> tuple[list[Piece], Ending]:
    kept, rest = break_off(pieces, after)
    return kept, Ending(how="fail", rest=rest, last=operation.fail(document, error, len(kept)))
