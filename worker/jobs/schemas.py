"""JSON Schema as structured outputs use it, for values and schemas of anybody.

A library would follow regular expressions and references for as long as a hostile schema makes it, in the event
loop that all jobs share. So this counts its steps, and passes over what it does not know: `pattern`, `format`,
`not`, `if`, references to elsewhere. It finds no fault that the whole of JSON Schema would not.
"""

from collections.abc import Callable, Mapping
from typing import Any

STEPS = 20_000
"""Parts of a value against parts of a schema; some 20 ms. A longer comparison is given up."""
DEEPEST = 200
"""Levels of a value and of references; a job's own limit."""

_TYPES: Mapping[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "integer": lambda value: (
        value.is_integer() if isinstance(value, float) else isinstance(value, int) and not isinstance(value, bool)
    ),
}


def find_mismatch(schema: object, value: object) -> str | None:
    """Where a value is not what the schema says, and what it says; None where no fault is found."""
    try:
        return _Comparison(schema).mismatch(schema, value, "$", 0)
    except _GivenUp:
        return None


class _GivenUp(Exception):
    pass


class _Comparison:
    def __init__(self, root: object) -> None:
        self._root = root
        self._left = STEPS

    def mismatch(self, schema: object, value: object, path: str, depth: int) -> str | None:
        self._left -= 1
        if self._left < 0 or depth > DEEPEST:
            raise _GivenUp
        if schema is False:
            return f"{path} must not be there"
        if not isinstance(schema, dict):
            return None
        if isinstance(reference := schema.get("$ref"), str):
            return self.mismatch(self._resolve(reference), value, path, depth + 1)
        return (
            _simple_mismatch(schema, value, path)
            or self._alternatives(schema, value, path, depth)
            or (self._members(schema, value, path, depth) if isinstance(value, dict) else None)
            or (self._items(schema, value, path, depth) if isinstance(value, list) else None)
        )

    def _alternatives(self, schema: dict[str, Any], value: object, path: str, depth: int) -> str | None:
        for part in _list(schema.get("allOf")):
            if found := self.mismatch(part, value, path, depth + 1):
                return found
        choices = _list(schema.get("anyOf")) or _list(schema.get("oneOf"))
        if choices and all(self.mismatch(choice, value, path, depth + 1) for choice in choices):
            return f"{path} fits none of {len(choices)} alternatives"
        return None

    def _members(self, schema: dict[str, Any], value: dict[str, Any], path: str, depth: int) -> str | None:
        for name in _list(schema.get("required")):
            if isinstance(name, str) and name not in value:
                return f"{path} has no {name!r:.80}"
        properties = schema.get("properties")
        named = properties if isinstance(properties, dict) else {}
        # what these keywords let in besides is not known here
        others = True if "patternProperties" in schema else schema.get("additionalProperties", True)
        for name, member in value.items():
            found = self.mismatch(named.get(name, others), member, f"{path}.{name:.80}", depth + 1)
            if found:
                return found
        return None

    def _items(self, schema: dict[str, Any], value: list[Any], path: str, depth: int) -> str | None:
        first = _list(schema.get("prefixItems"))
        rest = schema.get("items", True)
        for number, item in enumerate(value):
            part = first[number] if number < len(first) else rest
            if found := self.mismatch(part, item, f"{path}[{number}]", depth + 1):
                return found
        return None

    def _resolve(self, reference: str) -> object:
        """A part of this schema; what lies elsewhere allows everything."""
        part = self._root
        if not reference.startswith("#"):
            return True
        for name in reference.removeprefix("#").split("/")[1:]:
            if not isinstance(part, dict):
                return True
            part = part.get(name.replace("~1", "/").replace("~0", "~"), True)
        return part


def _simple_mismatch(schema: dict[str, Any], value: object, path: str) -> str | None:
    types = schema.get("type")
    wanted = [types] if isinstance(types, str) else _list(types)
    known = [_TYPES[name] for name in wanted if isinstance(name, str) and name in _TYPES]
    if known and len(known) == len(wanted) and not any(is_it(value) for is_it in known):
        return f"{path} is {_kind(value)}; it must be {' or '.join(wanted)}"
    if isinstance(choices := schema.get("enum"), list) and not any(_same(value, choice) for choice in choices):
        return f"{path} is none of the {len(choices)} values of its enum"
    if "const" in schema and not _same(value, schema["const"]):
        return f"{path} is not the constant that it must be"
    return _bound_mismatch(schema, value, path)


_BOUNDS: tuple[tuple[str, str, Callable[[Any, Any], bool], str], ...] = (
    ("number", "minimum", lambda value, bound: value >= bound, "below"),
    ("number", "maximum", lambda value, bound: value <= bound, "above"),
    ("number", "exclusiveMinimum", lambda value, bound: value > bound, "not above"),
    ("number", "exclusiveMaximum", lambda value, bound: value < bound, "not below"),
    ("string", "minLength", lambda value, bound: len(value) >= bound, "shorter than"),
    ("string", "maxLength", lambda value, bound: len(value) <= bound, "longer than"),
    ("array", "minItems", lambda value, bound: len(value) >= bound, "shorter than"),
    ("array", "maxItems", lambda value, bound: len(value) <= bound, "longer than"),
)


def _bound_mismatch(schema: dict[str, Any], value: object, path: str) -> str | None:
    for kind, keyword, holds, words in _BOUNDS:
        bound = schema.get(keyword)
        if _TYPES["number"](bound) and _TYPES[kind](value) and not holds(value, bound):
            return f"{path} is {words} {keyword}, which is {bound}"
    return None


def _same(one: object, other: object) -> bool:
    """As JSON has it: 1 is 1.0, and true is no number."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(part, other[name]) for name, part in one.items())
    return one == other


def _kind(value: object) -> str:
    return next((name for name, is_it in _TYPES.items() if is_it(value)), "nothing")


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
