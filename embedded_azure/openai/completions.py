"""Plain completions, the elder sister of chat: a prompt as text or as tokens, or several at once."""

from dataclasses import dataclass
from typing import Any

from embedded_azure.models import INSTRUCT
from embedded_azure.openai import parameters
from embedded_azure.openai.answers import Answer, Made, Stamp, compose, prompt_filter_results
from embedded_azure.openai.bodies import (
    count_tokens,
    digest_of,
    empty_array,
    is_tokens,
    parse_count,
    parse_flag,
    parse_model,
    parse_sampling,
    refuse_unknown,
    wrong_type,
)
from embedded_azure.openai.models import Model, model_of
from embedded_azure.openai.phrases import Wish
from embedded_azure.openai.refusals import Refused, invalid_request
from embedded_azure.openai.streams import StreamOptions, parse_stream

_MOST_CHOICES = 128
_DEFAULT_MAX_TOKENS = 16
"""Unlike chat, the service cuts a completion that names no `max_tokens`."""
_END_OF_TEXT = "<|endoftext|>"
"""The prompt that the service takes where none is given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionRequest:
    """Completions to make: `per_prompt` of each prompt."""

    prompts: tuple[str, ...]
    digest: str
    prompt_tokens: int
    max_tokens: int
    per_prompt: int
    best_of: int
    echo: bool
    stream: StreamOptions | None

    @property
    def text(self) -> str:
        return "\n".join(self.prompts)

    @property
    def choices(self) -> int:
        """Of those that the service generates, the best `per_prompt` are sent."""
        return len(self.prompts) * self.best_of

    def answer(self, wish: Wish, stamp: Stamp) -> Made:
        answers = [self._complete(prompt, wish) for prompt in self.prompts for _ in range(self.per_prompt)]
        completion_tokens = sum(answer.tokens for _, answer in answers)
        document = {
            "id": f"cmpl-{stamp.identifier}",
            "object": "text_completion",
            "created": stamp.created,
            "model": stamp.model,
            "choices": [_choice(echoed, answer, index) for index, (echoed, answer) in enumerate(answers)],
            "usage": {
                "prompt_tokens": self.prompt_tokens,
                "completion_tokens": completion_tokens,
                "total_tokens": self.prompt_tokens + completion_tokens,
            },
            "prompt_filter_results": prompt_filter_results(len(self.prompts)),
        }
        return Made(document=document, tokens=completion_tokens)

    def _complete(self, prompt: str, wish: Wish) -> tuple[str, Answer]:
        return prompt if self.echo else "", compose(prompt, digest_of(prompt), self.max_tokens, wish=wish)


def read_completion(body: dict[str, Any], model_name: str = INSTRUCT) -> CompletionRequest:
    """Raises Refused with status 400, in the service's words, for the first thing that is wrong."""
    refuse_unknown(body, parameters.COMPLETIONS)
    parse_model(body)
    parse_sampling(body, reasons=False)
    prompts = _parse_prompts(body.get("prompt"))
    per_prompt = parse_count(body, "n", most=_MOST_CHOICES) or 1
    max_tokens = parse_count(body, "max_tokens") or _DEFAULT_MAX_TOKENS
    _check_context(prompts, max_tokens, model_of(model_name))
    return CompletionRequest(
        prompts=tuple(_words(prompt) for prompt in prompts),
        digest=digest_of({"prompt": prompts}),
        prompt_tokens=sum(map(_tokens, prompts)),
        max_tokens=max_tokens,
        per_prompt=per_prompt,
        best_of=_parse_best_of(body, per_prompt),
        echo=parse_flag(body, "echo", default=False),
        stream=parse_stream(body),
    )


def _parse_prompts(prompt: object) -> list[Any]:
    """Each a string or an array of tokens."""
    if prompt is None:
        return [_END_OF_TEXT]
    if isinstance(prompt, str) or is_tokens(prompt):
        return [prompt]
    if not isinstance(prompt, list):
        raise wrong_type(
            "prompt", "one of a string, array of strings, array of integers, or array of arrays", prompt
        )
    if not prompt:
        raise empty_array("prompt")
    for index, one in enumerate(prompt):
        if not isinstance(one, str) and not is_tokens(one):
            raise wrong_type(f"prompt[{index}]", "one of a string or array of integers", one)
    return prompt


def _parse_best_of(body: dict[str, Any], per_prompt: int) -> int:
    best_of = parse_count(body, "best_of", most=_MOST_CHOICES) or per_prompt
    if best_of < per_prompt:
        raise invalid_request(
            f"You requested that the server return more choices than it will generate (HINT: you must set 'n' "
            f"(currently {per_prompt}) to be at most 'best_of' (currently {best_of}), or omit either parameter if "
            "you don't specifically want to use them.)",
            "best_of",
        )
    return best_of


def _check_context(prompts: list[Any], max_tokens: int, model: Model) -> None:
    """Raises Refused with status 400 where the longest prompt and its completion do not fit together."""
    if (longest := max(map(_tokens, prompts))) + max_tokens > model.context:
        raise _too_long(longest, max_tokens, model)


def _too_long(prompt: int, completion: int, model: Model) -> Refused:
    return invalid_request(
        f"This model's maximum context length is {model.context} tokens, however you requested "
        f"{prompt + completion} tokens ({prompt} in your prompt; {completion} for the completion). Please reduce "
        "your prompt; or completion length.",
        code="context_length_exceeded",
    )


def _words(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else " ".join(map(str, prompt))


def _tokens(prompt: Any) -> int:
    return count_tokens(prompt) if isinstance(prompt, str) else len(prompt)


def _choice(echoed: str, answer: Answer, index: int) -> dict[str, Any]:
    return {
        "text": echoed + answer.text,
        "index": index,
        "finish_reason": answer.finish,
        "logprobs": None,
        "content_filter_results": answer.filter_results,
    }
