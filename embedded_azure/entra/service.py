"""The embedded Entra: one tenant's token endpoint, for workload identity federation and nothing else.

    python -m embedded_azure.entra --state DIR [--port 0]

`POST /{tenant}/oauth2/v2.0/token` trades a projected service-account token for an access token, in Entra's
words and status codes. A client secret never works here. The tenant's OpenID configuration and signing keys are
below `/{tenant}/`, with or without `v2.0`: MSAL for other languages asks for them before its first token. For the
local Azure only, and unknown to the worker: `/local/faults` (see faults.py) and `GET /local/stats` (requests by
outcome). The process serves two endpoints more: IMDS, in plaintext as the real one (`imds.py`), and the cluster's
token proxy (`identity_binding.py`).
"""

import asyncio
import re
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import orjson
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from embedded_azure.cluster import FEDERATION_AUDIENCE
from embedded_azure.config import Config, Identity
from embedded_azure.entra.assertions import check_assertion
from embedded_azure.entra.faults import FAULTS, ClockFault, RefusalFault, TokenFault
from embedded_azure.entra.refusals import TokenDenied
from embedded_azure.entra.tokens import TokenIssuer
from embedded_azure.faults import NO_FAULT, AnswerFault, Faults, add_fault_routes
from embedded_azure.http_faults import BodyFault, ConnectionFault, break_connection, send_broken
from embedded_azure.state import StateDirectory

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
_TENANT = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}|[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+")
# With a shorter life Entra sends no `refresh_in`, and the SDK decides by the expiry.
_REFRESHED_EARLY_FROM = 7_200.0
_LONGEST_FORM = 65_536
_FLOODED = 429


class Entra:
    """What the tenant knows and has done. Holds no state but its counters and the faults of the moment.

    `audience` is that of the assertions it takes: the cluster's proxy, which speaks for it, has another.
    """

    faults_key = "entra"
    """Where the config has the faults of the beginning."""

    def __init__(
        self,
        config: Config,
        issuer: TokenIssuer,
        cluster_public_key_pem: bytes,
        clock: Callable[[], float] = time.time,
        audience: str = FEDERATION_AUDIENCE,
    ) -> None:
        """Raises ValueError when the cluster's key is no RSA public key or the config's fault is wrong."""
        key = load_pem_public_key(cluster_public_key_pem)
        if not isinstance(key, RSAPublicKey):
            raise ValueError(f"the cluster's key must be an RSA public key; this is a {type(key).__name__}")
        self.config = config
        self._issuer = issuer
        self._cluster_key = key
        self._audience = audience
        self._applications = {identity.client_id: identity for identity in config.identities}
        self._clock = clock
        self.faults = Faults(*FAULTS, initial=config.faults.get(self.faults_key))
        self.outcomes: Counter[str] = Counter()
        self.grants: Counter[tuple[str, str]] = Counter()

    def clock(self) -> float:
        """Entra's own, which may be skewed."""
        skewed = self.faults.take(ClockFault)
        return self._clock() + (0.0 if skewed is None else skewed.skew)

    def grant(self, tenant: str, form: Mapping[str, str]) -> dict[str, Any]:
        """The token response for `form`. Raises TokenDenied."""
        now = self.clock()
        if (fault := self.faults.take(RefusalFault, client_id=form.get("client_id"))) is not None:
            raise TokenDenied(fault.code, tenant=tenant, client_id=form.get("client_id", ""))
        self.check_tenant(tenant)
        identity = self._authenticate(form, now)
        resource = self.check_resource(_resource_of(_required(form, "scope")))
        return self.issue(identity, resource, now)

    def check_tenant(self, tenant: str) -> None:
        """Raises TokenDenied for any but this one."""
        if tenant != self.config.tenant_id:
            raise TokenDenied(90002 if _TENANT.fullmatch(tenant) else 900023, tenant=tenant)

    def openid_configuration(self, tenant: str, origin: str) -> dict[str, Any]:
        """Where `origin` has what of the tenant. Raises TokenDenied."""
        self.check_tenant(tenant)
        base = f"{origin}/{tenant}"
        return {
            "token_endpoint": f"{base}/oauth2/v2.0/token",
            "token_endpoint_auth_methods_supported": ["private_key_jwt"],
            "jwks_uri": f"{base}/discovery/v2.0/keys",
            "response_modes_supported": ["query", "fragment", "form_post"],
            "subject_types_supported": ["pairwise"],
            "id_token_signing_alg_values_supported": ["RS256"],
            "response_types_supported": ["code", "id_token", "code id_token", "id_token token"],
            "scopes_supported": ["openid", "profile", "email", "offline_access"],
            "issuer": f"https://login.microsoftonline.com/{tenant}/v2.0",
            "request_uri_parameter_supported": False,
            "authorization_endpoint": f"{base}/oauth2/v2.0/authorize",
            "device_authorization_endpoint": f"{base}/oauth2/v2.0/devicecode",
            "end_session_endpoint": f"{base}/oauth2/v2.0/logout",
            "claims_supported": ["sub", "iss", "aud", "exp", "iat", "tid", "ver"],
            "tenant_region_scope": None,
            "cloud_instance_name": "microsoftonline.com",
        }

    def key_set(self, tenant: str) -> dict[str, Any]:
        """The keys that sign the tenant's tokens. Raises TokenDenied."""
        self.check_tenant(tenant)
        return self._issuer.key_set()

    def issue(self, identity: Identity, resource: str, now: float) -> dict[str, Any]:
        """A token response for an identity that has proved itself."""
        fault = self.faults.take(TokenFault, client_id=identity.client_id) or TokenFault()
        lifetime = self._issuer.lifetime if fault.lifetime is None else fault.lifetime
        token = self._issuer.issue(
            audience=resource,
            client_id=identity.client_id,
            object_id=identity.object_id,
            lifetime=lifetime,
            now=now,
        )
        self.grants[identity.name, resource.rstrip("/")] += 1
        return _token_response(token, lifetime, fault)

    def check_resource(self, resource: str) -> str:
        """`resource` again, where the tenant has it. Raises TokenDenied."""
        if resource.rstrip("/") not in RESOURCES:
            raise TokenDenied(500011, resource=resource, tenant=self.config.tenant_id)
        return resource

    def _authenticate(self, form: Mapping[str, str], now: float) -> Identity:
        grant_type = _required(form, "grant_type")
        if grant_type != "client_credentials":
            raise TokenDenied(70003, grant_type=grant_type)
        client_id = _required(form, "client_id")
        identity = self._applications.get(client_id)
        if identity is None:
            raise TokenDenied(700016, client_id=client_id, tenant=self.config.tenant_id)
        check_assertion(
            _assertion(form, client_id),
            identity,
            key=self._cluster_key,
            issuer=self.config.issuer,
            audience=self._audience,
            now=now,
        )
        return identity

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


def _resource_of(scope: str) -> str:
    if len(scope.split()) != 1:
        raise TokenDenied(70011, scope=scope)
    if not scope.endswith(_DEFAULT):
        raise TokenDenied(1002012, scope=scope)
    return scope.removesuffix(_DEFAULT)


def _token_response(token: str, lifetime: float, fault: TokenFault) -> dict[str, Any]:
    told = int(lifetime if fault.claims_lifetime is None else fault.claims_lifetime)
    response: dict[str, Any] = {"token_type": "Bearer", "expires_in": told, "ext_expires_in": told}
    refresh_in = told / 2 if told >= _REFRESHED_EARLY_FROM else 0.0
    if fault.refresh_in is not None:
        refresh_in = fault.refresh_in
    if refresh_in:
        response["refresh_in"] = int(refresh_in)
    return {**response, "access_token": token}


def build_app(entra: Entra, prefix: str = "") -> web.Application:
    """The HTTP surface of `entra`, without TLS. Its token endpoint is below `prefix`."""

    async def issue_token(request: web.Request) -> web.StreamResponse:
        if (dropped := entra.faults.take(ConnectionFault)) is not None:
            entra.outcomes[f"fault {dropped.how}"] += 1
            return await break_connection(request, dropped)
        fault = entra.faults.take(AnswerFault) or NO_FAULT
        await asyncio.sleep(fault.latency)
        try:
            _raise_fault(fault)
            answer = entra.grant(request.match_info["tenant"], await _read_form(request))
        except TokenDenied as denied:
            outcome = f"fault {denied.status}" if fault.status else f"AADSTS{denied.code}"
            entra.outcomes[outcome] += 1
            return _respond(denied.body(entra.clock()), denied.status, fault.headers())
        entra.outcomes["granted"] += 1
        if (broken := entra.faults.take(BodyFault)) is not None:
            return await send_broken(request, response_headers(), orjson.dumps(answer), broken)
        return _respond(answer, 200, {})

    async def show_stats(_request: web.Request) -> web.Response:
        return web.json_response(entra.stats())

    async def show_configuration(request: web.Request) -> web.Response:
        origin = f"{request.scheme}://{request.host}"
        return _discovered(lambda: entra.openid_configuration(request.match_info["tenant"], origin))

    async def show_keys(request: web.Request) -> web.Response:
        return _discovered(lambda: entra.key_set(request.match_info["tenant"]))

    def _discovered(find: Callable[[], dict[str, Any]]) -> web.Response:
        try:
            return _respond(find(), 200, {})
        except TokenDenied as denied:
            return _respond(denied.body(entra.clock()), denied.status, {})

    app = web.Application(client_max_size=_LONGEST_FORM)
    for version in ("", "/v2.0"):
        app.router.add_get(f"{prefix}/{{tenant}}{version}/.well-known/openid-configuration", show_configuration)
        app.router.add_get(f"{prefix}/{{tenant}}/discovery{version}/keys", show_keys)
    app.router.add_post(f"{prefix}/{{tenant}}/oauth2/v2.0/token", issue_token)
    app.router.add_get("/local/stats", show_stats)
    add_fault_routes(app, entra.faults)
    return app


def _raise_fault(fault: AnswerFault) -> None:
    if fault.status is not None:
        raise TokenDenied(90055 if fault.status == _FLOODED else 90033, status=fault.status)


async def _read_form(request: web.Request) -> dict[str, str]:
    """What cannot be read as a form has no parameters, and is refused for those."""
    try:
        form = await request.post()
    except (LookupError, ValueError, web.RequestPayloadError):
        return {}
    return {name: value for name, value in form.items() if isinstance(value, str)}


def response_headers() -> dict[str, str]:
    return {
        "Content-Type": "application/json; charset=utf-8",
        "Cache-Control": "no-store, no-cache",
        "Pragma": "no-cache",
        "x-ms-request-id": str(uuid.uuid4()),
    }


def _respond(body: dict[str, Any], status: int, headers: Mapping[str, str]) -> web.Response:
    return web.Response(body=orjson.dumps(body), status=status, headers={**response_headers(), **headers})


def load_entra(state: StateDirectory, clock: Callable[[], float] = time.time) -> Entra:
    """The tenant of the state directory. Raises OSError or ValueError when a file is missing or wrong."""
    config = Config.load(state.config)
    return Entra(config, load_issuer(state, config, clock), state.cluster_public_key.read_bytes(), clock)


def load_issuer(state: StateDirectory, config: Config, clock: Callable[[], float] = time.time) -> TokenIssuer:
    """Raises OSError or ValueError when the key is missing or wrong."""
    return TokenIssuer(state.entra_private_key.read_bytes(), config.tenant_id, config.token_lifetime, clock)
