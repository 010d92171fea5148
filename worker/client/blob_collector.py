"""A batch in Blob storage: its manifest, how far it is, and its results moved into files.

A listing says all but the results themselves, and collecting is read-only: anybody may look or collect at any
time, as often as they like. In memory are a page of names, a few results, and of each job what is known of it.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from itertools import islice
from typing import Protocol

from worker.azure.blob.container import BlobFailed
from worker.azure.blob.names import ResultName, batch_folder, counting, job_key, manifest_name, parse_result_name
from worker.client.batches import (
    FOLLOW_TIMEOUT,
    REPEAT_DELAYS,
    BatchStatus,
    OnProgress,
    Progress,
    is_whole,
    require_submittable,
)
from worker.client.result_files import ResultOutput
from worker.errors import WorkerError
from worker.jobs.results import Manifest, ResultLine, decode_manifest, decode_result, encode_manifest
from worker.waits import backoff

LARGEST_RESULT = 256 << 20
"""Bytes; answers have 64 MiB at most."""
GROUP = 64
"""Results that are read at once, and made durable together."""
SHORTEST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
"""Seconds between two listings of a batch that is followed."""


class Container(Protocol):
    """What is needed of `BlobContainer`, and promised as it does. All raise BlobFailed."""

    async def create(self, name: str, body: bytes) -> str | None: ...

    async def read(self, name: str, *, at_most: int) -> bytes: ...

    def names(self, prefix: str) -> AsyncIterator[Sequence[str]]: ...


class UnusableBlob(WorkerError):
    """A blob in a batch's folder is not what its name says."""

    def __init__(self, name: str, error: Exception) -> None:
        super().__init__(
            f"the blob {name} cannot be read: {error}. Nobody but workers and producers should write there. "
            "Next: move it away, then the same command again"
        )


async def put_manifest(container: Container, prefix: str, manifest: Manifest) -> str | None:
    """When the same was put before, None if it is new; putting it again is harmless.

    Raises OtherBatch where another file has this id, or BlobFailed.
    """
    name = manifest_name(prefix, manifest.batch_id)
    if await container.create(name, encode_manifest(manifest)):
        return None
    there = await read_manifest(container, prefix, manifest.batch_id)
    before = require_submittable(manifest, there, None)
    return None if before == manifest.submitted_at else before  # equal: a lost answer made us put it twice


async def read_manifest(container: Container, prefix: str, batch_id: str) -> Manifest | None:
    """None where nothing was submitted under this id. Raises BlobFailed or UnusableBlob."""
    name = manifest_name(prefix, batch_id)
    body = await _read(container, name)
    if body is None:
        return None
    try:
        return decode_manifest(body)
    except ValueError as error:
        raise UnusableBlob(name, error) from error


async def count_results(container: Container, prefix: str, batch_id: str) -> BatchStatus:
    """Raises BlobFailed or UnusableBlob."""
    manifest = await read_manifest(container, prefix, batch_id)
    succeeded = failed = 0
    async for results in counting_results(container, prefix, batch_id):
        errors = sum(result.failed for result in results)
        failed += errors
        succeeded += len(results) - errors
    return BatchStatus(
        batch_id=batch_id,
        total=manifest.total if manifest else None,
        succeeded=succeeded,
        failed=failed,
        stays=True,
    )


async def counting_results(container: Container, prefix: str, batch_id: str) -> AsyncIterator[Sequence[ResultName]]:
    """Of each job of the batch the result that counts, a page of the listing at a time."""
    held: list[str] = []
    async for page in container.names(batch_folder(prefix, batch_id)):
        # what is known of a job may go on on the next page, so the last job waits for it
        whole, held = _split_before_last_job([*held, *page])
        yield list(counting(whole))
    yield list(counting(held))


