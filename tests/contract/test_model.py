"""The worker's model adapter before the embedded Azure OpenAI: what each answer of the service becomes.

What a job then does about it is `tests/unit/flow/test_processor.py`; streams are in `test_model_streams.py`.
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest
from aiohttp import web

from tests.support.model_service import SCOPE, ScriptedTokens, Service, embedded_service, job, job_of, scripted
from worker.azure.openai.model import AzureOpenAI
from worker.errors import AnswerTooLarge, Cause, RefusedByService, SetupWrong, Throttled, Unavailable
from worker.interfaces import Target
from worker.jobs.job import Job
from worker.rate_limits import RateLimits, ThrottleKind


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with embedded_service(tmp_path) as service:
        yield service


async def test_an_answer_comes_whole_on_one_line_with_its_usage(service: Service) -> None:
    async with service.model() as model:
        response = await model.complete(job("What is 17 + 25?"), service.target())
    assert response.status == 200
    assert response.request_id
    assert b"\n" not in response.body
    assert "17 + 25 = 42" in orjson.loads(response.body)["choices"][0]["message"]["content"]
    assert response.usage is not None
    assert response.usage.prompt > 0
    assert response.usage.completion > 0


async def test_the_deployment_and_not_the_jobs_model_is_asked_for(service: Service) -> None:
    async with service.model() as model:
        response = await model.complete(job("Hi"), service.target("gpt-5.4"))
    assert orjson.loads(response.body)["model"] == "gpt-5.4"


async def test_a_rejected_token_is_replaced_once_and_the_call_repeated(service: Service) -> None:
    expired = service.token(lifetime=-10)
    tokens = ScriptedTokens([expired, service.token()])
    async with AzureOpenAI(tokens, scope=SCOPE, ca_file=service.state.ca) as model:
        response = await model.complete(job("Hi"), service.target())
    assert response.status == 200
    assert tokens.rejected == [expired]


async def test_a_token_that_is_rejected_twice_shows_that_the_setup_is_wrong(service: Service) -> None:
    expired = service.token(lifetime=-10)
    async with service.model(expired, expired, expired) as model:
        with pytest.raises(SetupWrong) as caught:
            await model.complete(job("Hi"), service.target())
    assert (caught.value.status, caught.value.cause) == (401, Cause.TOKEN_REFUSED)


async def test_no_token_to_be_had_is_a_wrong_setup_and_nothing_is_sent(service: Service) -> None:
    async with AzureOpenAI(ScriptedTokens([]), scope=SCOPE, ca_file=service.state.ca) as model:
        with pytest.raises(SetupWrong, match="none left") as caught:
            await model.complete(job("Hi"), service.target())
    assert caught.value.cause is Cause.NO_TOKEN
    assert service.account.counters.document()["requests"] == 0


async def test_a_missing_role_is_a_wrong_setup_that_names_what_is_missing(service: Service) -> None:
    stranger = service.token("stranger")
    async with service.model(stranger, stranger) as model:
        with pytest.raises(SetupWrong, match="lacks the required data action") as caught:
            await model.complete(job("Hi"), service.target())
    assert caught.value.cause is Cause.ROLE_MISSING


async def test_a_missing_deployment_is_our_setup_or_under_passthrough_the_jobs_mistake(service: Service) -> None:
    async with service.model() as model:
        with pytest.raises(SetupWrong, match="nowhere") as caught:
            await model.complete(job("Hi"), service.target("nowhere"))
        assert caught.value.cause is Cause.MISSING
    async with service.model(passthrough=True) as model:
        with pytest.raises(RefusedByService) as refused:
            await model.complete(job("Hi"), service.target("nowhere"))
    assert (refused.value.status, orjson.loads(refused.value.body)["error"]["code"]) == (404, "DeploymentNotFound")


async def test_a_filtered_prompt_is_a_refusal_with_the_services_own_body(service: Service) -> None:
    async with service.model() as model:
        with pytest.raises(RefusedByService) as caught:
            await model.complete(job("[[content-filter]]"), service.target())
    error = orjson.loads(caught.value.body)["error"]
    assert (caught.value.status, error["code"]) == (400, "content_filter")
    assert error["innererror"]["code"] == "ResponsibleAIPolicyViolation"
    assert caught.value.request_id


async def test_a_throttle_tells_how_long_to_wait(service: Service) -> None:
    service.account.faults.set(b'{"status": 429, "count": 1, "retry_after_ms": 1234}')
    async with service.model() as model:
        with pytest.raises(Throttled) as caught:
            await model.complete(job("Hi"), service.target())
    assert caught.value.retry_after == pytest.approx(1.234)


@pytest.mark.parametrize("content", ["[[status:503]]", "[[status:500]]", "[[status:408]]"])
async def test_a_failure_of_the_service_may_be_tried_again(service: Service, content: str) -> None:
    async with service.model() as model:
        with pytest.raises(Unavailable):
            await model.complete(job(content), service.target())


async def test_a_broken_answer_may_be_tried_again(service: Service) -> None:
    async with service.model() as model:
        with pytest.raises(Unavailable, match="not a whole chat completion"):
            await model.complete(job("[[malformed]]"), service.target())


async def test_a_call_that_hangs_is_given_up_at_its_time_out(service: Service) -> None:
    async with service.model(timeout=0.3) as model:
        with pytest.raises(Unavailable, match=r"0\.3 s") as caught:
            await model.complete(job("[[hang]]"), service.target())
    assert caught.value.cause is Cause.UNREACHABLE


async def test_a_service_that_is_not_there_may_be_tried_again(service: Service) -> None:
    nobody = Target(deployment="gpt-5.4-mini", endpoint="https://localhost:9")
    async with service.model() as model:
        with pytest.raises(Unavailable, match="localhost:9") as caught:
            await model.complete(job("Hi"), nobody)
    assert caught.value.cause is Cause.UNREACHABLE


async def test_a_server_that_we_do_not_trust_is_told_no_prompt(service: Service) -> None:
    async with AzureOpenAI(ScriptedTokens([service.token()]), scope=SCOPE, ca_file=None) as model:
        with pytest.raises(Unavailable, match=r"(?i)certificate") as caught:
            await model.complete(job("Hi"), service.target())
    assert caught.value.cause is Cause.TLS_UNTRUSTED
    assert service.account.counters.document()["requests"] == 0


async def test_a_cancelled_call_is_ended_at_the_service_too(service: Service) -> None:
    async with service.model() as model:
        call = asyncio.create_task(model.complete(job("[[hang]]"), service.target()))
        while not service.account.counters.in_flight:
            await asyncio.sleep(0.01)  # until the request has arrived
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call


async def test_proving_a_deployment_costs_no_answer(service: Service) -> None:
    async with service.model() as model:
        await model.prove(service.target())
        with pytest.raises(SetupWrong, match="nowhere"):
            await model.prove(service.target("nowhere"))
    stats = service.account.counters.document()
    assert stats["answers"] == {}
    assert stats["tokens"] == {"prompt": 0, "completion": 0}


async def test_a_proof_that_is_answered_all_the_same_closes_the_answer(service: Service) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await asyncio.Event().wait()
        return response

    asyncio.get_running_loop().set_debug(True)  # aiohttp then warns of what is not closed
    async with scripted(service.state, answer) as target, service.model() as model:
        await model.prove(target)


@pytest.mark.parametrize("deployment", ["text-embedding-3-small", "instruct"])
async def test_a_deployment_that_cannot_chat_is_proved_all_the_same(service: Service, deployment: str) -> None:
    async with service.model() as model:
        await model.prove(service.target(deployment))
    stranger = service.token("stranger")
    async with service.model(stranger, stranger) as model:
        with pytest.raises(SetupWrong, match="lacks the required data action"):
            await model.prove(service.target(deployment))


async def test_a_response_comes_whole_with_its_usage_and_is_not_kept_by_the_service(service: Service) -> None:
    async with service.model() as model:
        response = await model.complete(
            job_of("/v1/responses", "m", input="What is 17 + 25?", stream=True), service.target()
        )
    document = orjson.loads(response.body)
    assert document["output"][-1]["content"][0]["text"].startswith("17 + 25 = 42")
    assert document["store"] is False
    assert response.usage is not None
    assert response.usage.prompt > 0
    assert response.usage.completion > 0


async def test_a_response_is_kept_where_the_setting_or_the_job_says_so(service: Service) -> None:
    async with service.model() as model:
        said = await model.complete(job_of("/v1/responses", "m", input="Hi", store=True), service.target())
    async with service.model(responses_store=True) as model:
        left = await model.complete(job_of("/v1/responses", "m", input="Hi"), service.target())
    assert [orjson.loads(response.body)["store"] for response in (said, left)] == [True, True]


async def test_a_response_that_was_cut_is_an_answer(service: Service) -> None:
    asked = job_of("/v1/responses", "m", input="[[tokens:100]]", max_output_tokens=20)
    async with service.model() as model:
        response = await model.complete(asked, service.target())
    assert orjson.loads(response.body)["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response.usage is not None
    assert response.usage.completion == 20


async def test_embeddings_come_whole_with_their_usage(service: Service) -> None:
    asked = job_of("/v1/embeddings", "m", input=["to be", "or not"], dimensions=8)
    async with service.model() as model:
        response = await model.complete(asked, service.target("text-embedding-3-small"))
    assert [len(one["embedding"]) for one in orjson.loads(response.body)["data"]] == [8, 8]
    assert response.usage is not None
    assert (response.usage.prompt, response.usage.completion) == (4, 0)


async def test_a_completion_comes_whole_with_its_usage(service: Service) -> None:
    async with service.model() as model:
        response = await model.complete(
            job_of("/v1/completions", "m", prompt="What is 17 + 25?"), service.target("instruct")
        )
    assert orjson.loads(response.body)["choices"][0]["text"].startswith("17 + 25 = 42")
    assert response.usage is not None
    assert response.usage.completion > 0


@pytest.mark.parametrize(
    ("asked", "deployment", "what"),
    [
        (job_of("/v1/responses", "m", input="[[malformed]]"), "gpt-5.4-mini", "response"),
        (job_of("/v1/completions", "m", prompt="[[malformed]]"), "instruct", "completion"),
        (job_of("/v1/embeddings", "m", input="[[malformed]]"), "text-embedding-3-small", "list of embeddings"),
    ],
)
async def test_a_broken_answer_of_any_operation_may_be_tried_again(
    service: Service, asked: Job, deployment: str, what: str
) -> None:
    async with service.model() as model:
        with pytest.raises(Unavailable, match=f"not a whole {what}"):
            await model.complete(asked, service.target(deployment))


async def test_a_job_for_a_deployment_of_another_kind_is_refused(service: Service) -> None:
    async with service.model() as model:
        with pytest.raises(RefusedByService) as caught:
            await model.complete(job("Hi"), service.target("text-embedding-3-small"))
    assert orjson.loads(caught.value.body)["error"]["code"] == "OperationNotSupported"


async def test_a_proxys_error_page_becomes_json_on_one_line(service: Service) -> None:
    async def page(_: web.Request) -> web.Response:
        return web.Response(status=502, text="<html>\nBad gateway\n</html>", content_type="text/html")

    async with scripted(service.state, page) as target, service.model() as model:
        with pytest.raises(Unavailable) as caught:
            await model.complete(job("Hi"), target)
    assert b"\n" not in caught.value.body
    assert orjson.loads(caught.value.body)["error"] == {"code": "502", "message": "<html>\nBad gateway\n</html>"}


async def test_a_proxys_page_in_place_of_an_answer_may_be_tried_again_and_is_shown(service: Service) -> None:
    async def page(_: web.Request) -> web.Response:
        return web.Response(text="<html>Sign in</html>", content_type="text/html")

    async with scripted(service.state, page) as target, service.model() as model:
        for asked in (job("Hi"), job("Hi", stream=True)):
            with pytest.raises(Unavailable) as caught:
                await model.complete(asked, target)
            assert caught.value.detail.startswith("the answer of 20 bytes is not a whole chat completion: ")
            assert caught.value.detail.endswith("it begins with b'<html>Sign in</html>'")


async def test_an_answer_that_is_too_large_is_not_taken_in_and_not_asked_for_again(service: Service) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.json_response({"choices": [{"message": {"content": "x" * 100_000}}]})

    async with scripted(service.state, answer) as target, service.model(max_answer=65_536) as model:
        with pytest.raises(AnswerTooLarge, match=r"the answer has more than the 65,536 bytes that are taken in"):
            await model.complete(job("Hi"), target)
        with pytest.raises(AnswerTooLarge):
            await model.complete(job("Hi", stream=True), target)


async def test_an_endless_error_page_is_read_no_further_than_it_is_kept(service: Service) -> None:
    async def page(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=503)
        await response.prepare(request)
        for _ in range(32):
            await response.write(b"<" * 65_536)
        await asyncio.Event().wait()  # and never ends
        return response

    async with scripted(service.state, page) as target, service.model() as model:
        with pytest.raises(Unavailable) as caught:
            await model.complete(job("Hi"), target)
    assert caught.value.status == 503
    assert orjson.loads(caught.value.body)["error"]["message"] == "<" * 2_000


async def test_compressed_answers_are_not_asked_for_as_only_what_they_unfold_to_could_be_bounded(
    service: Service,
) -> None:
    seen: list[str | None] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Accept-Encoding"))
        return web.json_response({"choices": [1]})

    async with scripted(service.state, answer) as target, service.model() as model:
        await model.complete(job("Hi"), target)
    assert seen == ["identity"]


@pytest.mark.parametrize("api_version", [None, "2024-10-21"])
async def test_nothing_is_sent_that_the_environment_or_the_client_would_add(
    service: Service, monkeypatch: pytest.MonkeyPatch, api_version: str | None
) -> None:
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "api-key: leaked")
    monkeypatch.setenv("OPENAI_ORG_ID", "org")
    seen: list[set[str]] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append({name.lower() for name in request.headers})
        return web.json_response({"choices": [1]})

    async with scripted(service.state, answer) as target, service.model(api_version=api_version) as model:
        await model.complete(job("Hi"), target)
    wanted = {"host", "authorization", "accept", "accept-encoding", "content-type", "content-length", "user-agent"}
    assert [names - {"x-stainless-retry-count"} for names in seen] == [wanted]


async def test_what_is_left_of_the_quota_is_told_with_the_answer_and_with_the_refusal(service: Service) -> None:
    limits = {"x-ratelimit-limit-tokens": "1000", "x-ratelimit-remaining-tokens": "0"}

    async def answer(request: web.Request) -> web.Response:
        status = 429 if "again" in await request.text() else 200
        return web.json_response({"choices": [1]}, status=status, headers=limits)

    async with scripted(service.state, answer) as target, service.model() as model:
        answered = await model.complete(job("Hi"), target)
        with pytest.raises(Throttled) as caught:
            await model.complete(job("Hi again"), target)
    assert answered.rate_limits == RateLimits(limit_tokens=1_000)
    assert caught.value.rate_limits == RateLimits(limit_tokens=1_000, remaining_tokens=0)
    assert caught.value.kind is ThrottleKind.QUOTA


# The surface of an api-version


VERSION = "2024-10-21"


@pytest.mark.parametrize(
    ("asked", "deployment", "path"),
    [
        (job("Hi"), "d/1", "/openai/deployments/d%2F1/chat/completions"),
        (job("Hi", stream=True), "d", "/openai/deployments/d/chat/completions"),
        (job_of("/v1/embeddings", "m", input="x"), "d", "/openai/deployments/d/embeddings"),
        (job_of("/v1/completions", "m", prompt="x"), "d", "/openai/deployments/d/completions"),
        (job_of("/v1/responses", "m", input="x"), "d", "/openai/responses"),
    ],
)
async def test_with_an_api_version_its_own_paths_are_asked_with_the_same_token(
    service: Service, asked: Job, deployment: str, path: str
) -> None:
    seen: list[tuple[str, str | None, str]] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append((request.raw_path, request.headers.get("Authorization"), (await request.json())["model"]))
        document = {"choices": [1], "data": [1], "status": "completed", "output": []}
        return web.json_response(document)

    async with scripted(service.state, answer) as target, service.model("a", api_version=VERSION) as model:
        await model.complete(asked, Target(deployment=deployment, endpoint=target.endpoint))
    assert seen == [(f"{path}?api-version={VERSION}", "Bearer a", deployment)]


async def test_the_surface_of_an_api_version_answers_as_v1_does(service: Service) -> None:
    async with service.model(api_version=VERSION) as model:
        await model.prove(service.target())
        whole = await model.complete(job("What is 17 + 25?"), service.target())
        streamed = await model.complete(job("What is 17 + 25?", stream=True), service.target())
        with pytest.raises(SetupWrong, match="nowhere"):
            await model.prove(service.target("nowhere"))
        with pytest.raises(RefusedByService):
            await model.complete(job("[[content-filter]]"), service.target())
    for response in (whole, streamed):
        assert "17 + 25 = 42" in orjson.loads(response.body)["choices"][0]["message"]["content"]


async def test_a_rejected_token_is_replaced_on_the_surface_of_an_api_version_too(service: Service) -> None:
    tokens = ScriptedTokens([service.token(lifetime=-10), service.token()])
    async with AzureOpenAI(tokens, scope=SCOPE, ca_file=service.state.ca, api_version=VERSION) as model:
        assert (await model.complete(job("Hi"), service.target())).status == 200
    assert len(tokens.rejected) == 1
