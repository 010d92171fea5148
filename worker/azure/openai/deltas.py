"""Values that a stream brings bit by bit, merged into what they would be in one piece.

`merge` adds a delta to an object in the making, `join` makes it; `worst` does the same for the content filter.
"""

from typing import Any

from worker.errors import Unavailable

_SENT_WHOLE = frozenset({"id", "type", "role", "name"})
"""Strings of a delta that come in one piece; the others come bit by bit."""

MAX_DEPTH = 8
"""Levels of a delta that are merged; what lies deeper is taken as it is. The API needs three."""

_SEVERITIES = ("safe", "low", "medium", "high")


class _Bits(list[str]):
    """A string in the making: joined once at the end, as appending to a long string copies it."""


class _Calls(dict[int, dict[str, Any]]):
    """Tool calls in the making, by index."""


def merge(into: dict[str, Any], delta: dict[str, Any], depth: int = 0) -> None:
    """Add a delta: strings go on, lists are extended, objects are merged; of the rest the last counts."""
    for name, value in delta.items():
        held = into.get(name)
        if value is None:
            into[name] = held
        elif depth == MAX_DEPTH:
            into[name] = value
        else:
            into[name] = _merged(name, held, value, depth)


def _merged(name: str, held: Any, value: Any, depth: int) -> Any:
    match value:
        case str() if name not in _SENT_WHOLE:
            return _longer(held, value)
        case dict():
            return _merged_object(held, value, depth + 1)
        case list() if name == "tool_calls":
            return _merged_calls(held, value, depth + 1)
        case list() if type(held) is list:
            held.extend(value)
            return held
        case _:
            return value or held or value


def _longer(held: Any, bit: str) -> _Bits:
    bits = held if isinstance(held, _Bits) else _Bits()
    bits.append(bit)
    return bits


def _merged_object(held: Any, delta: dict[str, Any], depth: int) -> dict[str, Any]:
    made = held if type(held) is dict else {}
    merge(made, delta, depth)
    return made


def _merged_calls(held: Any, deltas: list[Any], depth: int) -> _Calls:
    calls = held if isinstance(held, _Calls) else _Calls()
    for position, delta in enumerate(deltas):
        if not isinstance(delta, dict):
            raise Unavailable("a tool call in the stream is no object")
        index = delta.pop("index", position)
        merge(calls.setdefault(index if type(index) is int else position, {}), delta, depth)
    return calls


def join(value: Any, depth: int = 0) -> Any:
    """What was in the making, made."""
    if isinstance(value, _Bits):
        return "".join(value)
    if isinstance(value, _Calls):
        return [join(value[index], depth + 1) for index in sorted(value)]
    if isinstance(value, dict) and depth <= MAX_DEPTH + 2:
        return {name: join(inner, depth + 1) for name, inner in value.items()}
    return value


def worst(held: Any, found: dict[str, Any]) -> dict[str, Any]:
    """What the content filter found in a whole choice, out of what it found piece by piece."""
    if not isinstance(held, dict):
        return found
    return held | {name: _worse(held.get(name), value) for name, value in found.items()}


def _worse(held: Any, found: Any) -> Any:
    if not isinstance(held, dict) or not isinstance(found, dict):
        return found
    flags = {name: True for name in ("filtered", "detected") if held.get(name) or found.get(name)}
    severer = max(held.get("severity"), found.get("severity"), key=_severity)
    return held | found | flags | ({} if severer is None else {"severity": severer})


def _severity(word: Any) -> int:
    return _SEVERITIES.index(word) if word in _SEVERITIES else -1
