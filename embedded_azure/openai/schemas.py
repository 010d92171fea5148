"""Values that satisfy a JSON Schema: a small generator for what structured outputs and tools are described by.

The value is a function of the schema and a digest, so that equal questions get equal answers. Strings say what a
plain answer would have said. It knows what strict mode allows except `pattern`, and objects that are not strict.
"""

import math
import random
from collections.abc import Mapping
from typing import Any

from embedded_azure.openai.refusals import Refused, invalid_request

_DEPTH = 4
"""From here on the shortest alternatives are taken, so that a schema that contains itself comes to an end."""
_DEEPEST = 40
_MOST_VALUES = 10_000
_LONGEST = 10_000
"""Characters of a string, and items of an array, that are made: what asks for more is refused."""
_UNUSABLE = (TypeError, ValueError, AttributeError, ArithmeticError, LookupError, RecursionError)
"""What a schema raises whose keywords have values of the wrong type, as any client may send."""
_FORMATS = {
    "date-time": "2026-01-31T12:34:56Z",
    "date": "2026-01-31",
    "time": "12:34:56Z",
    "duration": "P3DT4H",
    "email": "somebody@example.com",
    "hostname": "example.com",
    "ipv4": "192.0.2.7",
    "ipv6": "2001:db8::7",
}


def generate(schema: Mapping[str, Any], said: str, digest: str, *, param: str) -> Any:
    """A value of `schema`, whose strings say `said`. Raises Refused naming `param` for what it cannot satisfy."""
    try:
        return _Generator(schema, said, digest, param).value(schema, 0)
    except _UNUSABLE as error:
        raise _no_schema(param) from error


def check_strict(schema: Any, *, name: str, param: str) -> None:
    """Raises Refused with status 400, in the service's words, for a schema that strict mode does not allow."""
    try:
        complaint = _complaint(schema, ())
    except _UNUSABLE as error:
        raise _no_schema(param) from error
    if complaint is not None:
        raise invalid_request(f"Invalid schema for {name}: {complaint}", param, "invalid_json_schema")


def _no_schema(param: str) -> Refused:
    return invalid_request("Invalid schema: it is no JSON Schema.", param, "invalid_json_schema")


def _complaint(schema: Any, context: tuple[str, ...]) -> str | None:
    place = f"In context={context!r}, "
    if not isinstance(schema, dict):
        return f"{place}schema must be an object."
    if not context and schema.get("type") != "object":
        return f"schema must be a JSON Schema of 'type: \"object\"', got 'type: {schema.get('type')!r}'."
    parts: list[tuple[tuple[str, ...], Any]] = []
    properties = schema.get("properties", {})
    if schema.get("type") == "object":
        if schema.get("additionalProperties") is not False:
            return f"{place}'additionalProperties' is required to be supplied and to be false."
        if not isinstance(properties, dict):
            return f"{place}'properties' must be an object."
        missing = [name for name in properties if name not in (schema.get("required") or ())]
        if missing:
            return (
                f"{place}'required' is required to be supplied and to be an array including every key in "
                f"properties. Missing '{missing[0]}'."
            )
        parts += [((*context, "properties", name), part) for name, part in properties.items()]
    if "items" in schema:
        parts.append(((*context, "items"), schema["items"]))
    parts += [((*context, "anyOf", str(number)), part) for number, part in enumerate(schema.get("anyOf", ()))]
    parts += [((*context, "$defs", name), part) for name, part in schema.get("$defs", {}).items()]
    return next((found for place, part in parts if (found := _complaint(part, place)) is not None), None)


