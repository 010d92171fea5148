"""The probes of Blob storage, by plain requests as the worker makes them."""

import uuid
from collections.abc import Mapping

from tests.azure.probing import (
    BLOB_SCOPE,
    INHERITED,
    Exchange,
    Observation,
    Target,
    call,
    decide,
    token_of,
    undecided,
)
from worker.azure.blob.container import API_VERSION

_ABSENT = "probes/absent"
_NO_ETAG = '"0x8D0000000000000"'


async def _ask(
    target: Target,
    asked: str,
    method: str,
    path: str,
    *,
    container: str | None = None,
    headers: Mapping[str, str] | None = None,
    data: bytes | None = None,
) -> Exchange:
    sent = {"x-ms-version": API_VERSION, **(headers or {})}
    token = await token_of(target, BLOB_SCOPE)
    url = f"{container or target.container}{path}"
    return await call(target, method, url, asked=asked, token=token, headers=sent, data=data)


async def _put(target: Target, asked: str, name: str, *, container: str | None = None, **headers: str) -> Exchange:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    sent = {"x-ms-blob-type": "BlockBlob", **given}
    return await _ask(target, asked, "PUT", f"/{name}", container=container, headers=sent, data=b"{}")


async def _delete(target: Target, name: str) -> None:
    await _ask(target, "delete", "DELETE", f"/{name}")


def _new_name() -> str:
    return f"probes/{uuid.uuid4().hex}"


async def put_if_absent(target: Target) -> Observation:
    name = _new_name()
    first = await _put(target, "a new blob with If-None-Match: *", name, If_None_Match="*")
    second = await _put(target, "the same again", name, If_None_Match="*")
    await _delete(target, name)
    is_so = first.status == 201 and (second.status, second.code) == (409, "BlobAlreadyExists")
    return decide(is_so, first, second)


async def put_if_match(target: Target) -> Observation:
    name = _new_name()
    await _put(target, "a new blob", name)
    answer = await _put(target, "a put with an ETag that is not the blob's", name, If_Match=_NO_ETAG)
    await _delete(target, name)
    return decide((answer.status, answer.code) == (412, "ConditionNotMet"), answer)


async def role_before_condition(target: Target) -> Observation:
    plain = await _put(target, "a put where the caller has no role", _ABSENT, container=target.closed_container)
    if plain.status == 201:
        return undecided(INHERITED, plain)
    answer = await _put(
        target,
        "a put whose condition does not hold, where the caller has no role",
        _ABSENT,
        container=target.closed_container,
        If_Match=_NO_ETAG,
    )
    return decide((answer.status, answer.code) == (403, "AuthorizationPermissionMismatch"), answer)


async def role_before_container(target: Target) -> Observation:
    """In a container that does not exist, on which nobody can have a role but by the account."""
    absent = f"{target.closed_container}-absent"
    answer = await _put(target, "a put to a container that does not exist", _ABSENT, container=absent)
    return decide((answer.status, answer.code) == (403, "AuthorizationPermissionMismatch"), answer)


async def read_gone_if_match(target: Target) -> Observation:
    headers = {"If-Match": _NO_ETAG}
    answer = await _ask(
        target, "a read with If-Match of a blob that is not there", "GET", f"/{_ABSENT}", headers=headers
    )
    return decide((answer.status, answer.code) == (412, "ConditionNotMet"), answer)


async def absent_blob(target: Target) -> Observation:
    answer = await _ask(target, "a blob that is not there", "GET", f"/{_ABSENT}")
    return decide((answer.status, answer.code) == (404, "BlobNotFound"), answer)


async def no_token(target: Target) -> Observation:
    headers = {"x-ms-version": API_VERSION}
    url = f"{target.container}/{_ABSENT}"
    answer = await call(target, "GET", url, asked="a blob without a token", headers=headers)
    return decide(answer.status == 401 and "www-authenticate" in answer.headers, answer)


async def metadata_in_listing(target: Target) -> Observation:
    name = _new_name()
    await _put(target, "a blob with metadata", name, x_ms_meta_status="done")
    query = f"?restype=container&comp=list&include=metadata&prefix={name}"
    answer = await _ask(target, "a listing with metadata", "GET", query)
    await _delete(target, name)
    is_there = "<status>done</status>" in str(answer.body)
    return decide(is_there, answer, seen=f"{answer}, {'metadata' if is_there else 'no metadata'} in it")
