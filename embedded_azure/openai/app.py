"""The HTTP surface of the embedded Azure OpenAI: routes, who may call them, and the response headers.

Two surfaces lead to the same account: `/openai/v1/...` (the body's `model` is the deployment) and
`/openai/deployments/{deployment}/...?api-version=...` (or `/openai/responses?api-version=...`). `operations.py`
lists them. The first is also below `/api/projects/{project}`, as the endpoint of a Foundry project has it: whatever
the project's name, and for tokens of its own audience only. An account with a name of its own is under
`/accounts/{name}`. For the local Azure only, in each account: `/local/faults`, `/local/stats`.
"""

import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import orjson
from aiohttp import web

from embedded_azure.faults import add_fault_routes
from embedded_azure.http_faults import ConnectionFault, break_connection
from embedded_azure.openai.account import AUDIENCES, PROJECT_AUDIENCES, Account, Question
from embedded_azure.openai.bodies import unreadable_body
from embedded_azure.openai.listings import find_model, list_deployments, list_models
from embedded_azure.openai.operations import OPERATIONS, Operation
from embedded_azure.openai.refusals import (
    REGION,
    Refused,
    lacks_data_action,
    not_authorized,
    not_found,
    too_large,
    too_many_headers,
)
from embedded_azure.openai.sending import Streamed, Whole, send_stream, send_whole
from embedded_azure.openai.versions import LISTING_DEPLOYMENTS, check_dated, check_v1

_LARGEST_BODY = 16 << 20
_CHANGES = frozenset({"PUT", "PATCH", "DELETE", "POST"})
_PROJECT = "/api/projects/{project}"
_MOST_CUSTOM_HEADERS = 10
_USUAL = """
accept accept-encoding accept-language api-key authorization cache-control connection content-encoding
content-length content-type cookie date expect forwarded host idempotency-key origin pragma referer
traceparent tracestate transfer-encoding user-agent via x-request-id
"""
_USUAL_HEADERS = frozenset(_USUAL.split())
_USUAL_PREFIXES = ("x-stainless-", "x-ms-", "x-forwarded-", "sec-", "openai-")

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def build_apps(accounts: Mapping[str, Account], default: str) -> web.Application:
    """The surface of the account `default`, with those of the others below it."""
    app = _new_app()
    for name, account in accounts.items():
        if name != default:
            below = _new_app()
            _add_routes(below, account)
            app.add_subapp(f"/accounts/{name}", below)
    _add_routes(app, accounts[default])
    return app


def build_app(account: Account) -> web.Application:
    """The surface of `account` alone, without TLS.

    Run it with handler_cancellation, or a call outlives the client that gave it up.
    """
    return build_apps({account.name: account}, account.name)


def _new_app() -> web.Application:
    return web.Application(client_max_size=_LARGEST_BODY)


def _add_routes(app: web.Application, account: Account) -> None:
    async def refuse_management(request: web.Request) -> web.StreamResponse:
        _refuse_management(account, request)
        raise not_found()

    async def show_stats(_request: web.Request) -> web.Response:
        return web.Response(body=orjson.dumps(account.counters.document()), content_type="application/json")

    add_fault_routes(app, account.faults)
    app.router.add_get("/local/stats", show_stats)
    for operation in OPERATIONS:
        _add_operation(app, account, operation)
    _add_listings(app, account)
    app.router.add_route("*", "/{rest:.*}", _with_refusals(refuse_management))


