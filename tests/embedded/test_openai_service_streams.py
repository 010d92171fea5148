"""Streamed answers of the embedded Azure OpenAI: what the pieces say together, and how a stream breaks."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import ClientError, ClientResponse, ClientSession, ClientTimeout
from hypothesis import given
from hypothesis import strategies as st

from embedded_azure.certificates import private_pem, public_pem
from embedded_azure.config import Deployment
from embedded_azure.entra.tokens import AccessTokens, TokenIssuer
from embedded_azure.openai.account import Account, Question
from embedded_azure.openai.answers import Stamp
from embedded_azure.openai.deployments import ServedDeployment
from embedded_azure.openai.operations import OPERATIONS, Operation
from embedded_azure.openai.phrases import Wish
from embedded_azure.openai.refusals import Refused
from embedded_azure.openai.sending import Streamed, break_off, send_paced
from embedded_azure.openai.streams import Piece, StreamOptions
from tests.support.openai_service import CONFIG, KEY, Client, bearer, open_client, token
from tests.support.patience import PATIENCE

STAMP = Stamp(identifier="1", created=1, model="m")
STREAMED = tuple(operation for operation in OPERATIONS if operation.pieces is not None)


def body_of(operation: Operation, question: str, **fields: object) -> dict[str, Any]:
    said: dict[str, dict[str, Any]] = {
        "chatCompletion": {"messages": [{"role": "user", "content": question}]},
        "responses": {"input": question},
        "completion": {"prompt": question},
    }
    return {**said[operation.name], **fields}


def documents_in(data: bytes) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in data.decode().splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def joined(pieces: Iterable[Piece]) -> bytes:
    return b"".join(piece.data for piece in pieces)


def said_in(documents: list[dict[str, Any]]) -> dict[int, str]:
    """The text of each choice, put together again."""
    said: dict[int, str] = {}
    for document in documents:
        if document.get("type") == "response.output_text.delta":
            said[0] = said.get(0, "") + document["delta"]
        for choice in document.get("choices", ()):
            text = choice["text"] if "text" in choice else choice["delta"].get("content", "")
            said[choice["index"]] = said.get(choice["index"], "") + text
    return said


def said_whole(document: dict[str, Any]) -> dict[int, str]:
    if "output" in document:
        return {0: document["output"][0]["content"][0]["text"]}
    return {
        choice["index"]: choice["text"] if "text" in choice else choice["message"]["content"]
        for choice in document["choices"]
    }


@given(
    st.sampled_from(STREAMED),
    st.text(min_size=1, max_size=60),
    st.integers(0, 60),
    st.integers(1, 9),
    st.integers(1, 3),
    st.booleans(),
)
def test_a_stream_says_what_the_whole_answer_says_at_the_same_cost(
    operation: Operation, question: str, at_least: int, per_event: int, choices: int, filtered: bool
) -> None:
    fields = {} if operation.name == "responses" else {"n": choices}
    wish = Wish(tokens=at_least, filter_answer=filtered, filter_after=3)
    made = operation.read(body_of(operation, question, **fields), "m").answer(wish, STAMP)
    assert operation.pieces is not None
    pieces = list(operation.pieces(made.document, StreamOptions(include_usage=True), per_event))
    documents = documents_in(joined(pieces))
    whole = said_whole(made.document)
    assert {index: text for index, text in said_in(documents).items() if text} == {
        index: text for index, text in whole.items() if text
    }
    assert sum(piece.tokens for piece in pieces) == made.tokens
    assert all(piece.tokens <= per_event for piece in pieces)
    last = documents[-1]
    usage = last["response"]["usage"] if operation.name == "responses" else last["usage"]
    assert usage == made.document["usage"]


def chunks_of(name: str, question: str = "hi", options: StreamOptions | None = None) -> list[dict[str, Any]]:
    operation = next(one for one in OPERATIONS if one.name == name)
    document = operation.read(body_of(operation, question), "m").answer(Wish(), STAMP).document
    assert operation.pieces is not None
    return documents_in(joined(operation.pieces(document, options or StreamOptions(), 1)))


def test_a_chat_begins_with_the_prompts_filter_results_and_then_the_role() -> None:
    first, role, content, *_, ending = chunks_of("chatCompletion")
    assert (first["choices"], first["id"], first["object"]) == ([], "", "")
    assert first["prompt_filter_results"][0]["prompt_index"] == 0
    assert role["object"] == "chat.completion.chunk"
    assert role["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert content["choices"][0]["content_filter_results"]["hate"] == {"filtered": False, "severity": "safe"}
    assert content["choices"][0]["finish_reason"] is None
    assert (ending["choices"][0]["delta"], ending["choices"][0]["finish_reason"]) == ({}, "stop")


def test_usage_comes_last_without_choices_and_only_where_it_is_asked_for() -> None:
    assert not any("usage" in chunk for chunk in chunks_of("chatCompletion"))
    *chunks, last = chunks_of("chatCompletion", options=StreamOptions(include_usage=True))
    assert all(chunk["usage"] is None for chunk in chunks[1:])
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] > 0


def test_the_events_of_a_response_are_numbered_and_end_in_the_whole() -> None:
    events = chunks_of("responses")
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert set(kinds[4:-4]) == {"output_text.delta"}
    assert kinds[-4:] == ["output_text.done", "content_part.done", "output_item.done", "completed"]
    assert events[0]["response"]["status"] == "in_progress"
    assert events[-1]["response"]["status"] == "completed"


def test_stream_options_without_a_stream_are_refused() -> None:
    with pytest.raises(Refused) as refused:
        STREAMED[0].read(body_of(STREAMED[0], "hi", stream_options={"include_usage": True}), "m")
    assert refused.value.document["error"]["param"] == "stream_options"


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.integers(0, 20))
def test_a_stream_breaks_before_the_first_piece_beyond_the_limit_and_before_its_last(
    tokens: list[int], after: int
) -> None:
    pieces = [Piece(data=b"%d" % number, tokens=count) for number, count in enumerate(tokens)]
    kept, rest = break_off(pieces, after)
    assert kept + rest == pieces
    assert rest
    assert sum(piece.tokens for piece in kept) <= after
    if len(rest) > 1:
        assert sum(piece.tokens for piece in kept) + rest[0].tokens > after


# Over HTTP


CHAT = "/openai/v1/chat/completions"
RESPONSES = "/openai/v1/responses"


async def stream(client: Client, question: str, path: str = CHAT, model: str = "plain") -> bytes:
    """What comes until the stream ends, whichever way."""
    said: dict[str, Any] = (
        {"messages": [{"role": "user", "content": question}]} if path == CHAT else {"input": question}
    )
    received = b""
    async with client.session.post(
        path, json={"model": model, "stream": True, **said}, headers=bearer(token())
    ) as response:
        assert (response.status, response.content_type) == (200, "text/event-stream")
        try:
            async for part in response.content.iter_any():
                received += part
        except ClientError:
            received += b"<cut>"
    return received


async def test_a_stream_is_server_sent_events_to_its_end() -> None:
    async with open_client(CONFIG) as client:
        received = await stream(client, "What is 17 + 25?")
        stats = await client.stats()
    assert received.endswith(b"data: [DONE]\n\n")
    assert said_in(documents_in(received))[0].startswith("17 + 25 = 42")
    assert (stats["streams"], stats["by_status"], stats["in_flight"]) == (1, {"200": 1}, 0)


async def test_a_stream_is_cut_after_so_many_tokens() -> None:
    async with open_client(CONFIG) as client:
        received = await stream(client, "[[cut-after:3]] Who are you?")
    assert received.endswith(b"<cut>")
    assert len(said_in(documents_in(received[:-5]))[0]) == 12


async def test_a_stream_that_fails_says_so_in_its_last_event() -> None:
    async with open_client(CONFIG) as client:
        chat = await stream(client, "[[fail-after:2x1]] Who are you?")
        again = await stream(client, "[[fail-after:2x1]] Who are you?")
        response = await stream(client, "[[fail-after:2]] Who are you?", RESPONSES)
    assert documents_in(chat)[-1]["error"]["type"] == "server_error"
    assert b"[DONE]" not in chat
    assert again.endswith(b"data: [DONE]\n\n")
    *_, failed, error = documents_in(response)
    assert (failed["type"], failed["response"]["status"]) == ("response.failed", "failed")
    assert (error["type"], error["error"]["type"]) == ("error", "server_error")
    assert error["sequence_number"] == failed["sequence_number"] + 1


async def until_it_hangs(response: ClientResponse) -> AsyncIterator[bytes]:
    try:
        async for part in response.content.iter_any():
            yield part
    except TimeoutError:
        return
    raise AssertionError("the stream has ended")


async def test_a_stream_that_hangs_in_its_midst_ends_when_its_client_gives_up() -> None:
    async with open_client(CONFIG) as client:
        session: ClientSession = client.session
        async with session.post(
            CHAT,
            json={
                "model": "plain",
                "stream": True,
                "messages": [{"role": "user", "content": "[[hang-after:2]] hi"}],
            },
            headers=bearer(token()),
            timeout=ClientTimeout(sock_read=1.0),
        ) as response:
            received = b"".join([part async for part in until_it_hangs(response)])
        assert len(said_in(documents_in(received))[0]) == 8
        async with asyncio.timeout(PATIENCE):
            while (await client.stats())["in_flight"]:
                pass
        assert (await client.stats())["by_status"] == {"499": 1}


async def test_a_malformed_event_is_in_the_stream_that_asks_for_it() -> None:
    async with open_client(CONFIG) as client:
        received = await stream(client, "[[malformed]] hi")
    with pytest.raises(json.JSONDecodeError):
        documents_in(received)


@pytest.mark.parametrize(
    ("fault", "last"),
    [
        ({"kind": "stream", "how": "error", "after": 1}, "server_error"),
        ({"kind": "stream", "how": "throttle", "after": 1}, "too_many_requests"),
    ],
)
async def test_a_fault_fails_a_stream_once_it_has_begun(fault: dict[str, Any], last: str) -> None:
    async with open_client(CONFIG) as client:
        assert await client.set_fault(**fault, count=1) == 200
        assert (await client.ask("hi"))[0] == 200, "it concerns streams alone"
        received = await stream(client, "hi")
        assert documents_in(received)[-1]["error"]["type"] == last
        assert (await stream(client, "hi")).endswith(b"data: [DONE]\n\n")


async def test_a_filter_may_strike_in_the_midst_of_a_stream() -> None:
    async with open_client(CONFIG) as client:
        await client.set_fault(kind="stream", how="filter", after=3)
        documents = documents_in(await stream(client, "Who are you?"))
    ending = documents[-1]["choices"][0]
    assert ending["finish_reason"] == "content_filter"
    assert ending["content_filter_results"]["violence"]["filtered"] is True
    assert len(said_in(documents)[0]) == 12


async def test_a_stream_of_responses_learns_of_a_full_quota_in_the_stream() -> None:
    async with open_client(CONFIG) as client:
        await stream(client, "hi", RESPONSES, "small")
        received = await stream(client, "hi", RESPONSES, "small")
        stats = await client.stats()
    created, failed, error = documents_in(received)
    assert (created["type"], failed["type"]) == ("response.created", "response.failed")
    assert (error["error"]["code"], error["sequence_number"]) == ("rate_limit_exceeded", 2)
    assert stats["throttled"] == {"call": 1}
    assert sum(stats["answers"].values()) == 1


async def test_a_chat_stream_learns_of_a_full_quota_by_its_status() -> None:
    async with open_client(CONFIG) as client:
        statuses = []
        for _ in range(2):
            document = {"model": "small", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
            async with client.session.post(CHAT, json=document, headers=bearer(token())) as response:
                statuses.append(response.status)
    assert statuses == [200, 429]


class Wire:
    """Notes when what was written."""

    def __init__(self) -> None:
        self.written: list[tuple[float, bytes]] = []

    async def write(self, data: bytes) -> None:
        self.written.append((asyncio.get_running_loop().time(), data))


@pytest.mark.looptime
async def test_a_token_goes_out_when_it_is_due() -> None:
    wire = Wire()
    pieces = [Piece(data=b"role"), Piece(data=b"a", tokens=1), Piece(data=b"b", tokens=2), Piece(data=b"end")]
    await send_paced(Streamed(pieces=pieces, headers={}, seconds_per_token=0.5), wire)
    assert wire.written == [(0.0, b"role"), (0.5, b"a"), (1.5, b"bend")]


@pytest.mark.looptime
async def test_what_is_due_together_goes_out_at_once() -> None:
    wire = Wire()
    await send_paced(Streamed(pieces=[Piece(data=b"x", tokens=1)] * 100, headers={}), wire)
    assert wire.written == [(0.0, b"x" * 100)]


# How long an answer takes


async def seconds_for(spec: Deployment, *, streamed: bool) -> tuple[float, float]:
    """Loop time to the beginning of the answer, and to its end."""
    issuer = TokenIssuer(private_pem(KEY), CONFIG.tenant_id, 60.0).issuer
    account = Account(replace(CONFIG, deployments=(spec,)), AccessTokens(public_pem(KEY), issuer))
    messages = [{"role": "user", "content": "[[tokens:100]]"}]
    document = json.dumps({"model": spec.name, "messages": messages, "max_tokens": 100, "stream": streamed})
    question = Question(operation=STREAMED[0], deployment=None, api_version="v1", document=document.encode())
    clock = asyncio.get_running_loop().time
    started = clock()
    async with account.answer(question) as reply:
        begun = clock() - started
        if isinstance(reply, Streamed):
            await send_paced(reply, Wire())
        return begun, clock() - started


SLOW = Deployment(name="m", model="m", latency=2.0, latency_sigma=0.0, time_per_token=0.05)


@pytest.mark.looptime
async def test_a_whole_answer_takes_as_long_as_its_stream() -> None:
    assert await seconds_for(SLOW, streamed=True) == pytest.approx((2.0, 7.0))
    assert await seconds_for(SLOW, streamed=False) == pytest.approx((7.0, 7.0))


@pytest.mark.looptime
async def test_the_time_to_the_first_token_takes_the_place_of_the_latency() -> None:
    spec = replace(SLOW, time_to_first_token=0.5)
    assert await seconds_for(spec, streamed=True) == pytest.approx((0.5, 5.5))


@pytest.mark.looptime
async def test_without_a_time_per_token_both_take_the_latency_alone() -> None:
    spec = replace(SLOW, time_per_token=0.0)
    for streamed in (False, True):
        assert await seconds_for(spec, streamed=streamed) == (2.0, 2.0)


def test_equal_configs_take_equally_long() -> None:
    spec = replace(SLOW, latency_sigma=0.5)
    one, other = (ServedDeployment(spec, lambda: 0.0) for _ in range(2))
    draws = [one.draw_times() for _ in range(5)]
    assert draws == [other.draw_times() for _ in range(5)]
    assert len(set(draws)) == 5
