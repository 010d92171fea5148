"""What the bodies of all operations have in common: JSON, with the service's own complaints, and its measure."""

import hashlib
import math
from typing import Any, TypeGuard

import orjson

from embedded_azure.openai.refusals import Refused, invalid_request

CHARACTERS_PER_TOKEN = 4
_SAMPLING = {"top_p": 1, "presence_penalty": 0, "frequency_penalty": 0}
"""Parameters of sampling besides the temperature, with their defaults."""


def count_tokens(text: str) -> int:
    """An estimate, four characters a token, as Azure's own admission has it."""
    return math.ceil(len(text) / CHARACTERS_PER_TOKEN)


def truncate(text: str, tokens: int) -> str:
    """The part of `text` that `tokens` tokens carry."""
    return text[: tokens * CHARACTERS_PER_TOKEN]


def digest_of(prompt: object) -> str:
    """12 hex digits: equal prompts, and no others, share them, whatever the order of the keys in their JSON."""
    return hashlib.sha256(orjson.dumps(prompt, option=orjson.OPT_SORT_KEYS)).hexdigest()[:12]


def parse_body(document: bytes) -> dict[str, Any]:
    """Raises Refused with status 400."""
    try:
        body = orjson.loads(document)
    except orjson.JSONDecodeError as error:
        raise unreadable_body() from error
    if not isinstance(body, dict):
        raise invalid_request(f"Invalid body: expected an object, but got {kind_of(body)} instead.")
    return body


def unreadable_body() -> Refused:
    return invalid_request(
        "We could not parse the JSON body of your request. (HINT: This likely means you aren't using your HTTP "
        "library correctly. The API expects a JSON payload, but what was sent was not valid JSON.)"
    )


def parse_model(body: dict[str, Any]) -> str | None:
    """Raises Refused with status 400 where it is not text."""
    return parse_text(body, "model")


def parse_text(body: dict[str, Any], name: str) -> str | None:
    """Raises Refused with status 400 where it is not text."""
    value = body.get(name)
    if value is not None and not isinstance(value, str):
        raise wrong_type(name, "a string", value)
    return value


def parse_flag(body: dict[str, Any], name: str, *, default: bool) -> bool:
    """Raises Refused with status 400 where it is neither true nor false."""
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise wrong_type(name, "a boolean", value)
    return value


def parse_object(body: dict[str, Any], name: str) -> dict[str, Any]:
    """Empty where it is left out. Raises Refused with status 400 where it is no object."""
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise wrong_type(name, "an object", value)
    return value


def parse_count(body: dict[str, Any], name: str, *, least: int = 1, most: int | None = None) -> int | None:
    """Raises Refused with status 400 where it is not a whole number within the bounds."""
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise wrong_type(name, "an integer", value)
    if value < least:
        raise invalid_request(
            f"Invalid '{name}': integer below minimum value. Expected a value >= {least}, but got {value} instead.",
            name,
            "integer_below_min_value",
        )
    if most is not None and value > most:
        raise invalid_request(
            f"Invalid '{name}': integer above maximum value. Expected a value <= {most}, but got {value} instead.",
            name,
            "integer_above_max_value",
        )
    return value


def parse_sampling(body: dict[str, Any], *, reasons: bool) -> None:
    """Raises Refused with status 400 for a `temperature` that is no number from 0 to 2. While a model reasons, it
    takes the defaults of this and of the other parameters of sampling, and nothing else."""
    _parse_temperature(body, reasons=reasons)
    for name, default in _SAMPLING.items():
        if reasons and body.get(name) not in (None, default):
            raise unsupported(name)


def unsupported(param: str) -> Refused:
    message = f"Unsupported parameter: '{param}' is not supported with this model."
    return invalid_request(message, param, "unsupported_parameter")


def _parse_temperature(body: dict[str, Any], *, reasons: bool) -> None:
    value = body.get("temperature")
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong_type("temperature", "a decimal", value)
    if reasons and value != 1:
        raise invalid_request(
            f"Unsupported value: 'temperature' does not support {value:g} with this model. Only the default (1) "
            "value is supported.",
            "temperature",
            "unsupported_value",
        )
    _check_decimal("temperature", value, 0, 2)


def _check_decimal(name: str, value: float, least: float, most: float) -> None:
    if value < least:
        word, bound, code = "below minimum", f">= {least}", "decimal_below_min_value"
    elif value > most:
        word, bound, code = "above maximum", f"<= {most}", "decimal_above_max_value"
    else:
        return
    raise invalid_request(
        f"Invalid '{name}': decimal {word} value. Expected a value {bound}, but got {value} instead.", name, code
    )


def refuse_unknown(body: dict[str, Any], known: frozenset[str]) -> None:
    """Raises Refused with status 400 for the first parameter that the operation does not have."""
    for name in body:
        if name not in known:
            raise invalid_request(f"Unrecognized request argument supplied: {name}")


def is_tokens(value: object) -> TypeGuard[list[int]]:
    """Whether it is a prompt already cut into tokens."""
    return isinstance(value, list) and bool(value) and all(type(token) is int and token >= 0 for token in value)


def missing(path: str) -> Refused:
    return invalid_request(f"Missing required parameter: '{path}'.", path, "missing_required_parameter")


def empty_array(path: str) -> Refused:
    return invalid_request(
        f"Invalid '{path}': empty array. Expected an array with minimum length 1, but got an empty array instead.",
        path,
        "empty_array",
    )


def wrong_type(path: str, expected: str, value: object) -> Refused:
    return invalid_request(
        f"Invalid type for '{path}': expected {expected}, but got {kind_of(value)} instead.", path, "invalid_type"
    )


def wrong_value(path: str, value: object, allowed: frozenset[str]) -> Refused:
    listed = ", ".join(f"'{one}'" for one in sorted(allowed))
    return invalid_request(f"Invalid value: {value!r}. Supported values are: {listed}.", path, "invalid_value")


def kind_of(value: object) -> str:
    """The type of a JSON value in the service's words."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int():
            return "an integer"
        case float():
            return "a decimal number"
        case str():
            return "a string"
        case list():
            return "an array"
        case _:
            return "an object"
