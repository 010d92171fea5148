"""The embedded Azure OpenAI over HTTP: who may call, what a call meets, and what is counted."""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import ClientConnectionError, ClientTimeout

from embedded_azure.config import Deployment
from tests.support.openai_service import (
    CONFIG,
    DEPLOYMENTS,
    STRANGER,
    V1,
    Client,
    bearer,
    body,
    open_client,
    token,
)
from tests.support.patience import PATIENCE
from worker.azure.openai.refusals import Exchange, classify
from worker.errors import Cause
from worker.interfaces import Target


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with open_client(CONFIG) as opened:
        yield opened


async def test_both_surfaces_answer_a_bearer_of_the_role(client: Client) -> None:
    status, by_model, _ = await client.post()
    assert status == 200
    path = "/openai/deployments/plain/chat/completions?api-version=2024-10-21"
    status, by_path, headers = await client.post(path, {"messages": body()["messages"]})
    assert status == 200
    assert by_model["choices"] == by_path["choices"]
    assert by_model["model"] == "plain-2026-03-17"
    assert headers["x-ms-deployment-name"] == "plain"
    assert headers["apim-request-id"] == headers["x-request-id"]


async def test_the_newer_audience_is_accepted_too(client: Client) -> None:
    status, _, _ = await client.post(headers=bearer(token(audience="https://ai.azure.com")))
    assert status == 200


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Basic eDp5"}, {"Authorization": "Bearer "}])
async def test_a_caller_without_a_token_is_refused(client: Client, headers: dict[str, str]) -> None:
    status, document, _ = await client.post(headers=headers)
    assert (status, document["error"]["code"]) == (401, "401")


BAD_TOKENS = [
    bearer("rubbish"),
    bearer(token(audience="https://servicebus.azure.net")),
    bearer(token(lifetime=-1.0)),
]


@pytest.mark.parametrize("headers", BAD_TOKENS)
async def test_a_bad_token_is_refused_without_the_envelope_of_an_error(
    client: Client, headers: dict[str, str]
) -> None:
    status, document, _ = await client.post(headers=headers)
    assert (status, document["statusCode"], set(document)) == (401, 401, {"statusCode", "message"})
    assert "audience is incorrect (https://cognitiveservices.azure.com)" in document["message"]
    assert cause_of(status, document) is Cause.TOKEN_REFUSED


async def test_a_token_of_another_tenant_is_a_bad_request(client: Client) -> None:
    status, document, _ = await client.post(headers=bearer(token(tenant="another")))
    assert (status, document["error"]["message"]) == (400, "Token tenant another does not match resource tenant.")
    assert cause_of(status, document) is Cause.WRONG_TENANT


PROJECT = f"/api/projects/batch{V1}"


async def test_the_endpoint_of_a_project_takes_tokens_of_its_own_audience_only(client: Client) -> None:
    assert (await client.post(PROJECT, headers=bearer(token(audience="https://ai.azure.com"))))[0] == 200
    status, document, _ = await client.post(PROJECT)
    assert status == 401
    assert "audience is incorrect (https://ai.azure.com)" in document["message"]


@pytest.mark.parametrize(
    ("fault", "causes"),
    [
        ({"kind": "access", "how": "role"}, [Cause.ROLE_MISSING] * 4),
        ({"kind": "access", "how": "spreading"}, [Cause.ROLE_MISSING, Cause.ROLE_SPREADING] * 2),
        ({"kind": "access", "how": "token"}, [Cause.TOKEN_REFUSED] * 4),
        ({"kind": "access", "how": "tenant"}, [Cause.WRONG_TENANT] * 4),
        ({"kind": "network", "how": "firewall"}, [Cause.NETWORK_CLOSED] * 4),
        ({"kind": "network", "how": "private"}, [Cause.NETWORK_CLOSED] * 4),
    ],
)
async def test_a_wrong_set_up_comes_on_demand_and_the_worker_knows_its_cause(
    client: Client, fault: dict[str, object], causes: list[Cause]
) -> None:
    await client.set_fault(**fault, count=4)
    found = [cause_of(*(await client.post())[:2]) for _ in causes]
    assert found == causes
    assert (await client.post())[0] == 200


async def test_more_than_ten_custom_headers_are_refused(client: Client) -> None:
    usual = bearer(token()) | {f"x-stainless-{number}": "1" for number in range(12)}
    ten = usual | {f"x-mine-{number}": "1" for number in range(10)}
    assert (await client.post(headers=ten))[0] == 200
    assert (await client.post(headers=ten | {"x-mine-10": "1"}))[0] == 431


