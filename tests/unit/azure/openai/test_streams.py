"""Streams of Azure OpenAI put together, however their bytes are cut, and what becomes of those that break."""

import itertools
from collections.abc import AsyncIterator, Iterable
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.json_values import json_values, texts
from worker.azure.openai.refusals import Exchange
from worker.azure.openai.sse import EventStream, ServerEvent
from worker.azure.openai.streams import read_stream
from worker.errors import CallFailed, RefusedByService, Throttled, Unavailable
from worker.interfaces import Target
from worker.jobs.job import JsonObject, Operation
from worker.jobs.outcomes import Response, Usage
from worker.rate_limits import RateLimits

TARGET = Target(deployment="mini-1", endpoint="https://account.openai.azure.com")
SAFE = {"hate": {"filtered": False, "severity": "safe"}}
HEADERS = {"x-request-id": "req-1", "x-ratelimit-remaining-tokens": "90", "retry-after": "3"}
DONE = b"data: [DONE]\n\n"


# Events


def events_of(*chunks: bytes) -> list[ServerEvent]:
    stream = EventStream()
    return [event for chunk in chunks for event in stream.feed(chunk)] + stream.end()


@pytest.mark.parametrize(
    ("raw", "events"),
    [
        (b"data: a\n\ndata: b\n\n", [(b"", b"a"), (b"", b"b")]),
        (b"data:a\r\n\r\ndata: b\r\r", [(b"", b"a"), (b"", b"b")]),
        (b"event: x\ndata: a\ndata: b\n\ndata: c\n\n", [(b"x", b"a\nb"), (b"", b"c")]),
        (b"event: x\r\ndata: a\r\ndata: b\r\n\r\n", [(b"x", b"a\nb")]),
        (b": a comment\n\n:\ndata: a\n: another\n\n", [(b"", b"a")]),
        (b"id: 7\nretry: 10\nunknown\ndata: a\n\n", [(b"", b"a")]),
        (b"event: lost\n\ndata: a\n\n", [(b"", b"a")]),
        (b"data\ndata\n\n", [(b"", b"\n")]),
        (b"data:  two: colons\n\n", [(b"", b" two: colons")]),
        (b"\xef\xbb\xbfdata: a\n\n", [(b"", b"a")]),
        (b"\n\n\n", []),
        (b"", []),
        (b"data: a", [(b"", b"a")]),
        (b"data: a\n", [(b"", b"a")]),
        (b"event: x\ndata: a\r", [(b"x", b"a")]),
        (b"event: x", []),
        (b"data: \xc3\xa9\x0b\x0c\x1c\xe2\x80\xa8\n\n", [(b"", b"\xc3\xa9\x0b\x0c\x1c\xe2\x80\xa8")]),
    ],
)
def test_events_are_read_as_the_standard_says(raw: bytes, events: list[tuple[bytes, bytes]]) -> None:
    expected = [ServerEvent(name, data) for name, data in events]
    assert events_of(raw) == expected
    assert events_of(*(raw[at : at + 1] for at in range(len(raw)))) == expected


@st.composite
def cuts(draw: st.DrawFn, raw: bytes) -> list[bytes]:
    at = sorted(draw(st.lists(st.integers(0, len(raw)), max_size=12)))
    return [raw[left:right] for left, right in itertools.pairwise([0, *at, len(raw)])]


lines = st.tuples(
    st.sampled_from(["data: a", "data:b", "event: e", ": c", "", "", "data: é", "data"]),
    st.sampled_from(["\n", "\r\n", "\r"]),
).map("".join)


@given(st.lists(lines, max_size=10).map("".join).map(str.encode).flatmap(cuts))
def test_events_do_not_depend_on_how_the_bytes_are_cut(chunks: list[bytes]) -> None:
    assert events_of(*chunks) == events_of(b"".join(chunks))


def test_a_very_long_line_is_not_copied_with_every_chunk() -> None:
    stream = EventStream()
    stream.feed(b"data: ")
    for _ in range(100_000):
        assert stream.feed(b"x" * 100) == []
    assert len(stream.feed(b"\n\n")[0].data) == 10_000_000


# Chat completions


def chunk(*choices: JsonObject, **more: Any) -> JsonObject:
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 7, "model": "gpt-5.4-mini"}
    return head | {"choices": list(choices)} | more


def delta(index: int = 0, finish: str | None = None, more: JsonObject | None = None, **said: Any) -> JsonObject:
    return {"index": index, "delta": said, "finish_reason": finish, "logprobs": None} | (more or {})


