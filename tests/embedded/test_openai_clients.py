"""The four clients of the openai package, sync and async, either surface, whole and streamed: one table of calls.

What they must agree on is asked of every one; `test_openai_sdk.py` has what needs to be asked of one alone.
"""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import httpx2
import openai
import pytest
from aiohttp.test_utils import TestServer
from openai.types import EmbeddingCreateParams
from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming
from openai.types.completion_create_params import CompletionCreateParamsStreaming as PlainParams
from openai.types.responses.response_create_params import ResponseCreateParamsStreaming

from embedded_azure.config import default_config
from embedded_azure.entra.service import load_entra
from embedded_azure.models import EMBEDDINGS, INSTRUCT, SMALL
from embedded_azure.openai import parameters
from embedded_azure.openai.__main__ import load_account
from embedded_azure.openai.account import Account
from embedded_azure.openai.app import build_app
from embedded_azure.process import server_context
from embedded_azure.state import StateDirectory
from embedded_azure.supervisor import prepare_state

CONFIG = default_config()
CHAT, VECTORS = SMALL, EMBEDDINGS
SUM = "What is 17 + 25?"
ANSWER = "17 + 25 = 42"
CLIENTS = ("OpenAI", "AzureOpenAI", "AsyncOpenAI", "AsyncAzureOpenAI")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    account: Account
    endpoint: str
    trust: ssl.SSLContext
    token: str

    async def run(self, name: str, call: Callable[[Any], Any]) -> Any:
        """`call` with a client of this class: a sync one in a thread, an async one in this loop."""
        if name.startswith("Async"):
            async with httpx2.AsyncClient(verify=self.trust) as http:
                return await settled(call(self._client(name, http)))
        with httpx2.Client(verify=self.trust) as sync_http:
            return await asyncio.to_thread(lambda: call(self._client(name, sync_http)))

    def _client(self, name: str, http: Any) -> Any:
        async def token() -> str:
            return self.token

        provider: Callable[[], Any] = token if name.startswith("Async") else lambda: self.token
        options: dict[str, Any] = {"http_client": http, "max_retries": 0}
        if name.endswith("AzureOpenAI"):
            options |= {"azure_endpoint": self.endpoint, "api_version": "2025-04-01-preview"}
            return getattr(openai, name)(azure_ad_token_provider=provider, **options)
        return getattr(openai, name)(base_url=f"{self.endpoint}/openai/v1/", api_key=provider, **options)


async def settled(value: Any) -> Any:
    return await value if isinstance(value, Awaitable) else value


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> StateDirectory:
    """Making keys takes longer than most tests."""
    directory = StateDirectory(Path(tmp_path_factory.mktemp("state")))
    prepare_state(directory, CONFIG)
    return directory


@pytest.fixture
async def bench(state: StateDirectory) -> AsyncIterator[Bench]:
    account = load_account(state)
    form = {
        "client_id": CONFIG.identity("worker").client_id,
        "scope": "https://cognitiveservices.azure.com/.default",
        "grant_type": "client_credentials",
        "client_assertion": state.projected_token("worker").read_text(),
        "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
    }
    server = TestServer(build_app(account), scheme="https")
    await server.start_server(ssl=server_context(state))
    try:
        yield Bench(
            account=account,
            endpoint=f"https://localhost:{server.port}",
            trust=ssl.create_default_context(cafile=str(state.ca)),
            token=str(load_entra(state).grant(CONFIG.tenant_id, form)["access_token"]),
        )
    finally:
        for connection in server.handler.connections:
            if connection.transport is not None:
                connection.transport.abort()
        await server.close()


def messages(question: str = SUM) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


async def collected(stream: Any) -> list[Any]:
    """The events of an async stream."""
    async with await settled(stream) as events:
        return [event async for event in events]


def gathered(stream: Any) -> Any:
    """The events of either kind of stream; of an async one, as something to await."""
    if hasattr(stream, "__next__") or isinstance(stream, openai.Stream):
        with stream as events:
            return list(events)
    return collected(stream)


