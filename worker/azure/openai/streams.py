"""Streamed answers: the events of one call put together into the object that an unstreamed call would have brought.

`read_stream` is the way in. Chunks of chat and plain completions are merged by the index of their choices; of a
response only the object in its last event counts, so the others are not even parsed.
"""

import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any, Protocol

import orjson

from worker.azure.openai.answers import accept
from worker.azure.openai.deltas import join, merge, worst
from worker.azure.openai.refusals import Exchange, classify_within
from worker.azure.openai.sse import EventStream, ServerEvent
from worker.errors import CallFailed, Unavailable
from worker.jobs.job import JsonObject, Operation
from worker.jobs.outcomes import Response

DONE = b"[DONE]"

ONLY_STREAMED = frozenset({"obfuscation", "content_filter_offsets"})
"""Fields of chunks that no unstreamed answer has."""

_LAST_EVENTS = frozenset({"response.completed", "response.incomplete", "response.failed"})
_PARSED_EVENTS = frozenset({b"", b"message", b"error", *(name.encode() for name in _LAST_EVENTS)})


class Assembly(Protocol):
    """A final object in the making. `has_begun` once a token has come, `is_over` once nothing more counts."""

    has_begun: bool
    is_over: bool

    def take(self, event: ServerEvent) -> None:
        """Raises CallFailed with what an error in the stream means, Unavailable for what is no event of the API."""

    def finish(self) -> JsonObject:
        """Raises Unavailable where the stream broke off."""


async def read_stream(
    operation: Operation,
    chunks: AsyncIterator[bytes],
    exchange: Exchange,
    *,
    started: float,
    clock: Callable[[], float] = time.perf_counter,
) -> Response:
    """The answer as an unstreamed one, read no further than it goes. Raises CallFailed.

    `started`: when the request was sent, by `clock`; the first token's time counts from there.
    """
    assembly, events = ASSEMBLIES[operation](exchange), EventStream()
    first_token: float | None = None
    async for chunk in chunks:
        _take_all(events.feed(chunk), assembly)
        if first_token is None and assembly.has_begun:
            first_token = clock() - started
        if assembly.is_over:
            break
    else:
        _take_all(events.end(), assembly)
    document = assembly.finish()
    return replace(accept(operation, document, _encode(document), exchange), first_token=first_token)


def _take_all(events: list[ServerEvent], assembly: Assembly) -> None:
    for event in events:
        if assembly.is_over:
            return
        assembly.take(event)


class ChunkAssembly:
    """Chat and plain completions: chunks with choices, then `[DONE]`."""

    object_name = "text_completion"

    def __init__(self, exchange: Exchange) -> None:
        self.has_begun = False
        self.is_over = False
        self._exchange = exchange
        self._chunks = 0
        self._document: JsonObject = {}
        self._choices: dict[int, JsonObject] = {}

    def take(self, event: ServerEvent) -> None:
        if event.data.strip() == DONE:
            self.is_over = True
            return
        chunk = _parse(event)
        if event.name == b"error" or chunk.get("error"):
            raise _stream_error(chunk, self._exchange)
        self._chunks += 1
        for choice in _list(chunk.pop("choices", None)):
            self._add(choice)
        for name, value in chunk.items():
            # the content filter's own chunks have an empty id and model, and most have usage null
            if name not in ONLY_STREAMED and (value or name not in self._document):
                self._document[name] = value

    def finish(self) -> JsonObject:
        if not self.is_over:
            raise Unavailable(f"the stream broke off after {self._chunks:,} chunks, without [DONE]")
        for index, choice in self._choices.items():
            if choice.get("finish_reason") is None:
                raise Unavailable(f"the stream ended before its choice {index} was finished")
        rest = dict(self._document)
        head = {name: rest.pop(name, None) for name in ("id", "object", "created", "model")}
        head["object"] = self.object_name
        choices = [join(self._choices[index]) for index in sorted(self._choices)]
        return {**head, "choices": choices, "usage": rest.pop("usage", None), **rest}

    def new_choice(self, index: int) -> JsonObject:
        return {"index": index, "text": "", "logprobs": None, "finish_reason": None}

    def add_tokens(self, choice: JsonObject, chunk_choice: JsonObject) -> None:
        """Merge what the model wrote, and note that it has begun."""
        text = chunk_choice.pop("text", None)
        merge(choice, {"text": text or ""})
        self.has_begun = self.has_begun or bool(text)

    def _add(self, chunk_choice: Any) -> None:
        index = chunk_choice.pop("index", 0) if isinstance(chunk_choice, dict) else None
        if type(index) is not int:
            raise Unavailable(f"chunk {self._chunks:,} of the stream has a choice without an index")
        choice = self._choices.get(index)
        if choice is None:
            choice = self._choices[index] = self.new_choice(index)
        self.add_tokens(choice, chunk_choice)
        for name, value in chunk_choice.items():
            if value is None or name in ONLY_STREAMED:
                continue
            if name == "logprobs":
                merge(choice, {name: value})
            elif name.startswith("content_filter_result") and isinstance(value, dict):
                choice[name] = worst(choice.get(name), value)
            else:
                choice[name] = value


