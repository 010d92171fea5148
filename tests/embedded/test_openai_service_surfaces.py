"""The two surfaces of the embedded Azure OpenAI, its lists, its accounts, and how it breaks over HTTP."""

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import ClientConnectionError, ClientError, ClientSession, ClientTimeout
from aiohttp.test_utils import TestServer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedded_azure.certificates import private_pem, public_pem
from embedded_azure.config import Config, Deployment, RoleAssignment
from embedded_azure.entra.tokens import AccessTokens, TokenIssuer
from embedded_azure.models import INSTRUCT as INSTRUCT_MODEL
from embedded_azure.models import LARGE, SMALL
from embedded_azure.openai.account import Account
from embedded_azure.openai.app import build_apps
from embedded_azure.openai.models import Model, model_of
from tests.support.openai_service import (
    CONFIG,
    KEY,
    V1,
    Client,
    bearer,
    body,
    open_client,
    token,
)
from tests.support.patience import PATIENCE

CHAT = "/openai/deployments/plain/chat/completions"
RESPONSES = "/openai/responses"


@pytest.mark.parametrize(
    ("path", "version", "status", "words"),
    [
        (CHAT, None, 404, "Resource not found"),
        (CHAT, "", 404, "Resource not found"),
        (CHAT, "2024-10-22", 404, "Resource not found"),
        (CHAT, "latest", 404, "Resource not found"),
        (CHAT, "2024-10-21", 200, ""),
        (CHAT, "2025-04-01-preview", 200, ""),
        (RESPONSES, "2024-10-21", 400, "enabled only for api-version 2025-03-01-preview and later"),
        (RESPONSES, "2025-03-01-preview", 200, ""),
        ("/openai/v1/chat/completions", "2024-10-21", 400, "API version not supported"),
        ("/openai/v1/chat/completions", "preview", 200, ""),
    ],
)
async def test_each_surface_takes_its_own_api_versions(
    path: str, version: str | None, status: int, words: str
) -> None:
    query = "" if version is None else f"?api-version={version}"
    said = {"model": "plain", "input": "hi"} if path == RESPONSES else body()
    async with open_client(CONFIG) as client:
        got, document, _ = await client.post(f"{path}{query}", said)
    assert got == status
    if status != 200:
        assert words in document["error"]["message"]


async def get(client: Client, path: str, identity: str = "worker") -> tuple[int, Any]:
    headers = bearer(token(CONFIG.identity(identity)))
    async with client.session.get(path, headers=headers) as response:
        return response.status, await response.json()


@pytest.mark.parametrize("path", ["/openai/v1/models", "/openai/models?api-version=2024-10-21"])
async def test_models_are_listed_on_both_surfaces(path: str) -> None:
    async with open_client(CONFIG) as client:
        status, document = await get(client, path)
    assert (status, document["object"]) == (200, "list")
    by_name = {model["id"]: model["capabilities"] for model in document["data"]}
    assert by_name["plain-2026-03-17"]["chat_completion"] is True
    assert by_name["text-embedding-3-small"]["embeddings"] is True


