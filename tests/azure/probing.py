"""What every probe of Azure takes and gives, and how one is run.

A probe is a small async function from a `Target` to an `Observation`. It decides one assumption of
`assumptions.py`. It keeps what was said on the wire as `Exchange`s, which are redacted before anybody sees them.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from aiohttp import ClientSession
from azure.core.credentials_async import AsyncTokenCredential

from tests.azure.redaction import Redactor

PATIENCE = 150.0
"""Seconds for one probe. Most need a second; a batch has 60 s to be collected in."""
LARGEST_BODY = 16_384
"""Bytes of an answer that are kept."""

KEPT_HEADERS = (
    "azure-openai-deployment-utilization",
    "content-type",
    "etag",
    "retry-after",
    "retry-after-ms",
    "www-authenticate",
    "x-ms-deployment-name",
    "x-ms-error-code",
    "x-ms-retry-after-ms",
)
KEPT_PREFIXES = ("x-ratelimit-", "x-ms-spillover-")
OPENAI_SCOPE = "https://cognitiveservices.azure.com/.default"
SERVICE_BUS_SCOPE = "https://servicebus.azure.net/.default"
BLOB_SCOPE = "https://storage.azure.com/.default"


INHERITED = "the caller inherits a role there"
"""Why what is called closed is not; then nothing that needs a caller without a role can be decided."""


class Verdict(StrEnum):
    CONFIRMED = "confirmed"
    REFUTED = "refuted"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Provisioned:
    """A provisioned deployment with spillover to a standard one. The credential has a role on its account."""

    endpoint: str
    deployment: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The addresses, identity and deployments that the probes meet. A None is something that this Azure has not."""

    session: ClientSession
    """Trusts this Azure's certificates."""
    credential: AsyncTokenCredential
    """Has the roles of a worker and a producer, except where a name begins with `closed`."""
    openai: str
    closed_openai: str
    """An account on which the credential has no role."""
    private_openai: str
    """An account without public network access, or what behaves like one."""
    deployment: str
    small_deployment: str | None
    """One with the smallest quota, which a few calls exhaust."""
    reasoning_deployment: str | None
    provisioned: Provisioned | None
    namespace: str
    servicebus_endpoint: str | None
    """`host:port` in place of the namespace's own."""
    queue: str
    """Duplicate detection, no sessions, at most 256 KiB a message."""
    closed_queue: str
    container: str
    closed_container: str
    token_url: str
    client_id: str
    """Of an identity with a federated credential."""
    issuer: str
    subject: str
    """Those of the federated credential."""
    assertion_file: Path | None
    """A good projected token of that identity, where this runs in its pod."""
    worker_environment: Mapping[str, str]
    """Of a worker and a producer under the same identity; the models are left to the probe."""
    ca_file: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One question and its answer. `status` is HTTP's; `code` is the error code or the AMQP condition."""

    asked: str
    status: int | None = None
    code: str | None = None
    headers: Mapping[str, str]
    body: Any = None

    def __str__(self) -> str:
        return " ".join(str(part) for part in (self.status, self.code) if part is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """`seen` is what decided, as a phrase; the same on each run against the same Azure."""

    verdict: Verdict
    seen: str
    exchanges: Sequence[Exchange] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """`failure` is what the probe raised, which makes the verdict unknown and is a fault of the kit."""

    name: str
    observation: Observation
    failure: Exception | None = None


Probe = Callable[[Target], Awaitable[Observation]]


def decide(is_so: bool, *exchanges: Exchange, seen: str = "") -> Observation:
    """Confirmed or refuted. Without `seen`, the exchanges say for themselves what was seen."""
    return Observation(
        verdict=Verdict.CONFIRMED if is_so else Verdict.REFUTED,
        seen=seen or "; ".join(str(exchange) for exchange in exchanges),
        exchanges=exchanges,
    )


def undecided(reason: str, *exchanges: Exchange) -> Observation:
    return Observation(verdict=Verdict.UNKNOWN, seen=reason, exchanges=exchanges)


async def run(name: str, probe: Probe, target: Target, redact: Redactor, patience: float = PATIENCE) -> Result:
    """Run one probe, bounded in time. Whatever it raises is part of its result, so that the others still run."""
    try:
        async with asyncio.timeout(patience):
            observation = await probe(target)
    except Exception as error:
        seen = f"the probe raised {type(error).__name__}"
        exchange = Exchange(asked=name, headers={}, body=f"{type(error).__name__}: {error}")
        return Result(name=name, observation=redacted(undecided(seen, exchange), redact), failure=error)
    return Result(name=name, observation=redacted(observation, redact))


def doubted(result: Result) -> Result:
    """What is said of a service whose first call did not succeed: a refutation may be ours, and not Azure's."""
    observed = result.observation
    if observed.verdict is not Verdict.REFUTED:
        return result
    seen = f"{observed.seen}; but the first call did not succeed either"
    return replace(result, observation=replace(observed, verdict=Verdict.UNKNOWN, seen=seen))


def redacted(observation: Observation, redact: Redactor) -> Observation:
    exchanges = [
        replace(
            exchange,
            asked=redact.text(exchange.asked),
            code=None if exchange.code is None else redact.text(exchange.code),
            headers={name: redact.text(value) for name, value in exchange.headers.items()},
            body=redact.value(exchange.body),
        )
        for exchange in observation.exchanges
    ]
    return replace(observation, seen=redact.text(observation.seen), exchanges=exchanges)


async def token_of(target: Target, scope: str) -> str:
    return (await target.credential.get_token(scope)).token


async def call(
    target: Target,
    method: str,
    url: str,
    *,
    asked: str,
    token: str | None = None,
    headers: Mapping[str, str] | None = None,
    **content: Any,
) -> Exchange:
    """One HTTP request, tried once, without redirects. `asked` says in words what it was; the url is not kept."""
    sent = {**(headers or {}), **({} if token is None else {"Authorization": f"Bearer {token}"})}
    async with target.session.request(method, url, headers=sent, allow_redirects=False, **content) as answer:
        body = read_body((await answer.content.read(LARGEST_BODY)).decode(errors="replace"))
        kept = {
            name.lower(): value
            for name, value in answer.headers.items()
            if name.lower() in KEPT_HEADERS or name.lower().startswith(KEPT_PREFIXES)
        }
        code = kept.get("x-ms-error-code") or code_of(body)
        return Exchange(asked=asked, status=answer.status, code=code, headers=kept, body=body)


def read_body(text: str) -> Any:
    """JSON where it is, else the text; nothing for an empty one."""
    try:
        return json.loads(text) if text else None
    except ValueError:
        return text


def code_of(body: Any) -> str | None:
    """Of an error of Azure OpenAI or Entra. Entra's is its number, `AADSTS700016`."""
    if not isinstance(body, dict):
        return None
    match body:
        case {"error": {"code": str(code)}}:
            return code
        case {"error": str(), "error_description": str(description)}:
            return description.partition(":")[0]
        case _:
            return None
