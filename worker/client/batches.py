"""What a producer is told of a batch: how much was sent, how far it is, what was collected."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal, Protocol

import orjson

from worker.errors import WorkerError
from worker.jobs.batch_records import Manifest, PodReport, count_of
from worker.jobs.job import BATCH_ID
from worker.jobs.outcomes import FailureCode, Usage
from worker.settings import QUEUE, QUEUE_ALPHABET
from worker.waits import backoff

FOLLOW_TIMEOUT = 900.0
"""Seconds without a manifest or a new result after which following ends: longer than a pause of the service and the
lock of a dead collector (5 minutes at most), short enough for a night job to fail while somebody can still act."""
REPEAT_DELAYS = tuple(backoff(failures, base=0.5, cap=30.0) for failures in range(1, 9))
"""Seconds before what failed once it had worked is begun again, a minute and a half in all: 0.5, 1, 2 ... 30."""
RECORD_SCHEMA = 1
LONGEST_NAME = 255
"""Characters of a file name in a collection record, so that the record stays small: it is session state, which
counts towards the queue's size."""


class InvalidBatchId(WorkerError):
    """Not `[A-Za-z0-9._-]{1,48}`."""


class InvalidQueueName(WorkerError):
    """No queue can have this name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectionRecord:
    """What the results queue remembers of a batch that was collected. Times are RFC 3339; `submitted_at` is the
    manifest's, `out` the name of the file without its folder."""

    total: int
    sha256: str
    submitted_at: str
    succeeded: int
    failed: int
    collected_at: str
    out: str

    def is_of(self, manifest: Manifest) -> bool:
        """Whether it records this very submission, and not a later one of the same file."""
        return (self.sha256, self.submitted_at) == (manifest.sha256, manifest.submitted_at)


def encode_record(record: CollectionRecord) -> bytes:
    return orjson.dumps({"schema": RECORD_SCHEMA, **asdict(record), "out": record.out[:LONGEST_NAME]})


def decode_record(raw: bytes) -> CollectionRecord:
    """Raises ValueError when this is not a collection record."""
    document = orjson.loads(raw)
    try:
        return CollectionRecord(
            total=count_of(document["total"]),
            sha256=str(document["sha256"]),
            submitted_at=str(document["submitted_at"]),
            succeeded=count_of(document["succeeded"]),
            failed=count_of(document["failed"]),
            collected_at=str(document["collected_at"]),
            out=str(document["out"]),
        )
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"not a collection record: {error}") from error


class UnknownBatch(WorkerError):
    """Nothing was submitted under this id."""

    def __init__(self, batch_id: str) -> None:
        super().__init__(
            f"batch {batch_id}: no manifest of this batch was found. Next: check the batch id that submit printed "
            "(`aoai-worker list` shows the newest), and use the same settings as submit"
        )


class NeedsBlob(WorkerError):
    """Results are in a queue, which cannot tell this."""

    def __init__(self, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the results in Blob storage; here they go to a queue (AOAI_WORKER_SINK=queue), which "
            "only shows what can be collected. Next: set AOAI_WORKER_SINK=blob and AOAI_WORKER_BLOB_CONTAINER for "
            "both workers and producers"
        )


class BatchIsCancelled(WorkerError):
    """The same file was submitted under this id, and cancelled."""

    def __init__(self, batch_id: str) -> None:
        super().__init__(
            f"batch {batch_id} was submitted before and is cancelled: its jobs would end without a call. Nothing "
            f"was sent. Next: aoai-worker retry {batch_id} FILE sends the jobs without an answer; or use another "
            "--batch"
        )


class OtherBatch(WorkerError):
    """Another file was submitted under this batch id."""

    def __init__(self, batch_id: str, submitted: "Content") -> None:
        super().__init__(
            f"batch {batch_id} was submitted with another file at {submitted.submitted_at}: "
            f"{counted(submitted.total, 'job')}, sha256 {submitted.sha256[:16]}... Nothing was sent. "
            "Next: use another --batch"
        )


class AlreadyCollected(WorkerError):
    """The batch was submitted and collected before."""

    def __init__(self, batch_id: str, record: CollectionRecord, consequence: str) -> None:
        super().__init__(
            f"batch {batch_id} was submitted at {record.submitted_at} and collected at {record.collected_at} into "
            f"{record.out}: {counted(record.succeeded + record.failed, 'result')} ({record.succeeded:,} succeeded, "
            f"{record.failed:,} failed). {consequence}"
        )
        self.record = record


class Content(Protocol):
    """What tells two batches apart: a manifest, or the record of a collection."""

    @property
    def total(self) -> int: ...
    @property
    def sha256(self) -> str: ...
    @property
    def submitted_at(self) -> str: ...


def require_submittable(
    manifest: Manifest, waiting: Manifest | None, record: CollectionRecord | None
) -> str | None:
    """When this batch was submitted before and is still to be collected; None where it is new.

    `waiting` is the manifest in the results queue, `record` what it remembers of an earlier collection. Raises
    OtherBatch where another file has this id, and AlreadyCollected.
    """
    if waiting is not None and record is not None and record.is_of(waiting):
        waiting = None  # a collector died after the record and before it completed the manifest
    before: Content | None = waiting or record
    if before is None:
        return None
    if (before.total, before.sha256) != (manifest.total, manifest.sha256):
        raise OtherBatch(manifest.batch_id, before)
    if waiting is None and record is not None:
        raise AlreadyCollected(
            manifest.batch_id, record, "Nothing was sent. Next: use another --batch to run the same file again"
        )
    return before.submitted_at


