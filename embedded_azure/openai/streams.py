"""Streamed answers: the document of a whole answer cut into server-sent events, in the order of Azure's own.

A stream is made from the document that would have been sent whole, so both say the same and cost the same.
How fast the pieces go out is the business of `sending.py`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import orjson

from embedded_azure.openai.bodies import CHARACTERS_PER_TOKEN, count_tokens, parse_flag, wrong_type
from embedded_azure.openai.refusals import invalid_request

DONE = b"data: [DONE]\n\n"
_EMPTY: dict[str, Any] = {}
_SLOT = "\x00text"


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamOptions:
    """What a request asks of its stream."""

    include_usage: bool = False


def parse_stream(body: dict[str, Any]) -> StreamOptions | None:
    """None where no stream is asked for. Raises Refused with status 400."""
    streamed = parse_flag(body, "stream", default=False)
    options = body.get("stream_options")
    if options is None:
        return StreamOptions() if streamed else None
    if not streamed:
        raise invalid_request(
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.", "stream_options"
        )
    if not isinstance(options, dict):
        raise wrong_type("stream_options", "an object", options)
    return StreamOptions(include_usage=parse_flag(options, "include_usage", default=False))


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One server-sent event, ready for the wire; so many `tokens` had to be generated for it."""

    data: bytes
    tokens: int = 0


def encode_event(document: dict[str, Any], name: str | None = None) -> bytes:
    head = f"event: {name}\n".encode() if name else b""
    return b"%sdata: %s\n\n" % (head, orjson.dumps(document))


def cut_text(text: str, tokens: int) -> Iterator[tuple[str, int]]:
    """`text` in parts of so many tokens, with the tokens of each: those of the last may be fewer."""
    width = tokens * CHARACTERS_PER_TOKEN
    for start in range(0, len(text), width):
        part = text[start : start + width]
        yield part, count_tokens(part)


def stream_chat(document: dict[str, Any], options: StreamOptions, tokens_per_event: int) -> Iterator[Piece]:
    """The chunks of a chat completion: the prompt's filter results, roles, contents, endings, and the usage."""
    chunk = _chunk_of(document, "chat.completion.chunk", options)
    yield _filter_chunk(document)
    reasoning = document["usage"]["completion_tokens_details"]["reasoning_tokens"]
    for choice in document["choices"]:
        role = {"role": "assistant", "content": None if _calls_of(choice) else "", "refusal": None}
        yield Piece(data=encode_event({**chunk, "choices": [_delta(choice, role, _EMPTY)]}), tokens=reasoning)
        reasoning = 0  # all choices come from one thought
        for call in _calls_of(choice):
            opened = {"index": 0, **call, "function": {**call["function"], "arguments": ""}}
            delta = _delta(choice, {"tool_calls": [opened]}, _EMPTY)
            yield Piece(data=encode_event({**chunk, "choices": [delta]}))
    if any(choice["logprobs"] for choice in document["choices"]):
        yield from _contents_with_logprobs(document, chunk, tokens_per_event)
    else:
        frames = [
            _frame({**chunk, "choices": [_delta(choice, _said(choice, _SLOT), _safe_results(choice))]})
            for choice in document["choices"]
        ]
        yield from _contents(document, _said_in_chat, frames, tokens_per_event)
    for choice in document["choices"]:
        ending = {**_delta(choice, {}, _final_results(choice)), "finish_reason": choice["finish_reason"]}
        yield Piece(data=encode_event({**chunk, "choices": [ending]}))
    yield from _endings(document, chunk, options)


def stream_completion(document: dict[str, Any], options: StreamOptions, tokens_per_event: int) -> Iterator[Piece]:
    """The chunks of plain completions; an echoed prompt comes with the rest of the text."""
    chunk = _chunk_of(document, "text_completion", options)
    yield _filter_chunk(document)
    opened = {"text": _SLOT, "finish_reason": None}
    frames = [
        _frame({**chunk, "choices": [{**choice, **opened, "content_filter_results": _safe_results(choice)}]})
        for choice in document["choices"]
    ]
    yield from _contents(document, _said_in_completion, frames, tokens_per_event)
    for choice in document["choices"]:
        ending = {**choice, "text": "", "content_filter_results": _final_results(choice)}
        yield Piece(data=encode_event({**chunk, "choices": [ending]}))
    yield from _endings(document, chunk, options)


