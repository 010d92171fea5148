"""The embedded Azure OpenAI answers the real openai client, on both surfaces, as the service does."""

import ssl
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import httpx2
import openai
import pytest
from aiohttp.test_utils import TestServer
from openai import AsyncAzureOpenAI, AsyncOpenAI
from openai.types.chat import ChatCompletion
from openai.types.responses import ResponseInputItemParam

from embedded_azure.config import DEFAULT_ACCOUNT, Deployment, default_config
from embedded_azure.entra.service import load_entra
from embedded_azure.models import EMBEDDINGS, INSTRUCT, SMALL
from embedded_azure.openai.__main__ import load_account, load_accounts
from embedded_azure.openai.account import Account
from embedded_azure.openai.app import build_app
from embedded_azure.process import server_context
from embedded_azure.state import StateDirectory
from embedded_azure.supervisor import prepare_state

CONFIG = default_config()


class Bench:
    """An account on loopback, in this loop, with tokens fresh from the embedded Entra."""

    def __init__(self, state: StateDirectory, account: Account, http: httpx2.AsyncClient, endpoint: str) -> None:
        self.account = account
        self._state = state
        self._http = http
        self._endpoint = endpoint

    async def token(self, identity: str = "worker") -> str:
        form = {
            "client_id": CONFIG.identity(identity).client_id,
            "scope": "https://cognitiveservices.azure.com/.default",
            "grant_type": "client_credentials",
            "client_assertion": self._state.projected_token(identity).read_text(),
            "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
        }
        return str(load_entra(self._state).grant(CONFIG.tenant_id, form)["access_token"])

    async def strangers_token(self) -> str:
        return await self.token("stranger")

    def v1(self) -> AsyncOpenAI:
        return AsyncOpenAI(
            base_url=f"{self._endpoint}/openai/v1/", api_key=self.token, http_client=self._http, max_retries=0
        )

    def azure(self) -> AsyncAzureOpenAI:
        return AsyncAzureOpenAI(
            azure_endpoint=self._endpoint,
            api_version="2025-04-01-preview",
            azure_ad_token_provider=self.token,
            http_client=self._http,
            max_retries=0,
        )

    def stranger(self) -> AsyncOpenAI:
        return AsyncOpenAI(
            base_url=f"{self._endpoint}/openai/v1/",
            api_key=self.strangers_token,
            http_client=self._http,
            max_retries=0,
        )


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    state = StateDirectory(tmp_path)
    prepare_state(state, CONFIG)
    account = load_account(state)
    server = TestServer(build_app(account), scheme="https")
    await server.start_server(ssl=server_context(state))
    trust = ssl.create_default_context(cafile=str(state.ca))
    try:
        async with httpx2.AsyncClient(verify=trust) as http:
            yield Bench(state, account, http, f"https://localhost:{server.port}")
    finally:
        await server.close()


async def ask(client: AsyncOpenAI, question: str, model: str = SMALL) -> ChatCompletion:
    return await client.chat.completions.create(model=model, messages=[{"role": "user", "content": question}])


async def test_both_clients_get_the_same_answer_to_the_same_question(bench: Bench) -> None:
    one, other = await ask(bench.v1(), "What is 17 + 25?"), await ask(bench.azure(), "What is 17 + 25?")
    content = one.choices[0].message.content
    assert content is not None
    assert content.startswith("17 + 25 = 42")
    assert other.choices[0].message.content == content
    assert one.usage is not None
    assert one.usage.total_tokens == one.usage.prompt_tokens + one.usage.completion_tokens


async def test_the_answer_carries_azures_extra_fields_and_headers(bench: Bench) -> None:
    raw = await bench.v1().chat.completions.with_raw_response.create(
        model=SMALL, messages=[{"role": "user", "content": "hi"}]
    )
    answer = raw.parse()
    assert raw.request_id == raw.headers["apim-request-id"]
    assert raw.headers["x-ms-deployment-name"] == SMALL
    assert answer.model_extra is not None
    assert answer.model_extra["prompt_filter_results"][0]["prompt_index"] == 0


async def test_a_blocked_prompt_is_a_bad_request_with_the_code_content_filter(bench: Bench) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await ask(bench.azure(), "[[content-filter]]")
    assert refused.value.code == "content_filter"


async def test_a_missing_deployment_is_not_found(bench: Bench) -> None:
    for client in (bench.v1(), bench.azure()):
        with pytest.raises(openai.NotFoundError) as refused:
            await ask(client, "hi", "gpt-9")
        assert refused.value.code == "DeploymentNotFound"


