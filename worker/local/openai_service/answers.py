"""Answers: a function of the question alone, so that a test can tell a wrong or swapped one.

Every answer carries the prompt's digest. A question with `17 + 25` in its first 400 characters
is answered plainly.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from worker.local.openai_service.chat import ChatRequest, count_tokens, truncate

Finish = Literal["stop", "length", "content_filter"]

_ARITHMETIC = re.compile(r"(?<![\w.])(-?\d{1,12}) ([-+*/x]) (-?\d{1,12})(?![\w.]*\w)")
_OPERATIONS: dict[str, Callable[[int, int], float]] = {
    "+": lambda left, right: left + right,
    "-": lambda left, right: left - right,
    "*": lambda left, right: left * right,
    "x": lambda left, right: left * right,
    "/": lambda left, right: left / right,
}
_QUOTED = 80
# Searching a long prompt would cost more than the rest of the answer.
_SEARCHED = 400
_FILLER = " and so on"
_SAFE: dict[str, Any] = {
    category: {"filtered": False, "severity": "safe"} for category in ("hate", "self_harm", "sexual", "violence")
}
_PROMPT_SAFE: list[dict[str, Any]] = [
    {"prompt_index": 0, "content_filter_results": {**_SAFE, "jailbreak": {"filtered": False, "detected": False}}}
]
_FILTERED: dict[str, Any] = {**_SAFE, "violence": {"filtered": True, "severity": "medium"}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One choice's text and why it ended there."""

    text: str
    finish: Finish

    @property
    def tokens(self) -> int:
        return count_tokens(self.text)


def compose(request: ChatRequest, *, at_least: int = 0, filtered: bool = False) -> Answer:
    """The answer to `request`, `at_least` so many tokens long unless `max_tokens` cuts it.

    A filtered answer is empty, as Azure's usually is.
    """
    if filtered:
        return Answer(text="", finish="content_filter")
    text = _say(request)
    missing = max(0, at_least - count_tokens(text))
    text += truncate(_FILLER * missing, missing)
    if request.max_tokens is not None and count_tokens(text) > request.max_tokens:
        return Answer(text=truncate(text, request.max_tokens), finish="length")
    return Answer(text=text, finish="stop")


def _say(request: ChatRequest) -> str:
    if result := _calculate(request.question):
        return f"{result} (answer {request.digest})"
    asked = " ".join(request.question[: 4 * _QUOTED].split())
    shown = asked if len(asked) <= _QUOTED else f"{asked[:_QUOTED]}..."
    return f'Answer {request.digest} of the embedded Azure OpenAI to: "{shown}"'


def _calculate(question: str) -> str | None:
    found = _ARITHMETIC.search(question, 0, _SEARCHED)
    if found is None:
        return None
    left, operator, right = int(found[1]), found[2], int(found[3])
    if operator == "/" and right == 0:
        return None
    result = _OPERATIONS[operator](left, right)
    return f"{left} {operator} {right} = {result if isinstance(result, int) else f'{result:.15g}'}"


def chat_completion(
    request: ChatRequest, answer: Answer, *, identifier: str, created: int, model: str
) -> dict[str, Any]:
    """The response document, in the shape of Azure's."""
    completion_tokens = answer.tokens * request.choices
    return {
        "id": f"chatcmpl-{identifier}",
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [_choice(answer, index) for index in range(request.choices)],
        "usage": {
            "prompt_tokens": request.prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": request.prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"audio_tokens": 0, "cached_tokens": 0},
            "completion_tokens_details": {
                "accepted_prediction_tokens": 0,
                "audio_tokens": 0,
                "reasoning_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        },
        "system_fingerprint": "fp_local",
        "prompt_filter_results": _PROMPT_SAFE,
    }


def _choice(answer: Answer, index: int) -> dict[str, Any]:
    filtered = answer.finish == "content_filter"
    return {
        "index": index,
        "message": {"role": "assistant", "content": answer.text, "refusal": None, "annotations": []},
        "finish_reason": answer.finish,
        "logprobs": None,
        "content_filter_results": _FILTERED if filtered else _SAFE,
    }
