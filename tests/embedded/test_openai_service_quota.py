"""Quotas of the embedded Azure OpenAI: the estimate, provisioned throughput, spillover, and every kind of 429."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedded_azure.config import Deployment
from embedded_azure.openai.provisioned import ProvisionedThroughput
from embedded_azure.openai.quota import Estimate, Estimator, Quota
from tests.support.clock import Clock
from tests.support.openai_service import CONFIG, V1, Client, bearer, body, open_client, token

# The estimate


def test_a_request_is_taken_for_its_prompt_and_all_that_its_answers_may_be() -> None:
    assert Estimator().estimate(100, 50, 3).tokens == 250
    assert Estimator().estimate(100, None).tokens == 116
    assert Estimator().estimate(100, None, 0).tokens == 100


@given(st.integers(1, 10_000), st.integers(1, 10_000), st.floats(-0.2, 0.2))
def test_a_biased_estimate_is_off_by_its_bias_and_less_than_a_token_each(
    prompt: int, answer: int, bias: float
) -> None:
    estimate = Estimator(bias=bias).estimate(prompt, answer)
    assert 0 <= estimate.prompt - prompt * (1 + bias) < 1
    assert 0 <= estimate.answer - answer * (1 + bias) < 1


def test_a_quota_that_is_cut_keeps_what_was_used_and_shows_the_lower_limit() -> None:
    quota = Quota(None, 1_000, Clock())
    assert quota.admit(400) is None
    quota.scale(0.5)
    assert quota.headers()["x-ratelimit-limit-tokens"] == "500"
    assert quota.headers()["x-ratelimit-remaining-tokens"] == "100"
    assert quota.admit(101) is not None
    quota.scale(1.0)
    assert quota.admit(600) is None


# Provisioned throughput


def bucket(clock: Clock) -> ProvisionedThroughput:
    """Fills up at 60,000 input tokens, and leaks 1,000 of them a second."""
    return ProvisionedThroughput(units=24, tokens_per_unit=2_500, output_weight=4.0, clock=clock)


def test_a_provisioned_deployment_admits_until_it_is_over_full_and_then_names_the_moment_it_is_not() -> None:
    clock = Clock()
    throughput = bucket(clock)
    assert throughput.admit(Estimate(prompt=59_000, answer=0)) is None
    assert throughput.admit(Estimate(prompt=1_000, answer=500)) is None, "below the brim whatever it costs"
    exceeded = throughput.admit(Estimate(prompt=1, answer=0))
    assert exceeded is not None
    assert exceeded.kind == "provisioned"
    assert exceeded.retry_after == pytest.approx(2.0)
    clock.now += 2.0
    assert throughput.admit(Estimate(prompt=1, answer=0)) is None


def test_what_a_call_has_cost_replaces_what_it_was_estimated_to() -> None:
    throughput = bucket(Clock())
    estimate = Estimate(prompt=6_000, answer=6_000)
    throughput.admit(estimate)
    assert throughput.headers() == {"azure-openai-deployment-utilization": "50.0%"}
    throughput.correct(estimate, 6_000, 1_500)
    assert throughput.headers() == {"azure-openai-deployment-utilization": "20.0%"}


@given(st.lists(st.tuples(st.floats(0.0, 20.0), st.integers(1, 50_000)), max_size=60))
def test_no_stretch_of_time_is_admitted_more_than_the_bucket_what_leaks_and_one_request(
    requests: list[tuple[float, int]],
) -> None:
    clock = Clock()
    throughput = bucket(clock)
    admitted = 0
    for gap, tokens in requests:
        clock.now += gap
        if throughput.admit(Estimate(prompt=tokens, answer=0)) is None:
            admitted += tokens
    assert admitted <= 60_000 + (clock.now - 1_000.0) * 1_000 + 50_000


# Over HTTP


PTU = Deployment(name="ptu", model="plain", latency=0.0, provisioned_units=1, tokens_per_unit=100)
SPILLING = replace(PTU, name="spilling", spillover_to="std")
STANDARD = Deployment(name="std", model="plain", latency=0.0)
PROVISIONED = replace(CONFIG, deployments=(PTU, SPILLING, STANDARD))


async def overfill(client: Client, model: str) -> None:
    """100 tokens are a minute of one unit; the answers are far shorter than what they are let be."""
    status, _, _ = await client.ask("x" * 1_000, model=model, max_tokens=1)
    assert status == 200


async def test_a_provisioned_deployment_tells_its_utilisation_and_no_rates() -> None:
    async with open_client(PROVISIONED) as client:
        status, _, headers = await client.ask("hi", model="ptu")
        assert status == 200
        assert headers["azure-openai-deployment-utilization"].endswith("%")
        assert not any(name.startswith("x-ratelimit") for name in headers)
        await overfill(client, "ptu")
        status, document, headers = await client.ask("hi", model="ptu")
    assert (status, document["error"]["code"]) == (429, "429")
    assert float(headers["azure-openai-deployment-utilization"].rstrip("%")) > 100
    assert int(headers["retry-after-ms"]) > 0


async def test_a_provisioned_deployment_gives_back_what_an_answer_did_not_need() -> None:
    async with open_client(PROVISIONED) as client:
        _, _, before = await client.ask("hi", model="ptu", max_tokens=20)
        _, _, after = await client.ask("hi", model="ptu", max_tokens=1)
    used = [float(headers["azure-openai-deployment-utilization"].rstrip("%")) for headers in (before, after)]
    assert used[0] == pytest.approx(88.0), "8 of the prompt and 4 for each of the 20"
    assert used[1] < used[0]


async def test_an_overfull_provisioned_deployment_spills_over_and_says_so() -> None:
    async with open_client(PROVISIONED) as client:
        await overfill(client, "spilling")
        status, _, headers = await client.ask("hi", model="spilling")
        stats = await client.stats()
    assert status == 200
    assert headers["x-ms-deployment-name"] == "std"
    assert headers["x-ms-spillover-from-deployment"] == "spilling"
    assert "x-ms-spillover-error" not in headers
    assert stats["spilled"] == 1


async def test_of_a_spillover_that_fails_too_the_provisioned_answer_is_returned_with_the_status_of_the_other() -> (
    None
):
    async with open_client(PROVISIONED) as client:
        await overfill(client, "ptu")
        asked = {**bearer(token()), "x-ms-spillover-deployment": "std"}
        assert (await client.post(V1, body(model="ptu"), asked))[0] == 200
        await client.set_fault(status=503, deployment="std")
        status, document, headers = await client.post(V1, body(model="ptu"), asked)
    assert (status, headers["x-ms-spillover-error"]) == (429, "503")
    assert "provisioned throughput" in document["error"]["message"]
    assert "azure-openai-deployment-utilization" in headers
    assert "x-ms-spillover-from-deployment" not in headers


async def test_responses_do_not_spill_over() -> None:
    async with open_client(PROVISIONED) as client:
        await overfill(client, "spilling")
        status, _, _ = await client.post("/openai/v1/responses", {"model": "spilling", "input": "hi"})
    assert status == 429


async def test_a_standard_deployment_spills_nowhere() -> None:
    config = replace(PROVISIONED, deployments=(replace(STANDARD, name="std", spillover_to="ptu"), PTU))
    async with open_client(config) as client:
        await client.set_fault(status=429, deployment="std")
        assert (await client.ask("hi", model="std"))[0] == 429


async def test_a_biased_deployment_charges_by_its_bias() -> None:
    left = {}
    for bias in (0.0, 0.2):
        spec = Deployment(name="m", model="plain", latency=0.0, tokens_per_minute=1_000, estimate_bias=bias)
        async with open_client(replace(CONFIG, deployments=(spec,))) as client:
            _, _, headers = await client.ask("hi", model="m", max_tokens=500)
            left[bias] = 1_000 - int(headers["x-ratelimit-remaining-tokens"])
    assert left[0.2] == pytest.approx(left[0.0] * 1.2, abs=2)


@pytest.mark.parametrize(
    ("reason", "code", "words", "has_rates"),
    [
        (
            "call",
            "RateLimitReached",
            "Your requests to small for plain-large in local have exceeded the call rate",
            True,
        ),
        ("token", "RateLimitReached", "token rate limit for your current OpenAI S0 pricing tier. This", True),
        ("capacity", "no_capacity", "during peak load. Please retry after 3 seconds.", False),
        ("provisioned", "429", "temporarily unable to process", False),
    ],
)
async def test_every_kind_of_429_comes_on_demand(reason: str, code: str, words: str, has_rates: bool) -> None:
    async with open_client(CONFIG) as client:
        await client.set_fault(kind="throttle", reason=reason, retry_after=2.5, count=1)
        status, document, headers = await client.ask("hi", model="small")
        assert (await client.ask("hi", model="small"))[0] == 200
        assert (await client.stats())["throttled"] == {reason: 1}
    assert (status, document["error"]["code"]) == (429, code)
    assert words in document["error"]["message"]
    assert (headers["retry-after"], headers["retry-after-ms"]) == ("3", "2500")
    assert ("x-ratelimit-limit-requests" in headers) == has_rates


async def test_a_cut_quota_shows_in_the_headers_and_is_over_when_the_fault_is() -> None:
    async with open_client(CONFIG) as client:
        await client.set_fault(kind="quota_cut", factor=0.1, count=1, deployment="small")
        assert (await client.ask("hi", model="small", max_tokens=500))[0] == 429
        status, _, headers = await client.ask("hi", model="vectors")
        spec = {"model": "vectors", "input": "hi"}
        status, _, headers = await client.post("/openai/v1/embeddings", spec)
    assert (status, headers["x-ratelimit-limit-tokens"]) == (200, "1000")


@pytest.mark.parametrize("status", [200, 429])
async def test_headers_may_be_missing_or_say_nonsense(status: int) -> None:
    async with open_client(CONFIG) as client:
        for _ in range(int(status == 429)):
            await client.ask("hi", model="small")
        altered: dict[str, Any] = {
            "x-ratelimit-remaining-tokens": "-1",
            "Retry-After": None,
            "retry-after-ms": None,
        }
        await client.set_fault(kind="headers", headers=altered)
        got, _, headers = await client.ask("hi", model="small")
    assert got == status
    assert headers["x-ratelimit-remaining-tokens"] == "-1"
    assert not {"retry-after", "retry-after-ms"} & set(headers)


@pytest.mark.parametrize("options", [{}, {"stream": True}])
async def test_an_answer_may_claim_another_content_type(options: dict[str, Any]) -> None:
    async with open_client(CONFIG) as client:
        await client.set_fault(kind="headers", headers={"Content-Type": "text/html"})
        document = body("hi", model="small", **options)
        async with client.session.post(V1, json=document, headers=bearer(token())) as response:
            assert (response.status, response.headers["Content-Type"]) == (200, "text/html")
