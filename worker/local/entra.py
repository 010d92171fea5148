"""The embedded Entra: one tenant's token endpoint, for workload identity federation and nothing else.

    python -m worker.local.entra --state DIR [--port 0]

`POST /{tenant}/oauth2/v2.0/token` trades a projected service-account token for an access token, in Entra's
words and status codes. A client secret never works here. For the local Azure only, and unknown to the worker:
`PUT /local/faults` (see faults.py) and `GET /local/stats` (requests by outcome).
"""

import argparse
import asyncio
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jwt
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from worker.local.cluster import FEDERATION_AUDIENCE
from worker.local.entra_refusals import TokenDenied
from worker.local.faults import Fault, Faults, add_fault_routes
from worker.local.process import run_to_the_end, serve
from worker.local.state import StateDirectory
from worker.local.tokens import TokenIssuer
from worker.local.world import Identity, World

RESOURCES = frozenset(
    {
        "https://cognitiveservices.azure.com",
        "https://ai.azure.com",
        "https://servicebus.azure.net",
        "https://storage.azure.com",
    }
)
_ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_DEFAULT = "/.default"
# With a shorter life Entra sends no `refresh_in`, and the SDK decides by the expiry.
_REFRESHED_EARLY_FROM = 7_200.0
_LONGEST_FORM = 65_536


