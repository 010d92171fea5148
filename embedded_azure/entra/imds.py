"""The embedded Instance Metadata Service, as far as managed identities need it: tokens for all on the node.

`GET /metadata/identity/oauth2/token?api-version=2018-02-01&resource=...[&client_id=...]` with `Metadata: true`, in
plaintext as the real one at 169.254.169.254. It has the identities that the config assigns to the node, by default
none. azure-identity finds it by AZURE_POD_IDENTITY_AUTHORITY_HOST. `/local/faults` and `/local/stats` are its own.
"""

import asyncio
from collections import Counter
from collections.abc import Mapping
from typing import Any

import orjson
from aiohttp import web

from embedded_azure.config import Config, Identity
from embedded_azure.entra.refusals import TokenDenied
from embedded_azure.entra.service import Entra
from embedded_azure.faults import NO_FAULT, AnswerFault, Fault, Faults, add_fault_routes
from embedded_azure.http_faults import BodyFault, ConnectionFault, break_connection, send_broken

FAULTS: tuple[type[Fault], ...] = (AnswerFault, ConnectionFault, BodyFault)
"""The kinds of fault that may be set here; for refusals and odd tokens, set Entra's."""

_VERSIONS = ("2018-02-01", "2019-06-01", "2019-06-04", "2019-08-01", "2019-08-15", "2019-11-01", "2020-06-01")
_TOKEN_VERSIONS = frozenset(_VERSIONS)
_HEADERS = {"Content-Type": "application/json; charset=utf-8", "Server": "IMDS/150.870.65.1854"}
_BY_ID = ("client_id", "object_id")


class NotGranted(Exception):
    """A refusal of IMDS's: `document` with status 400."""

    def __init__(self, document: dict[str, Any]) -> None:
        super().__init__(str(document))
        self.document = document


class InstanceMetadata:
    """The node's managed identities. Entra issues their tokens; nothing has to be proved but where one stands."""

    def __init__(self, config: Config, entra: Entra) -> None:
        """Raises KeyError when an identity of the node does not exist, ValueError for a bad fault."""
        self._identities = [config.identity(name) for name in config.node_identities]
        self._entra = entra
        self.faults = Faults(*FAULTS, initial=config.faults.get("entra/imds"))
        self.outcomes: Counter[str] = Counter()

    def grant(self, headers: Mapping[str, str], query: Mapping[str, str]) -> dict[str, Any]:
        """The token response, in which IMDS has its numbers as text. Raises NotGranted."""
        if headers.get("Metadata", "").lower() != "true":
            raise _invalid("Required metadata header not specified")
        if query.get("api-version") not in _TOKEN_VERSIONS:
            message = "Bad request. api-version is invalid or was not specified in the request."
            raise NotGranted({"error": message, "newest-versions": list(reversed(_VERSIONS))[:3]})
        identity = self._find(query)
        resource = query.get("resource", "")
        if not resource:
            raise _invalid("Required query variable 'resource' is missing")
        now = self._entra.clock()
        try:
            granted = self._entra.issue(identity, self._entra.check_resource(resource), now)
        except TokenDenied as denied:
            raise NotGranted({"error": denied.error, "error_description": denied.text}) from denied
        return _as_imds(granted, identity, resource, int(now))

    def _find(self, query: Mapping[str, str]) -> Identity:
        asked = {name: query[name] for name in _BY_ID if name in query}
        if not asked:
            return self._find_only()
        for identity in self._identities:
            if asked.items() <= {"client_id": identity.client_id, "object_id": identity.object_id}.items():
                return identity
        raise _invalid("Identity not found")

    def _find_only(self) -> Identity:
        """The one that need not be named."""
        if not self._identities:
            raise _invalid("Identity not found")
        if len(self._identities) > 1:
            raise _invalid(
                "Multiple user assigned identities exist, please specify the clientId / resourceId of the identity "
                "in the token request"
            )
        return self._identities[0]


def _invalid(description: str) -> NotGranted:
    return NotGranted({"error": "invalid_request", "error_description": description})


def _as_imds(granted: Mapping[str, Any], identity: Identity, resource: str, now: int) -> dict[str, Any]:
    lifetime = granted["expires_in"]
    return {
        "access_token": granted["access_token"],
        "client_id": identity.client_id,
        "expires_in": str(lifetime),
        "expires_on": str(now + lifetime),
        "ext_expires_in": str(lifetime),
        "not_before": str(now),
        "resource": resource,
        "token_type": "Bearer",
    }


def environment(port: int) -> dict[str, str]:
    """What leads a credential on this machine to IMDS at `port`."""
    return {"AZURE_POD_IDENTITY_AUTHORITY_HOST": f"http://localhost:{port}"}


def build_app(metadata: InstanceMetadata) -> web.Application:
    async def issue_token(request: web.Request) -> web.StreamResponse:
        if (dropped := metadata.faults.take(ConnectionFault)) is not None:
            return await break_connection(request, dropped)
        fault = metadata.faults.take(AnswerFault) or NO_FAULT
        await asyncio.sleep(fault.latency)
        if fault.status is not None:
            metadata.outcomes[f"fault {fault.status}"] += 1
            return _respond(_failure(fault.status), fault.status, fault.headers())
        try:
            answer = metadata.grant(request.headers, request.query)
        except NotGranted as refusal:
            metadata.outcomes["refused"] += 1
            return _respond(refusal.document, 400)
        metadata.outcomes["granted"] += 1
        if (broken := metadata.faults.take(BodyFault)) is not None:
            return await send_broken(request, _HEADERS, orjson.dumps(answer), broken)
        return _respond(answer, 200)

    async def show_stats(_request: web.Request) -> web.Response:
        return web.json_response({"outcomes": dict(metadata.outcomes)})

    async def not_found(_request: web.Request) -> web.Response:
        return _respond({"error": "Not Found"}, 404)

    app = web.Application()
    for path in ("/metadata/identity/oauth2/token", "/metadata/identity/oauth2/token/"):
        app.router.add_get(path, issue_token)  # MSAL of some languages asks with the trailing slash
    app.router.add_get("/local/stats", show_stats)
    add_fault_routes(app, metadata.faults)
    app.router.add_route("*", "/{rest:.*}", not_found)
    return app


def _failure(status: int) -> dict[str, Any]:
    """What IMDS says when it is no use asking just now: 410 while it is updated, 404 while it is not there yet."""
    words = {404: "Not Found", 410: "Gone", 429: "Too Many Requests"}
    return {"error": words.get(status, "Internal Server Error")}


def _respond(document: dict[str, Any], status: int, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(body=orjson.dumps(document), status=status, headers={**_HEADERS, **(headers or {})})
