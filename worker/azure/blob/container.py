"""A container of Blob storage, and the few requests that results and claims need of it.

Plain requests through azure-core's pipeline. An upload by azure-storage-blob's clients costs three times the CPU
(benchmarks/blob_writes.py), a listing with metadata six times: 186 us a blob, 30 us here. Nothing is retried here:
who asked knows how long to be patient.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, Self, runtime_checkable
from xml.etree import ElementTree

import aiohttp
from azure.core import AsyncPipelineClient
from azure.core.credentials_async import AsyncTokenCredential
from azure.core.exceptions import AzureError
from azure.core.pipeline import PipelineRequest, PipelineResponse
from azure.core.pipeline.policies import AsyncBearerTokenCredentialPolicy, HeadersPolicy
from azure.core.pipeline.transport import AioHttpTransport
from azure.core.rest import AsyncHttpResponse, HttpRequest

from worker.azure.network import find_cause, has_proxy, trust
from worker.errors import Cause, TokenUnavailable, WorkerError
from worker.roles import BLOB_DATA_CONTRIBUTOR

STORAGE_SCOPE = "https://storage.azure.com/.default"
API_VERSION = "2023-11-03"
"""Old enough for every cloud and for Azurite."""
CONNECT_TIMEOUT = 10.0
REQUEST_TIMEOUT = 60.0
"""Seconds for one request, waiting for a connection included."""
PAGE = 2_000
"""Blobs in one answer of a listing, 20 MB of memory while they are read. The service gives 5,000 at most."""
LARGEST_PUT = 5_000 << 20
"""Bytes that one request may write. Source: Put Blob, learn.microsoft.com/rest/api/storageservices/put-blob."""

PIECE = 256 << 10
"""Bytes of a large body that are handed to TLS at once."""

LARGEST_PAGE = 64 << 20
"""Bytes of one answer of a listing that are read."""

FAULTS = (AzureError, TokenUnavailable, aiohttp.ClientError, OSError, TimeoutError)
"""What a request may end with instead of an answer."""


class BlobFailed(WorkerError):
    """A request failed. `status` is the HTTP status, None without an answer; `code` is the service's word for it.

    The message names the subject, which is the container or the blob, and the next step.
    """

    def __init__(
        self, detail: str, *, status: int | None, code: str, subject: str = "", cause: Cause | None = None
    ) -> None:
        super().__init__(detail, subject=subject, cause=cause)
        self.status = status
        self.code = code

    @property
    def is_passing(self) -> bool:
        """Whether waiting may fix it, rather than somebody."""
        return self.status is None or self.status in (408, 429) or self.status >= 500


@dataclass(frozen=True, slots=True)
class ListedBlob:
    """A blob as a listing tells of it. `metadata` is empty unless it was asked for."""

    name: str
    last_modified: str
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def modified(self) -> float:
        """Unix seconds, by the clock of the service."""
        return parsedate_to_datetime(self.last_modified).timestamp()


class BlobContainer:
    """A container under our identity. Use it as a context manager; at most `connections` requests at once.

    `url`: such as https://my-account.blob.core.windows.net/results. Names must need no quoting in a url.
    Every method raises BlobFailed.
    """

    def __init__(
        self,
        url: str,
        credential: AsyncTokenCredential,
        *,
        ca_file: Path | None = None,
        connections: int = 32,
        timeout: float = REQUEST_TIMEOUT,
    ) -> None:
        self.url = url.rstrip("/")
        self._credential = credential
        self._ca_file = ca_file
        self._connections = connections
        self._timeout = timeout
        self._session: aiohttp.ClientSession | None = None
        self._requests: AsyncPipelineClient[HttpRequest, AsyncHttpResponse] | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=trust(self._ca_file), limit=self._connections),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=has_proxy(),
            auto_decompress=False,  # a body is what was put there, whatever its Content-Encoding claims
        )
        self._requests = AsyncPipelineClient(
            self.url,
            policies=[HeadersPolicy({"x-ms-version": API_VERSION}), _Bearer(self._credential)],
            transport=AioHttpTransport(
                session=self._session,
                session_owner=False,
                connection_timeout=CONNECT_TIMEOUT,
                read_timeout=self._timeout,
            ),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def create(
        self, name: str, body: bytes, metadata: Mapping[str, str] = MappingProxyType({})
    ) -> str | None:
        """Write a blob that is not there yet. Returns its ETag, or None where one of this name is there.

        The names in `metadata` are letters, digits and underscores, the values ASCII.
        """
        response = await self._put(name, body, {"if-none-match": "*"}, metadata)
        if response.status_code == 201:
            return response.headers["etag"]
        if _error_code(response) in ("BlobAlreadyExists", "ConditionNotMet", "BlobImmutableDueToPolicy"):
            return None
        raise self._failure(response)

    async def replace(self, name: str, body: bytes, *, etag: str | None = None) -> str | None:
        """Write a blob, whatever was there, or only while its ETag is `etag`. Returns its new ETag, or None where
        it was another."""
        response = await self._put(name, body, _only(etag), {})
        if response.status_code == 201:
            return response.headers["etag"]
        if etag and response.status_code == 412:
            return None
        raise self._failure(response)

    async def delete(self, name: str, *, etag: str | None = None) -> None:
        """Remove a blob, if there is one, or only while its ETag is `etag`."""
        response = await self._send(HttpRequest("DELETE", self._url(name), headers=_only(etag)))
        if response.status_code not in (202, 404) and not (etag and response.status_code == 412):
            raise self._failure(response)

    async def _put(
        self, name: str, body: bytes, condition: Mapping[str, str], metadata: Mapping[str, str]
    ) -> AsyncHttpResponse:
        headers = {
            "x-ms-blob-type": "BlockBlob",
            "content-type": "application/json",
            **condition,
            **{f"x-ms-meta-{key}": value for key, value in metadata.items()},
        }
        content: bytes | _Pieces = body
        if len(body) > PIECE:
            content, headers["content-length"] = _Pieces(body), str(len(body))
        return await self._send(HttpRequest("PUT", self._url(name), content=content, headers=headers))

    async def read(self, name: str, *, at_most: int, etag: str | None = None) -> bytes:
        """The whole blob. BlobFailed has the code `TooLarge` beyond `at_most` bytes, the status 412 where the
        ETag is not `etag`."""
        request = HttpRequest("GET", self._url(name), headers=_only(etag))
        return await self._get(self._url(name), request, at_most)

    async def _get(self, url: str, request: HttpRequest, at_most: int) -> bytes:
        try:
            async with asyncio.timeout(self._timeout):
                response = await self._open_requests.send_request(request, stream=True)
                async with response:
                    if response.status_code != 200:
                        await response.read()
                        raise self._failure(response)
                    return await _body(url, response, at_most)
        except FAULTS as error:
            raise self._unreachable(error) from error

    async def etag(self, name: str) -> str | None:
        """None where there is no such blob."""
        response = await self._send(HttpRequest("HEAD", self._url(name)))
        if response.status_code == 404:
            return None
        if response.status_code != 200:
            raise self._failure(response)
        return response.headers["etag"]

    async def names(self, prefix: str) -> AsyncIterator[Sequence[str]]:
        """Every name with this prefix, in alphabetical order and a page at a time; one request for each page."""
        async for page in self.blobs(prefix, metadata=False):
            yield [blob.name for blob in page]

    async def blobs(self, prefix: str, *, metadata: bool = True) -> AsyncIterator[Sequence[ListedBlob]]:
        """Every blob with this prefix, in alphabetical order and a page at a time; one request for each page."""
        question = {"include": "metadata"} if metadata else {}
        async for page in self._pages({"prefix": prefix, **question}):
            yield listed_blobs(page)

    async def folders(self, prefix: str) -> AsyncIterator[Sequence[str]]:
        """Every beginning of a name that goes on behind `prefix` to the next slash, that included."""
        async for page in self._pages({"prefix": prefix, "delimiter": "/"}):
            yield [name.text or "" for name in page.iterfind("Blobs/BlobPrefix/Name")]

    async def _pages(self, question: Mapping[str, str]) -> AsyncIterator[ElementTree.Element]:
        parameters = {"restype": "container", "comp": "list", "maxresults": str(PAGE), **question}
        while True:
            request = HttpRequest("GET", self.url, params=parameters)
            page = parse_page(self.url, await self._get(self.url, request, LARGEST_PAGE))
            yield page
            marker = page.findtext("NextMarker")
            if not marker:
                return
            parameters["marker"] = marker

    async def prove(self, prefix: str) -> None:
        """Prove that the container is there and that we may list it and write to it. Nothing is written: the
        condition of the write cannot be met, and it is looked at only once the identity has been."""
        async for _ in self.names(f"{prefix}/proof"):
            pass
        headers = {"x-ms-blob-type": "BlockBlob", "if-match": '"0x0"'}
        response = await self._send(HttpRequest("PUT", self._url(f"{prefix}/proof"), content=b"", headers=headers))
        if response.status_code != 412:
            raise self._failure(response)

    async def _send(self, request: HttpRequest) -> AsyncHttpResponse:
        try:
            async with asyncio.timeout(self._timeout):
                return await self._open_requests.send_request(request)
        except FAULTS as error:
            raise self._unreachable(error) from error

    def _url(self, name: str) -> str:
        return f"{self.url}/{name}"

    def _failure(self, response: Any) -> BlobFailed:
        return refusal(self.url, response.status_code, _error_code(response))

    def _unreachable(self, error: BaseException) -> BlobFailed:
        detail, cause = describe_silence(error), find_cause(error)
        return BlobFailed(detail, status=None, code="none", subject=f"container {self.url}", cause=cause)

    @property
    def _open_requests(self) -> "AsyncPipelineClient[HttpRequest, AsyncHttpResponse]":
        if self._requests is None:
            raise RuntimeError(f"the container {self.url} is not open: async with BlobContainer(...)")
        return self._requests


def _only(etag: str | None) -> dict[str, str]:
    return {"if-match": etag} if etag else {}


async def _body(url: str, response: AsyncHttpResponse, at_most: int) -> bytes:
    chunks, size = [], 0
    async for chunk in response.iter_raw():
        size += len(chunk)
        if size > at_most:
            message = f"{url} has more than the {at_most:,} bytes that are read"
            raise BlobFailed(message, status=200, code="TooLarge")
        chunks.append(chunk)
    return b"".join(chunks)


def parse_page(url: str, body: bytes) -> ElementTree.Element:
    """A page of the listing of the container `url`. Raises BlobFailed where it is none."""
    try:
        return ElementTree.fromstring(body)  # noqa: S314 - expat bounds what entities expand to since 2.4.1
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # the last two: of an encoding
        detail = f"its listing is not XML: {error}. Check that AOAI_WORKER_BLOB_CONTAINER is Blob storage"
        raise BlobFailed(detail, status=200, code="InvalidXml", subject=f"container {url}") from error


def listed_blobs(page: ElementTree.Element) -> list[ListedBlob]:
    return [_listed(blob) for blob in page.iterfind("Blobs/Blob")]


def _listed(blob: ElementTree.Element) -> ListedBlob:
    metadata = blob.find("Metadata")
    return ListedBlob(
        name=blob.findtext("Name", ""),
        last_modified=blob.findtext("Properties/Last-Modified", ""),
        metadata={item.tag: item.text or "" for item in metadata} if metadata is not None else {},
    )


class _Pieces:
    """A body bit by bit, as often as the request is sent. Given whole, TLS would encrypt it whole into a buffer of
    the connection, which stays that large, and copy that for the socket: three times the body."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for start in range(0, len(self._body), PIECE):
            yield self._body[start : start + PIECE]


