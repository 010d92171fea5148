"""The operations on block blobs.

Each looks at what is there, checks the conditions and changes the store without an await between: of writers at
the same time, one is first. Only bodies are waited for, and they are received before.
"""

import asyncio
import base64
import binascii
import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from aiohttp import web

from embedded_azure.blob.calls import Call, read_metadata, read_properties
from embedded_azure.blob.conditions import check_read, check_write
from embedded_azure.blob.documents import http_date, list_of_blocks, read_block_list
from embedded_azure.blob.faults import StorageBodyFault
from embedded_azure.blob.ranges import read_range
from embedded_azure.blob.refusals import Refused
from embedded_azure.blob.store import PIECE, Blob, Block, Description
from embedded_azure.http_faults import disconnect, send_broken

LARGEST_PUT: Final = 5_000 << 20
LARGEST_BLOCK: Final = 4_000 << 20
"""Bytes. Source: Put Blob and Put Block, service version 2019-12-12 and later."""
_LARGEST_LIST: Final = 8 << 20
_LARGEST_HASHED_RANGE: Final = 4 << 20
_LONGEST_BLOCK_ID: Final = 64
_PATIENCE: Final = 60.0
"""Seconds that a body may stand still."""
_FIXED: Final = {
    "Accept-Ranges": "bytes",
    "x-ms-blob-type": "BlockBlob",
    "x-ms-lease-status": "unlocked",
    "x-ms-lease-state": "available",
    "x-ms-server-encrypted": "true",
}


async def put_blob(call: Call) -> web.StreamResponse:
    kind = call.request.headers.get("x-ms-blob-type")
    if kind is None:
        raise Refused("MissingRequiredHeader", "x-ms-blob-type is missing; it is BlockBlob")
    if kind != "BlockBlob":
        raise Refused("NotImplemented", f"x-ms-blob-type is {kind!r:.80}; only BlockBlob is stored here")
    container, name = call.container().name, call.target.blob
    description = call.description()
    async with _received(call, LARGEST_PUT) as body:
        there = _blob_or_none(call)
        check_write(call.conditions, there.version if there else None, creates=True)
        hashed = {"Content-MD5": body.md5, **description.properties}
        described = Description(properties=hashed, metadata=description.metadata)
        blob = call.store.put_blob(container, name, described, [body.as_block("")], data=body.data)
        body.kept = True
    return _written(call, blob, {"Content-MD5": body.md5})


async def get_blob(call: Call) -> web.StreamResponse:
    blob = _readable(call)
    asked = read_range(call.request.headers, blob.size)
    blocks = call.store.blocks(call.target.container, blob.name, committed=True)
    start, end = (0, blob.size) if asked is None else (asked.start, asked.end)
    headers = _blob_headers(call, blob)
    if asked is not None:
        if whole := headers.pop("Content-MD5", None):
            headers["x-ms-blob-content-md5"] = whole
        headers |= {"Content-Range": asked.header(blob.size), **_range_hash(call, blocks, start, end)}
    pieces = call.store.read(blocks, start, end)
    fault = call.faults.take(StorageBodyFault, container=call.target.container, operation=call.operation)
    if fault is not None and asked is None:
        return await send_broken(call.request, headers, b"".join(pieces), fault)
    status = 200 if asked is None else 206
    if end - start <= PIECE:
        return web.Response(status=status, headers=headers, body=b"".join(pieces))
    response = web.StreamResponse(status=status, headers={**headers, "Content-Length": str(end - start)})
    await response.prepare(call.request)
    try:
        for piece in pieces:
            await response.write(piece)
    except KeyError:
        # replaced while it was read: the headers have gone out, so a broken connection is all that can be said
        disconnect(call.request)
    return response


async def head_blob(call: Call) -> web.StreamResponse:
    blob = _readable(call)
    headers = {**_blob_headers(call, blob), "x-ms-access-tier": "Hot", "x-ms-access-tier-inferred": "true"}
    length = str(blob.size) if call.request.method == "HEAD" else "0"
    return web.StreamResponse(headers={**headers, "Content-Length": length})