def sse(*documents: JsonObject) -> bytes:
    return b"".join(b"data: %b\n\n" % orjson.dumps(document) for document in documents)


USAGE = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
CHAT = sse(
    {"choices": [], "created": 0, "id": "", "object": "", "prompt_filter_results": [{"prompt_index": 0}]},
    chunk(delta(role="assistant", content="", refusal=None), usage=None, system_fingerprint="fp"),
    chunk(delta(content="Prêt"), usage=None, obfuscation="xyz"),
    chunk(delta(content=" 😀\n"), usage=None),
    chunk(delta(finish="stop"), usage=None),
    {"id": "", "object": "", "created": 0, "model": "", "choices": [
        {"index": 0, "finish_reason": None, "content_filter_results": SAFE, "content_filter_offsets": {"a": 1}}
    ]},
    chunk(usage=USAGE),
)  # fmt: skip


async def given_as(chunks: Iterable[bytes]) -> AsyncIterator[bytes]:
    for one in chunks:
        yield one


async def read(
    raw: bytes | list[bytes], operation: Operation = Operation.CHAT_COMPLETIONS, clock: Iterable[float] = ()
) -> Response:
    ticks = itertools.chain(clock, itertools.repeat(0.0))
    return await read_stream(
        operation,
        given_as([raw] if isinstance(raw, bytes) else raw),
        Exchange(target=TARGET, headers=HEADERS),
        started=100.0,
        clock=lambda: next(ticks),
    )


async def read_chat(*documents: JsonObject) -> JsonObject:
    document: JsonObject = orjson.loads((await read(sse(*documents) + DONE)).body)
    return document


async def test_a_streamed_chat_completion_is_what_an_unstreamed_one_would_be() -> None:
    response = await read(CHAT + DONE)
    assert (response.status, response.request_id) == (200, "req-1")
    assert (response.usage, response.rate_limits) == (
        Usage(prompt=9, completion=3),
        RateLimits(remaining_tokens=90),
    )
    document = orjson.loads(response.body)
    assert document == {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 7,
        "model": "gpt-5.4-mini",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Prêt 😀\n", "refusal": None, "annotations": []},
                "logprobs": None,
                "finish_reason": "stop",
                "content_filter_results": SAFE,
            }
        ],
        "usage": USAGE,
        "prompt_filter_results": [{"prompt_index": 0}],
        "system_fingerprint": "fp",
    }
    assert list(document)[:6] == ["id", "object", "created", "model", "choices", "usage"]


async def test_a_chunk_of_the_content_filter_takes_nothing_away() -> None:
    nameless = {"id": "", "object": "", "created": 0, "model": "", "choices": [], "usage": None}
    document = await read_chat(chunk(delta(content="a", finish="stop")), chunk(usage=USAGE), nameless)
    assert (document["id"], document["created"], document["model"]) == ("chatcmpl-1", 7, "gpt-5.4-mini")
    assert document["usage"] == USAGE


async def test_choices_that_come_interleaved_are_put_together_by_their_index() -> None:
    document = await read_chat(
        chunk(delta(1, content="b"), delta(0, content="a")),
        chunk(delta(0, content="A", finish="stop")),
        chunk(delta(1, content="B", finish="length")),
    )
    told = [(one["index"], one["message"]["content"], one["finish_reason"]) for one in document["choices"]]
    assert told == [(0, "aA", "stop"), (1, "bB", "length")]


async def test_tool_calls_are_put_together_by_their_index() -> None:
    def call(index: int, **more: Any) -> JsonObject:
        return {"index": index, **more}

    document = await read_chat(
        chunk(delta(role="assistant", content=None, tool_calls=[
            call(0, id="c0", type="function", function={"name": "add", "arguments": ""})])),
        chunk(delta(tool_calls=[call(0, function={"arguments": '{"a":'})])),
        chunk(delta(tool_calls=[call(1, id="c1", type="custom", custom={"name": "run", "input": "l"})])),
        chunk(delta(tool_calls=[call(1, custom={"input": "s"}), call(0, function={"arguments": "1}"})])),
        chunk(delta(finish="tool_calls")),
    )  # fmt: skip
    message = document["choices"][0]["message"]
    assert message["content"] is None
    assert message["tool_calls"] == [
        {"id": "c0", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}},
        {"id": "c1", "type": "custom", "custom": {"name": "run", "input": "ls"}},
    ]


