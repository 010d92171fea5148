"""Which jobs of a batch are sent again, and under which number.

A retry is recorded before its first message is sent: whoever looks knows from then on which results are awaited.
So a retry that was interrupted shows, and the same command finishes it. A job that a retry has recorded and that
has no result of it yet is sent again under the number that it has. Duplicate detection drops what had arrived, and
what is older than its window looks for a result before it is paid for. Every other job is sent under a new number.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial

from worker.azure.blob.names import job_key
from worker.client.batch_files import BatchFile, FileJob, read_jobs
from worker.client.batches import UnknownBatch
from worker.client.blob_batches import UNKNOWN_CODE, BlobBatches
from worker.errors import WorkerError
from worker.jobs.batch_records import LAST_RETRY, BatchRecords, Retry
from worker.jobs.job import make_job_id, rfc3339
from worker.jobs.outcomes import FailureCode

TRIES = 5
"""How often a number is taken that somebody else took a moment before."""


class InvalidCode(WorkerError):
    """Neither an HTTP status nor a failure code."""


class RetryRefused(WorkerError):
    """No number can be had for a retry."""


class PassedOver(StrEnum):
    """Why a line is not sent again."""

    SUCCEEDED = "succeeded"
    PENDING = "pending"
    OTHER_CODE = "other_code"
    NOT_SHOWN = "not_shown"
    """Without a result, in another file than the submitted one: nothing shows that the job is of this batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRetry:
    """What a retry did. `number`: the new one, None where it took none. `sent`: jobs under it; `resumed`: jobs of
    earlier retries that have no result yet. `passed_over`: the file's other lines by reason. `elsewhere`: jobs of
    earlier retries without a result that are not in this file. `is_submitted_file`: what was read is what was
    submitted, line by line."""

    batch_id: str
    is_submitted_file: bool = True
    number: int | None = None
    sent: int = 0
    resumed: int = 0
    passed_over: Mapping[PassedOver, int] = field(default_factory=dict)
    elsewhere: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPlan:
    """`resumed`: keys with the number that they have; `chosen`: keys that get `number`."""

    number: int
    chosen: frozenset[bytes]
    resumed: Mapping[bytes, int]
    passed_over: Mapping[PassedOver, int]
    elsewhere: int
    is_submitted_file: bool

    def __len__(self) -> int:
        return len(self.chosen) + len(self.resumed)

    def jobs(self, batch: BatchFile, batch_id: str) -> Iterator[FileJob]:
        """Raises InvalidBatch."""
        for job in read_jobs(batch):
            key = _key(job, batch_id)
            if replay := self.number if key in self.chosen else self.resumed.get(key):
                yield job._replace(replay=replay)

    def outcome(self, batch_id: str) -> BatchRetry:
        return BatchRetry(
            batch_id=batch_id,
            is_submitted_file=self.is_submitted_file,
            number=self.number if self.chosen else None,
            sent=len(self.chosen),
            resumed=len(self.resumed),
            passed_over=self.passed_over,
            elsewhere=self.elsewhere,
        )


def require_codes(codes: Iterable[str] | str) -> frozenset[str]:
    """A string is one code. Raises InvalidCode."""
    known = {*FailureCode, UNKNOWN_CODE}
    for code in (wanted := frozenset([codes] if isinstance(codes, str) else codes)):
        is_status = code.isascii() and code.isdigit() and 100 <= int(code) <= 599
        if not is_status and code not in known:
            raise InvalidCode(
                f"code {code!r}: allowed are an HTTP status such as 429, and {', '.join(sorted(known))}. "
                "Next: `aoai-worker status` shows the codes of a batch"
            )
    return wanted


async def begin_retry(batches: BlobBatches, batch_id: str, batch: BatchFile, only: Collection[str]) -> RetryPlan:
    """Decide, and record what gets a new number.

    Raises UnknownBatch, RetryRefused, InvalidBatch where the file has changed, BlobFailed or UnusableBlob.
    """
    for _ in range(TRIES):
        records = await batches.records(batch_id)
        if records.manifest is None:
            raise UnknownBatch(batch_id)
        codes = await batches.codes(batch_id, records)
        is_submitted = records.manifest.sha256 == batch.sha256
        decide = partial(plan_retry, _keys(batch, batch_id), codes, records, only, is_submitted_file=is_submitted)
        plan = await asyncio.to_thread(decide)  # a large file is read for minutes, and links are to be kept
        if not plan.chosen:
            return plan
        if plan.number > LAST_RETRY:
            raise RetryRefused(
                f"batch {batch_id} was retried up to number {LAST_RETRY:,}, the last one possible. "
                "Next: submit the jobs as a new batch"
            )
        retry = Retry(number=plan.number, retried_at=rfc3339(time.time()), keys=plan.chosen)
        if await batches.record_retry(batch_id, retry):
            return plan
    raise RetryRefused(
        f"batch {batch_id}: others retry it at the same time and took {TRIES} numbers. Nothing was sent. "
        "Next: the same command again"
    )


def plan_retry(
    keys: Iterable[bytes],
    codes: Mapping[bytes, str | None],
    records: BatchRecords,
    only: Collection[str],
    *,
    is_submitted_file: bool,
) -> RetryPlan:
    """`codes`: of each job with its result (`BlobBatches.codes`). `only`: these codes, or all where it is empty.

    A job without a result is sent again where the batch is cancelled, as a failure `batch_cancelled`.
    """
    awaited = {key: number for key, number in records.awaited().items() if key not in codes}
    chosen: set[bytes] = set()
    resumed: dict[bytes, int] = {}
    passed_over: Counter[PassedOver] = Counter()

    def judge(key: bytes) -> PassedOver | None:
        if key in codes:
            code = codes[key]
            if code is None:
                return PassedOver.SUCCEEDED
        elif not is_submitted_file:
            return PassedOver.NOT_SHOWN
        elif records.cancellation is None:
            return PassedOver.PENDING
        else:
            code = FailureCode.BATCH_CANCELLED
        return PassedOver.OTHER_CODE if only and code not in only else None

    for key in keys:
        if key in awaited:
            resumed[key] = awaited[key]
        elif why := judge(key):
            passed_over[why] += 1
        else:
            chosen.add(key)
    return RetryPlan(
        number=records.latest_replay + 1,
        chosen=frozenset(chosen),
        resumed=resumed,
        passed_over=dict(passed_over),
        elsewhere=len(awaited) - len(resumed),
        is_submitted_file=is_submitted_file,
    )


def _keys(batch: BatchFile, batch_id: str) -> Iterator[bytes]:
    return (_key(job, batch_id) for job in read_jobs(batch))


def _key(job: FileJob, batch_id: str) -> bytes:
    return job_key(make_job_id(batch_id, job.custom_id))
