"""Chat completion requests: parsed from JSON with the service's own complaints, and measured in tokens."""

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import orjson

from worker.local.openai_service.refusals import invalid_request

_ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
_CHARACTERS_PER_TOKEN = 4
_TOKENS_PER_MESSAGE = 4
_TOKENS_PER_REPLY = 3
_MOST_CHOICES = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """One chat completion to make. `text` is all that the prompt says, `question` its last user message."""

    model: str | None
    text: str
    question: str
    digest: str
    """12 hex digits of the messages: equal prompts, and no others, share it."""
    prompt_tokens: int
    max_tokens: int | None
    choices: int


def count_tokens(text: str) -> int:
    """An estimate, four characters a token, as Azure's own admission has it."""
    return math.ceil(len(text) / _CHARACTERS_PER_TOKEN)


def truncate(text: str, tokens: int) -> str:
    """The part of `text` that `tokens` tokens carry."""
    return text[: tokens * _CHARACTERS_PER_TOKEN]


def parse_chat(document: bytes) -> ChatRequest:
    """Raises Refused with status 400, in the service's words, for the first thing that is wrong."""
    return read_chat(parse_body(document))


def read_chat(body: dict[str, Any]) -> ChatRequest:
    """The rest of `parse_chat`, when the body has been read to find the deployment. Raises Refused."""
    if body.get("stream"):
        raise invalid_request("The embedded Azure OpenAI does not stream. Send 'stream': false.", "stream")
    messages = _parse_messages(body)
    contents = [_parse_content(message, index) for index, message in enumerate(messages)]
    users = [content for message, content in zip(messages, contents, strict=True) if message["role"] == "user"]
    return ChatRequest(
        model=parse_model(body),
        text="\n".join(contents),
        question=users[-1] if users else contents[-1],
        digest=digest_of(messages),
        prompt_tokens=_TOKENS_PER_REPLY + sum(_TOKENS_PER_MESSAGE + count_tokens(text) for text in contents),
        max_tokens=_parse_max_tokens(body),
        choices=_parse_count(body, "n", _MOST_CHOICES) or 1,
    )


def digest_of(messages: list[Any]) -> str:
    """Equal whatever the order of the keys in the client's JSON."""
    return hashlib.sha256(orjson.dumps(messages, option=orjson.OPT_SORT_KEYS)).hexdigest()[:12]


def parse_body(document: bytes) -> dict[str, Any]:
    """Raises Refused with status 400."""
    try:
        body = orjson.loads(document)
    except orjson.JSONDecodeError as error:
        raise invalid_request(
            "We could not parse the JSON body of your request. (HINT: This likely means you aren't using your "
            "HTTP library correctly. The API expects a JSON payload, but what was sent was not valid JSON.)"
        ) from error
    if not isinstance(body, dict):
        raise invalid_request(f"Invalid body: expected an object, but got {_kind(body)} instead.")
    return body


def parse_model(body: dict[str, Any]) -> str | None:
    """Raises Refused with status 400 where it is not text."""
    model = body.get("model")
    if model is not None and not isinstance(model, str):
        raise _wrong_type("model", "a string", model)
    return model


def _parse_messages(body: dict[str, Any]) -> list[dict[str, Any]]:
    messages = body.get("messages")
    if messages is None:
        raise invalid_request("Missing required parameter: 'messages'.", "messages", "missing_required_parameter")
    if not isinstance(messages, list):
        raise _wrong_type("messages", "an array of objects", messages)
    if not messages:
        raise invalid_request(
            "Invalid 'messages': empty array. Expected an array with minimum length 1, but got an empty array "
            "instead.",
            "messages",
            "empty_array",
        )
    for index, message in enumerate(messages):
        _check_message(message, f"messages[{index}]")
    return messages


def _check_message(message: object, path: str) -> None:
    if not isinstance(message, dict):
        raise _wrong_type(path, "an object", message)
    role = message.get("role")
    if role is None:
        raise invalid_request(
            f"Missing required parameter: '{path}.role'.", f"{path}.role", "missing_required_parameter"
        )
    if not isinstance(role, str) or role not in _ROLES:
        allowed = ", ".join(f"'{one}'" for one in sorted(_ROLES))
        raise invalid_request(
            f"Invalid value: {role!r}. Supported values are: {allowed}.", f"{path}.role", "invalid_value"
        )


def _parse_content(message: dict[str, Any], index: int) -> str:
    """The text of a message; parts that are no text (images, say) count nothing here."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    if content is None and message["role"] == "assistant":
        return ""
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        return "\n".join(part["text"] for part in content if isinstance(part.get("text"), str))
    raise _wrong_type(f"messages[{index}].content", "one of a string or array of objects", content)


def _parse_max_tokens(body: dict[str, Any]) -> int | None:
    if body.get("max_tokens") is not None and body.get("max_completion_tokens") is not None:
        raise invalid_request(
            "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.", "max_tokens"
        )
    return _parse_count(body, "max_tokens") or _parse_count(body, "max_completion_tokens")


def _parse_count(body: dict[str, Any], name: str, most: int | None = None) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong_type(name, "an integer", value)
    if value < 1:
        raise invalid_request(
            f"Invalid '{name}': integer below minimum value. Expected a value >= 1, but got {value} instead.",
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


def _wrong_type(path: str, expected: str, value: object) -> Exception:
    return invalid_request(
        f"Invalid type for '{path}': expected {expected}, but got {_kind(value)} instead.", path, "invalid_type"
    )


def _kind(value: object) -> str:
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
