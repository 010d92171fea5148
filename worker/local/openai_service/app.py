"""The HTTP surface of the embedded Azure OpenAI: routes, who may call them, and the response headers.

Two surfaces lead to the same account: `/openai/v1/...` (the body's `model` is the deployment) and
`/openai/deployments/{deployment}/...?api-version=...` (or `/openai/responses?api-version=...`). `operations.py`
lists them. For the local Azure only: `/local/faults`, `/local/stats`.
"""

import uuid
from collections.abc import Awaitable, Callable, Mapping

import orjson
from aiohttp import web

from worker.local.faults import add_fault_routes
from worker.local.openai_service.account import Account
from worker.local.openai_service.operations import OPERATIONS, Operation
from worker.local.openai_service.refusals import (
    Refused,
    lacks_data_action,
    not_authorized,
    not_found,
    too_large,
)

_LARGEST_BODY = 4 << 20
_CHANGES = frozenset({"PUT", "PATCH", "DELETE", "POST"})
_REGION = "local"

_Handler = Callable[[web.Request], Awaitable[web.Response]]


def build_app(account: Account) -> web.Application:
    """The surface of `account`, without TLS.

    Run it with handler_cancellation, or a call outlives the client that gave it up.
    """

    async def refuse_management(request: web.Request) -> web.Response:
        _refuse_management(account, request)
        raise not_found()

    async def show_stats(_request: web.Request) -> web.Response:
        return web.Response(body=orjson.dumps(account.counters.document()), content_type="application/json")

    app = web.Application(client_max_size=_LARGEST_BODY)
    add_fault_routes(app, account.faults)
    app.router.add_get("/local/stats", show_stats)
    for operation in OPERATIONS:
        _add_operation(app, account, operation)
    app.router.add_route("*", "/{rest:.*}", _with_refusals(refuse_management))
    return app


def _add_operation(app: web.Application, account: Account, operation: Operation) -> None:
    """Add `operation` to both surfaces."""

    async def perform(request: web.Request, api_version: str) -> web.Response:
        account.authorize(account.authenticate(request.headers), operation)
        if not api_version:
            raise not_found()
        deployment = request.match_info.get("deployment")
        reply = await account.perform(operation, deployment, api_version, await _read_body(request))
        return _respond(request, 200, reply.body, reply.headers)

    async def v1(request: web.Request) -> web.Response:
        return await perform(request, "v1")

    async def versioned(request: web.Request) -> web.Response:
        return await perform(request, request.query.get("api-version", ""))

    app.router.add_post(operation.v1_path, _with_refusals(v1))
    app.router.add_post(operation.versioned_path, _with_refusals(versioned))


def _with_refusals(handler: _Handler) -> _Handler:
    async def handle(request: web.Request) -> web.Response:
        try:
            return await handler(request)
        except Refused as refused:
            return _respond(request, refused.status, orjson.dumps(refused.document), refused.headers)

    return handle


def _refuse_management(account: Account, request: web.Request) -> None:
    """Refuse what a data-plane role cannot do: Resource Manager's calls and changes to deployments."""
    caller = account.authenticate(request.headers)
    if request.path.startswith("/subscriptions/"):
        scope, _, operation = request.path.rpartition("/")
        action = f"Microsoft.CognitiveServices/accounts/{operation}/action"
        raise not_authorized(caller.app_id, caller.object_id, action, scope)
    if request.path.startswith("/openai/deployments") and request.method in _CHANGES:
        operation = f"{request.method} /openai/deployments/{{deployment-id}}"
        refused = lacks_data_action(caller.object_id, "deployments/write", operation)
        raise Refused(403, refused.document)


async def _read_body(request: web.Request) -> bytes:
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise too_large() from None


def _respond(request: web.Request, status: int, body: bytes, headers: Mapping[str, str]) -> web.Response:
    identifier = str(uuid.uuid4())
    given = request.headers.get("x-ms-client-request-id", "")
    sent = {
        "Content-Type": "application/json",
        "apim-request-id": identifier,
        "x-request-id": identifier,
        "x-ms-region": _REGION,
        "x-ms-client-request-id": given if given and given.isascii() else identifier,
        **headers,
    }
    return web.Response(status=status, body=body, headers=sent)
