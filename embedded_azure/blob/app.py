"""The HTTP surface of the embedded Blob storage: which operation a request is, and who may ask for it.

Addresses are `https://localhost:PORT/<account>/<container>/<blob>`. Identity comes first, then the role, then the
container, the conditions last: who may not know of a blob is told nothing of it. For the local Azure only:
`/local/faults`, and `/local/stats` (answers by operation and status).
"""

import asyncio
import sqlite3
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

import orjson
from aiohttp import web

from embedded_azure.blob import blobs, containers
from embedded_azure.blob.access import Access, Right
from embedded_azure.blob.calls import Call, Target, answer_refusal, read_target
from embedded_azure.blob.faults import (
    FAULTS,
    LoseAnswerFault,
    LoseEveryAnswerFault,
    StorageAnswerFault,
    StorageConnectionFault,
)
from embedded_azure.blob.refusals import Refused
from embedded_azure.blob.store import Store
from embedded_azure.config import Config
from embedded_azure.entra.tokens import AccessTokens
from embedded_azure.faults import Faults, add_fault_routes
from embedded_azure.http_faults import ConnectionFault, break_connection


@dataclass(frozen=True, slots=True)
class _Operation:
    right: Right
    perform: Callable[[Call], Awaitable[web.StreamResponse]]

    @property
    def name(self) -> str:
        return self.perform.__name__


_READ, _WRITE = Right.READ, Right.WRITE
_ACCOUNT_PROPERTIES: Final = _Operation(_READ, containers.account_properties)
_GET_CONTAINER: Final = _Operation(_READ, containers.get_container)
_HEAD_BLOB: Final = _Operation(_READ, blobs.head_blob)
_OPERATIONS: Final[Mapping[tuple[str, str, str, str], _Operation]] = {
    ("GET", "account", "", "list"): _Operation(_READ, containers.list_containers),
    ("GET", "account", "account", "properties"): _ACCOUNT_PROPERTIES,
    ("HEAD", "account", "account", "properties"): _ACCOUNT_PROPERTIES,
    ("PUT", "container", "container", ""): _Operation(_WRITE, containers.create_container),
    ("GET", "container", "container", ""): _GET_CONTAINER,
    ("HEAD", "container", "container", ""): _GET_CONTAINER,
    ("GET", "container", "container", "metadata"): _GET_CONTAINER,
    ("HEAD", "container", "container", "metadata"): _GET_CONTAINER,
    ("PUT", "container", "container", "metadata"): _Operation(_WRITE, containers.set_container_metadata),
    ("DELETE", "container", "container", ""): _Operation(_WRITE, containers.delete_container),
    ("GET", "container", "container", "list"): _Operation(_READ, containers.list_blobs),
    ("PUT", "blob", "", ""): _Operation(_WRITE, blobs.put_blob),
    ("GET", "blob", "", ""): _Operation(_READ, blobs.get_blob),
    ("HEAD", "blob", "", ""): _HEAD_BLOB,
    ("GET", "blob", "", "metadata"): _HEAD_BLOB,
    ("HEAD", "blob", "", "metadata"): _HEAD_BLOB,
    ("DELETE", "blob", "", ""): _Operation(_WRITE, blobs.delete_blob),
    ("PUT", "blob", "", "metadata"): _Operation(_WRITE, blobs.set_blob_metadata),
    ("PUT", "blob", "", "properties"): _Operation(_WRITE, blobs.set_blob_properties),
    ("PUT", "blob", "", "block"): _Operation(_WRITE, blobs.put_block),
    ("PUT", "blob", "", "blocklist"): _Operation(_WRITE, blobs.put_block_list),
    ("GET", "blob", "", "blocklist"): _Operation(_READ, blobs.get_block_list),
}
"""By method, what it is about, `restype` and `comp`."""

_NOT_HERE: Final = (
    "x-ms-copy-source",
    "x-ms-encryption-key",
    "x-ms-encryption-scope",
    "x-ms-if-tags",
    "x-ms-legal-hold",
    "x-ms-structured-body",
    "x-ms-tags",
)
"""Headers that change what a request means, and are not understood: ignoring one would be a wrong answer."""


