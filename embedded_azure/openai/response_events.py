"""Streamed responses: typed events, numbered from 0, that build up the document of the whole response.

As everywhere in Azure's Responses, a failure comes as `response.failed` that does not say why, and then as an
`error` that does, with its details nested (Azure; OpenAI has them at the top).
"""

from collections.abc import Iterator
from typing import Any

from embedded_azure.openai.streams import Piece, StreamOptions, cut_text, encode_event

_ENDINGS = {"completed": "response.completed", "incomplete": "response.incomplete"}


def stream_response(document: dict[str, Any], _options: StreamOptions, tokens_per_event: int) -> Iterator[Piece]:
    """The events of a response with one message in its output."""
    for number, (event, tokens) in enumerate(_events(document, tokens_per_event)):
        yield _numbered(event, number, tokens)


def fail_response(document: dict[str, Any], error: dict[str, Any], sent: int) -> bytes:
    """What the stream ends with after `sent` events, when the service fails in the midst of it."""
    failed = {**_begun(document), "status": "failed"}
    first = _numbered({"type": "response.failed", "response": failed}, sent)
    return first.data + _numbered({"type": "error", "error": error}, sent + 1).data


def _numbered(event: dict[str, Any], number: int, tokens: int = 0) -> Piece:
    return Piece(data=encode_event({**event, "sequence_number": number}, event["type"]), tokens=tokens)


def _events(document: dict[str, Any], tokens_per_event: int) -> Iterator[tuple[dict[str, Any], int]]:
    message = document["output"][0]
    part = message["content"][0]
    place = {"item_id": message["id"], "output_index": 0, "content_index": 0}
    yield {"type": "response.created", "response": _begun(document)}, 0
    yield {"type": "response.in_progress", "response": _begun(document)}, 0
    opened = {**message, "status": "in_progress", "content": []}
    yield {"type": "response.output_item.added", "output_index": 0, "item": opened}, 0
    yield {"type": "response.content_part.added", **place, "part": {**part, "text": ""}}, 0
    for delta, tokens in cut_text(part["text"], tokens_per_event):
        yield {"type": "response.output_text.delta", **place, "delta": delta, "logprobs": []}, tokens
    yield {"type": "response.output_text.done", **place, "text": part["text"], "logprobs": []}, 0
    yield {"type": "response.content_part.done", **place, "part": part}, 0
    yield {"type": "response.output_item.done", "output_index": 0, "item": message}, 0
    yield {"type": _ENDINGS[document["status"]], "response": document}, 0


def _begun(document: dict[str, Any]) -> dict[str, Any]:
    """The response before anything of it was generated."""
    nothing: dict[str, Any] = {"output": [], "usage": None, "incomplete_details": None, "content_filters": None}
    return {**document, **nothing, "status": "in_progress"}