class ChatAssembly(ChunkAssembly):
    """Chat completions: each choice's message comes in deltas."""

    object_name = "chat.completion"

    def new_choice(self, index: int) -> JsonObject:
        message: JsonObject = {"role": "assistant", "content": None, "refusal": None, "annotations": []}
        return {"index": index, "message": message, "logprobs": None, "finish_reason": None}

    def add_tokens(self, choice: JsonObject, chunk_choice: JsonObject) -> None:
        delta = chunk_choice.pop("delta", None)
        if not isinstance(delta, dict):
            return  # a chunk of the content filter alone
        merge(choice["message"], delta)
        self.has_begun = self.has_begun or any(value for name, value in delta.items() if name != "role")


class ResponseAssembly:
    """Responses: the last event holds the object."""

    def __init__(self, exchange: Exchange) -> None:
        self.has_begun = False
        self.is_over = False
        self._exchange = exchange
        self._events = 0
        self._response: JsonObject | None = None

    def take(self, event: ServerEvent) -> None:
        self._events += 1
        if event.name not in _PARSED_EVENTS:
            self.has_begun = self.has_begun or event.name.endswith(b".delta")
        elif event.data.strip() != DONE:
            self._take_parsed(_parse(event), event.name)

    def finish(self) -> JsonObject:
        if self._response is None:
            raise Unavailable(
                f"the stream broke off after {self._events:,} events, without one such as response.completed"
            )
        return self._response

    def _take_parsed(self, document: JsonObject, name: bytes) -> None:
        given = document.get("type")
        kind = given if isinstance(given, str) else name.decode(errors="replace")
        if kind == "error":
            raise _stream_error(document, self._exchange)
        response = document.get("response")
        if kind in _LAST_EVENTS and isinstance(response, dict):
            self._response = response
            # Azure says in an event of its own why a response failed that does not say so itself
            self.is_over = kind != "response.failed" or bool(response.get("error"))
        elif kind.endswith(".delta"):
            self.has_begun = True


ASSEMBLIES: dict[Operation, Callable[[Exchange], Assembly]] = {
    Operation.CHAT_COMPLETIONS: ChatAssembly,
    Operation.COMPLETIONS: ChunkAssembly,
    Operation.RESPONSES: ResponseAssembly,
}
"""The operations that can be streamed."""


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _encode(document: JsonObject) -> bytes:
    try:
        return orjson.dumps(document)
    except (
        orjson.JSONEncodeError
    ) as error:  # it nests deeper than what may be written, if not than what may be read
        raise Unavailable(f"the streamed answer cannot be put together: {error}") from None


def _parse(event: ServerEvent) -> JsonObject:
    try:
        document = orjson.loads(event.data)
    except orjson.JSONDecodeError as error:
        raise Unavailable(f"an event of {len(event.data):,} bytes in the stream is not whole: {error}") from None
    if not isinstance(document, dict):
        raise Unavailable(f"an event of {len(event.data):,} bytes in the stream is no object")
    return document


def _stream_error(document: JsonObject, exchange: Exchange) -> CallFailed:
    """OpenAI has the error's fields in the event itself, Azure in an object within it."""
    error = document.get("error")
    if isinstance(error, dict):
        return classify_within(error, exchange)
    # `type` is the event's own here
    flat = {name: value for name, value in document.items() if name not in ("type", "error", "sequence_number")}
    return classify_within(flat | {"message": error} if isinstance(error, str) else flat, exchange)