async def test_a_throttle_is_a_rate_limit_error_with_its_header(bench: Bench) -> None:
    bench.account.faults.set(b'{"status": 429, "count": 1, "retry_after_ms": 800}')
    with pytest.raises(openai.RateLimitError) as refused:
        await ask(bench.v1(), "hi")
    assert refused.value.response.headers["retry-after-ms"] == "800"
    assert (await ask(bench.v1(), "hi")).choices


async def test_the_sdk_retries_a_failure_by_the_header_it_was_sent(bench: Bench) -> None:
    bench.account.faults.set(b'{"status": 429, "count": 2, "retry_after_ms": 1}')
    assert (await ask(bench.v1().with_options(max_retries=2), "hi")).choices


async def test_a_principal_without_the_role_is_an_authentication_error(bench: Bench) -> None:
    with pytest.raises(openai.AuthenticationError) as refused:
        await ask(bench.stranger(), "hi")
    assert refused.value.code == "PermissionDenied"


async def test_a_key_smuggled_into_the_headers_is_refused(bench: Bench) -> None:
    client = bench.v1().with_options(default_headers={"api-key": "0" * 32})
    with pytest.raises(openai.PermissionDeniedError) as refused:
        await ask(client, "hi")
    assert refused.value.code == "AuthenticationTypeDisabled"


CHAT, VECTORS = SMALL, EMBEDDINGS


async def test_a_response_is_read_by_both_clients(bench: Bench) -> None:
    for client in (bench.v1(), bench.azure()):
        response = await client.responses.create(model=CHAT, input="What is 17 + 25?", store=False)
        assert response.output_text.startswith("17 + 25 = 42")
        assert response.id.startswith("resp_")
        assert (response.status, response.model_extra and response.model_extra["store"]) == ("completed", False)
        usage = response.usage
        assert usage is not None
        assert usage.total_tokens == usage.input_tokens + usage.output_tokens
        assert usage.input_tokens_details.cached_tokens == 0
        assert usage.output_tokens_details.reasoning_tokens == 128  # of the effort medium
        assert response.model_extra is not None
        assert response.model_extra["content_filters"][0]["source_type"] == "prompt"


async def test_a_response_that_max_output_tokens_cuts_is_incomplete(bench: Bench) -> None:
    messages: list[ResponseInputItemParam] = [{"role": "user", "content": "[[tokens:100]] Tell me all."}]
    response = await bench.v1().responses.create(model=CHAT, input=messages, max_output_tokens=20)
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.usage is not None
    assert response.usage.output_tokens == 20


async def test_a_completion_is_read_by_both_clients(bench: Bench) -> None:
    for client in (bench.v1(), bench.azure()):
        completion = await client.completions.create(
            model=INSTRUCT, prompt=["What is 17 + 25?", "Tell me all. " * 9]
        )
        assert completion.object == "text_completion"
        assert completion.choices[0].text.startswith("17 + 25 = 42")
        assert completion.choices[1].finish_reason == "length"
        assert completion.usage is not None
        assert completion.usage.completion_tokens <= 2 * 16


async def test_embeddings_are_the_same_floats_in_both_encodings_and_by_both_clients(bench: Bench) -> None:
    texts = ["to be", "or not to be"]
    # the client asks for base64 itself where no encoding is named
    packed = await bench.v1().embeddings.create(model=VECTORS, input=texts, dimensions=256)
    plain = await bench.azure().embeddings.create(
        model=VECTORS, input=texts, dimensions=256, encoding_format="float"
    )
    assert [one.index for one in packed.data] == [0, 1]
    for one, other in zip(packed.data, plain.data, strict=True):
        assert len(one.embedding) == 256
        assert one.embedding == pytest.approx(other.embedding)
    assert packed.data[0].embedding != packed.data[1].embedding
    assert packed.usage.total_tokens == packed.usage.prompt_tokens > 0


async def test_an_operation_that_the_model_is_not_for_is_a_bad_request(bench: Bench) -> None:
    client = bench.v1()
    with pytest.raises(openai.BadRequestError) as refused:
        await ask(client, "hi", VECTORS)
    assert refused.value.code == "OperationNotSupported"
    with pytest.raises(openai.BadRequestError) as refused:
        await client.embeddings.create(model=CHAT, input="hi")
    assert refused.value.code == "OperationNotSupported"


def test_a_config_has_an_account_for_each_name_that_a_deployment_gives(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path)
    european = Deployment(name=CHAT, model=CHAT, account="eu")
    prepare_state(state, replace(CONFIG, deployments=(*CONFIG.deployments, european)))
    accounts = load_accounts(state)
    assert set(accounts) == {DEFAULT_ACCOUNT, "eu"}
    assert list(accounts["eu"].deployments) == [CHAT]