def fail_chunks(_document: dict[str, Any], error: dict[str, Any], _sent: int) -> bytes:
    """What a stream of chunks ends with when the service fails in the midst of it."""
    return encode_event({"error": error})


def _chunk_of(document: dict[str, Any], kind: str, options: StreamOptions) -> dict[str, Any]:
    kept = ("id", "created", "model", "system_fingerprint")
    chunk = {name: document[name] for name in kept if name in document}
    chunk["object"] = kind
    if options.include_usage:
        chunk["usage"] = None
    return chunk


def _filter_chunk(document: dict[str, Any]) -> Piece:
    """Azure's first chunk, which has neither choices nor a name."""
    results = document["prompt_filter_results"]
    first = {"choices": [], "created": 0, "id": "", "model": "", "object": "", "prompt_filter_results": results}
    return Piece(data=encode_event(first))


def _calls_of(choice: dict[str, Any]) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = choice["message"].get("tool_calls", [])
    return calls


def _said_in_chat(choice: dict[str, Any]) -> str:
    """The content, or the arguments of the one call in its place."""
    calls = _calls_of(choice)
    return str(calls[0]["function"]["arguments"] if calls else choice["message"]["content"])


def _said(choice: dict[str, Any], text: str) -> dict[str, Any]:
    """A delta that says so."""
    if _calls_of(choice):
        return {"tool_calls": [{"index": 0, "function": {"arguments": text}}]}
    return {"content": text}


def _contents_with_logprobs(
    document: dict[str, Any], chunk: dict[str, Any], tokens_per_event: int
) -> Iterator[Piece]:
    """As `_contents`, each part with the logprobs of its tokens."""
    for choice in document["choices"]:
        told = list(choice["logprobs"]["content"] or ())
        for part, tokens in cut_text(_said_in_chat(choice), tokens_per_event):
            of_part, told = told[:tokens], told[tokens:]
            delta = _delta(choice, _said(choice, part), _safe_results(choice))
            delta["logprobs"] = {"content": of_part, "refusal": None}
            yield Piece(data=encode_event({**chunk, "choices": [delta]}), tokens=tokens)


def _said_in_completion(choice: dict[str, Any]) -> str:
    return str(choice["text"])


def _frame(chunk: dict[str, Any]) -> tuple[bytes, bytes]:
    """What comes before and after the text of a chunk, encoded once for the hundreds that a stream may have."""
    before, _, after = encode_event(chunk).partition(orjson.dumps(_SLOT))
    return before, after


def _contents(
    document: dict[str, Any],
    said: Callable[[dict[str, Any]], str],
    frames: list[tuple[bytes, bytes]],
    tokens_per_event: int,
) -> Iterator[Piece]:
    """Each choice's text in parts, one part of each choice in its turn, as the service generates them."""
    texts = [cut_text(said(choice), tokens_per_event) for choice in document["choices"]]
    for turn in zip_longest(*texts):
        for (before, after), part in zip(frames, turn, strict=True):
            if part is not None:
                text, tokens = part
                yield Piece(data=before + orjson.dumps(text) + after, tokens=tokens)


def _delta(choice: dict[str, Any], delta: dict[str, Any], results: dict[str, Any]) -> dict[str, Any]:
    return {
        "index": choice["index"],
        "delta": delta,
        "finish_reason": None,
        "logprobs": None,
        "content_filter_results": results,
    }


def _safe_results(choice: dict[str, Any]) -> dict[str, Any]:
    """What was let through before the filter struck was not filtered."""
    return {category: {"filtered": False, "severity": "safe"} for category in choice["content_filter_results"]}


def _final_results(choice: dict[str, Any]) -> dict[str, Any]:
    results: dict[str, Any] = choice["content_filter_results"]
    return results if choice["finish_reason"] == "content_filter" else _EMPTY


def _endings(document: dict[str, Any], chunk: dict[str, Any], options: StreamOptions) -> Iterator[Piece]:
    if options.include_usage:
        yield Piece(data=encode_event({**chunk, "choices": [], "usage": document["usage"]}))
    yield Piece(data=DONE)