class BlobCollector:
    """One collection, from a batch's folder into files. `follow`: until the batch is whole."""

    def __init__(
        self,
        container: Container,
        prefix: str,
        batch_id: str,
        files: ResultOutput,
        report: OnProgress,
        waiting: Callable[[str], None],
    ) -> None:
        self.total: int | None = None
        self.timed_out = False
        self._container = container
        self._prefix = prefix
        self._batch_id = batch_id
        self._files = files
        self._report = report
        self._waiting = waiting
        self._ranks = {bytes.fromhex(job_key(job_id)): rank for job_id, rank in files.ranks()}

    async def gather(self, *, follow: bool, timeout: float = FOLLOW_TIMEOUT) -> None:
        """Return when the batch is whole and published or, not following, when all that was listed is in the files.

        Following ends too after `timeout` seconds without the manifest or a new result: `timed_out`.

        Raises BlobFailed (what failed once it had worked is tried again, REPEAT_DELAYS), or UnusableBlob.
        """
        clock = asyncio.get_running_loop().time
        idle_rounds, worked = 0, False
        news_at = clock()
        delays = iter(REPEAT_DELAYS)
        waiting_for = f"Blob storage to answer about batch {self._batch_id}"
        self._waiting(waiting_for)
        while True:
            begun, had_manifest = clock(), self.total is not None
            try:
                news = await self._round()
            except BlobFailed as error:
                delay = next(delays, None)
                if not worked or not error.is_passing or delay is None:
                    raise  # it never worked: an answer now is better than patience
                self._waiting(f"{waiting_for}, again after {delay:g} s; the last try failed: {error}")
                await asyncio.sleep(delay)
                continue
            worked, delays = True, iter(REPEAT_DELAYS)
            if self._files.published or is_whole(len(self._files), self.total):
                return self._files.publish()
            if not follow:
                return None
            idle_rounds = 0 if news else idle_rounds + 1
            if news or (self.total is not None) > had_manifest:
                news_at = clock()
            left = news_at + timeout - clock()
            if left <= 0:
                self.timed_out = True
                return None
            self._waiting("")
            await asyncio.sleep(min(left, pause_after(clock() - begun, idle_rounds)))
            self._waiting(waiting_for)

    async def _round(self) -> int:
        """List once, and take what is new. Returns how many results came."""
        if self.total is None:
            manifest = await read_manifest(self._container, self._prefix, self._batch_id)
            self.total = manifest.total if manifest else None
        before = len(self._files)
        self._report(self._progress())
        async for results in counting_results(self._container, self._prefix, self._batch_id):
            wanted = (result for result in results if self._is_new(result))
            while group := list(islice(wanted, GROUP)):
                await self._take(group)
        return len(self._files) - before

    def _is_new(self, result: ResultName) -> bool:
        known = self._ranks.get(bytes.fromhex(result.key))
        return known is None or result.rank > known

    async def _take(self, group: Sequence[ResultName]) -> None:
        outcomes = await asyncio.gather(*[self._fetch(result) for result in group], return_exceptions=True)
        lines = [outcome for outcome in outcomes if isinstance(outcome, ResultLine)]
        self._files.add(lines)
        for line in lines:
            self._ranks[bytes.fromhex(job_key(line.job_id))] = line.rank
        self._report(self._progress())
        _raise_first(outcomes)

    async def _fetch(self, result: ResultName) -> ResultLine | None:
        """None where it is gone since it was listed."""
        body = await _read(self._container, result.name)
        if body is None:
            return None
        try:
            line = decode_result(body)
            _require_same(line, result, self._batch_id)
        except ValueError as error:
            raise UnusableBlob(result.name, error) from error
        return line

    def _progress(self) -> Progress:
        total = len(self._files) if self._files.published else self.total
        return Progress(done=len(self._files), total=total, failed=self._files.failed)


def pause_after(listing: float, idle_rounds: int) -> float:
    """Seconds until the next look. A tenth of the time at most goes into looking, and less while nothing comes."""
    return backoff(idle_rounds + 1, base=max(SHORTEST_PAUSE, 10 * listing), cap=LONGEST_PAUSE, factor=1.5)


def _split_before_last_job(names: Sequence[str]) -> tuple[list[str], list[str]]:
    last = parse_result_name(names[-1]) if names else None
    if last is None:
        return list(names), []
    at = len(names)
    while at and (result := parse_result_name(names[at - 1])) and result.key == last.key:
        at -= 1
    return list(names[:at]), list(names[at:])


async def _read(container: Container, name: str) -> bytes | None:
    try:
        return await container.read(name, at_most=LARGEST_RESULT)
    except BlobFailed as error:
        if error.status == 404 and error.code == "BlobNotFound":
            return None
        raise


def _require_same(line: ResultLine, result: ResultName, batch_id: str) -> None:
    """Raises ValueError where the line is another job's than the name says, or says another outcome."""
    if line.batch_id != batch_id or job_key(line.job_id) != result.key or line.rank != result.rank:
        raise ValueError(f"it is a result of job {line.job_id[:128]!r} of batch {line.batch_id[:48]!r}")


def _raise_first(outcomes: Iterable[object]) -> None:
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