class BlobStorage:
    """One storage account. `store` is the caller's to close."""

    def __init__(self, config: Config, tokens: AccessTokens, store: Store) -> None:
        """Makes the config's containers. Raises ValueError for a bad fault."""
        self.store = store
        self.faults = Faults(*FAULTS, initial=config.faults.get("blob"))
        self.answers: Counter[tuple[str, int]] = Counter()
        self._account = config.storage_account
        self._access = Access(config, tokens)
        for name in config.containers:
            store.create_container(name, {})

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer a request to Blob storage itself."""
        request_id = str(uuid.uuid4())
        name = "(unknown)"
        try:
            target = self._target(request)
            operation = _find(request, target)
            name = operation.name
            answer = await self._disturb(request, target, operation, request_id)
        except Refused as refused:
            answer = answer_refusal(request, refused, request_id)
        except sqlite3.Error as error:
            detail = f"the file of the embedded Blob storage: {error}; is its disk full?"
            answer = answer_refusal(request, Refused("InternalError", detail), request_id)
        self.answers[name, answer.status] += 1
        return answer

    def stats(self) -> dict[str, dict[str, int]]:
        """Answers by operation and status."""
        document: dict[str, dict[str, int]] = {}
        for (operation, status), count in sorted(self.answers.items()):
            document.setdefault(operation, {})[str(status)] = count
        return document

    def _target(self, request: web.Request) -> Target:
        target = read_target(request.rel_url.raw_path)
        if target.account != self._account:
            raise Refused(
                "ResourceNotFound", f"the account is {target.account!r:.80}; the one here is {self._account!r}"
            )
        return target

    async def _disturb(
        self, request: web.Request, target: Target, operation: _Operation, request_id: str
    ) -> web.StreamResponse:
        """The answer, unless a fault is set."""
        place = {"container": target.container or None, "operation": operation.name}
        if (broken := self.faults.take(StorageConnectionFault, **place)) is not None:
            return await break_connection(request, broken)
        if (fault := self.faults.take(StorageAnswerFault, **place)) is not None:
            await asyncio.sleep(fault.latency)
            if fault.code is not None or fault.status is not None:
                wait = {} if fault.retry_after is None else {"Retry-After": f"{fault.retry_after:g}"}
                raise Refused(fault.code or "InternalError", "a fault", status=fault.status, headers=wait)
        try:
            answer = await self._perform(request, target, operation, request_id)
        except Refused:
            if self.faults.take(LoseEveryAnswerFault, **place) is None:
                raise
            return await break_connection(request, ConnectionFault())
        if self.faults.take(LoseAnswerFault, **place) is not None:
            return await break_connection(request, ConnectionFault())
        return answer

    async def _perform(
        self, request: web.Request, target: Target, operation: _Operation, request_id: str
    ) -> web.StreamResponse:
        caller = self._access.authenticate(request.headers, request.rel_url.query)
        self._access.authorize(caller, operation.right, target.container or None)
        _refuse_what_is_not_here(request, target)
        call = Call(
            request=request,
            store=self.store,
            faults=self.faults,
            target=target,
            operation=operation.name,
            endpoint=f"https://{request.host}/{self._account}",
            request_id=request_id,
        )
        return await operation.perform(call)


def build_app(storage: BlobStorage) -> web.Application:
    """Run it with auto_decompress=False: a body is stored as it came."""
    app = web.Application()

    async def show_stats(_request: web.Request) -> web.Response:
        return web.Response(body=orjson.dumps(storage.stats()), content_type="application/json")

    add_fault_routes(app, storage.faults)
    app.router.add_get("/local/stats", show_stats)
    app.router.add_route("*", "/{path:.*}", storage.handle)
    return app


def _find(request: web.Request, target: Target) -> _Operation:
    query = request.rel_url.query
    restype, comp = query.get("restype", "").lower(), query.get("comp", "").lower()
    operation = _OPERATIONS.get((request.method, target.level, restype, comp))
    if operation is None or "snapshot" in query or "versionid" in query:
        asked = "&".join(
            f"{name}={query[name]:.40}" for name in ("restype", "comp", "snapshot", "versionid") if name in query
        )
        raise Refused(
            "NotImplemented",
            f"{request.method} of the {target.level} with {asked or 'no restype nor comp'}; "
            "docs/embedded-azure.md lists what there is",
        )
    return operation


def _refuse_what_is_not_here(request: web.Request, target: Target) -> None:
    for name in _NOT_HERE:
        if name in request.headers:
            raise Refused("NotImplemented", f"the header {name} is not understood here")
    if "x-ms-lease-id" in request.headers:
        what = "Blob" if target.blob else "Container"
        raise Refused(f"LeaseNotPresentWith{what}Operation", "there are no leases here")