async def delete_blob(call: Call) -> web.StreamResponse:
    blob = _changeable(call)
    call.store.delete_blob(call.target.container, blob.name)
    return call.answer(202, {"x-ms-delete-type-permanent": "true"})


async def set_blob_metadata(call: Call) -> web.StreamResponse:
    blob = _changeable(call)
    return _described(call, Description(properties=blob.properties, metadata=read_metadata(call.request.headers)))


async def set_blob_properties(call: Call) -> web.StreamResponse:
    blob = _changeable(call)
    return _described(call, Description(properties=read_properties(call.request.headers), metadata=blob.metadata))


async def put_block(call: Call) -> web.StreamResponse:
    container, name = call.container().name, call.target.blob
    block_id = _block_id(call.query.get("blockid", ""))
    async with _received(call, LARGEST_BLOCK) as body:
        other = call.store.uncommitted_id(container, name)
        if other is not None and len(other) != len(block_id):
            detail = f"the block id has {len(block_id)} characters, and others of the blob have {len(other)}"
            raise Refused("InvalidBlobOrBlock", detail)
        if body.data:
            call.store.append(body.content, 0, body.data)
        call.store.put_block(container, name, body.as_block(block_id))
        body.kept = True
    return call.answer(201, {"Content-MD5": body.md5, "x-ms-request-server-encrypted": "true"})


async def put_block_list(call: Call) -> web.StreamResponse:
    container, name = call.container().name, call.target.blob
    description = call.description()
    async with _received(call, _LARGEST_LIST) as body:
        asked = read_block_list(body.data or b"".join(call.store.read([body.as_block("")], 0, body.size)))
        there = _blob_or_none(call)
        check_write(call.conditions, there.version if there else None, creates=True)
        blocks = _chosen(call, asked)
        blob = call.store.put_blob(container, name, description, blocks)
    return _written(call, blob, {})


async def get_block_list(call: Call) -> web.StreamResponse:
    call.container()
    wanted = call.query.get("blocklisttype", "committed").lower()
    if wanted not in ("committed", "uncommitted", "all"):
        detail = f"blocklisttype is {wanted!r:.80}; it is committed, uncommitted or all"
        raise Refused("InvalidQueryParameterValue", detail)
    blob = _blob_or_none(call)
    container, name = call.target.container, call.target.blob
    uncommitted = call.store.blocks(container, name, committed=False)
    if blob is None and not uncommitted:
        raise Refused("BlobNotFound")
    check_read(call.conditions, blob.version if blob else None)
    committed = [block for block in call.store.blocks(container, name, committed=True) if block.id]
    answer = call.xml(
        list_of_blocks(
            committed if wanted != "uncommitted" else None, uncommitted if wanted != "committed" else None
        )
    )
    if blob is not None:
        answer.headers.update({**_version(blob), "x-ms-blob-content-length": str(blob.size)})
    return answer


@dataclass(slots=True)
class _Body:
    """What was received: `data`, where it is at most a piece, else `content`. Dropped unless it is `kept`."""

    content: int
    size: int
    md5: str
    data: bytes = b""
    kept: bool = False

    def as_block(self, block_id: str) -> Block:
        return Block(id=block_id, size=self.size, content=self.content)


@asynccontextmanager
async def _received(call: Call, largest: int) -> AsyncIterator[_Body]:
    """The body of the request. Raises Refused where it is too large, stands still or is not what its MD5 says."""
    size = call.request.content_length
    if size is None:
        raise Refused("MissingContentLengthHeader")
    if size > largest:
        raise Refused("RequestBodyTooLarge", f"the body has {size:,} bytes; {largest:,} are allowed")
    expected = _md5_header(call.request.headers)
    body = _Body(call.store.new_content(), size, "")
    try:
        digest = hashlib.md5(usedforsecurity=False)
        for start in range(0, size, PIECE):
            data = await _read(call.request, min(PIECE, size - start))
            digest.update(data)
            if size > PIECE:
                call.store.append(body.content, start, data)
            else:
                body.data = data
        body.md5 = base64.b64encode(digest.digest()).decode()
        if expected not in (None, body.md5):
            raise Refused("Md5Mismatch", f"Content-MD5 is {expected}, and that of the body is {body.md5}")
        yield body
    finally:
        if not body.kept:
            call.store.drop_content(body.content)