@pytest.mark.parametrize("client", CLIENTS)
async def test_every_operation_answers_whole(bench: Bench, client: str) -> None:
    chat = await bench.run(client, lambda c: c.chat.completions.create(model=CHAT, messages=messages()))
    assert chat.choices[0].message.content.startswith(ANSWER)
    response = await bench.run(client, lambda c: c.responses.create(model=CHAT, input=SUM))
    assert response.output_text.startswith(ANSWER)
    completion = await bench.run(client, lambda c: c.completions.create(model=INSTRUCT, prompt=SUM))
    assert completion.choices[0].text.startswith(ANSWER)
    vectors = await bench.run(client, lambda c: c.embeddings.create(model=VECTORS, input=SUM))
    assert len(vectors.data[0].embedding) == 1_536


@pytest.mark.parametrize("client", CLIENTS)
async def test_models_are_listed(bench: Bench, client: str) -> None:
    page = await bench.run(client, lambda c: c.models.list())
    assert {model.id for model in page.data} == {spec.model for spec in CONFIG.deployments}
    assert (await bench.run(client, lambda c: c.models.retrieve(CHAT))).id == CHAT


@pytest.mark.parametrize("client", CLIENTS)
async def test_a_chat_stream_says_the_same_as_the_whole_answer(bench: Bench, client: str) -> None:
    def streamed(c: Any) -> Any:
        return gathered(
            c.chat.completions.create(
                model=CHAT, messages=messages(), stream=True, stream_options={"include_usage": True}
            )
        )

    whole = await bench.run(client, lambda c: c.chat.completions.create(model=CHAT, messages=messages()))
    first, *chunks, last = await bench.run(client, streamed)
    assert first.model_extra["prompt_filter_results"]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert last.usage == whole.usage


@pytest.mark.parametrize("client", CLIENTS)
async def test_a_completion_stream_says_the_same_as_the_whole_answer(bench: Bench, client: str) -> None:
    asked = {"model": INSTRUCT, "prompt": [SUM, "Who are you?"], "max_tokens": 9}
    whole = await bench.run(client, lambda c: c.completions.create(**asked))
    chunks = await bench.run(client, lambda c: gathered(c.completions.create(**asked, stream=True)))
    for choice in whole.choices:
        parts = [one for chunk in chunks for one in chunk.choices if one.index == choice.index]
        assert "".join(part.text for part in parts) == choice.text
        assert parts[-1].finish_reason == choice.finish_reason


@pytest.mark.parametrize("client", CLIENTS)
async def test_a_response_stream_says_the_same_as_the_whole_answer(bench: Bench, client: str) -> None:
    whole = await bench.run(client, lambda c: c.responses.create(model=CHAT, input=SUM))
    events = await bench.run(client, lambda c: gathered(c.responses.create(model=CHAT, input=SUM, stream=True)))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == whole.output_text
    assert events[-1].type == "response.completed"
    assert events[-1].response.usage == whole.usage


# The streaming helpers, which check the events as they come


def said_by_chat_helper(client: Any) -> Any:
    with client.chat.completions.stream(model=CHAT, messages=messages()) as stream:
        kinds = [event.type for event in stream]
        return kinds, stream.get_final_completion().choices[0].message.content


async def said_by_async_chat_helper(client: Any) -> Any:
    async with client.chat.completions.stream(model=CHAT, messages=messages()) as stream:
        kinds = [event.type async for event in stream]
        return kinds, (await stream.get_final_completion()).choices[0].message.content


def said_by_response_helper(client: Any) -> Any:
    with client.responses.stream(model=CHAT, input=SUM) as stream:
        kinds = [event.type for event in stream]
        return kinds, stream.get_final_response().output_text


async def said_by_async_response_helper(client: Any) -> Any:
    async with client.responses.stream(model=CHAT, input=SUM) as stream:
        kinds = [event.type async for event in stream]
        return kinds, (await stream.get_final_response()).output_text


@pytest.mark.parametrize("client", CLIENTS)
async def test_the_streaming_helpers_put_the_answer_together(bench: Bench, client: str) -> None:
    is_async = client.startswith("Async")
    kinds, text = await bench.run(client, said_by_async_chat_helper if is_async else said_by_chat_helper)
    assert {"chunk", "content.delta", "content.done"} <= set(kinds)
    assert text.startswith(ANSWER)
    kinds, text = await bench.run(client, said_by_async_response_helper if is_async else said_by_response_helper)
    assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
    assert text.startswith(ANSWER)


