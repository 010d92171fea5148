"""Chat completions: requests parsed with the service's own complaints, and their response documents."""

from dataclasses import dataclass
from typing import Any

from embedded_azure.openai import parameters
from embedded_azure.openai.answers import Answer, Made, Stamp, compose, prompt_filter_results
from embedded_azure.openai.bodies import (
    count_tokens,
    digest_of,
    empty_array,
    missing,
    parse_count,
    parse_flag,
    parse_model,
    parse_sampling,
    refuse_unknown,
    wrong_type,
    wrong_value,
)
from embedded_azure.openai.models import Model, model_of
from embedded_azure.openai.outputs import (
    TEXT,
    Output,
    logprobs_of,
    read_logprobs,
    read_output,
    read_reasoning_tokens,
)
from embedded_azure.openai.phrases import Wish
from embedded_azure.openai.refusals import Refused, invalid_request, output_budget_too_small
from embedded_azure.openai.streams import StreamOptions, cut_text, parse_stream

_ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
_TOKENS_PER_MESSAGE = 4
_TOKENS_PER_REPLY = 3
_MOST_CHOICES = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """One chat completion to make. `question` is the last user message."""

    text: str
    question: str
    digest: str
    prompt_tokens: int
    max_tokens: int | None
    choices: int
    stream: StreamOptions | None
    output: Output = TEXT
    logprobs: int | None = None
    """How many alternatives are told for each token; None: no logprobs."""
    reasoning_tokens: int = 0
    """Spent before the answer, out of the same budget."""

    def answer(self, wish: Wish, stamp: Stamp) -> Made:
        """Raises Refused (400) where the budget is used up before the answer begins, or its schema is beyond us."""
        budget = None if self.max_tokens is None else self.max_tokens - self.reasoning_tokens
        if budget is not None and budget <= 0:
            raise output_budget_too_small()
        answer = compose(self.question, self.digest, budget, wish=wish, output=self.output)
        completion_tokens = answer.tokens * self.choices + self.reasoning_tokens
        document = {
            "id": f"chatcmpl-{stamp.identifier}",
            "object": "chat.completion",
            "created": stamp.created,
            "model": stamp.model,
            "choices": [self._choice(answer, index, stamp) for index in range(self.choices)],
            "usage": {
                "prompt_tokens": self.prompt_tokens,
                "completion_tokens": completion_tokens,
                "total_tokens": self.prompt_tokens + completion_tokens,
                "prompt_tokens_details": {"audio_tokens": 0, "cached_tokens": 0},
                "completion_tokens_details": {
                    "accepted_prediction_tokens": 0,
                    "audio_tokens": 0,
                    "reasoning_tokens": self.reasoning_tokens,
                    "rejected_prediction_tokens": 0,
                },
            },
            "system_fingerprint": "fp_local",
            "prompt_filter_results": prompt_filter_results(1),
        }
        return Made(document=document, tokens=completion_tokens)

    def _choice(self, answer: Answer, index: int, stamp: Stamp) -> dict[str, Any]:
        message: dict[str, Any] = {
            "role": "assistant",
            "content": answer.text,
            "refusal": None,
            "annotations": [],
        }
        finish: str = answer.finish
        if self.output.tool is not None:
            function = {"name": self.output.tool, "arguments": answer.text}
            call = {"id": f"call_{stamp.identifier}{index}", "type": "function", "function": function}
            message |= {"content": None, "tool_calls": [call]}
            finish = "tool_calls" if finish == "stop" and not self.output.is_forced else finish
        logprobs = None
        if self.logprobs is not None and self.output.tool is None:
            tokens = [token for token, _ in cut_text(answer.text, 1)]
            logprobs = {"content": logprobs_of(tokens, self.logprobs), "refusal": None}
        return {
            "index": index,
            "message": message,
            "finish_reason": finish,
            "logprobs": logprobs,
            "content_filter_results": answer.filter_results,
        }