class _Generator:
    def __init__(self, root: Mapping[str, Any], said: str, digest: str, param: str) -> None:
        self._root = root
        self._said = said
        self._param = param
        self._random = random.Random(digest)
        self._values = 0

    def value(self, schema: Any, depth: int) -> Any:
        self._values += 1
        if depth > _DEEPEST or self._values > _MOST_VALUES:
            raise self._refuse("it contains itself without end, or too much")
        if not isinstance(schema, dict):
            return None
        if "$ref" in schema:
            return self.value(self._resolve(schema["$ref"]), depth + 1)
        if "const" in schema:
            return schema["const"]
        if schema.get("enum"):
            return self._random.choice(schema["enum"])
        for word in ("anyOf", "oneOf"):
            if schema.get(word):
                return self.value(self._alternative(schema[word], depth), depth + 1)
        if schema.get("allOf"):
            return self.value({name: part for one in schema["allOf"] for name, part in one.items()}, depth + 1)
        kind = schema.get("type", "object" if "properties" in schema else "string")
        if isinstance(kind, list):
            kind = self._alternative(kind, depth)
        return self._of_kind(kind, schema, depth)

    def _of_kind(self, kind: Any, schema: Mapping[str, Any], depth: int) -> Any:
        match kind:
            case "object":
                properties = schema.get("properties", {})
                return {name: self.value(part, depth + 1) for name, part in properties.items()}
            case "array":
                least = self._bounded(schema.get("minItems", 0))
                most = max(least, min(schema.get("maxItems", least + 2), least + 2))
                count = least if depth >= _DEPTH else self._random.randint(max(least, min(1, most)), most)
                return [self.value(schema.get("items", {}), depth + 1) for _ in range(count)]
            case "integer":
                return self._number(schema, schema.get("multipleOf", 1))
            case "number":
                return self._number(schema, schema.get("multipleOf", 0.25))
            case "boolean":
                return self._random.random() < 0.5
            case "null":
                return None
            case _:
                return self._text(schema)

    def _number(self, schema: Mapping[str, Any], step: Any) -> float:
        """A multiple of `step` within the bounds."""
        if not isinstance(step, int | float) or not 0 < step < math.inf:
            raise self._refuse(f"'multipleOf' is {step!r:.80} and must be above 0")
        low, high = schema.get("minimum"), schema.get("maximum")
        least = -math.inf if low is None else math.ceil(low / step)
        most = math.inf if high is None else math.floor(high / step)
        if (below := schema.get("exclusiveMinimum")) is not None:
            least = max(least, math.floor(below / step) + 1)
        if (above := schema.get("exclusiveMaximum")) is not None:
            most = min(most, math.ceil(above / step) - 1)
        if least == -math.inf:
            least = min(0, most - 1_000) if most != math.inf else 0
        most = min(most, least + 1_000)
        if most < least:
            raise self._refuse(f"no multiple of {step} is within its bounds")
        return self._random.randint(int(least), int(most)) * step

    def _text(self, schema: Mapping[str, Any]) -> str:
        if "pattern" in schema:
            raise self._refuse("the embedded Azure OpenAI makes no strings for a 'pattern'; leave it out")
        if schema.get("format") == "uuid":
            return f"{self._random.getrandbits(32):08x}-0000-4000-8000-{self._random.getrandbits(48):012x}"
        if schema.get("format") in _FORMATS:
            return _FORMATS[schema["format"]]
        least, most = self._bounded(schema.get("minLength", 0)), schema.get("maxLength")
        return self._said.ljust(least, ".")[: most if most is None else max(0, most)]

    def _bounded(self, least: int) -> int:
        if least > _LONGEST:
            raise self._refuse(f"it asks for {least} characters or items, and {_LONGEST} are made at most")
        return least

    def _alternative(self, parts: list[Any], depth: int) -> Any:
        if depth < _DEPTH:
            return self._random.choice(parts)
        return min(parts, key=_height)

    def _resolve(self, reference: Any) -> Any:
        found: Any = self._root
        for step in str(reference).removeprefix("#").strip("/").split("/"):
            if step:
                found = found.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None
        if found is None:
            raise self._refuse(f"its reference {reference!r:.80} leads nowhere")
        return found

    def _refuse(self, reason: str) -> Refused:
        return invalid_request(f"Invalid schema: {reason}.", self._param, "invalid_json_schema")


def _height(schema: Any) -> int:
    """How likely a part is to go on: 0 for what has no parts."""
    kind = schema.get("type") if isinstance(schema, dict) else schema
    if isinstance(schema, dict) and "$ref" in schema:
        return 3
    return {"object": 2, "array": 1}.get(kind if isinstance(kind, str) else "", 0)
