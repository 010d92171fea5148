"""The probes of Azure OpenAI, by plain requests: what a client library would hide is what is looked at."""

from collections.abc import Mapping
from typing import Any

from tests.azure.probing import (
    BLOB_SCOPE,
    INHERITED,
    OPENAI_SCOPE,
    Exchange,
    Observation,
    Provisioned,
    Target,
    call,
    decide,
    token_of,
    undecided,
)

V1 = "/openai/v1/chat/completions"
UNKNOWN_DEPLOYMENT = "no-such-deployment"
OUTPUT_TOKENS = 512
"""At most of a paid call: a model that reasons refuses a budget in which it cannot finish."""
MOST_CALLS = 20
"""Until a limit that is looked for is given up."""
DATED = "2024-10-21"
_TOO_MANY_HEADERS = 11
_QUESTION = [{"role": "user", "content": "Say: yes"}]


async def chat(
    target: Target,
    asked: str,
    *,
    endpoint: str | None = None,
    token: str | None = None,
    path: str = V1,
    headers: Mapping[str, str] | None = None,
    **body: Any,
) -> Exchange:
    """One chat to the v1 surface, with a good token unless another is given ("" is none)."""
    good = await token_of(target, OPENAI_SCOPE) if token is None else token
    document = {"model": target.deployment, "messages": _QUESTION, "max_completion_tokens": OUTPUT_TOKENS, **body}
    address = f"{endpoint or target.openai}{path}"
    return await call(target, "POST", address, asked=asked, token=good or None, headers=headers, json=document)


async def a_call_is_answered(target: Target) -> Observation:
    answer = await chat(target, "a chat")
    if answer.status == 429:
        return undecided("throttled", answer)
    return decide(answer.status == 200, answer)


async def no_token(target: Target) -> Observation:
    answer = await chat(target, "a chat without a token", token="")
    return decide((answer.status, answer.code) == (401, "401"), answer)


async def bad_token(target: Target) -> Observation:
    answer = await chat(target, "a chat with a token that is none", token="nonsense")
    return decide(_is_bare_401(answer), answer, seen=_with_envelope(answer))


async def wrong_audience(target: Target) -> Observation:
    token = await token_of(target, BLOB_SCOPE)
    answer = await chat(target, "a chat with a token for Blob storage", token=token)
    return decide(_is_bare_401(answer), answer, seen=_with_envelope(answer))


def _is_bare_401(answer: Exchange) -> bool:
    return answer.status == 401 and isinstance(answer.body, dict) and answer.body.get("statusCode") == 401


def _with_envelope(answer: Exchange) -> str:
    has_envelope = isinstance(answer.body, dict) and "error" in answer.body
    return f"{answer}, {'with' if has_envelope else 'without'} an `error` envelope"


async def missing_role(target: Target) -> Observation:
    answer = await _closed_chat(target)
    if answer.status == 200:
        return undecided(INHERITED, answer)
    return decide((answer.status, answer.code) == (401, "PermissionDenied"), answer)


async def _closed_chat(target: Target) -> Exchange:
    return await chat(target, "a chat where the caller has no role", endpoint=target.closed_openai)


async def identity_before_name(target: Target) -> Observation:
    if (closed := await _closed_chat(target)).status == 200:
        return undecided(INHERITED, closed)
    answer = await chat(
        target,
        "an unknown deployment where the caller has no role",
        endpoint=target.closed_openai,
        model=UNKNOWN_DEPLOYMENT,
    )
    return decide(answer.status == 401, answer)


async def name_before_body(target: Target) -> Observation:
    answer = await chat(target, "an unknown deployment, without messages", model=UNKNOWN_DEPLOYMENT, messages=[])
    return decide((answer.status, answer.code) == (404, "DeploymentNotFound"), answer)


async def identity_before_body(target: Target) -> Observation:
    if (closed := await _closed_chat(target)).status == 200:
        return undecided(INHERITED, closed)
    answer = await chat(
        target, "no messages, where the caller has no role", endpoint=target.closed_openai, messages=[]
    )
    return decide(answer.status == 401, answer)


async def empty_messages(target: Target) -> Observation:
    """Whether it costs nothing shows in the account's metrics only; no `usage` is the nearest to it."""
    answer = await chat(target, "a chat without messages", messages=[])
    has_usage = isinstance(answer.body, dict) and "usage" in answer.body
    return decide(answer.status == 400 and not has_usage, answer)


