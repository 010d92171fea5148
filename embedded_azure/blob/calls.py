"""A request to Blob storage as its handlers see it: its target, what its headers say, and how it is answered."""

import re
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Final
from urllib.parse import unquote

from aiohttp import web

from embedded_azure.blob.conditions import Conditions
from embedded_azure.blob.documents import http_date
from embedded_azure.blob.refusals import Refused, error_document
from embedded_azure.blob.store import Container, Description, Store
from embedded_azure.faults import Faults

LARGEST_METADATA: Final = 8 << 10
_LONGEST_NAME: Final = 1_024
_CONTAINER: Final = re.compile(r"(?=.{3,63}\Z)[a-z0-9]+(-[a-z0-9]+)*")
_METADATA_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NOT_XML: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
_PROPERTIES: Final = (
    "Content-Type",
    "Content-Encoding",
    "Content-Language",
    "Content-Disposition",
    "Cache-Control",
    "Content-MD5",
)
_DEFAULT_TYPE: Final = "application/octet-stream"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a request is about: the account, a container, or a blob in it. Empty names are not there."""

    account: str
    container: str = ""
    blob: str = ""

    @property
    def level(self) -> str:
        return "blob" if self.blob else "container" if self.container else "account"


def read_target(raw_path: str) -> Target:
    """From the path as it came, account first. Raises Refused where a name cannot be one."""
    account, _, rest = raw_path.removeprefix("/").partition("/")
    container, _, blob = rest.partition("/")
    try:
        name = unquote(blob, errors="strict")
    except UnicodeDecodeError as error:
        raise Refused("InvalidUri", "the name of the blob is not UTF-8") from error
    if container and not _CONTAINER.fullmatch(container):
        detail = f"the container is {container!r:.80}; a name is 3 to 63 of a-z, 0-9 and single '-'"
        raise Refused("InvalidResourceName", detail)
    if len(name) > _LONGEST_NAME:
        raise Refused(
            "InvalidResourceName", f"the blob's name has {len(name):,} characters; {_LONGEST_NAME:,} are allowed"
        )
    if _NOT_XML.search(name):
        raise Refused("InvalidUri", "the blob's name has a control character, which a listing cannot show")
    return Target(account=account, container=container, blob=name)


def read_metadata(headers: Mapping[str, str]) -> dict[str, str]:
    """The `x-ms-meta-` headers, by name as it was spelled. Raises Refused."""
    metadata: dict[str, str] = {}
    for header, value in headers.items():
        if not header.lower().startswith("x-ms-meta-"):
            continue
        name = header[len("x-ms-meta-") :]
        if not name:
            raise Refused("EmptyMetadataKey")
        if not _METADATA_NAME.fullmatch(name):
            raise Refused("InvalidMetadata", f"the name is {name!r:.80}; it must be a C# identifier")
        if not value.isascii():
            raise Refused("InvalidMetadata", f"the value of {name!r:.80} is not ASCII")
        metadata[name] = value
    size = sum(len(name) + len(value) for name, value in metadata.items())
    if size > LARGEST_METADATA:
        raise Refused("MetadataTooLarge", f"names and values have {size:,} bytes; {LARGEST_METADATA:,} are allowed")
    return metadata


def read_properties(headers: Mapping[str, str], *, also_plain: bool = False) -> dict[str, str]:
    """What the blob is sent with: the `x-ms-blob-` headers, and with `also_plain` the request's own Content-Type,
    which a Put Blob gives to the blob."""
    properties = {}
    for name in _PROPERTIES:
        plain = headers.get(name) if also_plain and name != "Content-MD5" else None
        value = headers.get(f"x-ms-blob-{name}", plain)
        if value:
            properties[name] = value
    properties.setdefault("Content-Type", _DEFAULT_TYPE)
    return properties


@dataclass(kw_only=True)
class Call:
    """One request under way, past identity and role."""

    request: web.Request
    store: Store
    faults: Faults
    target: Target
    operation: str
    endpoint: str
    request_id: str = field(default_factory=lambda: str(uuid.uuid4()))

    @cached_property
    def conditions(self) -> Conditions:
        """Raises Refused."""
        return Conditions.parse(self.request.headers)

    @property
    def query(self) -> Mapping[str, str]:
        return self.request.rel_url.query

    def container(self) -> Container:
        """Raises Refused where it is not there."""
        found = self.store.container(self.target.container)
        if found is None:
            raise Refused("ContainerNotFound")
        return found

    def description(self) -> Description:
        """Raises Refused."""
        headers = self.request.headers
        plain = self.operation == "put_blob"
        return Description(properties=read_properties(headers, also_plain=plain), metadata=read_metadata(headers))

    def headers(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        return {**answer_headers(self.request, self.request_id), **(more or {})}

    def answer(self, status: int, headers: Mapping[str, str] | None = None, body: bytes = b"") -> web.Response:
        return web.Response(status=status, body=body, headers=self.headers(headers))

    def xml(self, document: bytes) -> web.Response:
        return self.answer(200, {"Content-Type": "application/xml"}, document)


def answer_headers(request: web.Request, request_id: str) -> dict[str, str]:
    """Those of every answer."""
    headers = {
        "Server": "Windows-Azure-Blob/1.0 Microsoft-HTTPAPI/2.0",
        "x-ms-request-id": request_id,
        "x-ms-version": request.headers.get("x-ms-version", "2009-09-19"),
        "Date": http_date(int(time.time())),
    }
    given = request.headers.get("x-ms-client-request-id", "")
    if given and given.isascii() and len(given) <= _LONGEST_NAME:
        headers["x-ms-client-request-id"] = given
    return headers


def answer_refusal(request: web.Request, refused: Refused, request_id: str) -> web.Response:
    headers = {
        **answer_headers(request, request_id),
        "x-ms-error-code": refused.code,
        **refused.headers,
    }
    if request.method == "HEAD" or refused.status == 304:
        return web.Response(status=refused.status, headers=headers)
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return web.Response(
        status=refused.status,
        body=error_document(refused, request_id, now),
        headers={**headers, "Content-Type": "application/xml"},
    )