async def _read(request: web.Request, size: int) -> bytes:
    try:
        async with asyncio.timeout(_PATIENCE):
            return await request.content.readexactly(size)
    except TimeoutError as error:
        raise Refused("OperationTimedOut", f"no byte of the body came for {_PATIENCE:g} s") from error
    except asyncio.IncompleteReadError as error:
        raise Refused("InvalidHeaderValue", "the body ended before its Content-Length") from error


def _md5_header(headers: Mapping[str, str]) -> str | None:
    text = headers.get("Content-MD5")
    if text is None:
        return None
    try:
        if len(base64.b64decode(text, validate=True)) == hashlib.md5(usedforsecurity=False).digest_size:
            return text
    except binascii.Error:
        pass
    raise Refused("InvalidMd5", f"Content-MD5 is {text!r:.80}")


def _block_id(text: str) -> str:
    try:
        if 0 < len(base64.b64decode(text, validate=True)) <= _LONGEST_BLOCK_ID:
            return text
    except ValueError:
        pass
    detail = f"blockid is {text!r:.120}; it is base64 of 1 to {_LONGEST_BLOCK_ID} bytes"
    raise Refused("InvalidQueryParameterValue", detail)


def _chosen(call: Call, asked: Sequence[tuple[str, str]]) -> list[Block]:
    """The blocks that a list names. Raises Refused where one is not there."""
    container, name = call.target.container, call.target.blob
    committed = {block.id: block for block in call.store.blocks(container, name, committed=True) if block.id}
    uncommitted = {block.id: block for block in call.store.blocks(container, name, committed=False)}
    places = {"Committed": committed, "Uncommitted": uncommitted, "Latest": committed | uncommitted}
    chosen = []
    for place, block_id in asked:
        block = places[place].get(block_id)
        if block is None:
            raise Refused("InvalidBlockList", f"{place} has no block {block_id!r:.120}")
        chosen.append(block)
    return chosen


def _described(call: Call, description: Description) -> web.StreamResponse:
    return call.answer(
        200, _version(call.store.describe_blob(call.target.container, call.target.blob, description))
    )


def _blob_or_none(call: Call) -> Blob | None:
    return call.store.blob(call.target.container, call.target.blob)


def _changeable(call: Call) -> Blob:
    """Raises Refused where it is not there or the conditions are not met."""
    call.container()
    blob = _blob_or_none(call)
    if blob is None:
        raise Refused("BlobNotFound")
    check_write(call.conditions, blob.version)
    return blob


def _readable(call: Call) -> Blob:
    """Raises Refused where it is not there or the conditions are not met."""
    call.container()
    blob = _blob_or_none(call)
    check_read(call.conditions, blob.version if blob else None)
    if blob is None:
        raise Refused("BlobNotFound")
    return blob


def _version(blob: Blob) -> dict[str, str]:
    return {"ETag": blob.etag, "Last-Modified": http_date(blob.modified)}


def _written(call: Call, blob: Blob, headers: Mapping[str, str]) -> web.Response:
    return call.answer(201, {**_version(blob), **headers, "x-ms-request-server-encrypted": "true"})


def _blob_headers(call: Call, blob: Blob) -> dict[str, str]:
    metadata = {f"x-ms-meta-{name}": value for name, value in blob.metadata.items()}
    own = {**_version(blob), **blob.properties, "x-ms-creation-time": http_date(blob.created)}
    return call.headers({**_FIXED, **own, **metadata})


def _range_hash(call: Call, blocks: Sequence[Block], start: int, end: int) -> dict[str, str]:
    if call.request.headers.get("x-ms-range-get-content-md5", "").lower() != "true":
        return {}
    if end - start > _LARGEST_HASHED_RANGE:
        detail = f"the range has {end - start:,} bytes; the MD5 of at most {_LARGEST_HASHED_RANGE:,} is computed"
        raise Refused("InvalidHeaderValue", detail)
    digest = hashlib.md5(b"".join(call.store.read(blocks, start, end)), usedforsecurity=False).digest()
    return {"Content-MD5": base64.b64encode(digest).decode()}