def _add_operation(app: web.Application, account: Account, operation: Operation) -> None:
    """Add `operation` to both surfaces."""

    async def perform(request: web.Request, api_version: str) -> web.StreamResponse:
        question = Question(
            operation=operation,
            deployment=request.match_info.get("deployment"),
            api_version=api_version,
            document=await _read_body(request),
            spillover_to=request.headers.get("x-ms-spillover-deployment"),
        )
        async with account.answer(question) as reply:
            match reply:
                case ConnectionFault():
                    return await break_connection(request, reply)
                case Whole():
                    return await send_whole(request, reply, _headers_of(request, reply.headers))
                case Streamed():
                    return await send_stream(request, reply, _headers_of(request, reply.headers))

    def authorize(request: web.Request, audiences: Sequence[str] = AUDIENCES) -> None:
        _check_headers(request.headers)
        caller = account.authenticate(request.headers, audiences)
        account.authorize(caller, operation.action, operation.description)

    async def v1(request: web.Request) -> web.StreamResponse:
        authorize(request, PROJECT_AUDIENCES if "project" in request.match_info else AUDIENCES)
        return await perform(request, check_v1(request.query.get("api-version")))

    async def versioned(request: web.Request) -> web.StreamResponse:
        authorize(request)
        return await perform(request, check_dated(request.query.get("api-version"), operation.name))

    app.router.add_post(operation.v1_path, _with_refusals(v1))
    app.router.add_post(_PROJECT + operation.v1_path, _with_refusals(v1))
    app.router.add_post(operation.versioned_path, _with_refusals(versioned))


def _add_listings(app: web.Application, account: Account) -> None:
    """Add what can be listed: models on both surfaces, and deployments on the one of old."""
    specs = [served.spec for served in account.deployments.values()]

    def add(
        path: str, action: str, check: Callable[[str | None], str], make: Callable[[str], dict[str, Any]]
    ) -> None:
        async def handle(request: web.Request) -> web.StreamResponse:
            account.authorize(account.authenticate(request.headers), action, f"GET {path}")
            check(request.query.get("api-version"))
            document = make(request.match_info.get("model", ""))
            return web.Response(body=orjson.dumps(document), headers=_json_headers(request, {}))

        app.router.add_get(path, _with_refusals(handle))

    for base, check in (("/openai/v1/models", check_v1), ("/openai/models", _check_dated)):
        add(base, "models/read", check, lambda _: list_models(specs))
        add(f"{base}/{{model}}", "models/read", check, lambda name: find_model(specs, name))
    add("/openai/deployments", "deployments/read", _check_listing, lambda _: list_deployments(specs))


def _check_dated(given: str | None) -> str:
    return check_dated(given, "models")


def _check_listing(given: str | None) -> str:
    if given not in LISTING_DEPLOYMENTS:
        raise not_found()
    return given


def _with_refusals(handler: _Handler) -> _Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except Refused as refused:
            headers = _json_headers(request, refused.headers)
            return web.Response(status=refused.status, body=orjson.dumps(refused.document), headers=headers)

    return handle


def _refuse_management(account: Account, request: web.Request) -> None:
    """Refuse what a data-plane role cannot do: Resource Manager's calls and changes to deployments."""
    caller = account.authenticate(request.headers)
    if request.path.startswith("/subscriptions/"):
        scope, _, operation = request.path.rpartition("/")
        action = f"Microsoft.CognitiveServices/accounts/{operation}/action"
        raise not_authorized(caller.app_id, caller.object_id, action, scope)
    if "/openai/deployments" in request.path and request.method in _CHANGES:
        operation = f"{request.method} /openai/deployments/{{deployment-id}}"
        refused = lacks_data_action(caller.object_id, "deployments/write", operation)
        raise Refused(403, refused.document)


def _check_headers(headers: Mapping[str, str]) -> None:
    """Refuse more custom headers than Azure passes on. Which count is not published: here all but those of HTTP,
    of tracing, of Azure and of the openai packages."""
    custom = [name for name in map(str.lower, headers) if name not in _USUAL_HEADERS]
    if sum(not name.startswith(_USUAL_PREFIXES) for name in custom) > _MOST_CUSTOM_HEADERS:
        raise too_many_headers()


async def _read_body(request: web.Request) -> bytes:
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise too_large() from None
    except web.RequestPayloadError as error:
        raise unreadable_body() from error


def _json_headers(request: web.Request, headers: Mapping[str, str]) -> dict[str, str]:
    return {"Content-Type": "application/json", **_headers_of(request, headers)}


def _headers_of(request: web.Request, headers: Mapping[str, str]) -> dict[str, str]:
    identifier = str(uuid.uuid4())
    given = request.headers.get("x-ms-client-request-id", "")
    return {
        "apim-request-id": identifier,
        "x-request-id": identifier,
        "x-ms-region": REGION,
        "x-ms-client-request-id": given if given and given.isascii() else identifier,
        **headers,
    }