async def test_a_caller_without_the_role_is_refused_by_name(client: Client) -> None:
    status, document, _ = await client.post(headers=bearer(token(STRANGER)))
    assert (status, document["error"]["code"]) == (401, "PermissionDenied")
    assert f"The principal `{STRANGER.object_id}` lacks the required data action" in document["error"]["message"]


@pytest.mark.parametrize("extra", [{}, bearer(token())])
async def test_an_api_key_is_refused_even_beside_a_token(client: Client, extra: dict[str, str]) -> None:
    status, document, _ = await client.post(headers={"api-key": "0" * 32, **extra})
    assert (status, document["error"]["code"]) == (403, "AuthenticationTypeDisabled")


def cause_of(status: int, document: dict[str, Any]) -> Cause | None:
    """As the worker reads it."""
    target = Target(deployment="mini", endpoint="https://account.openai.azure.com")
    return classify(status, json.dumps(document).encode(), Exchange(target=target, headers={})).cause


ACCOUNT = "/subscriptions/s/resourceGroups/g/providers/Microsoft.CognitiveServices/accounts/a"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", f"{ACCOUNT}/listKeys", 403),
        ("POST", f"{ACCOUNT}/regenerateKey", 403),
        ("PUT", f"{ACCOUNT}/deployments/gpt-5.4", 403),
        ("PUT", "/openai/deployments/gpt-5.4", 403),
        ("DELETE", "/openai/deployments/plain", 403),
        ("POST", "/openai/deployments", 403),
        ("GET", "/openai/deployments", 404),
        ("GET", "/", 404),
    ],
)
async def test_the_role_neither_lists_keys_nor_changes_deployments(
    client: Client, method: str, path: str, status: int
) -> None:
    async with client.session.request(method, path, headers=bearer(token())) as response:
        assert response.status == status
    async with client.session.request(method, path) as response:
        assert response.status == 401
    assert (await client.post())[0] == 200


async def test_an_unknown_deployment_is_not_found(client: Client) -> None:
    status, document, _ = await client.ask("hi", model="gpt-9")
    assert (status, document["error"]["code"]) == (404, "DeploymentNotFound")


async def test_a_body_without_a_model_is_refused_on_the_v1_surface(client: Client) -> None:
    status, document, _ = await client.post(document={"messages": body()["messages"]})
    assert (status, document["error"]["type"]) == (400, "invalid_request_error")


async def test_the_deployments_surface_wants_an_api_version(client: Client) -> None:
    status, _, _ = await client.post("/openai/deployments/plain/chat/completions")
    assert status == 404


async def test_a_body_beyond_all_measure_is_refused(client: Client) -> None:
    huge = io.BytesIO(json.dumps(body("x" * (17 << 20))).encode())
    async with client.session.post(V1, data=huge, headers=bearer(token())) as response:
        assert (response.status, (await response.json())["error"]["code"]) == (413, "413")


async def test_a_filtered_prompt_is_400_with_the_policy(client: Client) -> None:
    status, document, _ = await client.ask("[[content-filter]]")
    error = document["error"]
    assert (status, error["code"]) == (400, "content_filter")
    assert error["innererror"]["code"] == "ResponsibleAIPolicyViolation"
    assert error["innererror"]["content_filter_result"]["hate"]["filtered"] is True


async def test_what_the_filter_found_in_a_prompt_may_be_left_out(client: Client) -> None:
    status, document, _ = await client.ask("[[content-filter-bare]]")
    assert (status, document["error"]["code"]) == (400, "content_filter")
    assert "innererror" not in document["error"]


async def test_a_filtered_prompt_of_responses_lists_what_its_filters_found(client: Client) -> None:
    asked = {"model": "plain", "input": "[[content-filter]]"}
    status, document, _ = await client.post("/openai/v1/responses", asked)
    error = document["error"]
    assert (status, error["code"], error["param"]) == (400, "content_filter", "prompt")
    (found,) = error["content_filters"]
    assert (found["blocked"], found["source_type"]) == (True, "prompt")
    assert "innererror" not in error


async def test_a_filtered_answer_is_200_and_says_so(client: Client) -> None:
    status, document, _ = await client.ask("[[content-filter-answer]]")
    choice = document["choices"][0]
    assert (status, choice["finish_reason"], choice["message"]["content"]) == (200, "content_filter", "")


