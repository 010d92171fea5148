"""Bodies that are too large for a message: put into a container, fetched from it, and from nowhere else.

A claim's url is compared, letter by letter, with where this worker's claims are, and what follows must be a plain
name. So a claim cannot lead to another host or container, carry a signature or a user, or leave its folder.
"""

import hashlib
import re
from dataclasses import replace
from typing import Protocol

from worker.azure.blob.container import BlobContainer, BlobFailed
from worker.azure.blob.names import CLAIMS, batch_folder
from worker.errors import ClaimUnavailable, ResultTooLarge, SinkUnavailable
from worker.jobs.claims import encode_claim, invalid_claim, make_claim
from worker.jobs.job import CLAIM_TYPE, Claim, Job
from worker.jobs.results import Result
from worker.waits import release_frames

_PLAIN_NAME = re.compile(r"(?:(?!\.{1,2}(?:/|$))[A-Za-z0-9._~-]+/)*(?!\.{1,2}$)[A-Za-z0-9._~-]+")
"""Segments that mean the same to every reader of urls: no quoting, no query, no dots that lead elsewhere."""

_MAX_NAME = 1_024
"""Characters of a blob's name. Source: Naming and referencing containers, blobs, and metadata."""

_ETAG = re.compile(r'"?[A-Za-z0-9_+/=.:-]{1,100}"?')
"""Narrow, because it becomes a header."""


class BlobClaims:
    """`Claims` in a container. `largest`: bytes of a body that is fetched or put; it is held in memory."""

    def __init__(self, container: BlobContainer, *, largest: int) -> None:
        self._container = container
        self._largest = largest

    @property
    def largest(self) -> int:
        return self._largest

    async def open(self) -> None:
        """Prove that the container exists and that we may read and write it. Raises ClaimUnavailable."""
        try:
            await self._container.prove(CLAIMS)
        except BlobFailed as error:
            raise ClaimUnavailable.from_error(error) from error

    async def fetch(self, claim: Claim) -> bytes:
        name = self.require_ours(claim)
        try:
            body = await self._container.read(name, at_most=claim.length, etag=claim.etag)
        except BlobFailed as error:
            raise _explain(claim, error) from error
        _check(claim, body)
        return body

    def require_ours(self, claim: Claim) -> str:
        """The name of the blob, if what is claimed may be fetched at all. Raises NotAJob."""
        if claim.length > self._largest:
            raise invalid_claim(f'"claim.length" is {claim.length:,}; at most {self._largest:,} bytes are fetched')
        if claim.etag is not None and not _ETAG.fullmatch(claim.etag):
            raise invalid_claim('"claim.etag" must be an ETag as Blob storage gives it, or null')
        return claimed_name(claim.url, self._container.url)

    async def store(self, batch_id: str, body: bytes) -> Claim:
        """Put a body and claim it. The same body is put once. Raises BlobFailed."""
        name = f"{batch_folder(CLAIMS, batch_id)}{hashlib.sha256(body).hexdigest()}.json"
        etag = await self._container.create(name, body) or await self._container.etag(name)
        return make_claim(f"{self._container.url}/{name}", body, etag=etag)


class ResultSender(Protocol):
    """A sink of messages, which have a largest size."""

    async def write(self, result: Result, *, content_type: str = "application/json") -> bool: ...

    async def has(self, job: Job) -> bool: ...


class ClaimedResults:
    """A `Sink`: what is too large for the queue of results goes there as a claim."""

    def __init__(self, results: ResultSender, claims: BlobClaims) -> None:
        self._results = results
        self._claims = claims

    async def write(self, result: Result) -> bool:
        size = len(result.line)
        try:
            return await self._results.write(result)
        except ResultTooLarge as error:
            release_frames(error)  # the sender's future keeps it, and they hold the line
            if size > self._claims.largest:
                raise ResultTooLarge(size=size, allowed=self._claims.largest) from None
        try:
            claim = await self._claims.store(result.job.batch_id, result.line)
        except BlobFailed as error:
            raise SinkUnavailable.from_error(error) from error
        return await self._results.write(replace(result, line=encode_claim(claim)), content_type=CLAIM_TYPE)

    async def has(self, job: Job) -> bool:
        return await self._results.has(job)


def claimed_name(url: str, container_url: str) -> str:
    """The name of the blob that `url` claims. Raises NotAJob unless it is one of this container's claims."""
    place = f"{container_url}/{CLAIMS}/"
    rest = url.removeprefix(place)
    if rest == url or len(rest) > _MAX_NAME or not _PLAIN_NAME.fullmatch(rest):
        raise invalid_claim(
            f'"claim.url" must be {place} and a name of letters, digits, ".", "_", "~", "-" and "/", '
            "without a query; the container is AOAI_WORKER_CLAIMS_CONTAINER or AOAI_WORKER_BLOB_CONTAINER"
        )
    return f"{CLAIMS}/{rest}"


def _check(claim: Claim, body: bytes) -> None:
    if len(body) != claim.length:
        raise invalid_claim(f'"claim.length" is {claim.length:,}, and the blob has {len(body):,} bytes')
    if hashlib.sha256(body).hexdigest() != claim.sha256:
        raise invalid_claim('"claim.sha256" is not that of the blob')


def _explain(claim: Claim, error: BlobFailed) -> Exception:
    """What waiting or an administrator may fix is unavailable; what is gone or changed stays so."""
    if error.status == 404 and error.code == "BlobNotFound":
        return invalid_claim('"claim.url" names a blob that does not exist, or no longer')
    if error.status == 412:
        return invalid_claim('"claim.etag" is not that of the blob: it was written again after it was claimed')
    if error.code == "TooLarge":
        return invalid_claim(f'"claim.length" is {claim.length:,}, and the blob has more')
    return ClaimUnavailable.from_error(error)
