"""The results of a batch in Blob storage, brought into files.

Collecting is read-only: anybody may collect at any time, as often as they like. In memory are a page of the
listing, a few results, and what the files know of each job.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice

from worker.azure.blob.container import BlobFailed
from worker.azure.blob.names import ResultName, job_key
from worker.client.batches import FOLLOW_TIMEOUT, REPEAT_DELAYS, OnProgress, Progress, is_whole
from worker.client.blob_batches import BlobBatches, UnusableBlob
from worker.client.result_files import ResultOutput
from worker.jobs.batch_records import BatchRecords
from worker.jobs.results import ResultLine, decode_result
from worker.waits import backoff

GROUP = 64
"""Results that are read at once, and made durable together."""
SHORTEST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
"""Seconds between two listings of a batch that is followed."""


class BlobCollector:
    """One collection, from a batch's folder into files. `follow`: until the batch is whole.

    A batch is whole when every job has its result, of one that was sent again the latest; of a cancelled batch when
    nothing is called for it any more.
    """

    def __init__(
        self,
        batches: BlobBatches,
        batch_id: str,
        files: ResultOutput,
        report: OnProgress,
        waiting: Callable[[str], None],
    ) -> None:
        self.timed_out = False
        self._batches = batches
        self._batch_id = batch_id
        self._files = files
        self._report = report
        self._waiting = waiting
        self._records = BatchRecords()
        self._awaited: Mapping[bytes, int] = {}
        """Jobs that were sent again, and the replay whose result is awaited."""

    @property
    def total(self) -> int | None:
        return self._records.manifest.total if self._records.manifest else None

    @property
    def cancelled(self) -> int:
        """Jobs that will not be called."""
        if self.total is None or self._records.cancellation is None:
            return 0
        sent_again = len(self._without_result()) - self.outdated
        return max(0, self.total - len(self._files) - sent_again)

    @property
    def cancelled_at(self) -> str | None:
        return self._records.cancelled_at

    @property
    def outdated(self) -> int:
        """Jobs that were sent again, of which the files have an earlier result."""
        return sum(self._files.rank_of(key) is not None for key in self._without_result())

    def _without_result(self) -> Sequence[bytes]:
        """Jobs that were sent again, without the result of that."""
        rank_of = self._files.rank_of
        return [key for key, replay in self._awaited.items() if (rank_of(key) or (0, False))[0] < replay]

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
            if self.complete:
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
        # before the results, so that a cancellation or a retry in between is met the next time
        self._records = await self._batches.records(self._batch_id)
        self._awaited = self._records.awaited()
        before = len(self._files)
        self._report(self._progress())
        async for results in self._batches.results(self._batch_id, metadata=False):
            wanted = (result for result in results if self._is_new(result))
            while group := list(islice(wanted, GROUP)):
                await self._take(group)
        return len(self._files) - before

    @property
    def complete(self) -> bool:
        """Whether the files hold all that the batch will have, as far as was listed."""
        if self._without_result():
            return False
        if self._files.published or self.total is None:
            return self._files.published
        return is_whole(len(self._files) + self.cancelled, self.total)

    def _is_new(self, result: ResultName) -> bool:
        known = self._files.rank_of(result.key)
        return known is None or result.rank > known

    async def _take(self, group: Sequence[ResultName]) -> None:
        outcomes = await asyncio.gather(*[self._fetch(result) for result in group], return_exceptions=True)
        lines = [outcome for outcome in outcomes if isinstance(outcome, ResultLine)]
        self._files.add(lines)
        self._report(self._progress())
        _raise_first(outcomes)

    async def _fetch(self, result: ResultName) -> ResultLine | None:
        """None where it is gone since it was listed."""
        body = await self._batches.read(result)
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


def _require_same(line: ResultLine, result: ResultName, batch_id: str) -> None:
    """Raises ValueError where the line is another job's than the name says, or says another outcome."""
    if line.batch_id != batch_id or job_key(line.job_id) != result.key or line.rank != result.rank:
        raise ValueError(f"it is a result of job {line.job_id[:128]!r} of batch {line.batch_id[:48]!r}")


def _raise_first(outcomes: Iterable[object]) -> None:
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
