"""The worker's model adapter before the embedded Azure OpenAI: what each answer of the service becomes.

What a job then does about it is `tests/unit/test_processor.py`.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from worker.azure_openai import AzureOpenAI
from worker.errors import RefusedByService, SetupWrong, Throttled, TokenUnavailable, Unavailable
from worker.interfaces import Target
from worker.jobs import Envelope, Job, decode
from worker.local.openai_service.__main__ import load_account
from worker.local.openai_service.account import Account
from worker.local.openai_service.app import build_app
from worker.local.process import server_context
from worker.local.state import StateDirectory
from worker.local.supervisor import prepare_state
from worker.local.tokens import TokenIssuer
from worker.local.world import default_world

WORLD = default_world()
SCOPE = "https://cognitiveservices.azure.com/.default"
AUDIENCE = "https://cognitiveservices.azure.com"


@dataclass
class ScriptedTokens:
    """`Tokens` that hands out what it is given, and remembers what was rejected."""

    tokens: list[str]
    rejected: list[str] = field(default_factory=list)

    async def bearer(self, scope: str) -> str:
        if not self.tokens:
            raise TokenUnavailable(scope, "none left", code="none")
        return self.tokens[0]

    async def replace(self, scope: str, rejected: str) -> str:
        self.rejected.append(rejected)
        del self.tokens[:1]
        return await self.bearer(scope)


@dataclass
class Service:
    state: StateDirectory
    account: Account
    endpoint: str

    def token(self, identity: str = "worker", *, lifetime: float = 3_600.0) -> str:
        person = WORLD.identity(identity)
        issuer = TokenIssuer(self.state.entra_private_key.read_bytes(), WORLD.tenant_id, lifetime)
        return issuer.issue(audience=AUDIENCE, client_id=person.client_id, object_id=person.object_id)

    def target(self, deployment: str = "gpt-4o-mini") -> Target:
        return Target(deployment=deployment, endpoint=self.endpoint)

    @asynccontextmanager
    async def model(
        self, *tokens: str, timeout: float = 10.0, passthrough: bool = False, responses_store: bool = False
    ) -> AsyncIterator[AzureOpenAI]:
        given = ScriptedTokens(list(tokens) or [self.token()])
        async with AzureOpenAI(
            given,
            scope=SCOPE,
            ca_file=self.state.ca,
            timeout=timeout,
            passthrough=passthrough,
            responses_store=responses_store,
        ) as model:
            yield model


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    state = StateDirectory(tmp_path)
    prepare_state(state, WORLD)
    account = load_account(state)
    server = TestServer(build_app(account), scheme="https")
    await server.start_server(ssl=server_context(state))
    try:
        yield Service(state, account, f"https://localhost:{server.port}")
    finally:
        await server.close()


def job(content: str, **body: object) -> Job:
    messages = [{"role": "user", "content": content}]
    return job_of("/v1/chat/completions", "gpt-4o-mini", messages=messages, **body)


def job_of(url: str, model: str, **body: object) -> Job:
    line = {"custom_id": "a", "method": "POST", "url": url, "body": {"model": model, **body}}
    envelope = Envelope(
        body=orjson.dumps(line), queue="jobs", sequence_number=1, enqueued_at=time.time(), properties={}
    )
    return decode(envelope, max_age=60)


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


async def test_a_job_that_asks_for_a_stream_gets_the_whole_object(service: Service) -> None:
    async with service.model() as model:
        response = await model.complete(
            job("Hi", stream=True, stream_options={"include_usage": True}), service.target()
        )
    assert orjson.loads(response.body)["object"] == "chat.completion"


async def test_the_deployment_and_not_the_jobs_model_is_asked_for(service: Service) -> None:
    async with service.model() as model:
        response = await model.complete(job("Hi"), service.target("gpt-4o"))
    assert orjson.loads(response.body)["model"] == "gpt-4o"


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
    assert caught.value.status == 401


async def test_no_token_to_be_had_is_a_wrong_setup_and_nothing_is_sent(service: Service) -> None:
    async with AzureOpenAI(ScriptedTokens([]), scope=SCOPE, ca_file=service.state.ca) as model:
        with pytest.raises(SetupWrong, match="none left"):
            await model.complete(job("Hi"), service.target())
    assert service.account.counters.document()["requests"] == 0


async def test_a_missing_role_is_a_wrong_setup_that_names_what_is_missing(service: Service) -> None:
    stranger = service.token("stranger")
    async with service.model(stranger, stranger) as model:
        with pytest.raises(SetupWrong, match="lacks the required data action"):
            await model.complete(job("Hi"), service.target())


async def test_a_missing_deployment_is_our_setup_or_under_passthrough_the_jobs_mistake(service: Service) -> None:
    async with service.model() as model:
        with pytest.raises(SetupWrong, match="nowhere"):
            await model.complete(job("Hi"), service.target("nowhere"))
    async with service.model(passthrough=True) as model:
        with pytest.raises(RefusedByService) as caught:
            await model.complete(job("Hi"), service.target("nowhere"))
    assert (caught.value.status, orjson.loads(caught.value.body)["error"]["code"]) == (404, "DeploymentNotFound")


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
        with pytest.raises(Unavailable, match=r"0\.3 s"):
            await model.complete(job("[[hang]]"), service.target())


async def test_a_service_that_is_not_there_may_be_tried_again(service: Service) -> None:
    nobody = Target(deployment="gpt-4o-mini", endpoint="https://localhost:9")
    async with service.model() as model:
        with pytest.raises(Unavailable, match="localhost:9"):
            await model.complete(job("Hi"), nobody)


async def test_a_server_that_we_do_not_trust_is_told_no_prompt(service: Service) -> None:
    async with AzureOpenAI(ScriptedTokens([service.token()]), scope=SCOPE, ca_file=None) as model:
        with pytest.raises(Unavailable, match=r"(?i)certificate"):
            await model.complete(job("Hi"), service.target())
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


@pytest.mark.parametrize("deployment", ["text-embedding-3-small", "gpt-35-turbo-instruct"])
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
    assert document["output"][0]["content"][0]["text"].startswith("17 + 25 = 42")
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
            job_of("/v1/completions", "m", prompt="What is 17 + 25?"), service.target("gpt-35-turbo-instruct")
        )
    assert orjson.loads(response.body)["choices"][0]["text"].startswith("17 + 25 = 42")
    assert response.usage is not None
    assert response.usage.completion > 0


@pytest.mark.parametrize(
    ("asked", "deployment", "what"),
    [
        (job_of("/v1/responses", "m", input="[[malformed]]"), "gpt-4o-mini", "response"),
        (job_of("/v1/completions", "m", prompt="[[malformed]]"), "gpt-35-turbo-instruct", "completion"),
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

    app = web.Application()
    app.router.add_post("/openai/v1/chat/completions", page)
    server = TestServer(app, scheme="https")
    await server.start_server(ssl=server_context(service.state))
    try:
        async with service.model() as model:
            with pytest.raises(Unavailable) as caught:
                await model.complete(job("Hi"), Target(deployment="d", endpoint=f"https://localhost:{server.port}"))
    finally:
        await server.close()
    assert b"\n" not in caught.value.body
    assert orjson.loads(caught.value.body)["error"] == {"code": "502", "message": "<html>\nBad gateway\n</html>"}
