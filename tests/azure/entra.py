"""The probes of Entra: the token endpoint, by plain requests with assertions that are signed here.

Nothing is gained by any of them: the assertions are of an issuer that nobody trusts.
"""

import time
import uuid

import jwt

from embedded_azure.certificates import make_signing_key
from tests.azure.probing import OPENAI_SCOPE, Exchange, Observation, Target, call, decide, undecided

AUDIENCE = "api://AzureADTokenExchange"
_LIFETIME = 600


async def _ask(target: Target, asked: str, *, client_id: str, assertion: str) -> Exchange:
    form = {
        "grant_type": "client_credentials",
        "client_id": client_id,
        "scope": OPENAI_SCOPE,
        "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
        "client_assertion": assertion,
    }
    return await call(target, "POST", target.token_url, asked=asked, data=form)


def _assertion(issuer: str, subject: str, audience: str = AUDIENCE) -> str:
    now = int(time.time())
    claims = {"iss": issuer, "sub": subject, "aud": audience, "iat": now, "nbf": now, "exp": now + _LIFETIME}
    return jwt.encode(claims, make_signing_key(), algorithm="RS256", headers={"kid": "probe"})


async def wrong_client_id(target: Target) -> Observation:
    answer = await _ask(
        target,
        "a token for a client id that does not exist",
        client_id=str(uuid.uuid4()),
        assertion=_assertion(target.issuer, target.subject),
    )
    return decide(answer.code == "AADSTS700016", answer)


async def wrong_issuer(target: Target) -> Observation:
    answer = await _ask(
        target,
        "a token by an assertion of another issuer",
        client_id=target.client_id,
        assertion=_assertion("https://oidc.example/other/", target.subject),
    )
    return decide(answer.code == "AADSTS700211", answer)


async def not_an_assertion(target: Target) -> Observation:
    answer = await _ask(target, "a token by nonsense", client_id=target.client_id, assertion="nonsense")
    return decide(answer.code == "AADSTS50027", answer)


async def signature_before_subject(target: Target) -> Observation:
    """Which of two faults is told says what an operator sees first; ours looks at the signature first."""
    answer = await _ask(
        target,
        "a token by an assertion of another subject, with a wrong signature",
        client_id=target.client_id,
        assertion=_assertion(target.issuer, "system:serviceaccount:other:other"),
    )
    return decide(answer.code == "AADSTS700027", answer)


async def lifetime(target: Target) -> Observation:
    answer = await _exchange(target)
    if answer is None:
        return undecided("no projected token here: run it in a pod")
    told = answer.body if isinstance(answer.body, dict) else {}
    return decide(isinstance(told.get("expires_in"), int), answer, seen=_told(told, "expires_in"))


async def refresh_in(target: Target) -> Observation:
    answer = await _exchange(target)
    if answer is None:
        return undecided("no projected token here: run it in a pod")
    told = answer.body if isinstance(answer.body, dict) else {}
    return decide(isinstance(told.get("refresh_in"), int), answer, seen=_told(told, "refresh_in"))


async def _exchange(target: Target) -> Exchange | None:
    if target.assertion_file is None:
        return None
    assertion = target.assertion_file.read_text(encoding="utf-8").strip()
    return await _ask(target, "a token by a good assertion", client_id=target.client_id, assertion=assertion)


def _told(document: dict[str, object], name: str) -> str:
    return f"{name} {document[name]}" if name in document else f"no {name}"