async def test_function_calls_refusals_logprobs_and_annotations_are_put_together() -> None:
    def tokens(*content: str, refusal: list[str] | None = None) -> JsonObject:
        return {"logprobs": {"content": [{"token": token} for token in content], "refusal": refusal}}

    document = await read_chat(
        chunk(delta(function_call={"name": "f", "arguments": "{"}, more=tokens("a"))),
        chunk(delta(function_call={"arguments": "}"}, refusal="I ", more=tokens("b", "c"))),
        chunk(delta(refusal="won't", annotations=[{"type": "url_citation"}], more=tokens(refusal=["d"]))),
        chunk(delta(finish="stop")),
    )
    choice = document["choices"][0]
    assert choice["message"]["function_call"] == {"name": "f", "arguments": "{}"}
    assert choice["message"]["refusal"] == "I won't"
    assert choice["message"]["annotations"] == [{"type": "url_citation"}]
    assert choice["logprobs"] == {"content": [{"token": "a"}, {"token": "b"}, {"token": "c"}], "refusal": ["d"]}


async def test_what_the_content_filter_found_anywhere_is_found() -> None:
    def found(filtered: bool, severity: str) -> JsonObject:
        return {"content_filter_results": {"hate": {"filtered": filtered, "severity": severity}}}

    document = await read_chat(
        chunk(delta(content="a", more=found(False, "low"))),
        chunk(delta(content="b", more=found(True, "medium"))),
        chunk(delta(content="c", more=found(False, "safe"))),
        chunk(delta(finish="content_filter", more={"content_filter_results": {"jailbreak": {"detected": True}}})),
    )
    assert document["choices"][0]["finish_reason"] == "content_filter"
    assert document["choices"][0]["content_filter_results"] == {
        "hate": {"filtered": True, "severity": "medium"},
        "jailbreak": {"detected": True},
    }


@given(cuts(CHAT.replace(b"\n", b"\r\n") + b": bye\r\n" + DONE))
async def test_however_the_bytes_are_cut_the_answer_is_the_same(chunks: list[bytes]) -> None:
    assert (await read(chunks)).body == (await read(CHAT + DONE)).body


@given(st.lists(st.tuples(st.integers(0, 2), texts), min_size=1, max_size=8))
async def test_each_choice_says_what_its_deltas_say(said: list[tuple[int, str]]) -> None:
    endings = [chunk(delta(index, finish="stop")) for index in {index for index, _ in said}]
    document = await read_chat(*[chunk(delta(index, content=text)) for index, text in said], *endings)
    for choice in document["choices"]:
        assert choice["message"]["content"] == "".join(text for index, text in said if index == choice["index"])


# Completions


async def test_a_streamed_completion_is_what_an_unstreamed_one_would_be() -> None:
    def piece(text: str, finish: str | None = None, logprobs: JsonObject | None = None) -> JsonObject:
        choice = {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": finish}
        return {"id": "cmpl-1", "object": "text_completion", "created": 7, "model": "m", "choices": [choice]}

    raw = sse(
        piece("to ", logprobs={"tokens": ["to "], "text_offset": [0]}),
        piece("be", logprobs={"tokens": ["be"], "text_offset": [3]}),
        piece("", "stop"),
        {"id": "cmpl-1", "object": "text_completion", "created": 7, "model": "m", "choices": [], "usage": USAGE},
    )
    response = await read(raw + DONE, Operation.COMPLETIONS)
    assert orjson.loads(response.body) == {
        "id": "cmpl-1",
        "object": "text_completion",
        "created": 7,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "text": "to be",
                "logprobs": {"tokens": ["to ", "be"], "text_offset": [0, 3]},
                "finish_reason": "stop",
            }
        ],
        "usage": USAGE,
    }
    assert response.usage == Usage(prompt=9, completion=3)


# Responses


def event(kind: str, **more: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), orjson.dumps({"type": kind, **more}))


def response_of(status: str, **more: Any) -> JsonObject:
    return {"object": "response", "status": status, "output": [{"type": "message"}], "error": None, **more}


BEGUN = (
    event("response.created", response=response_of("in_progress"))
    + event("response.output_item.added", item={})
    + event("response.output_text.delta", delta="to")
)


