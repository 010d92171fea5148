"""A batch in Blob storage: what was sent, what came of it, what it cost, and whether it goes on.

A listing says all but the results themselves, so looking costs a request for each 2,000 results, whoever looks and
however often. In memory are a page of the listing, and counts.
"""

import asyncio
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Protocol, TypeVar

from worker.azure.blob.container import BlobFailed, ListedBlob
from worker.azure.blob.names import (
    ResultName,
    batch_folder,
    batch_of_folder,
    cancellation_name,
    counting,
    fleet_folder,
    manifest_name,
    parse_result_name,
    retries_folder,
    retry_name,
)
from worker.client.batches import (
    BatchDetail,
    BatchIsCancelled,
    BatchStatus,
    UnknownBatch,
    require_submittable,
)
from worker.errors import WorkerError
from worker.jobs.batch_records import (
    BatchRecords,
    Cancellation,
    Manifest,
    PodReport,
    Retry,
    decode_cancellation,
    decode_manifest,
    decode_report,
    decode_retry,
    encode_cancellation,
    encode_manifest,
    encode_retry,
)
from worker.jobs.job import rfc3339
from worker.jobs.outcomes import Usage
from worker.jobs.results import ResultSummary, decode_summary

LARGEST_RESULT = 256 << 20
"""Bytes; answers have 64 MiB at most."""
LARGEST_RECORD = 64 << 20
"""Bytes of what lies beside the results: a retry of a million jobs takes half of it."""
STALE_AFTER = 60.0
"""Seconds after which a pod's report says nothing any more: it writes one every 10."""
RATE_WINDOW = 300.0
"""Seconds of which the rate is told."""
BUCKET = 10
"""Seconds of results that are counted together for it."""
TOGETHER = 256
"""Small blobs that are read together; the container limits how many requests run at once."""

UNKNOWN_CODE = "unknown"
"""Of a failure whose result tells no code in its metadata: an older version's."""

T = TypeVar("T")
V = TypeVar("V")


class Container(Protocol):
    """What is needed of `BlobContainer`, and promised as it does. All raise BlobFailed."""

    async def create(self, name: str, body: bytes) -> str | None: ...

    async def replace(self, name: str, body: bytes, *, etag: str | None = None) -> str | None: ...

    async def delete(self, name: str, *, etag: str | None = None) -> None: ...

    async def read(self, name: str, *, at_most: int) -> bytes: ...

    def names(self, prefix: str) -> AsyncIterator[Sequence[str]]: ...

    def blobs(self, prefix: str, *, metadata: bool = True) -> AsyncIterator[Sequence[ListedBlob]]: ...

    def folders(self, prefix: str) -> AsyncIterator[Sequence[str]]: ...


class UnusableBlob(WorkerError):
    """A blob in a batch's folder is not what its name says."""

    def __init__(self, name: str, error: Exception) -> None:
        super().__init__(
            f"the blob {name} cannot be read: {error}. Only workers and producers should write there. "
            "Next: move it away, then run the same command again"
        )