@runtime_checkable
class _Replaces(Protocol):
    """A credential that can be told that a token was rejected, as our broker can."""

    async def replace(self, scope: str, rejected: str) -> str: ...


class _Bearer(AsyncBearerTokenCredentialPolicy[HttpRequest, AsyncHttpResponse]):
    """Beside a claims challenge it answers a plain rejection too: once, with a newer token."""

    def __init__(self, credential: AsyncTokenCredential) -> None:
        super().__init__(credential, STORAGE_SCOPE)

    async def on_challenge(
        self,
        request: PipelineRequest[HttpRequest],
        response: PipelineResponse[HttpRequest, AsyncHttpResponse],
    ) -> bool:
        if await super().on_challenge(request, response):
            return True
        if not isinstance(self._credential, _Replaces):
            return False
        rejected = request.http_request.headers["Authorization"].removeprefix("Bearer ")
        await self._credential.replace(STORAGE_SCOPE, rejected)
        await self.authorize_request(request, STORAGE_SCOPE)
        return True


def refusal(url: str, status: int, code: str) -> BlobFailed:
    """Of the container `url`: what failed, why, and the next step, for a status that Blob storage answered with."""
    cause = cause_of_refusal(status, code)
    match cause:
        case Cause.TOKEN_REFUSED:
            why = "it does not accept the token: check that AZURE_TENANT_ID is the tenant of the storage account"
        case Cause.ROLE_MISSING:
            why = _GIVE_ROLE
        case Cause.NETWORK_CLOSED:
            why = "the account's firewall blocks this network: allow it, or create a private endpoint in it"
        case Cause.FORBIDDEN:
            why = f"{_GIVE_ROLE}; or the account's firewall blocks this network"
        case Cause.MISSING:
            why = "create it, or check its name in AOAI_WORKER_BLOB_CONTAINER or AOAI_WORKER_CLAIMS_CONTAINER"
        case _ if status in (429, 503):
            why = "the storage account throttles; the worker tries again later"
        case _ if status >= 500:
            why = "the service failed; the worker tries again later"
        case _:
            why = "the request was refused"
    detail = f"HTTP {status} {code}: {why}"
    return BlobFailed(detail, status=status, code=code, subject=f"container {url}", cause=cause)


