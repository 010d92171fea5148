"""The operations on the account and its containers."""

from typing import Final

from aiohttp import web

from embedded_azure.blob.calls import Call, read_metadata
from embedded_azure.blob.conditions import check_write
from embedded_azure.blob.documents import http_date, list_of_blobs, list_of_containers
from embedded_azure.blob.faults import StorageBodyFault
from embedded_azure.blob.listing import read_marker, read_page, read_page_size
from embedded_azure.blob.refusals import Refused
from embedded_azure.blob.store import Container
from embedded_azure.http_faults import send_broken

_INCLUDES: Final = frozenset(
    (
        *("copy", "deleted", "deletedwithversions", "immutabilitypolicy", "legalhold", "metadata", "permissions"),
        *("snapshots", "system", "tags", "uncommittedblobs", "versions"),
    )
)
"""What Azure can be asked to list besides. Here there is nothing of it but metadata."""


async def account_properties(call: Call) -> web.StreamResponse:
    kind = {"x-ms-sku-name": "Standard_LRS", "x-ms-account-kind": "StorageV2", "x-ms-is-hns-enabled": "false"}
    return call.answer(200, kind)


async def list_containers(call: Call) -> web.StreamResponse:
    include = _include(call)
    page = read_page(
        call.store.containers,
        prefix=call.query.get("prefix", ""),
        delimiter="",
        start=read_marker(call.query.get("marker", "")),
        size=read_page_size(call.query.get("maxresults")),
    )
    return call.xml(
        list_of_containers(page, endpoint=call.endpoint, asked=call.query, with_metadata="metadata" in include)
    )


async def create_container(call: Call) -> web.StreamResponse:
    if call.request.headers.get("x-ms-blob-public-access"):
        raise Refused("NotImplemented", "a container is private here: leave x-ms-blob-public-access out")
    made = call.store.create_container(call.target.container, read_metadata(call.request.headers))
    if made is None:
        raise Refused("ContainerAlreadyExists")
    return call.answer(201, _version(made))


async def get_container(call: Call) -> web.StreamResponse:
    found = call.container()
    metadata = {f"x-ms-meta-{name}": value for name, value in found.metadata.items()}
    state = {
        "x-ms-lease-status": "unlocked",
        "x-ms-lease-state": "available",
        "x-ms-has-immutability-policy": "false",
        "x-ms-has-legal-hold": "false",
    }
    return call.answer(200, {**_version(found), **metadata, **state})


async def set_container_metadata(call: Call) -> web.StreamResponse:
    found = call.container()
    check_write(call.conditions, found.version)
    changed = call.store.set_container_metadata(found, read_metadata(call.request.headers))
    return call.answer(200, _version(changed))


async def delete_container(call: Call) -> web.StreamResponse:
    found = call.container()
    check_write(call.conditions, found.version)
    call.store.delete_container(found.name)
    return call.answer(202)


async def list_blobs(call: Call) -> web.StreamResponse:
    include = _include(call)
    found = call.container()
    page = read_page(
        lambda start, count: call.store.blobs(found.name, start, count),
        prefix=call.query.get("prefix", ""),
        delimiter=call.query.get("delimiter", ""),
        start=read_marker(call.query.get("marker", "")),
        size=read_page_size(call.query.get("maxresults")),
    )
    document = list_of_blobs(
        page,
        endpoint=call.endpoint,
        container=found.name,
        asked=call.query,
        with_metadata="metadata" in include,
    )
    fault = call.faults.take(StorageBodyFault, container=found.name, operation=call.operation)
    if fault is not None:
        return await send_broken(call.request, call.headers({"Content-Type": "application/xml"}), document, fault)
    return call.xml(document)


def _version(container: Container) -> dict[str, str]:
    return {"ETag": container.etag, "Last-Modified": http_date(container.modified)}


def _include(call: Call) -> set[str]:
    asked = {name for name in call.query.get("include", "").split(",") if name}
    if unknown := asked - _INCLUDES:
        detail = f"include has {sorted(unknown)[0]!r:.80}; there are {', '.join(sorted(_INCLUDES))}"
        raise Refused("InvalidQueryParameterValue", detail)
    return asked
