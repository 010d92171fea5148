"""Streamed responses: typed events, numbered from 0, that build up the document of the whole response.

As everywhere in Azure's Responses, a failure comes as `response.failed` that does not say why, and then as an
`error` that does, with its details nested (Azure; OpenAI has them at the top).
"""

from collections.abc import Iterator
from typing import Any

from embedded_azure.openai.streams import Piece, StreamOptions, cut_text, encode_event

_Event = tuple[dict[str, Any], int]
"""An event, and the tokens that had to be generated for it."""

_ENDINGS = {"completed": "response.completed", "incomplete": "response.incomplete"}


def stream_response(document: dict[str, Any], _options: StreamOptions, tokens_per_event: int) -> Iterator[Piece]:
    """The events of a response, item by item of its output."""
    for number, (event, tokens) in enumerate(_events(document, tokens_per_event)):
        yield _numbered(event, number, tokens)


def fail_response(document: dict[str, Any], error: dict[str, Any], sent: int) -> bytes:
    """What the stream ends with after `sent` events, when the service fails in the midst of it."""
    failed = {**_begun(document), "status": "failed"}
    first = _numbered({"type": "response.failed", "response": failed}, sent)
    return first.data + _numbered({"type": "error", "error": error}, sent + 1).data


def _numbered(event: dict[str, Any], number: int, tokens: int = 0) -> Piece:
    return Piece(data=encode_event({**event, "sequence_number": number}, event["type"]), tokens=tokens)


def _events(document: dict[str, Any], tokens_per_event: int) -> Iterator[_Event]:
    yield {"type": "response.created", "response": _begun(document)}, 0
    yield {"type": "response.in_progress", "response": _begun(document)}, 0
    for index, item in enumerate(document["output"]):
        match item["type"]:
            case "message":
                yield from _message_events(item, index, tokens_per_event)
            case "function_call":
                yield from _call_events(item, index, tokens_per_event)
            case _:
                spent = document["usage"]["output_tokens_details"]["reasoning_tokens"]
                yield {"type": "response.output_item.added", "output_index": index, "item": item}, 0
                yield {"type": "response.output_item.done", "output_index": index, "item": item}, spent
    yield {"type": _ENDINGS[document["status"]], "response": document}, 0


def _message_events(message: dict[str, Any], index: int, tokens_per_event: int) -> Iterator[_Event]:
    part = message["content"][0]
    place = {"item_id": message["id"], "output_index": index, "content_index": 0}
    opened = {**message, "status": "in_progress", "content": []}
    yield {"type": "response.output_item.added", "output_index": index, "item": opened}, 0
    yield {"type": "response.content_part.added", **place, "part": {**part, "text": "", "logprobs": []}}, 0
    told = part["logprobs"]
    for delta, tokens in cut_text(part["text"], tokens_per_event):
        of_part, told = told[:tokens], told[tokens:]
        yield {"type": "response.output_text.delta", **place, "delta": delta, "logprobs": of_part}, tokens
    yield {"type": "response.output_text.done", **place, "text": part["text"], "logprobs": part["logprobs"]}, 0
    yield {"type": "response.content_part.done", **place, "part": part}, 0
    yield {"type": "response.output_item.done", "output_index": index, "item": message}, 0


def _call_events(call: dict[str, Any], index: int, tokens_per_event: int) -> Iterator[_Event]:
    place = {"item_id": call["id"], "output_index": index}
    opened = {**call, "status": "in_progress", "arguments": ""}
    yield {"type": "response.output_item.added", "output_index": index, "item": opened}, 0
    for delta, tokens in cut_text(call["arguments"], tokens_per_event):
        yield {"type": "response.function_call_arguments.delta", **place, "delta": delta}, tokens
    done = {"name": call["name"], "arguments": call["arguments"]}
    yield {"type": "response.function_call_arguments.done", **place, **done}, 0
    yield {"type": "response.output_item.done", "output_index": index, "item": call}, 0


def _begun(document: dict[str, Any]) -> dict[str, Any]:
    """The response before anything of it was generated."""
    nothing: dict[str, Any] = {"output": [], "usage": None, "incomplete_details": None, "content_filters": None}
    return {**document, **nothing, "status": "in_progress"}