class BlobBatches:
    """The batches under a prefix of a container. All raise BlobFailed, or UnusableBlob where they read."""

    def __init__(self, container: Container, prefix: str) -> None:
        self._container = container
        self._prefix = prefix

    async def announce(self, manifest: Manifest) -> str | None:
        """When the same was put before, None if it is new; putting it again is harmless.

        Raises OtherBatch where another file has this id, BatchIsCancelled.
        """
        if await self._container.create(manifest_name(self._prefix, manifest.batch_id), encode_manifest(manifest)):
            return None
        there = await self.manifest(manifest.batch_id)
        before = require_submittable(manifest, there, None)
        if await self._cancellation(manifest.batch_id):
            raise BatchIsCancelled(manifest.batch_id)
        return None if before == manifest.submitted_at else before  # equal: a lost answer made us put it twice

    async def manifest(self, batch_id: str) -> Manifest | None:
        """None where nothing was submitted under this id."""
        return await self._reading(decode_manifest)(manifest_name(self._prefix, batch_id))

    async def records(self, batch_id: str) -> BatchRecords:
        manifest, cancellation, retries = await asyncio.gather(
            self.manifest(batch_id), self._cancellation(batch_id), self._retries(batch_id)
        )
        return BatchRecords(manifest, cancellation, retries)

    async def status(self, batch_id: str) -> BatchStatus:
        records, pods = await asyncio.gather(self.records(batch_id), self.pods())
        return await self._count(batch_id, records, pods)

    async def results(self, batch_id: str, *, metadata: bool = True) -> AsyncIterator[Sequence[ResultName]]:
        """Of each job of the batch the result that counts, a page of the listing at a time."""
        held: list[ResultName] = []
        async for page in self._container.blobs(batch_folder(self._prefix, batch_id), metadata=metadata):
            # what is known of a job may go on on the next page, so the last job waits for it
            found = [result for blob in page if (result := parse_result_name(blob.name, blob.metadata))]
            whole, held = _split_before_last_job([*held, *found])
            yield list(counting(whole))
        yield list(counting(held))

    async def codes(self, batch_id: str, records: BatchRecords) -> Mapping[bytes, str | None]:
        """Of each job with a result its code, by key; None where it succeeded. A job that was sent again is left
        out until the result of that is there. In memory are some 100 bytes a job."""
        awaited = records.awaited()
        codes: dict[bytes, str | None] = {}
        async for results in self.results(batch_id):
            for result in results:
                if result.replay >= awaited.get(result.key, 0):
                    code = _code(decode_summary(result.metadata)) if result.failed else None
                    codes[result.key] = sys.intern(code) if code else None
        return codes

    async def record_retry(self, batch_id: str, retry: Retry) -> bool:
        """False where its number is taken."""
        name = retry_name(self._prefix, batch_id, retry.number)
        return await self._container.create(name, encode_retry(retry)) is not None

    async def read(self, result: ResultName) -> bytes | None:
        """Its line; None where it is gone since it was listed."""
        return await read_if_there(self._container, result.name, LARGEST_RESULT)

    async def newest(self, limit: int) -> Sequence[BatchStatus]:
        """The batches that were submitted last, the newest first."""
        batches = [
            batch_id
            async for page in self._container.folders(f"{self._prefix}/")
            for folder in page
            if (batch_id := batch_of_folder(folder))
        ]
        manifests = [one for one in await _gather(batches, self.manifest) if one]
        newest = sorted(manifests, key=lambda manifest: manifest.submitted_at, reverse=True)[:limit]
        pods = await self.pods()
        return [await self._count(one.batch_id, await self.records(one.batch_id), pods) for one in newest]

    async def cancel(self, batch_id: str) -> BatchStatus:
        """No new call is made for the batch's jobs from now on. Cancelling again is harmless, and so is cancelling
        a batch that is complete: it is not cancelled then.

        Raises UnknownBatch.
        """
        records = await self.records(batch_id)
        if records.manifest is None:
            raise UnknownBatch(batch_id)
        if records.cancelled_at:
            return await self.status(batch_id)
        # marked before it is counted, as counting takes seconds, in which jobs would still be called
        name = cancellation_name(self._prefix, batch_id)
        cancellation = Cancellation(replay=records.latest_replay, cancelled_at=rfc3339(time.time()))
        etag = await self._container.replace(name, encode_cancellation(cancellation))
        pods = await self.pods()
        status = await self._count(batch_id, replace(records, cancellation=cancellation), pods)
        if _has_ended(status):
            # a retry that goes on counts only where the mark is left out
            without = await self._count(batch_id, records, pods)
            if _has_ended(without):
                await self._restore(name, records.cancellation, etag)
                return without
        return status

    async def _restore(self, name: str, before: Cancellation | None, etag: str | None) -> None:
        """Unless somebody else has cancelled since."""
        if before:
            await self._container.replace(name, encode_cancellation(before), etag=etag)
        else:
            await self._container.delete(name, etag=etag)

    async def pods(self) -> Sequence[PodReport]:
        """What the pods told of themselves within the last minute, in the order of their names."""
        since = time.time() - STALE_AFTER
        names = [
            blob.name
            async for page in self._container.blobs(fleet_folder(self._prefix), metadata=False)
            for blob in page
            if blob.modified >= since
        ]
        # a pod that ends removes its report
        return tuple(report for report in await _gather(names, self._reading(decode_report)) if report)

    async def _count(self, batch_id: str, records: BatchRecords, pods: Sequence[PodReport]) -> BatchStatus:
        tally = Tally(records)
        async for results in self.results(batch_id):
            for result in results:
                tally.add(result)
        return tally.status(batch_id, pods, time.time())

    async def _cancellation(self, batch_id: str) -> Cancellation | None:
        return await self._reading(decode_cancellation)(cancellation_name(self._prefix, batch_id))

    async def _retries(self, batch_id: str) -> tuple[Retry, ...]:
        folder = retries_folder(self._prefix, batch_id)
        names = [name async for page in self._container.names(folder) for name in page]
        return tuple(retry for retry in await _gather(names, self._reading(decode_retry)) if retry)

    def _reading(self, decode: Callable[[bytes], T]) -> Callable[[str], Awaitable[T | None]]:
        """Of a record's name; the record is None where it is not there."""

        async def read(name: str) -> T | None:
            body = await read_if_there(self._container, name, LARGEST_RECORD)
            try:
                return None if body is None else decode(body)
            except ValueError as error:
                raise UnusableBlob(name, error) from error

        return read