async def test_a_prompt_may_fail_so_many_times_and_then_be_answered(client: Client) -> None:
    statuses = [(await client.ask("[[status:503x2]] now?"))[0] for _ in range(4)]
    assert statuses == [503, 503, 200, 200]
    assert (await client.ask("[[status:503x2]] another?"))[0] == 503


async def test_a_prompt_may_always_fail(client: Client) -> None:
    assert [(await client.ask("[[status:500]]"))[0] for _ in range(3)] == [500] * 3


async def test_a_malformed_answer_is_200_without_sense(client: Client) -> None:
    async with client.session.post(V1, json=body("[[malformed]]"), headers=bearer(token())) as response:
        assert response.status == 200
        content = await response.read()
    with pytest.raises(json.JSONDecodeError):
        json.loads(content)


async def test_a_hanging_call_ends_when_its_client_gives_up(client: Client) -> None:
    with pytest.raises((TimeoutError, ClientConnectionError)):
        await client.session.post(
            V1, json=body("[[hang]]"), headers=bearer(token()), timeout=ClientTimeout(total=0.05)
        )
    stats = await until(client.stats, lambda stats: stats["in_flight"] == 0)
    assert stats["by_status"] == {"499": 1}


async def until(
    read: Callable[[], Awaitable[dict[str, Any]]], good: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    """The server learns of a closed connection in its own time: ask it again, each question a turn of the loop."""
    async with asyncio.timeout(PATIENCE):
        while not good(document := await read()):
            pass
        return document


async def test_a_full_quota_is_429_with_azures_headers(client: Client) -> None:
    assert (await client.ask("hi", model="small"))[0] == 200
    status, document, headers = await client.ask("hi", model="small")
    assert (status, document["error"]["code"]) == (429, "RateLimitReached")
    assert "exceeded the call rate limit" in document["error"]["message"]
    assert (headers["retry-after"], headers["retry-after-ms"]) == ("1", "1000")
    assert headers["x-ratelimit-limit-requests"] == "60"


async def test_tokens_are_charged_on_max_tokens_and_not_on_what_was_used(client: Client) -> None:
    status, _, headers = await client.ask("hi", model="small", max_tokens=900)
    assert status == 200
    assert int(headers["x-ratelimit-remaining-tokens"]) < 100


async def test_a_throttle_on_demand_hits_its_deployment_only(client: Client) -> None:
    assert await client.set_fault(status=429, count=1, retry_after_ms=800, deployment="small") == 200
    assert (await client.ask("hi"))[0] == 200
    status, _, headers = await client.ask("hi", model="small")
    assert (status, headers["retry-after-ms"], headers.get("retry-after")) == (429, "800", None)
    assert (await client.ask("hi", model="small"))[0] == 200


async def test_a_fault_that_makes_no_sense_is_refused(client: Client) -> None:
    assert await client.set_fault(status=429, deployment="gpt-9") == 400
    assert (await client.ask("hi"))[0] == 200


async def test_counters_show_double_payment_and_the_peak(client: Client) -> None:
    digests = {(await client.ask("once"))[1]["choices"][0]["message"]["content"].split()[1]}
    await asyncio.gather(*(client.ask("twice") for _ in range(2)))
    await client.ask("[[status:503]]")
    stats = await client.stats()
    assert stats["by_status"] == {"200": 3, "503": 1}
    assert sorted(stats["answers"].values()) == [1, 2]
    assert digests < set(stats["answers"])
    assert stats["answered_more_than_once"] == 1
    assert stats["tokens"]["completion"] > 0
    assert 1 <= stats["concurrent_peak"] <= 2


async def test_a_fault_in_the_config_is_there_from_the_start() -> None:
    config = replace(CONFIG, faults={"openai": {"status": 503, "count": 1}})
    async with open_client(config) as client:
        assert [(await client.ask("hi"))[0] for _ in range(2)] == [503, 200]


HI = [{"role": "user", "content": "hi"}]
CALLS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("/openai/v1/chat/completions", "plain", {"messages": HI}),
    ("/openai/v1/responses", "plain", {"input": "hi"}),
    ("/openai/v1/completions", "instruct", {"prompt": "hi"}),
    ("/openai/v1/embeddings", "vectors", {"input": "hi"}),
)
VERSIONED = {
    "/openai/v1/chat/completions": "/openai/deployments/{}/chat/completions?api-version=2024-10-21",
    "/openai/v1/responses": "/openai/responses?api-version=2025-04-01-preview",
    "/openai/v1/completions": "/openai/deployments/{}/completions?api-version=2024-10-21",
    "/openai/v1/embeddings": "/openai/deployments/{}/embeddings?api-version=2024-10-21",
}
UNLIKE = {"id", "created", "created_at"}


