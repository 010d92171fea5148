"""Responses: requests parsed with the service's own complaints, and their response documents.

Nothing is stored: `store` is echoed, as a client sees it, but no response can be fetched or continued.
"""

from dataclasses import dataclass
from typing import Any, Literal

from embedded_azure.openai import parameters
from embedded_azure.openai.answers import PROMPT_SAFE, Answer, Made, Stamp, compose
from embedded_azure.openai.bodies import (
    count_tokens,
    digest_of,
    empty_array,
    missing,
    parse_count,
    parse_flag,
    parse_model,
    parse_temperature,
    parse_text,
    wrong_type,
    wrong_value,
)
from embedded_azure.openai.models import model_of
from embedded_azure.openai.phrases import Wish
from embedded_azure.openai.refusals import invalid_request
from embedded_azure.openai.streams import StreamOptions, parse_stream

_ROLES = frozenset({"system", "developer", "user", "assistant"})
_TOKENS_PER_ITEM = 4
_TOKENS_PER_REPLY = 3
_LEAST_OUTPUT_TOKENS = 16
_ECHOED: dict[str, Any] = {
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "reasoning": {"effort": None, "summary": None},
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
}
"""What a response repeats of its request, with the service's defaults."""

_Reason = Literal["max_output_tokens", "content_filter"]
_CUT_BY: dict[str, _Reason] = {"length": "max_output_tokens", "content_filter": "content_filter"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponsesRequest:
    """One response to make. `question` is the last user message."""

    text: str
    question: str
    digest: str
    prompt_tokens: int
    max_tokens: int | None
    instructions: str | None
    store: bool
    echoed: dict[str, Any]
    stream: StreamOptions | None
    choices: int = 1

    def answer(self, wish: Wish, stamp: Stamp) -> Made:
        answer = compose(self.question, self.digest, self.max_tokens, wish=wish)
        cut_by = _CUT_BY.get(answer.finish)
        document = {
            "id": f"resp_{stamp.identifier}",
            "object": "response",
            "created_at": stamp.created,
            "status": "incomplete" if cut_by else "completed",
            "background": False,
            "error": None,
            "incomplete_details": {"reason": cut_by} if cut_by else None,
            "instructions": self.instructions,
            "max_output_tokens": self.max_tokens,
            "model": stamp.model,
            "output": [_message(answer, stamp)],
            "service_tier": "default",
            "store": self.store,
            **self.echoed,
            "usage": {
                "input_tokens": self.prompt_tokens,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": answer.tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": self.prompt_tokens + answer.tokens,
            },
            "content_filters": _content_filters(answer),
        }
        return Made(document=document, tokens=answer.tokens)


def read_response(body: dict[str, Any], model_name: str = "") -> ResponsesRequest:
    """Raises Refused with status 400, in the service's words, for the first thing that is wrong."""
    _refuse_unknown(body)
    model = model_of(model_name)
    if parse_flag(body, "background", default=False):
        raise invalid_request(
            "The embedded Azure OpenAI does nothing in the background. Send 'background': false.", "background"
        )
    parse_model(body)
    parse_temperature(body, reasons=model.reasons)
    instructions = parse_text(body, "instructions")
    items = _parse_items(body.get("input"))
    texts = [_parse_item(item, f"input[{index}]") for index, item in enumerate(items)]
    users = [text for item, text in zip(items, texts, strict=True) if item.get("role") == "user"]
    said = [text for text in (instructions, *texts) if text]
    prompt_tokens = _TOKENS_PER_REPLY + sum(_TOKENS_PER_ITEM + count_tokens(text) for text in said)
    if prompt_tokens > model.context:
        raise invalid_request(
            "Your input exceeds the context window of this model. Please adjust your input and try again.",
            "input",
            "context_length_exceeded",
        )
    return ResponsesRequest(
        text="\n".join(said),
        question=users[-1] if users else texts[-1],
        digest=digest_of({"instructions": instructions, "input": items}),
        prompt_tokens=prompt_tokens,
        max_tokens=parse_count(body, "max_output_tokens", least=_LEAST_OUTPUT_TOKENS),
        instructions=instructions,
        store=parse_flag(body, "store", default=True),
        stream=parse_stream(body),
        echoed={name: default if body.get(name) is None else body[name] for name, default in _ECHOED.items()},
    )


def _refuse_unknown(body: dict[str, Any]) -> None:
    """In words of its own: Responses are younger than the rest."""
    for name in body:
        if name not in parameters.RESPONSES:
            raise invalid_request(f"Unknown parameter: '{name}'.", name, "unknown_parameter")


def _parse_items(given: object) -> list[dict[str, Any]]:
    """A bare string is one message of the user."""
    if given is None:
        raise missing("input")
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    if not isinstance(given, list):
        raise wrong_type("input", "one of a string or array of input items", given)
    if not given:
        raise empty_array("input")
    for index, item in enumerate(given):
        if not isinstance(item, dict):
            raise wrong_type(f"input[{index}]", "an input item", item)
    return given


def _parse_item(item: dict[str, Any], path: str) -> str:
    """The text of a message; items of other types (calls and their output, say) and images count nothing here."""
    if item.get("type", "message") != "message":
        return ""
    role = item.get("role")
    if role is None:
        raise missing(f"{path}.role")
    if not isinstance(role, str) or role not in _ROLES:
        raise wrong_value(f"{path}.role", role, _ROLES)
    content = item.get("content")
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        return "\n".join(part["text"] for part in content if isinstance(part.get("text"), str))
    raise wrong_type(f"{path}.content", "one of a string or array of input content", content)


def _message(answer: Answer, stamp: Stamp) -> dict[str, Any]:
    said = {"type": "output_text", "text": answer.text, "annotations": [], "logprobs": []}
    return {
        "id": f"msg_{stamp.identifier}",
        "type": "message",
        "status": "completed" if answer.finish == "stop" else "incomplete",
        "role": "assistant",
        "content": [said],
    }


def _content_filters(answer: Answer) -> list[dict[str, Any]]:
    blocked = answer.finish == "content_filter"
    return [
        {"blocked": False, "source_type": "prompt", "content_filter_results": PROMPT_SAFE},
        {"blocked": blocked, "source_type": "completion", "content_filter_results": answer.filter_results},
    ]
