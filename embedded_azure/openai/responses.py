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
    parse_object,
    parse_sampling,
    parse_text,
    wrong_type,
    wrong_value,
)
from embedded_azure.openai.models import model_of
from embedded_azure.openai.outputs import (
    TEXT,
    Output,
    logprobs_of,
    read_logprobs,
    read_output,
    read_reasoning_tokens,
)
from embedded_azure.openai.phrases import Wish
from embedded_azure.openai.refusals import invalid_request
from embedded_azure.openai.streams import StreamOptions, cut_text, parse_stream

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
    output: Output = TEXT
    logprobs: int | None = None
    """How many alternatives are told for each token; None: no logprobs."""
    reasoning_tokens: int = 0
    """Spent before the answer, out of the same budget. None is left for the answer: it is incomplete."""
    reasons: bool = False

    def answer(self, wish: Wish, stamp: Stamp) -> Made:
        """Raises Refused (400) where a schema is beyond us."""
        budget = None if self.max_tokens is None else max(0, self.max_tokens - self.reasoning_tokens)
        answer = compose(self.question, self.digest, budget, wish=wish, output=self.output)
        tokens = answer.tokens + min(self.reasoning_tokens, self.max_tokens or self.reasoning_tokens)
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
            "output": self._output(answer, stamp, has_budget=budget != 0),
            "service_tier": "default",
            "store": self.store,
            **self.echoed,
            "usage": {
                "input_tokens": self.prompt_tokens,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": tokens,
                "output_tokens_details": {"reasoning_tokens": tokens - answer.tokens},
                "total_tokens": self.prompt_tokens + tokens,
            },
            "content_filters": _content_filters(answer),
        }
        return Made(document=document, tokens=tokens)

    def _output(self, answer: Answer, stamp: Stamp, *, has_budget: bool) -> list[dict[str, Any]]:
        """What was thought, where the model reasons, and then a message or the call of a tool."""
        items: list[dict[str, Any]] = []
        if self.reasons:
            items.append({"id": f"rs_{stamp.identifier}", "type": "reasoning", "summary": []})
        if has_budget:
            call = self.output.tool
            items.append(
                _message(answer, stamp, self.logprobs) if call is None else _function_call(answer, stamp, call)
            )
        return items


def read_response(body: dict[str, Any], model_name: str = "") -> ResponsesRequest:
    """Raises Refused with status 400, in the service's words, for the first thing that is wrong."""
    _refuse_unknown(body)
    model = model_of(model_name)
    if parse_flag(body, "background", default=False):
        raise invalid_request(
            "The embedded Azure OpenAI does nothing in the background. Send 'background': false.", "background"
        )
    parse_model(body)
    reasoning_tokens = read_reasoning_tokens(
        parse_object(body, "reasoning").get("effort"), "reasoning.effort", model
    )
    parse_sampling(body, reasons=reasoning_tokens > 0)
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
    question = users[-1] if users else texts[-1]
    output = read_output(
        parse_object(body, "text").get("format"),
        body.get("tools"),
        body.get("tool_choice"),
        param="text.format",
        question=question,
        prompt="\n".join(said),
        called=_called_since_question(items),
    )
    include = body.get("include")
    is_told = isinstance(include, list) and "message.output_text.logprobs" in include
    return ResponsesRequest(
        text="\n".join(said),
        question=question,
        digest=digest_of({"instructions": instructions, "input": items}),
        prompt_tokens=prompt_tokens,
        max_tokens=parse_count(body, "max_output_tokens", least=_LEAST_OUTPUT_TOKENS),
        instructions=instructions,
        store=parse_flag(body, "store", default=True),
        stream=parse_stream(body),
        output=output,
        logprobs=read_logprobs(body, wanted=is_told, reasons=reasoning_tokens > 0),
        reasoning_tokens=reasoning_tokens,
        reasons=model.reasons,
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


def _called_since_question(items: list[dict[str, Any]]) -> set[str]:
    """The names of the tools that were called after the last user message."""
    names: set[str] = set()
    for item in items:
        if item.get("role") == "user":
            names.clear()
        elif item.get("type") == "function_call":
            names.add(str(item.get("name")))
    return names


def _function_call(answer: Answer, stamp: Stamp, name: str) -> dict[str, Any]:
    return {
        "id": f"fc_{stamp.identifier}",
        "type": "function_call",
        "status": "completed" if answer.finish == "stop" else "incomplete",
        "call_id": f"call_{stamp.identifier}",
        "name": name,
        "arguments": answer.text,
    }


def _message(answer: Answer, stamp: Stamp, logprobs: int | None) -> dict[str, Any]:
    tokens = [] if logprobs is None else [token for token, _ in cut_text(answer.text, 1)]
    told = logprobs_of(tokens, logprobs or 0)
    said = {"type": "output_text", "text": answer.text, "annotations": [], "logprobs": told}
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
