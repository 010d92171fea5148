"""What a producer is told of a batch: how much was sent, how far it is, what was collected."""

from collections.abc import Callable
from dataclasses import dataclass

from worker.errors import WorkerError
from worker.jobs import BATCH_ID


class InvalidBatchId(WorkerError):
    """Not `[A-Za-z0-9._-]{1,48}`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """`total` is None until the batch's manifest has come. `held`: another collector is being waited for."""

    done: int
    total: int | None
    failed: int = 0
    held: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    batch_id: str
    total: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchStatus:
    """What of a batch is there to be collected.

    With the queue sink what has been collected is no longer counted; with the blob sink, `stays`, all is.
    `total` is None where there is no manifest (nothing submitted under this id, or all of it collected).
    While another process collects from the queue nobody else can look: `being_collected_by_other`, and no counts.
    """

    batch_id: str
    total: int | None = None
    succeeded: int = 0
    failed: int = 0
    being_collected_by_other: bool = False
    stays: bool = False

    @property
    def complete(self) -> bool:
        return self.total is not None and self.succeeded + self.failed >= self.total


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    """`complete`: the files have their own names; else they are `.partial` and the next collection goes on.

    `total` is None where no manifest has come yet.
    """

    batch_id: str
    total: int | None
    succeeded: int
    failed: int
    complete: bool

    @property
    def missing(self) -> int | None:
        return None if self.total is None else max(0, self.total - self.succeeded - self.failed)


OnProgress = Callable[[Progress], None]


def require_batch_id(batch_id: str) -> str:
    """Raises InvalidBatchId."""
    if not BATCH_ID.fullmatch(batch_id):
        raise InvalidBatchId(
            f"batch id {batch_id!r}: allowed are 1 to 48 letters, digits, dots, underscores and hyphens"
        )
    return batch_id


def is_whole(done: int, total: int | None) -> bool:
    return total is not None and done >= total