@pytest.mark.parametrize(("path", "model", "fields"), CALLS)
async def test_every_operation_is_on_both_surfaces(path: str, model: str, fields: dict[str, Any]) -> None:
    async with open_client(replace(CONFIG, deployments=tuple(map(unlimited, DEPLOYMENTS)))) as client:
        status, one, headers = await client.post(path, {"model": model, **fields})
        assert (status, headers["x-ms-deployment-name"]) == (200, model)
        status, other, _ = await client.post(VERSIONED[path].format(model), {"model": model, **fields})
        assert status == 200
        assert (await client.post(VERSIONED[path].format(model).partition("?")[0], {"model": model}))[0] == 404
    assert without_ids(one) == without_ids(other)


def unlimited(deployment: Deployment) -> Deployment:
    return replace(deployment, requests_per_minute=None, tokens_per_minute=None)


def without_ids(document: dict[str, Any]) -> dict[str, Any]:
    output = [{**item, "id": ""} for item in document.get("output", [])]
    return {name: value for name, value in document.items() if name not in UNLIKE} | {"output": output}


@pytest.mark.parametrize(
    ("path", "action", "operation"),
    [
        (
            "/openai/v1/chat/completions",
            "deployments/chat/completions/action",
            "/openai/deployments/{deployment-id}/chat/completions",
        ),
        ("/openai/v1/responses", "responses/write", "/openai/responses"),
        (
            "/openai/v1/completions",
            "deployments/completions/action",
            "/openai/deployments/{deployment-id}/completions",
        ),
        (
            "/openai/v1/embeddings",
            "deployments/embeddings/action",
            "/openai/deployments/{deployment-id}/embeddings",
        ),
    ],
)
async def test_the_data_action_that_a_caller_lacks_is_that_of_the_operation(
    client: Client, path: str, action: str, operation: str
) -> None:
    status, document, _ = await client.post(path, {}, bearer(token(STRANGER)))
    assert (status, document["error"]["code"]) == (401, "PermissionDenied")
    message = document["error"]["message"]
    assert f"`Microsoft.CognitiveServices/accounts/OpenAI/{action}` to perform `POST {operation}`" in message


@pytest.mark.parametrize(
    ("path", "model", "named"),
    [
        ("/openai/v1/chat/completions", "vectors", "chatCompletion"),
        ("/openai/v1/chat/completions", "instruct", "chatCompletion"),
        ("/openai/v1/responses", "vectors", "responses"),
        ("/openai/v1/completions", "plain", "completion"),
        ("/openai/v1/embeddings", "plain", "embeddings"),
    ],
)
async def test_an_operation_that_the_model_is_not_for_is_refused(
    client: Client, path: str, model: str, named: str
) -> None:
    status, document, _ = await client.post(path, {"model": model})
    assert (status, document["error"]["code"]) == (400, "OperationNotSupported")
    assert document["error"]["message"].startswith(
        f"The {named} operation does not work with the specified model, "
    )


@pytest.mark.parametrize(("path", "model", "fields"), CALLS)
async def test_faults_and_phrases_are_met_by_every_operation(path: str, model: str, fields: dict[str, Any]) -> None:
    failing = json.loads(json.dumps(fields).replace('"hi"', '"[[status:503x1]] hi"'))
    async with open_client(replace(CONFIG, deployments=tuple(map(unlimited, DEPLOYMENTS)))) as client:
        await client.set_fault(status=500, count=1, deployment=model)
        statuses = [(await client.post(path, {"model": model, **failing}))[0] for _ in range(3)]
        stats = await client.stats()
    assert statuses == [500, 503, 200]
    assert stats["by_deployment"] == {model: {"500": 1, "503": 1, "200": 1}}
    assert sum(stats["answers"].values()) == 1


async def test_the_quota_is_charged_for_embeddings_by_their_input_alone(client: Client) -> None:
    call = {"model": "vectors", "input": "12345678" * 10}
    status, _, headers = await client.post("/openai/v1/embeddings", call)
    assert (status, headers["x-ratelimit-remaining-tokens"]) == (200, "980")
    status, document, _ = await client.post("/openai/v1/embeddings", call)
    assert status == 429
    assert document["error"]["message"].startswith("Your requests to vectors for text-embedding-3-small in")
