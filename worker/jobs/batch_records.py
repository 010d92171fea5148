"""What is written beside a batch's results: its manifest, whether it was cancelled, what was sent again; and what
each pod tells of itself.

Whoever reads them is on another machine, and perhaps of another version: fields that are not known are passed over.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import orjson

FIRST_RETRY = 1_000
"""The number of a batch's first retry; the replays of dead letters have the numbers below."""
LAST_RETRY = 9_999
KEY_SIZE = 16
"""Bytes that stand for a job among the results of its batch."""
RECORD_SCHEMA = 1
FOR_SO_LONG = ", for another "
"""In what a pod waits for: what follows is a time, which differs from pod to pod."""

_Record = TypeVar("_Record")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a batch consists of, told to its collector. `sha256` is of the submitted lines in order. Until
    `starts_at` no worker receives its jobs; None where they were not scheduled. Times are RFC 3339."""

    batch_id: str
    total: int
    sha256: str
    submitted_at: str
    starts_at: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancellation:
    """No new call is made for a job of the batch up to this `replay`; a later retry runs. Times are RFC 3339."""

    replay: int
    cancelled_at: str

    def holds_for(self, replay: int) -> bool:
        return replay <= self.replay


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """Jobs that were sent again as replay `number`. `keys`: of 16 bytes each, by which their results are named."""

    number: int
    retried_at: str
    keys: frozenset[bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class PodReport:
    """What a pod does now. `at`: Unix seconds. `running`: jobs in flight by batch id, of many batches the largest
    only. `waits`: what keeps jobs from being received or called, by what it concerns."""

    pod: str
    at: float
    running: Mapping[str, int] = field(default_factory=dict)
    waits: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BatchRecords:
    """All that lies beside a batch's results. Where `manifest` is None nobody submitted it, or not yet."""

    manifest: Manifest | None = None
    cancellation: Cancellation | None = None
    retries: tuple[Retry, ...] = ()

    @property
    def latest_replay(self) -> int:
        """The number of the last retry; below the first one's where there is none, which takes in the replays of
        dead letters."""
        return max((retry.number for retry in self.retries), default=FIRST_RETRY - 1)

    @property
    def cancelled_at(self) -> str | None:
        """None where a retry came since."""
        holds = self.cancellation and self.cancellation.holds_for(self.latest_replay)
        return self.cancellation.cancelled_at if self.cancellation and holds else None

    def awaited(self) -> dict[bytes, int]:
        """The keys of jobs that a retry sent again, each with the replay whose result is awaited. A
        retry that was cancelled is not awaited: the result that was there counts."""
        held = self.cancellation.replay if self.cancellation else 0
        live = (retry for retry in self.retries if retry.number > held)
        return {key: retry.number for retry in sorted(live, key=_number) for key in retry.keys}


def _number(retry: Retry) -> int:
    return retry.number


def manifest_id(batch_id: str) -> str:
    """The message-id of the batch's manifest, which lies in the queue of results."""
    return f"{batch_id}/manifest"


def encode_manifest(manifest: Manifest) -> bytes:
    document = asdict(manifest)
    if manifest.starts_at is None:
        del document["starts_at"]
    return orjson.dumps(document)


def decode_manifest(raw: bytes) -> Manifest:
    """Raises ValueError when this is not a manifest."""
    return _decode(
        raw,
        "a batch manifest",
        lambda document: Manifest(
            batch_id=str(document["batch_id"]),
            total=count_of(document["total"]),
            sha256=str(document["sha256"]),
            submitted_at=str(document["submitted_at"]),
            starts_at=None if (starts_at := document.get("starts_at")) is None else str(starts_at),
        ),
    )


def encode_cancellation(cancellation: Cancellation) -> bytes:
    return orjson.dumps({"schema": RECORD_SCHEMA, **asdict(cancellation)})


def decode_cancellation(raw: bytes) -> Cancellation:
    """Raises ValueError when this is not a cancellation."""
    return _decode(
        raw,
        "a cancellation",
        lambda document: Cancellation(
            replay=count_of(document["replay"]), cancelled_at=str(document["cancelled_at"])
        ),
    )


def encode_retry(retry: Retry) -> bytes:
    """The keys lie in one string: 32 hexadecimal digits each."""
    head = {"schema": RECORD_SCHEMA, "number": retry.number, "retried_at": retry.retried_at}
    return orjson.dumps({**head, "keys": b"".join(sorted(retry.keys)).hex()})


def decode_retry(raw: bytes) -> Retry:
    """Raises ValueError when this is not the record of a retry."""
    return _decode(
        raw,
        "the record of a retry",
        lambda document: Retry(
            number=count_of(document["number"]),
            retried_at=str(document["retried_at"]),
            keys=frozenset(_split(str(document["keys"]))),
        ),
    )


def count_of(value: object) -> int:
    """Raises ValueError; so no text of thousands of digits becomes a number that cannot be shown."""
    if type(value) is int and value >= 0:
        return value
    raise ValueError("a count is a whole number from 0 on")


def _split(keys: str) -> Iterable[bytes]:
    whole = bytes.fromhex(keys)
    return (whole[start : start + KEY_SIZE] for start in range(0, len(whole), KEY_SIZE))


def encode_report(report: PodReport) -> bytes:
    return orjson.dumps({"schema": RECORD_SCHEMA, **asdict(report)})


def decode_report(raw: bytes) -> PodReport:
    """Raises ValueError when this is not a pod's report."""
    return _decode(
        raw,
        "a pod's report",
        lambda document: PodReport(
            pod=str(document["pod"]),
            at=float(document["at"]),
            running={str(batch): count_of(count) for batch, count in document["running"].items()},
            waits={str(what): str(why) for what, why in document["waits"].items()},
        ),
    )


def _decode(raw: bytes, what: str, make: Callable[[dict[str, Any]], _Record]) -> _Record:
    document = orjson.loads(raw)
    try:
        return make(document)
    except KeyError as error:
        raise ValueError(f"not {what}: it has no {error}") from error
    except (TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ValueError(f"not {what}: {error}") from error