@pytest.mark.parametrize("status", ["completed", "incomplete"])
async def test_a_streamed_response_is_the_object_of_its_last_event(status: str) -> None:
    final = response_of(status, usage={"input_tokens": 9, "output_tokens": 3})
    response = await read(BEGUN + event(f"response.{status}", response=final), Operation.RESPONSES)
    assert orjson.loads(response.body) == final
    assert response.usage == Usage(prompt=9, completion=3)


async def test_a_response_without_names_of_events_is_read_too() -> None:
    final = response_of("completed")
    raw = sse({"type": "response.output_text.delta"}, {"type": "response.completed", "response": final}) + DONE
    response = await read(raw, Operation.RESPONSES, clock=[101.0])
    assert orjson.loads(response.body) == final
    assert response.first_token == 1.0


async def test_an_event_that_only_the_end_of_the_stream_ends_counts() -> None:
    raw = BEGUN + event("response.completed", response=response_of("completed")).rstrip()
    assert (await read(raw, Operation.RESPONSES)).status == 200
    assert (await read(CHAT + DONE.rstrip())).status == 200


@given(cuts(BEGUN + event("response.completed", response=response_of("completed", text="Prêt"))))
async def test_however_the_bytes_of_a_response_are_cut_it_is_the_same(chunks: list[bytes]) -> None:
    document = orjson.loads((await read(chunks, Operation.RESPONSES)).body)
    assert document == response_of("completed", text="Prêt")


# The first token


async def test_the_first_token_is_timed_and_not_the_first_bytes() -> None:
    opening = [sse(chunk()), sse(chunk(delta(role="assistant", content="")))]
    response = await read(
        [*opening, sse(chunk(delta(content="a"))), sse(chunk(delta(content="b", finish="stop"))), DONE],
        clock=[102.5, 109.0],
    )
    assert response.first_token == 2.5


@pytest.mark.parametrize(
    "said", [{"tool_calls": [{"index": 0, "id": "c"}]}, {"refusal": "no"}, {"reasoning_content": "hm"}]
)
async def test_whatever_the_model_writes_first_is_the_first_token(said: JsonObject) -> None:
    response = await read(sse(chunk(delta(**said)), chunk(delta(finish="stop"))) + DONE, clock=[101.0])
    assert response.first_token == 1.0


async def test_an_answer_without_tokens_has_no_first_one() -> None:
    response = await read(sse(chunk(delta(role="assistant", content="", finish="content_filter"))) + DONE)
    assert response.first_token is None
    final = event("response.incomplete", response=response_of("incomplete", output=[]))
    assert (await read(final, Operation.RESPONSES)).first_token is None


# Broken streams


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "the stream broke off after 0 chunks, without [DONE]"),
        (CHAT, "the stream broke off after 7 chunks, without [DONE]"),
        (CHAT[:-40], "an event of 130 bytes in the stream is not whole"),
        (sse(chunk(delta(content="private"))) + DONE, "the stream ended before its choice 0 was finished"),
        (DONE, "is not a whole chat completion: it has no choices"),
        (b"data: private\n\n", "an event of 7 bytes in the stream is not whole"),
        (b"data: []\n\n", "an event of 2 bytes in the stream is no object"),
        (sse({"choices": [{"delta": {"content": "private"}}]}), "without [DONE]"),
        (sse({"choices": ["private"]}), "chunk 1 of the stream has a choice without an index"),
        (sse({"choices": [{"index": "private"}]}), "chunk 1 of the stream has a choice without an index"),
        (sse(chunk(delta(tool_calls=["private"]))), "a tool call in the stream is no object"),
    ],
)
async def test_a_broken_stream_is_another_attempts_business(raw: bytes, why: str) -> None:
    with pytest.raises(Unavailable) as caught:
        await read(raw)
    assert why in caught.value.detail
    assert "private" not in caught.value.detail


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (BEGUN, "the stream broke off after 3 events, without one such as response.completed"),
        (BEGUN + DONE, "without one such as response.completed"),
        (BEGUN + event("response.completed"), "without one such as response.completed"),
        (BEGUN + event("response.completed", response=response_of("completed"))[:-20], "is not whole"),
        (event("response.completed", response=response_of("in_progress")), "its status is in_progress"),
        (event("response.failed", response=response_of("failed")), "its status is failed"),
        (
            event("response.failed", response=response_of("failed", error={"code": "server_error"})),
            "its error's code server_error",
        ),
    ],
)
async def test_a_broken_stream_of_a_response_is_another_attempts_business(raw: bytes, why: str) -> None:
    with pytest.raises(Unavailable) as caught:
        await read(raw, Operation.RESPONSES)
    assert why in caught.value.detail