class Tally:
    """Counts the results of a batch. A job that was sent again counts once the result of that is there."""

    def __init__(self, records: BatchRecords) -> None:
        self._records = records
        self._awaited = records.awaited()
        self._awaited_and_there = 0
        self._succeeded = 0
        self._failures: Counter[str] = Counter()
        self._warnings: Counter[str] = Counter()
        self._usage: dict[str, Usage] = {}
        self._buckets: Counter[int] = Counter()

    def add(self, result: ResultName) -> None:
        """The result of a job that counts, once for each job."""
        if awaited := self._awaited.get(result.key):
            if result.replay < awaited:
                return
            self._awaited_and_there += 1
        summary = decode_summary(result.metadata)
        if result.failed:
            self._failures[_code(summary)] += 1
        else:
            self._succeeded += 1
        if summary is None:
            return
        self._buckets[int(summary.finished // BUCKET)] += 1
        if summary.warning:
            self._warnings[summary.warning] += 1
        if summary.usage not in (None, Usage()):
            self._usage[summary.model] = self._usage.get(summary.model, Usage()) + summary.usage

    def status(self, batch_id: str, pods: Sequence[PodReport], now: float) -> BatchStatus:
        manifest, failed = self._records.manifest, self._failures.total()
        total = manifest.total if manifest else None
        left = max(0, (total or 0) - self._succeeded - failed)
        sent_again = len(self._awaited) - self._awaited_and_there
        cancelled = max(0, left - sent_again) if self._records.cancellation else 0
        running = min(left, sum(pod.running.get(batch_id, 0) for pod in pods))
        return BatchStatus(
            batch_id=batch_id,
            total=total,
            succeeded=self._succeeded,
            failed=failed,
            detail=BatchDetail(
                submitted_at=manifest.submitted_at if manifest else None,
                starts_at=manifest.starts_at if manifest else None,
                cancelled_at=self._records.cancelled_at,
                cancelled=cancelled,
                running=running,
                queued=max(0, left - cancelled - running),
                failures=dict(self._failures.most_common()),
                warnings=dict(self._warnings.most_common()),
                usage=self._usage,
                rate=self._rate(now),
                pods=pods,
            ),
        )

    def _rate(self, now: float) -> float:
        """Results a second, of the last minutes or since the first of them where that is less."""
        recent = {bucket: count for bucket, count in self._buckets.items() if bucket * BUCKET > now - RATE_WINDOW}
        if not recent:
            return 0.0
        return sum(recent.values()) / max(BUCKET, now - min(recent) * BUCKET)


def _has_ended(status: BatchStatus) -> bool:
    return status.complete and not status.cancelled


def _code(summary: ResultSummary | None) -> str:
    return summary.code if summary else UNKNOWN_CODE


def _split_before_last_job(results: Sequence[ResultName]) -> tuple[Sequence[ResultName], list[ResultName]]:
    at = len(results)
    while at and results[at - 1].key == results[-1].key:
        at -= 1
    return results[:at], list(results[at:])


async def read_if_there(container: Container, name: str, at_most: int) -> bytes | None:
    """None where there is no such blob."""
    try:
        return await container.read(name, at_most=at_most)
    except BlobFailed as error:
        if error.status == 404 and error.code == "BlobNotFound":
            return None
        raise


async def _gather(values: Iterable[V], ask: Callable[[V], Awaitable[T]]) -> Sequence[T]:
    answers: list[T] = []
    rest = iter(values)
    while some := list(islice(rest, TOGETHER)):
        answers += await asyncio.gather(*[ask(value) for value in some])
    return answers
