"""Answers in words: a function of the question alone, so that a test can tell a wrong or swapped one.

Every answer carries the prompt's digest. A question with `17 + 25` in its first 400 characters
is answered plainly. Each operation puts the answer into the document of its own kind.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from embedded_azure.openai.bodies import CHARACTERS_PER_TOKEN, count_tokens, truncate
from embedded_azure.openai.outputs import TEXT, Output
from embedded_azure.openai.phrases import NO_WISH, Wish

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
_FILTERED: dict[str, Any] = {**_SAFE, "violence": {"filtered": True, "severity": "medium"}}
PROMPT_SAFE: dict[str, Any] = {**_SAFE, "jailbreak": {"filtered": False, "detected": False}}
"""What the content filter found in a prompt that was let through."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One choice's text and why it ended there."""

    text: str
    finish: Finish

    @property
    def tokens(self) -> int:
        return count_tokens(self.text)

    @property
    def filter_results(self) -> dict[str, Any]:
        return _FILTERED if self.finish == "content_filter" else _SAFE


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """What a response bears that its request does not decide. `created` is in Unix seconds."""

    identifier: str
    created: int
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A response document, and the tokens that were generated for it."""

    document: dict[str, Any]
    tokens: int


def compose(
    question: str, digest: str, max_tokens: int | None = None, *, wish: Wish = NO_WISH, output: Output = TEXT
) -> Answer:
    """The answer to `question`, as many tokens long as `wish` asks for unless `max_tokens` cuts it.

    A filtered answer is cut where the filter struck: at its beginning, as a rule.
    """
    text = output.say(_say(question, digest), digest)
    filler = _FILLER if output.is_text else " "  # white space may stand behind JSON
    if wish.filter_answer:
        return Answer(text=truncate(text, wish.filter_after), finish="content_filter")
    lacking = max(0, wish.tokens - count_tokens(text))
    text += truncate(filler * lacking * CHARACTERS_PER_TOKEN, lacking)
    if max_tokens is not None and count_tokens(text) > max_tokens:
        return Answer(text=truncate(text, max_tokens), finish="length")
    return Answer(text=text, finish="stop")


def prompt_filter_results(prompts: int) -> list[dict[str, Any]]:
    """As chat and plain completions have it, one entry a prompt."""
    return [{"prompt_index": index, "content_filter_results": PROMPT_SAFE} for index in range(prompts)]


def _say(question: str, digest: str) -> str:
    if result := _calculate(question):
        return f"{result} (answer {digest})"
    asked = " ".join(question[: 4 * _QUOTED].split())
    shown = asked if len(asked) <= _QUOTED else f"{asked[:_QUOTED]}..."
    return f'Answer {digest} of the embedded Azure OpenAI to: "{shown}"'


def _calculate(question: str) -> str | None:
    found = _ARITHMETIC.search(question, 0, _SEARCHED)
    if found is None:
        return None
    left, operator, right = int(found[1]), found[2], int(found[3])
    if operator == "/" and right == 0:
        return None
    result = _OPERATIONS[operator](left, right)
    return f"{left} {operator} {right} = {result if isinstance(result, int) else f'{result:.15g}'}"