def counted(number: int, noun: str) -> str:
    """`1 result`, `2 results`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """`total` is None until the batch's manifest has come. `held`: another collector is being waited for."""

    done: int
    total: int | None
    failed: int = 0
    held: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """`submitted_before`: when the same file was first submitted under this id (RFC 3339), None where it is new. Of
    a batch that was submitted before, the queue drops those jobs that its duplicate detection still knows."""

    batch_id: str
    total: int
    sha256: str
    submitted_before: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchDetail:
    """What Blob storage tells more of a batch. Times are RFC 3339.

    `starts_at`: of a scheduled batch, when workers begin to receive its jobs. `cancelled_at`: None where a retry
    came since.
    `running`: calls under way, as the pods tell every 10 s; `cancelled`: jobs that will not be called.
    `failures`: jobs by HTTP status or failure code, the most frequent first. `warnings`: answers that are not the
    JSON which their job asked for, by code. `usage`: tokens by model.
    `rate`: results a second, of the last 5 minutes. `pods`: those that told of themselves within a minute,
    whatever batches they work on.
    """

    submitted_at: str | None = None
    starts_at: str | None = None
    cancelled_at: str | None = None
    cancelled: int = 0
    running: int = 0
    queued: int = 0
    failures: Mapping[str, int] = field(default_factory=dict)
    warnings: Mapping[str, int] = field(default_factory=dict)
    usage: Mapping[str, Usage] = field(default_factory=dict)
    rate: float = 0.0
    pods: Sequence[PodReport] = ()

    @property
    def seconds_left(self) -> float | None:
        """At the present rate; None where nothing has come lately."""
        return (self.running + self.queued) / self.rate if self.rate else None


BatchState = Literal["queued", "running", "complete", "cancelled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchStatus:
    """What of a batch is there to be collected.

    With the queue sink what an unfinished collection took is no longer counted; with the blob sink, which gives a
    `detail`, all is. Of a batch that was `collected` from the queue the counts are those of the collection, and
    `later` results have come since. `total` is None where there is no manifest.
    While another process collects from the queue nobody else can look: `being_collected_by_other`, and no counts.
    """

    batch_id: str
    total: int | None = None
    succeeded: int = 0
    failed: int = 0
    being_collected_by_other: bool = False
    detail: BatchDetail | None = None
    collected: CollectionRecord | None = None
    later: int = 0

    @property
    def complete(self) -> bool:
        cancelled = self.detail.cancelled if self.detail else 0
        return is_whole(self.succeeded + self.failed + cancelled, self.total)

    @property
    def state(self) -> BatchState:
        """`cancelled`: complete, though some jobs were never called. `queued`: nothing runs, nor has lately."""
        detail = self.detail or BatchDetail()
        if self.complete:
            return "cancelled" if self.cancelled else "complete"
        return "running" if detail.running or detail.rate else "queued"

    @property
    def cancelled(self) -> int:
        """Jobs that were never called as their batch was cancelled, with a result that says so or without."""
        if self.detail is None:
            return 0
        return self.detail.cancelled + self.detail.failures.get(FailureCode.BATCH_CANCELLED, 0)

    @property
    def is_unknown(self) -> bool:
        """There is nothing of this batch: neither manifest, nor result, nor the record of a collection."""
        nothing = self.total is None and not self.succeeded + self.failed
        return nothing and not self.being_collected_by_other


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    """`complete`: the files have their own names; else they are `.partial` and the next collection goes on.

    `total` is None where no manifest has come yet. `timed_out`: following ended because nothing new came.
    `cancelled`: jobs of a cancelled batch that have no result and will get none. `outdated`: jobs that were sent
    again and whose new result has not come; the earlier one counts as succeeded or failed. `cancelled_at` (RFC
    3339): None where the batch was not cancelled, or a retry came since.
    """

    batch_id: str
    total: int | None
    succeeded: int
    failed: int
    complete: bool
    timed_out: bool = False
    cancelled: int = 0
    outdated: int = 0
    cancelled_at: str | None = None

    @property
    def missing(self) -> int | None:
        if self.total is None:
            return None
        return max(0, self.total - self.succeeded - self.failed - self.cancelled) + self.outdated


OnProgress = Callable[[Progress], None]


def require_batch_id(batch_id: str) -> str:
    """Raises InvalidBatchId."""
    if not BATCH_ID.fullmatch(batch_id):
        raise InvalidBatchId(
            f"batch id {batch_id!r}: allowed are 1 to 48 letters, digits, dots, underscores and hyphens"
        )
    return batch_id


def require_queue_name(name: str) -> str:
    """Raises InvalidQueueName."""
    if not QUEUE.fullmatch(name):
        raise InvalidQueueName(
            f"queue {name!r}: the name of a queue has {QUEUE_ALPHABET}. Nothing was sent. Next: the name of a "
            "queue of jobs, or none, as the settings name them"
        )
    return name


def require_timeout(seconds: float) -> float:
    """Raises ValueError."""
    if not 0 < seconds < float("inf"):
        raise ValueError(f"timeout is {seconds}; it must be a number of seconds above 0, and not infinite")
    return seconds


def is_whole(done: int, total: int | None) -> bool:
    return total is not None and done >= total