class Entra:
    """What the tenant knows and has done. Holds no state but its counters and the fault of the moment."""

    def __init__(
        self,
        world: World,
        issuer: TokenIssuer,
        cluster_public_key_pem: bytes,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Raises ValueError when the cluster's key is no RSA public key or the world's fault is wrong."""
        key = load_pem_public_key(cluster_public_key_pem)
        if not isinstance(key, RSAPublicKey):
            raise ValueError(f"the cluster's key must be an RSA public key; this is a {type(key).__name__}")
        self._world = world
        self._issuer = issuer
        self._cluster_key = key
        self._applications = {identity.client_id: identity for identity in world.identities}
        self.clock = clock
        self.faults = Faults(world.faults.get("entra"))
        self.outcomes: Counter[str] = Counter()
        self.grants: Counter[tuple[str, str]] = Counter()

    def grant(self, tenant: str, form: Mapping[str, str]) -> dict[str, Any]:
        """The token response for `form`. Raises TokenDenied."""
        if tenant != self._world.tenant_id:
            raise TokenDenied(90002, tenant=tenant)
        identity = self._authenticate(form)
        resource = self._resource(_required(form, "scope"))
        token = self._issuer.issue(audience=resource, client_id=identity.client_id, object_id=identity.object_id)
        self.grants[identity.name, resource.rstrip("/")] += 1
        return _token_response(token, self._issuer.lifetime)

    def _authenticate(self, form: Mapping[str, str]) -> Identity:
        grant_type = _required(form, "grant_type")
        if grant_type != "client_credentials":
            raise TokenDenied(70003, grant_type=grant_type)
        client_id = _required(form, "client_id")
        identity = self._applications.get(client_id)
        if identity is None:
            raise TokenDenied(700016, client_id=client_id, tenant=self._world.tenant_id)
        self._check_assertion(_assertion(form, client_id), identity)
        return identity

    def _check_assertion(self, assertion: str, identity: Identity) -> None:
        """Verify it as the federated credential of `identity` asks: every check must pass."""
        issuer = _claimed_issuer(assertion)
        if issuer != self._world.issuer:
            raise TokenDenied(700211, issuer=issuer)
        claims = _signed_claims(assertion, self._cluster_key)
        if (subject := claims.get("sub")) != identity.subject:
            raise TokenDenied(700213, subject=str(subject))
        if FEDERATION_AUDIENCE not in _audiences(claims):
            raise TokenDenied(700212, audience=", ".join(_audiences(claims)))
        _check_validity(claims, self.clock())

    def _resource(self, scope: str) -> str:
        if len(scope.split()) != 1:
            raise TokenDenied(70011, scope=scope)
        if not scope.endswith(_DEFAULT):
            raise TokenDenied(1002012, scope=scope)
        resource = scope.removesuffix(_DEFAULT)
        if resource.rstrip("/") not in RESOURCES:
            raise TokenDenied(500011, resource=resource, tenant=self._world.tenant_id)
        return resource

    def stats(self) -> dict[str, Any]:
        grants: dict[str, dict[str, int]] = {}
        for (name, resource), count in self.grants.items():
            grants.setdefault(name, {})[resource] = count
        return {
            "requests": self.outcomes.total(),
            "outcomes": dict(self.outcomes),
            "granted_by_identity": grants,
        }


def _required(form: Mapping[str, str], parameter: str) -> str:
    if value := form.get(parameter):
        return value
    raise TokenDenied(900144, parameter=parameter)


def _assertion(form: Mapping[str, str], client_id: str) -> str:
    if "client_secret" in form:
        raise TokenDenied(7000215, client_id=client_id)
    if not form.get("client_assertion"):
        raise TokenDenied(7000216)
    if form.get("client_assertion_type") != _ASSERTION_TYPE:
        raise TokenDenied(900144, parameter="client_assertion_type")
    return form["client_assertion"]


def _claimed_issuer(assertion: str) -> str:
    """The issuer as the assertion has it: unverified, only good for refusing it."""
    try:
        claims = jwt.decode(assertion, options={"verify_signature": False})
    except (jwt.InvalidTokenError, RecursionError, UnicodeError) as error:
        raise TokenDenied(50027) from error
    return str(claims.get("iss"))


def _signed_claims(assertion: str, key: RSAPublicKey) -> dict[str, Any]:
    options: jwt.types.Options = {
        "verify_exp": False,
        "verify_nbf": False,
        "verify_iat": False,
        "verify_aud": False,
        "verify_iss": False,
        "verify_sub": False,
        "verify_jti": False,
    }
    try:
        return jwt.decode(assertion, key, algorithms=["RS256"], options=options)
    except jwt.InvalidAlgorithmError as error:
        raise TokenDenied(5002730) from error
    except jwt.InvalidTokenError as error:
        raise TokenDenied(700027) from error


def _audiences(claims: Mapping[str, Any]) -> list[str]:
    audience = claims.get("aud")
    return [str(one) for one in audience] if isinstance(audience, list) else [str(audience)]


def _check_validity(claims: Mapping[str, Any], now: float) -> None:
    not_before, expires = claims.get("nbf", 0), claims.get("exp")
    if not isinstance(expires, int | float) or not isinstance(not_before, int | float):
        raise TokenDenied(50027)
    if not not_before <= now < expires:
        raise TokenDenied(700024, now=_utc(now), not_before=_utc(not_before), expires=_utc(expires))


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f0Z")


def _token_response(token: str, lifetime: float) -> dict[str, Any]:
    response: dict[str, Any] = {
        "token_type": "Bearer",
        "expires_in": int(lifetime),
        "ext_expires_in": int(lifetime),
    }
    if lifetime >= _REFRESHED_EARLY_FROM:
        response["refresh_in"] = int(lifetime / 2)
    return {**response, "access_token": token}


def build_app(entra: Entra) -> web.Application:
    """The HTTP surface of `entra`, without TLS."""

    async def issue_token(request: web.Request) -> web.Response:
        fault = entra.faults.take()
        await asyncio.sleep(fault.latency)
        try:
            _raise_fault(fault)
            answer = entra.grant(request.match_info["tenant"], await _read_form(request))
        except TokenDenied as denied:
            outcome = f"fault {denied.status}" if fault.status else f"AADSTS{denied.code}"
            entra.outcomes[outcome] += 1
            return _respond(denied.body(entra.clock()), denied.status, fault.headers())
        entra.outcomes["granted"] += 1
        return _respond(answer, 200, {})

    async def show_stats(_request: web.Request) -> web.Response:
        return web.json_response(entra.stats())

    app = web.Application(client_max_size=_LONGEST_FORM)
    app.router.add_post("/{tenant}/oauth2/v2.0/token", issue_token)
    app.router.add_get("/local/stats", show_stats)
    add_fault_routes(app, entra.faults)
    return app


def _raise_fault(fault: Fault) -> None:
    if fault.status is not None:
        raise TokenDenied(90033, status=fault.status)


async def _read_form(request: web.Request) -> dict[str, str]:
    form = await request.post()
    return {name: value for name, value in form.items() if isinstance(value, str)}


def _respond(body: dict[str, Any], status: int, headers: Mapping[str, str]) -> web.Response:
    headers = {
        "Cache-Control": "no-store, no-cache",
        "Pragma": "no-cache",
        "x-ms-request-id": str(uuid.uuid4()),
        **headers,
    }
    return web.json_response(body, status=status, headers=headers)


def load_entra(state: StateDirectory, clock: Callable[[], float] = time.time) -> Entra:
    """The tenant of the state directory. Raises OSError or ValueError when a file is missing or wrong."""
    world = World.load(state.world)
    key = state.entra_private_key.read_bytes()
    issuer = TokenIssuer(key, world.tenant_id, world.token_lifetime, clock)
    return Entra(world, issuer, state.cluster_public_key.read_bytes(), clock)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m worker.local.entra", description="The embedded Entra.")
    parser.add_argument("--state", type=Path, required=True, help="state directory, made by the supervisor")
    parser.add_argument("--port", type=int, default=0, help="port on loopback; 0 takes a free one")
    arguments = parser.parse_args()
    state = StateDirectory(arguments.state)
    app = build_app(load_entra(state))
    run_to_the_end(lambda: serve(app, service="entra", state=state, port=arguments.port))


if __name__ == "__main__":
    main()