async def test_one_model_is_found_by_its_name_and_not_by_that_of_its_deployment() -> None:
    async with open_client(CONFIG) as client:
        assert (await get(client, "/openai/v1/models/plain-2026-03-17"))[0] == 200
        status, document = await get(client, "/openai/v1/models/plain")
    assert (status, document["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(("version", "status"), [("2023-03-15-preview", 200), ("2024-10-21", 404)])
async def test_deployments_are_listed_by_old_api_versions_only(version: str, status: int) -> None:
    async with open_client(CONFIG) as client:
        got, document = await get(client, f"/openai/deployments?api-version={version}")
    assert got == status
    if status == 200:
        assert {one["id"] for one in document["data"]} == {spec.name for spec in CONFIG.deployments}


async def test_a_stranger_lists_nothing() -> None:
    async with open_client(CONFIG) as client:
        status, document = await get(client, "/openai/v1/models", "stranger")
    assert (status, document["error"]["code"]) == (401, "PermissionDenied")
    assert "OpenAI/models/read" in document["error"]["message"]


# Several accounts


def two_accounts() -> Config:
    stranger = CONFIG.identity("stranger")
    role = RoleAssignment(object_id=stranger.object_id, role="Cognitive Services OpenAI User", scope="openai/eu")
    return replace(
        CONFIG,
        role_assignments=(*CONFIG.role_assignments, role),
        deployments=(
            Deployment(name="gpt", model="gpt-5.4", latency=0.0),
            Deployment(name="gpt", model="gpt-5.4-mini", latency=0.0, account="eu"),
        ),
    )


async def test_each_account_has_its_own_deployments_roles_faults_and_counters() -> None:
    config = two_accounts()
    tokens = AccessTokens(public_pem(KEY), TokenIssuer(private_pem(KEY), CONFIG.tenant_id, 60.0).issuer)
    accounts = {name: Account(config, tokens, name=name) for name in ("default", "eu")}
    server = TestServer(build_apps(accounts, "default"))
    await server.start_server()
    try:
        async with ClientSession(server.make_url("/")) as session:
            client = Client(session, "")
            eu = "/accounts/eu"
            assert (await client.post(V1, body(model="gpt")))[1]["model"] == "gpt-5.4"
            assert (await client.post(eu + V1, body(model="gpt")))[1]["model"] == "gpt-5.4-mini"
            strange = bearer(token(CONFIG.identity("stranger")))
            assert (await client.post(V1, body(model="gpt"), strange))[0] == 401
            assert (await client.post(eu + V1, body(model="gpt"), strange))[0] == 200
            assert await client.set_fault(status=500) == 200
            assert (await client.post(V1, body(model="gpt")))[0] == 500
            assert (await client.post(eu + V1, body(model="gpt")))[0] == 200
            assert (await client.stats())["by_status"] == {"200": 1, "500": 1}
            assert (await client.post("/accounts/us" + V1, body(model="gpt")))[0] == 404
    finally:
        await server.close()


# What a model does not take


REASONING = Deployment(name="reasons", model=SMALL, latency=0.0)
PLAIN = Deployment(name="plain", model="plain", latency=0.0)
INSTRUCT = Deployment(name="instruct", model=INSTRUCT_MODEL, kind="completions", latency=0.0)
MODELS = replace(CONFIG, deployments=(REASONING, PLAIN, INSTRUCT))
LONG = "x" * 4 * 128_100


@pytest.mark.parametrize(
    ("path", "fields", "code", "param"),
    [
        (V1, {**body(LONG), "model": "plain"}, "context_length_exceeded", "messages"),
        (
            V1,
            {**body("x" * 4 * 127_000), "model": "plain", "max_tokens": 2_000},
            "context_length_exceeded",
            "messages",
        ),
        (V1, {**body(), "model": "plain", "max_tokens": 16_385}, "invalid_value", "max_tokens"),
        (V1, {**body(), "model": "reasons", "max_tokens": 9}, "unsupported_parameter", "max_tokens"),
        (V1, {**body(), "model": "reasons", "temperature": 0.2}, "unsupported_value", "temperature"),
        (V1, {**body(), "model": "reasons", "top_p": 0.9}, "unsupported_parameter", "top_p"),
        (V1, {**body(), "model": "reasons", "presence_penalty": 1}, "unsupported_parameter", "presence_penalty"),
        (
            V1,
            {**body(), "model": "reasons", "reasoning_effort": "none", "max_tokens": 9},
            "unsupported_parameter",
            "max_tokens",
        ),
        (V1, {**body(), "model": "plain", "temperature": 2.1}, "decimal_above_max_value", "temperature"),
        (V1, {**body(), "model": "plain", "temperature": -1}, "decimal_below_min_value", "temperature"),
        (V1, {**body(), "model": "plain", "temperature": "hot"}, "invalid_type", "temperature"),
        (V1, {**body(), "model": "plain", "tempo": 1}, None, None),
        ("/openai/v1/responses", {"model": "plain", "input": LONG}, "context_length_exceeded", "input"),
        ("/openai/v1/responses", {"model": "plain", "input": "a", "n": 1}, "unknown_parameter", "n"),
        ("/openai/v1/completions", {"model": "instruct", "prompt": LONG}, "context_length_exceeded", None),
    ],
)
async def test_what_the_model_does_not_take_is_refused_as_the_service_does(
    path: str, fields: dict[str, Any], code: str | None, param: str | None
) -> None:
    async with open_client(MODELS) as client:
        status, document, _ = await client.post(path, fields)
    error = document["error"]
    assert (status, error["type"], error["code"], error["param"]) == (400, "invalid_request_error", code, param)


async def test_a_model_that_reasons_names_what_takes_the_place_of_max_tokens() -> None:
    async with open_client(replace(CONFIG, deployments=(REASONING,))) as client:
        status, document, _ = await client.post(V1, {**body(), "model": "reasons", "max_tokens": 9})
        assert status == 400
        assert document["error"] == {
            "message": "Unsupported parameter: 'max_tokens' is not supported with this model. "
            "Use 'max_completion_tokens' instead.",
            "type": "invalid_request_error",
            "param": "max_tokens",
            "code": "unsupported_parameter",
        }
        asked = {**body(), "model": "reasons", "max_completion_tokens": 90, "reasoning_effort": "low"}
        status, document, _ = await client.post(V1, asked)
    assert status == 200
    assert document["usage"]["completion_tokens_details"]["reasoning_tokens"] == 64
    assert 64 < document["usage"]["completion_tokens"] <= 90


def test_a_model_is_known_by_the_longest_beginning_of_its_name() -> None:
    assert model_of(f"{LARGE}-2026-03-05").reasons
    assert model_of(f"{INSTRUCT_MODEL}-0914").context == 4_097
    assert model_of("something-new") == Model()


# Broken connections and bodies


@pytest.mark.parametrize("how", ["reset", "close"])
async def test_a_connection_may_be_lost_instead_of_an_answer(how: str) -> None:
    async with open_client(CONFIG) as client:
        await client.set_fault(kind="connection", how=how, count=1)
        with pytest.raises(ClientConnectionError):
            await client.ask("hi")
        assert (await client.ask("hi"))[0] == 200


async def test_a_connection_may_hang_before_the_headers() -> None:
    async with open_client(CONFIG) as client:
        await client.set_fault(kind="connection", how="hang")
        with pytest.raises(TimeoutError):
            await client.session.post(V1, json=body(), headers=bearer(token()), timeout=ClientTimeout(total=0.05))


@pytest.mark.parametrize(("how", "error"), [("cut", ClientError), ("hang", TimeoutError)])
async def test_a_body_may_stop_in_its_midst(how: str, error: type[Exception]) -> None:
    async with open_client(CONFIG) as client:
        await client.set_fault(kind="body", how=how, after=30)
        async with client.session.post(V1, json=body(), headers=bearer(token())) as response:
            assert response.status == 200
            assert len(await response.content.readexactly(30)) == 30
            patience = 0.05 if how == "hang" else PATIENCE
            with pytest.raises(error):
                await asyncio.wait_for(response.content.readany(), patience)


async def test_a_malformed_body_has_a_length_that_fits_it() -> None:
    async with open_client(CONFIG) as client:
        await client.set_fault(kind="body", how="malformed", after=30)
        async with client.session.post(V1, json=body(), headers=bearer(token())) as response:
            content = await response.read()
    assert (response.status, len(content)) == (200, 30)
    with pytest.raises(json.JSONDecodeError):
        json.loads(content)


async def test_a_slow_link_delivers_all_of_it() -> None:
    async with open_client(CONFIG) as client:
        await client.set_fault(kind="body", how="slow", after=0, bytes_per_second=100_000)
        assert (await client.ask("hi"))[1]["choices"]


# Garbage


PATHS = st.sampled_from(
    ["/", "/openai", "/openai/v1/models/x", "/openai/v1/chat/completions", CHAT, "/accounts/x/y"]
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(
    st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"]),
    PATHS,
    st.binary(max_size=200),
    st.dictionaries(
        st.sampled_from(["Authorization", "Content-Type", "x-ms-client-request-id", "x-ms-spillover-deployment"]),
        st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40),
    ),
    st.booleans(),
)
async def test_a_garbage_request_is_refused_and_never_crashes_the_service(
    method: str, path: str, data: bytes, headers: dict[str, str], signed: bool
) -> None:
    sent = {**headers, **(bearer(token()) if signed else {})}
    async with (
        open_client(CONFIG) as client,
        client.session.request(method, path, data=data, headers=sent) as response,
    ):
        assert 400 <= response.status < 500
        content = await response.read()
        if method != "HEAD":
            assert json.loads(content)["error"]["message"]


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_a_body_that_is_not_compressed_as_it_says_is_refused(encoding: str) -> None:
    headers = {**bearer(token()), "Content-Encoding": encoding}
    async with (
        open_client(CONFIG) as client,
        client.session.post(V1, data=b"not compressed at all", headers=headers) as response,
    ):
        assert response.status == 400
