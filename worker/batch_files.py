"""A Batch input file on the producer's side: checked whole before the first line is sent.

A file of a million lines costs some tens of megabytes here: lines are read one at a time, and of each only a
hash of its custom_id is kept.
"""

import hashlib
import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

from worker.errors import DeadLetterReason, NotAJob, WorkerError
from worker.jobs import JobLine, parse_line
from worker.packing import ENVELOPE_BYTES, MESSAGE_FIELDS_BYTES

LARGE_LINE_BYTES = 262_144 - ENVELOPE_BYTES - MESSAGE_FIELDS_BYTES
"""What every tier of Service Bus carries as a message; whether longer lines can be sent depends on the queue."""
MAX_LINE_BYTES = 256 << 20
"""Bytes that can be set as the largest claim, so no line that is longer can be sent anywhere."""
SHOWN_PROBLEMS = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class LineProblem:
    """What is wrong with a line. Lines count from 1; 0 is the file as a whole."""

    line: int
    problem: str

    def __str__(self) -> str:
        return f"line {self.line:,}: {self.problem}" if self.line else self.problem


class InvalidBatch(WorkerError):
    """The file is not a Batch input file. Of `count` problems the first few are in `problems`, by line."""

    def __init__(self, path: Path, problems: Sequence[LineProblem], *, count: int | None = None) -> None:
        self.path = path
        self.count = count or len(problems)
        self.problems = tuple(sorted(problems, key=lambda problem: problem.line)[:SHOWN_PROBLEMS])
        super().__init__("\n".join([f"{path} is not a Batch input file", *map(str, self.problems)]))


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchFile:
    """A file whose every line is a job. `sha256` is of the lines, each ended by one newline.

    `size` (bytes) and `modified` (ns) tell whether the file is still the one that was checked. `large`: number and
    bytes of each line that may not fit a message.
    """

    path: Path
    total: int
    sha256: str
    size: int
    modified: int
    large: Sequence[tuple[int, int]] = ()


def read_batch_file(path: Path) -> BatchFile:
    """Check every line. Raises InvalidBatch with what is wrong on which lines, or OSError."""
    wrong, repeated = _Problems(), _Problems()
    digest = hashlib.sha256()
    identities: array[int] = array("q")
    large: list[tuple[int, int]] = []
    total = 0
    with path.open("rb") as file:
        stat = os.fstat(file.fileno())
        _refuse_utf16(path, file)
        for total, line in _numbered(file):
            digest.update(line + b"\n")
            if len(line) > LARGE_LINE_BYTES:
                large.append((total, len(line)))
            try:
                identities.append(hash(_read_job(line).custom_id))
            except NotAJob as error:
                wrong.add(total, error.description)
        for number, first, custom_id in _duplicates(file, _repeated(identities)):
            repeated.add(number, f"custom_id {custom_id!r} is already on line {first:,}; make it unique")
    if not total:
        wrong.add(0, "the file is empty; it must have one job a line")
    if count := wrong.count + repeated.count:
        raise InvalidBatch(path, [*wrong.kept, *repeated.kept], count=count)
    return BatchFile(
        path=path,
        total=total,
        sha256=digest.hexdigest(),
        size=stat.st_size,
        modified=stat.st_mtime_ns,
        large=large,
    )


def check_sizes(batch: BatchFile, *, message: int, claim: int | None) -> None:
    """Each line can be sent as a message of `message` bytes, or as a claim of `claim`, None where there is no
    container for claims; else this raises InvalidBatch."""
    largest = message if claim is None else max(message, claim)
    problems = [
        LineProblem(line=number, problem=f"{size:,} bytes, which {_way_out(message, claim)}")
        for number, size in batch.large
        if size > largest
    ]
    if problems:
        raise InvalidBatch(batch.path, problems)


def _way_out(message: int, claim: int | None) -> str:
    if claim is None:
        return (
            f"no message of this queue can carry: it has room for {message:,}. Shorten the job, or set "
            "AOAI_WORKER_CLAIMS_CONTAINER, so that large jobs go by Blob storage"
        )
    return f"is more than AOAI_WORKER_LARGEST_CLAIM, {claim:,}. Shorten the job, or raise that, for the workers too"


def read_jobs(batch: BatchFile) -> Iterator[tuple[str, bytes]]:
    """custom_id and line of each job. Raises InvalidBatch if the file is no longer the one read."""
    with batch.path.open("rb") as file:
        _require_unchanged(batch, file)
        for number, line in _numbered(file):
            try:
                yield parse_line(line).custom_id, line
            except NotAJob as error:
                raise InvalidBatch(batch.path, [LineProblem(line=number, problem=error.description)]) from error
        _require_unchanged(batch, file)


class _Problems:
    """Counts all, keeps the first few."""

    def __init__(self) -> None:
        self.kept: list[LineProblem] = []
        self.count = 0

    def add(self, line: int, problem: str) -> None:
        self.count += 1
        if len(self.kept) < SHOWN_PROBLEMS:
            self.kept.append(LineProblem(line=line, problem=problem))


def _numbered(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Lines from 1, without their ends. Of an endless line no more is read into memory than shows it is one."""
    file.seek(0)
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 3):
        number += 1
        end = line
        while not end.endswith(b"\n") and (end := file.readline(MAX_LINE_BYTES)):
            pass
        yield number, line.removesuffix(b"\n").removesuffix(b"\r")


def _read_job(line: bytes) -> JobLine:
    """Raises NotAJob, also for what is a job but cannot be sent as a message."""
    if not line.strip():
        raise NotAJob(DeadLetterReason.INVALID_JSON, "the line is blank; remove it")
    if line.startswith(b"\xef\xbb\xbf"):
        raise NotAJob(DeadLetterReason.INVALID_JSON, "a byte order mark; save the file as UTF-8 without BOM")
    if len(line) > MAX_LINE_BYTES:
        raise NotAJob(
            DeadLetterReason.INVALID_JOB,
            f"more than {MAX_LINE_BYTES:,} bytes, which cannot be sent in any way; shorten the job",
        )
    return parse_line(line)


def _repeated(identities: "array[int]") -> set[int]:
    return {one for one, next_one in pairwise(sorted(identities)) if one == next_one}


def _duplicates(file: BinaryIO, suspects: set[int]) -> Iterator[tuple[int, int, str]]:
    """Line, first line and custom_id of what is there twice. Reads the file again, and only for suspects."""
    if not suspects:
        return
    first_lines: dict[str, int] = {}
    for number, line in _numbered(file):
        try:
            custom_id = _read_job(line).custom_id
        except NotAJob:
            continue
        if hash(custom_id) in suspects and (first := first_lines.setdefault(custom_id, number)) != number:
            yield number, first, custom_id


def _refuse_utf16(path: Path, file: BinaryIO) -> None:
    if file.read(2) in (b"\xff\xfe", b"\xfe\xff"):
        raise InvalidBatch(path, [LineProblem(line=0, problem="the file is UTF-16; save it as UTF-8")])


def _require_unchanged(batch: BatchFile, file: BinaryIO) -> None:
    stat = os.fstat(file.fileno())
    if (stat.st_size, stat.st_mtime_ns) != (batch.size, batch.modified):
        raise InvalidBatch(
            batch.path,
            [LineProblem(line=0, problem="the file has changed since it was checked; submit it again")],
        )