def read_chat(body: dict[str, Any], model_name: str = "") -> ChatRequest:
    """Raises Refused with status 400, in the service's words, for the first thing that is wrong."""
    refuse_unknown(body, parameters.CHAT)
    model = model_of(model_name)
    parse_model(body)
    reasoning_tokens = read_reasoning_tokens(body.get("reasoning_effort"), "reasoning_effort", model)
    parse_sampling(body, reasons=reasoning_tokens > 0)
    messages = _parse_messages(body)
    contents = [_parse_content(message, index) for index, message in enumerate(messages)]
    users = [content for message, content in zip(messages, contents, strict=True) if message["role"] == "user"]
    prompt_tokens = _TOKENS_PER_REPLY + sum(_TOKENS_PER_MESSAGE + count_tokens(text) for text in contents)
    max_tokens = _parse_max_tokens(body, model)
    _check_context(prompt_tokens, max_tokens or 0, model)
    question = users[-1] if users else contents[-1]
    output = read_output(
        body.get("response_format"),
        body.get("tools"),
        body.get("tool_choice"),
        param="response_format",
        question=question,
        prompt="\n".join(contents),
        called=_called_since_question(messages),
    )
    return ChatRequest(
        text="\n".join(contents),
        question=question,
        digest=digest_of(messages),
        prompt_tokens=prompt_tokens,
        max_tokens=max_tokens,
        choices=parse_count(body, "n", most=_MOST_CHOICES) or 1,
        stream=parse_stream(body),
        output=output,
        logprobs=read_logprobs(
            body, wanted=parse_flag(body, "logprobs", default=False), reasons=reasoning_tokens > 0
        ),
        reasoning_tokens=reasoning_tokens,
    )


def _parse_messages(body: dict[str, Any]) -> list[dict[str, Any]]:
    messages = body.get("messages")
    if messages is None:
        raise missing("messages")
    if not isinstance(messages, list):
        raise wrong_type("messages", "an array of objects", messages)
    if not messages:
        raise empty_array("messages")
    for index, message in enumerate(messages):
        _check_message(message, f"messages[{index}]")
    return messages


def _check_message(message: object, path: str) -> None:
    if not isinstance(message, dict):
        raise wrong_type(path, "an object", message)
    role = message.get("role")
    if role is None:
        raise missing(f"{path}.role")
    if not isinstance(role, str) or role not in _ROLES:
        raise wrong_value(f"{path}.role", role, _ROLES)


def _parse_content(message: dict[str, Any], index: int) -> str:
    """The text of a message; parts that are no text (images, say) count nothing here."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    if content is None and message["role"] == "assistant":
        return ""
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        return "\n".join(part["text"] for part in content if isinstance(part.get("text"), str))
    raise wrong_type(f"messages[{index}].content", "one of a string or array of objects", content)


def _called_since_question(messages: list[dict[str, Any]]) -> set[str]:
    """The names of the tools that were called after the last user message."""
    names: set[str] = set()
    for message in messages:
        if message["role"] == "user":
            names.clear()
        calls = message.get("tool_calls")
        for call in calls if isinstance(calls, list) else ():
            function = call.get("function") if isinstance(call, dict) else None
            names.add(str(function.get("name")) if isinstance(function, dict) else "")
    return names


def _parse_max_tokens(body: dict[str, Any], model: Model) -> int | None:
    if body.get("max_tokens") is None:
        return _within_output("max_completion_tokens", parse_count(body, "max_completion_tokens"), model)
    if body.get("max_completion_tokens") is not None:
        raise invalid_request(
            "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.", "max_tokens"
        )
    if model.reasons:
        raise invalid_request(
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' "
            "instead.",
            "max_tokens",
            "unsupported_parameter",
        )
    return _within_output("max_tokens", parse_count(body, "max_tokens"), model)


def _within_output(name: str, tokens: int | None, model: Model) -> int | None:
    if tokens is not None and tokens > model.output:
        raise invalid_request(
            f"{name} is too large: {tokens}. This model supports at most {model.output} completion tokens, whereas "
            f"you provided {tokens}.",
            name,
            "invalid_value",
        )
    return tokens


def _check_context(prompt: int, answer: int, model: Model) -> None:
    if prompt > model.context:
        raise _too_long(model, f"your messages resulted in {prompt} tokens", "messages")
    if prompt + answer > model.context:
        asked = f"you requested {prompt + answer} tokens ({prompt} in the messages, {answer} in the completion)"
        raise _too_long(model, asked, "messages or completion")


def _too_long(model: Model, found: str, shorten: str) -> Refused:
    return invalid_request(
        f"This model's maximum context length is {model.context} tokens. However, {found}. Please reduce the "
        f"length of the {shorten}.",
        "messages",
        "context_length_exceeded",
    )