_GIVE_ROLE = (
    f'give this identity the role "{BLOB_DATA_CONTRIBUTOR.name}" on the container, '
    "which takes effect within minutes"
)


def cause_of_refusal(status: int, code: str) -> Cause | None:
    """By Azure's codes: AuthorizationFailure is what the account's network rules answer with, whoever asks
    (azure-cli says the same of it, github.com/Azure/azure-cli/pull/11345)."""
    match status, code:
        case 403, "AuthorizationPermissionMismatch" | "InsufficientAccountPermissions":
            return Cause.ROLE_MISSING
        case 403, "AuthorizationFailure":
            return Cause.NETWORK_CLOSED
        case (401, _) | (403, "AuthenticationFailed" | "InvalidAuthenticationInfo"):
            return Cause.TOKEN_REFUSED
        case 403, _:
            return Cause.FORBIDDEN
        case 404, _:
            return Cause.MISSING
        case _ if 300 <= status < 400:
            return Cause.WRONG_ENDPOINT
    return None


def describe_silence(error: BaseException) -> str:
    """The same where no answer came."""
    if isinstance(error, TokenUnavailable):
        return str(error)
    if isinstance(error, TimeoutError):
        return "no answer in time; the worker tries again later"
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
    return (
        f"cannot be reached: {reason}. Check the name of the account and the network; "
        "for a private endpoint or TLS inspection set AOAI_WORKER_CA_FILE"
    )


def _error_code(response: Any) -> str:
    code: str = response.headers.get("x-ms-error-code", "no error code")
    return code