# Refusals and breakages


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize(
    ("question", "fields", "error", "code"),
    [
        ("[[content-filter]]", {}, openai.BadRequestError, "content_filter"),
        ("[[status:500]]", {}, openai.InternalServerError, None),
        ("[[status:429]]", {}, openai.RateLimitError, "RateLimitReached"),
        ("hi", {"model": "gpt-9"}, openai.NotFoundError, "DeploymentNotFound"),
        ("hi", {"model": VECTORS}, openai.BadRequestError, "OperationNotSupported"),
        ("hi", {"temperature": 3}, openai.BadRequestError, "unsupported_value"),
        ("hi", {"extra_headers": {"api-key": "x"}}, openai.PermissionDeniedError, "AuthenticationTypeDisabled"),
        ("hi", {"extra_headers": {"Authorization": "Bearer x"}}, openai.AuthenticationError, None),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
async def test_a_refusal_is_the_error_of_its_status(
    bench: Bench,
    client: str,
    question: str,
    fields: dict[str, Any],
    error: type[openai.APIStatusError],
    code: str | None,
    streamed: bool,
) -> None:
    asked = {"model": CHAT, "messages": messages(question), "stream": streamed, **fields}
    with pytest.raises(error) as refused:
        await bench.run(client, lambda c: c.chat.completions.create(**asked))
    assert refused.value.code == code


@pytest.mark.parametrize("client", CLIENTS)
async def test_a_chat_stream_that_fails_is_an_api_error_in_its_midst(bench: Bench, client: str) -> None:
    asked = {"model": CHAT, "messages": messages("[[fail-after:2]] hi"), "stream": True}
    with pytest.raises(openai.APIError, match="had an error while processing your request"):
        await bench.run(client, lambda c: gathered(c.chat.completions.create(**asked)))


@pytest.mark.parametrize("client", CLIENTS)
async def test_a_response_stream_that_is_throttled_is_an_api_error_and_no_rate_limit_error(
    bench: Bench, client: str
) -> None:
    bench.account.faults.set(b'{"kind": "throttle", "reason": "token"}')
    with pytest.raises(openai.APIError, match="exceeded rate limit") as refused:
        await bench.run(client, lambda c: gathered(c.responses.create(model=CHAT, input="hi", stream=True)))
    assert not isinstance(refused.value, openai.RateLimitError)
    assert refused.value.code == "rate_limit_exceeded"


@pytest.mark.parametrize("client", CLIENTS)
async def test_a_stream_that_is_cut_is_a_lost_connection(bench: Bench, client: str) -> None:
    asked = {"model": CHAT, "messages": messages("[[cut-after:2]] hi"), "stream": True}
    with pytest.raises((openai.APIConnectionError, httpx2.TransportError)):
        await bench.run(client, lambda c: gathered(c.chat.completions.create(**asked)))


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("how", ["reset", "close"])
async def test_a_connection_that_is_lost_is_a_connection_error(bench: Bench, client: str, how: str) -> None:
    bench.account.faults.set(json.dumps({"kind": "connection", "how": how}).encode())
    with pytest.raises(openai.APIConnectionError):
        await bench.run(client, lambda c: c.chat.completions.create(model=CHAT, messages=messages()))


@pytest.mark.parametrize("client", CLIENTS)
async def test_a_hang_is_a_timeout(bench: Bench, client: str) -> None:
    asked = {"model": CHAT, "messages": messages("[[hang]]"), "timeout": 0.2}
    with pytest.raises(openai.APITimeoutError):
        await bench.run(client, lambda c: c.chat.completions.create(**asked))


@pytest.mark.parametrize(
    ("known", "params"),
    [
        (parameters.CHAT, CompletionCreateParamsStreaming),
        (parameters.RESPONSES, ResponseCreateParamsStreaming),
        (parameters.COMPLETIONS, PlainParams),
        (parameters.EMBEDDINGS, EmbeddingCreateParams),
    ],
)
def test_no_parameter_of_the_package_is_unknown_to_the_service(known: frozenset[str], params: Any) -> None:
    assert set(get_type_hints(params)) <= known