async def many_headers(target: Target) -> Observation:
    headers = {f"x-probe-{number}": "1" for number in range(_TOO_MANY_HEADERS)}
    answer = await chat(target, "a chat with 11 custom headers, without messages", headers=headers, messages=[])
    return decide(answer.status == 431, answer)


async def budget_too_small(target: Target) -> Observation:
    if target.reasoning_deployment is None:
        return undecided("no deployment of a reasoning model was named")
    answer = await chat(
        target,
        "a reasoning model with one output token",
        model=target.reasoning_deployment,
        max_completion_tokens=1,
    )
    return decide(answer.status == 400, answer)


async def network_closed(target: Target) -> Observation:
    answer = await chat(target, "a chat to an account without public access", endpoint=target.private_openai)
    return decide(answer.status == 403, answer)


async def unknown_on_v1(target: Target) -> Observation:
    answer = await chat(target, "an unknown deployment, v1", model=UNKNOWN_DEPLOYMENT)
    return decide((answer.status, answer.code) == (404, "DeploymentNotFound"), answer)


async def unknown_on_dated(target: Target) -> Observation:
    path = f"/openai/deployments/{UNKNOWN_DEPLOYMENT}/chat/completions?api-version={DATED}"
    answer = await chat(target, "an unknown deployment, dated surface", path=path)
    return decide((answer.status, answer.code) == (404, "DeploymentNotFound"), answer)


async def rate_limit_headers(target: Target) -> Observation:
    answer = await chat(target, "a chat, for its headers")
    if answer.status != 200:
        return undecided("it was not answered", answer)
    wanted = {"x-ratelimit-remaining-requests", "x-ratelimit-remaining-tokens"}
    found = sorted(wanted & set(answer.headers))
    return decide(wanted == set(found), answer, seen=", ".join(found) or "neither header")


async def own_quota(target: Target) -> Observation:
    if target.small_deployment is None:
        return undecided("no deployment with a small quota")
    answer = await _until(target, target.small_deployment, 429)
    if answer.status != 429:
        return undecided(f"no 429 in {MOST_CALLS} calls", answer)
    is_so = answer.code == "RateLimitReached" and "retry-after" in answer.headers
    waits = ", ".join(sorted(name for name in answer.headers if name.startswith("retry-after")))
    return decide(is_so, answer, seen=f"{answer}; {waits or 'no retry-after'}")


async def _until(target: Target, deployment: str, status: int) -> Exchange:
    """The first answer with that status, or the last of all."""
    for _ in range(MOST_CALLS - 1):
        answer = await chat(target, "chats in a row", model=deployment)
        if answer.status == status:
            return answer
    return await chat(target, "chats in a row", model=deployment)


async def capacity(_target: Target) -> Observation:
    return undecided("nobody can provoke it")


async def provisioned_utilisation(target: Target) -> Observation:
    if target.provisioned is None:
        return undecided("no provisioned deployment was named")
    answer = await _provisioned_chat(target, target.provisioned)
    is_told = "azure-openai-deployment-utilization" in answer.headers
    return decide(is_told, answer, seen="azure-openai-deployment-utilization" if is_told else "no such header")


async def _provisioned_chat(target: Target, provisioned: Provisioned) -> Exchange:
    asked = "a chat to a provisioned deployment"
    return await chat(target, asked, endpoint=provisioned.endpoint, model=provisioned.deployment)


async def spillover(target: Target) -> Observation:
    """Calls in a row fill a small deployment; a large one is not filled by so few."""
    if target.provisioned is None:
        return undecided("no provisioned deployment was named")
    for _ in range(MOST_CALLS):
        answer = await _provisioned_chat(target, target.provisioned)
        if any(name.startswith("x-ms-spillover-") for name in answer.headers):
            wanted = {"x-ms-spillover-from-deployment", "x-ms-deployment-name"}
            found = sorted(name for name in answer.headers if name.startswith("x-ms-") and name in wanted)
            return decide(wanted <= set(answer.headers), answer, seen=", ".join(found))
    return undecided(f"nothing spilled over in {MOST_CALLS} calls")


async def max_tokens_of_reasoning(target: Target) -> Observation:
    if target.reasoning_deployment is None:
        return undecided("no deployment of a reasoning model was named")
    document = {"model": target.reasoning_deployment, "messages": _QUESTION, "max_tokens": OUTPUT_TOKENS}
    token = await token_of(target, OPENAI_SCOPE)
    answer = await call(
        target,
        "POST",
        target.openai + V1,
        asked="`max_tokens` to a reasoning model",
        token=token,
        json=document,
    )
    return decide((answer.status, answer.code) == (400, "unsupported_parameter"), answer)