LIMITED = {"type": "too_many_requests", "code": "rate_limit_exceeded", "message": "Too many.", "param": None}


@pytest.mark.parametrize(
    ("operation", "raw", "kind"),
    [
        (Operation.CHAT_COMPLETIONS, CHAT + sse({"error": LIMITED}), Throttled),
        (
            Operation.CHAT_COMPLETIONS,
            sse({"error": {"code": "content_filter", "message": "No."}}),
            RefusedByService,
        ),
        (Operation.CHAT_COMPLETIONS, sse({"error": {"code": "500", "message": "Sorry."}}), Unavailable),
        (Operation.CHAT_COMPLETIONS, sse({"error": "Sorry."}), Unavailable),
        (Operation.CHAT_COMPLETIONS, event("error", code="rate_limit_exceeded", message="Wait."), Throttled),
        (Operation.COMPLETIONS, sse({"error": LIMITED}), Throttled),
        (Operation.RESPONSES, BEGUN + event("error", error=LIMITED), Throttled),
        (Operation.RESPONSES, event("error", code="rate_limit_exceeded", message="Wait."), Throttled),
        (Operation.RESPONSES, event("error", code="server_error", message="Sorry."), Unavailable),
        (Operation.RESPONSES, event("error", code="invalid_prompt", message="No."), RefusedByService),
        (
            Operation.RESPONSES,
            event("response.failed", response=response_of("failed")) + event("error", error=LIMITED),
            Throttled,
        ),
        (
            Operation.RESPONSES,
            event("response.failed", response=response_of("failed", error={"code": "rate_limit_exceeded"})),
            Throttled,
        ),
        (
            Operation.RESPONSES,
            event("response.failed", response=response_of("failed", error={"code": "invalid_prompt"})),
            RefusedByService,
        ),
    ],
)
async def test_an_error_in_a_stream_means_what_it_says(
    operation: Operation, raw: bytes, kind: type[CallFailed]
) -> None:
    with pytest.raises(CallFailed) as caught:
        await read(raw, operation)
    assert type(caught.value) is kind
    assert caught.value.request_id == "req-1" or kind is Unavailable
    assert caught.value.retry_after == (3.0 if kind is Throttled else caught.value.retry_after)


async def test_what_comes_after_the_end_is_not_looked_at() -> None:
    whole = (await read(CHAT + DONE)).body
    assert (await read(CHAT + DONE + b"data: {broken\n\n")).body == whole
    assert (await read([CHAT + DONE, b"data: {broken\n\n"])).body == whole


DEEP = b'{"a":' * 1_010 + b'{"b":"x"}' + b"}" * 1_010


@pytest.mark.parametrize(
    "raw",
    [
        b'data: {"choices":[{"index":0,"finish_reason":"stop","delta":%b}]}\n\n' % DEEP,
        b'data: {"choices":[{"index":0,"finish_reason":"stop","logprobs":%b}]}\n\n' % DEEP,
        b'data: {"choices":[{"index":0,"finish_reason":"stop"}],"usage":%b}\n\n' % DEEP,
        b'data: {"error":{"message":%b}}\n\n' % DEEP,
    ],
)
async def test_hostile_nesting_in_a_stream_costs_an_attempt_and_no_more(raw: bytes) -> None:
    with pytest.raises(Unavailable):
        await read(raw + raw + DONE)


anything = st.dictionaries(
    st.sampled_from(["choices", "delta", "index", "content", "tool_calls", "logprobs", "error", "usage", "text"]),
    st.deferred(lambda: pieces),
    max_size=4,
)
pieces: st.SearchStrategy[Any] = st.one_of(
    json_values, st.integers(-1, 2), st.lists(anything, max_size=2), anything, st.just("x")
)


@given(
    st.sampled_from([Operation.CHAT_COMPLETIONS, Operation.COMPLETIONS, Operation.RESPONSES]),
    st.lists(
        st.binary(max_size=30) | anything.map(lambda it: sse(it)) | st.just(sse(chunk(delta(content="a")))),
        max_size=5,
    ),
)
async def test_whatever_the_stream_it_is_an_answer_or_a_failed_call(operation: Operation, raw: list[bytes]) -> None:
    try:
        response = await read([*raw, DONE], operation)
    except CallFailed:
        return
    orjson.loads(response.body)
