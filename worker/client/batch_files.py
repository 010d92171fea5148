"""A Batch input file on the producer's side: checked whole before the first line is sent.

A file of a million lines costs some tens of megabytes here: lines are read one at a time, and of each only a
hash of its custom_id is kept. What other programs put into such files without meaning it (a byte order mark, blank
lines, gzip) makes no other batch of them.
"""

import gzip
import hashlib
import os
import shutil
import stat
import tempfile
import zlib
from array import array
from bisect import insort
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import orjson

from worker.azure.servicebus.packing import ENVELOPE_BYTES, MESSAGE_FIELDS_BYTES
from worker.errors import DeadLetterReason, NotAJob, WorkerError
from worker.jobs.job import JobLine, parse_line
from worker.jobs.model_names import MODEL, MODEL_ALPHABET
from worker.jobs.reasoning import refused_parameters

LARGE_LINE_BYTES = 262_144 - ENVELOPE_BYTES - MESSAGE_FIELDS_BYTES
"""What every tier of Service Bus carries as a message; whether longer lines can be sent depends on the queue."""
MAX_LINE_BYTES = 256 << 20
"""Bytes that can be set as the largest claim, so no line that is longer can be sent anywhere."""
SHOWN_PROBLEMS = 20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
GZIP = b"\x1f\x8b"


@dataclass(frozen=True, slots=True, kw_only=True)
class LineProblem:
    """What is wrong with a line. Lines count from 1; 0 is the file as a whole."""

    line: int
    problem: str

    def __str__(self) -> str:
        return f"line {self.line:,}: {self.problem}" if self.line else self.problem


class InvalidBatch(WorkerError):
    """`name` is not a Batch input file. Of `count` problems the first few are in `problems`, by line."""

    def __init__(self, name: str, problems: Sequence[LineProblem], *, count: int | None = None) -> None:
        self.name = name
        self.count = count or len(problems)
        self.problems = tuple(sorted(problems, key=_line_of)[:SHOWN_PROBLEMS])
        super().__init__("\n".join([f"{name} is not a Batch input file", *map(str, self.problems)]))


def _line_of(problem: LineProblem) -> int:
    return problem.line


OnInvalid = Callable[[LineProblem, bytes], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchFile:
    """A file of jobs. `sha256` is of their lines, each ended by one newline: what is skipped, the end of lines and
    compression make no other batch of it.

    `name` is what people are told. `size` (bytes) and `modified` (ns) show whether the file is still the one that
    was checked. `large`: number and bytes of each line that may not fit a message. `models` are those that jobs ask
    for. `blank_lines` and `byte_order_marks` are skipped. `warnings` name what models are likely to refuse.
    `left_out` are the numbers of the lines that are not sent, `model_map` names other models for those in the file:
    all else is of the lines as they are sent.
    """

    path: Path
    name: str
    total: int
    sha256: str
    size: int
    modified: int
    large: Sequence[tuple[int, int]] = ()
    models: frozenset[str] = frozenset()
    blank_lines: int = 0
    byte_order_marks: int = 0
    warnings: Sequence[str] = ()
    left_out: frozenset[int] = frozenset()
    model_map: Mapping[str, str] = field(default_factory=dict)


def read_batch_file(
    path: Path | str,
    *,
    name: str | None = None,
    model_map: Mapping[str, str] | None = None,
    on_invalid: OnInvalid | None = None,
) -> BatchFile:
    """Check every line of a file, which may be compressed by gzip. It is read again when it is sent, so it must be
    a regular file; `spooled` makes one of anything else. `name`: what people are told instead of the path.
    `model_map`: the model of each line, `body.model`, is sent as the one that it names here. With `on_invalid`
    lines that are not jobs are left out and given to it; the file is refused only where no other line is there.

    Raises InvalidBatch with what is wrong on which lines, ValueError for a map to what is not a model name, or
    OSError.
    """
    path, name, models = Path(path), name or str(path), require_model_map(model_map or {})
    problems = _Problems(on_invalid)
    found = _check(path, name, models, problems)
    if on_invalid and 0 < len(problems.lines) < found.total:
        # all that is told of the batch is to be of its other lines: they are read again
        left_out = frozenset(problems.lines)
        problems = _Problems()
        found = _check(path, name, models, problems, left_out)
    if problems.count:
        raise InvalidBatch(name, problems.kept, count=problems.count)
    return found


def require_model_map(models: Mapping[str, str]) -> Mapping[str, str]:
    """Raises ValueError."""
    for model, instead in models.items():
        if not MODEL.fullmatch(instead):
            raise ValueError(f"{model}={instead}: {instead!r} is not a model name; a name has {MODEL_ALPHABET}")
    return models


def _check(
    path: Path,
    name: str,
    model_map: Mapping[str, str],
    problems: "_Problems",
    left_out: frozenset[int] = frozenset(),
) -> BatchFile:
    digest = hashlib.sha256()
    identities: array[int] = array("q")
    large: list[tuple[int, int]] = []
    models: set[str] = set()
    mapped: set[str] = set()
    refused: Counter[tuple[str, str, str]] = Counter()
    with _opened(path, name) as (file, raw):
        status = os.fstat(raw.fileno())
        _refuse_utf16(name, file)
        lines = _JobLines(file, left_out)
        for number, line in lines:
            try:
                job = _read_job(line)
            except NotAJob as error:
                problems.add(number, error.description, line)
                continue
            mapped.add(job.model)
            job, line = _renamed(job, line, model_map)
            digest.update(line + b"\n")
            if len(line) > LARGE_LINE_BYTES:
                large.append((number, len(line)))
            identities.append(hash(job.custom_id))
            models.add(job.model)
            refused.update((job.model, *what) for what in refused_parameters(job).items())
        for number, line, first, custom_id in _duplicates(file, left_out, _repeated(identities)):
            problems.add(number, f"custom_id {custom_id!r} is already on line {first:,}; make it unique", line)
    if not lines.total:
        problems.add(0, "the file is empty; it must have one job a line")
    for model in sorted(model_map.keys() - mapped):
        problems.add(
            0, f"no line asks for {model!r}, which the model map replaces; lines ask for {_listed(mapped)}"
        )
    return BatchFile(
        path=path,
        name=name,
        total=lines.total,
        sha256=digest.hexdigest(),
        size=status.st_size,
        modified=status.st_mtime_ns,
        large=large,
        models=frozenset(models),
        blank_lines=lines.blank,
        byte_order_marks=lines.byte_order_marks,
        warnings=[_warn(name, *what, count) for what, count in refused.most_common(SHOWN_PROBLEMS)],
        left_out=left_out,
        model_map=model_map,
    )


def _listed(models: Collection[str]) -> str:
    shown = sorted(models)[:SHOWN_PROBLEMS]
    more = len(models) - len(shown)
    return ", ".join(shown) + (f" and {more:,} more" if more else "")


def _renamed(job: JobLine, line: bytes, model_map: Mapping[str, str]) -> tuple[JobLine, bytes]:
    """The job with the model that the map names instead, and its line as it is sent."""
    model = model_map.get(job.model)
    if model is None:
        return job, line
    body = {**job.body, "model": model}
    document = {"custom_id": job.custom_id, "method": "POST", "url": job.operation, "body": body}
    return replace(job, model=model, body=body), orjson.dumps(document)


def _warn(name: str, model: str, parameter: str, instead: str, count: int) -> str:
    lines = "line has" if count == 1 else "lines have"
    return (
        f"{name}: {count:,} {lines} {parameter!r}, which the model {model} is likely to refuse: {instead}. A "
        "deployment of that name may have another model, so the jobs are sent as they are"
    )


@contextmanager
def spooled(source: BinaryIO) -> Iterator[Path]:
    """A temporary file with all that the source brings: a pipe can be read once only. Raises OSError, which
    names the file."""
    with tempfile.NamedTemporaryFile(prefix="aoai-worker-", suffix=".jsonl") as copy:
        try:
            shutil.copyfileobj(source, copy, 1 << 20)
            copy.flush()
        except OSError as error:
            error.filename = error.filename or f"{copy.name} (in TMPDIR)"
            with suppress(OSError):  # what is left in the buffer fails again
                copy.close()
            raise
        yield Path(copy.name)


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
        raise InvalidBatch(batch.name, problems)


def _way_out(message: int, claim: int | None) -> str:
    if claim is None:
        return (
            f"no message of this queue can carry: it has room for {message:,}. Shorten the job, or set "
            "AOAI_WORKER_CLAIMS_CONTAINER, so that large jobs go by Blob storage"
        )
    return f"is more than AOAI_WORKER_LARGEST_CLAIM, {claim:,}. Shorten the job, or raise that, for the workers too"


def check_unchanged(batch: BatchFile) -> None:
    """Raises InvalidBatch if the file is no longer the one that was read, or OSError."""
    _require_unchanged(batch, batch.path.stat())


class FileJob(NamedTuple):
    """A job of a batch file; `line` is what is sent. `replay`: the number under which it is sent again, 0 the first
    time."""

    custom_id: str
    model: str
    line: bytes
    replay: int = 0


def read_jobs(batch: BatchFile) -> Iterator[FileJob]:
    """Each job. Raises as `read_lines`."""
    return (FileJob(job.custom_id, job.model, line) for job, line in read_lines(batch))


def read_lines(batch: BatchFile) -> Iterator[tuple[JobLine, bytes]]:
    """Each job and the line that is sent. Raises InvalidBatch if the file is no longer the one read.

    A file that is put in its place by renaming does no harm: the old one is read to its end.
    """
    with _opened(batch.path, batch.name) as (file, raw):
        for number, line in _JobLines(file, batch.left_out):
            # after the line was read: no line that was not checked is a job of this batch
            _require_unchanged(batch, os.fstat(raw.fileno()))
            try:
                yield _renamed(parse_line(line), line, batch.model_map)
            except NotAJob as error:
                raise InvalidBatch(batch.name, [LineProblem(line=number, problem=error.description)]) from error
        _require_unchanged(batch, os.fstat(raw.fileno()))


@contextmanager
def _opened(path: Path, name: str) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """The file, decompressed as it is read, and as it lies there."""
    if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for somebody to write into it
        problem = "this is not a regular file, and it is read twice; copy it into one"
        raise InvalidBatch(name, [LineProblem(line=0, problem=problem)])
    with path.open("rb") as raw:
        compressed = raw.peek(len(GZIP)).startswith(GZIP)
        file = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if compressed else raw
        try:
            yield file, raw
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            problem = f"the gzip data is damaged or cut off: {error}; compress the file again"
            raise InvalidBatch(name, [LineProblem(line=0, problem=problem)]) from error


class _Problems:
    """Counts all, keeps the first few. With `on_invalid` it gives each line there, and keeps its number."""

    def __init__(self, on_invalid: OnInvalid | None = None) -> None:
        self.kept: list[LineProblem] = []
        self.count = 0
        self.lines: set[int] = set()
        self._on_invalid = on_invalid

    def add(self, number: int, problem: str, line: bytes = b"") -> None:
        self.count += 1
        told = LineProblem(line=number, problem=problem)
        insort(self.kept, told, key=_line_of)
        del self.kept[SHOWN_PROBLEMS:]
        if self._on_invalid and number:
            self.lines.add(number)
            self._on_invalid(told, line)


class _JobLines:
    """The lines that should be jobs, with their numbers in the file; counts them and what is skipped."""

    def __init__(self, file: BinaryIO, left_out: frozenset[int]) -> None:
        self._file = file
        self._left_out = left_out
        self.total = 0
        self.blank = 0
        self.byte_order_marks = 0

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        for number, raw in _numbered(self._file):
            line = raw.removeprefix(BYTE_ORDER_MARK)  # not only on line 1: files are put together
            self.byte_order_marks += len(line) < len(raw)
            if number in self._left_out:
                continue
            if line and not line.isspace():
                self.total += 1
                yield number, line
            else:
                self.blank += 1


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
    if len(line) > MAX_LINE_BYTES:
        raise NotAJob(
            DeadLetterReason.INVALID_JOB,
            f"more than {MAX_LINE_BYTES:,} bytes, the most that can be sent; shorten the job",
        )
    try:
        return parse_line(line)
    except NotAJob as error:
        if error.reason is DeadLetterReason.INVALID_JSON:
            raise NotAJob(error.reason, _why_not_json(line)) from error
        raise


def _why_not_json(line: bytes) -> str:
    """What an editor needs: the column, in characters from 1, and what is wrong there."""
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        column = len(line[: error.start].decode()) + 1
        byte = line[error.start : error.start + 1]
        meant = byte.decode("cp1252", errors="replace")
        return (
            f"column {column:,}: the byte 0x{byte.hex()} is not UTF-8; in Latin-1 (Windows-1252) it is {meant!r}. "
            "Save the file as UTF-8"
        )
    try:
        orjson.loads(line)
    except orjson.JSONDecodeError as error:
        if text[error.pos :].strip() == ",":
            return f"column {error.colno:,}: a trailing comma after the job; remove it"
        return f"column {error.colno:,}: not JSON: {error.msg}. A line must be one JSON object"
    return "not JSON. A line must be one JSON object"


def _repeated(identities: "array[int]") -> set[int]:
    """Those of a million are sorted in parts: one sorted list of all takes 40 bytes for each."""
    parts = min(16, 1 + len(identities) // 50_000)
    found: set[int] = set()
    for part in range(parts):
        alike = sorted([one for one in identities if one % parts == part])
        found |= {one for one, next_one in pairwise(alike) if one == next_one}
    return found


def _duplicates(
    file: BinaryIO, left_out: frozenset[int], suspects: set[int]
) -> Iterator[tuple[int, bytes, int, str]]:
    """Number and line of what is there twice, number of the first line with its custom_id, and that. Reads the
    file again, and only for suspects."""
    if not suspects:
        return
    first_lines: dict[str, int] = {}
    for number, line in _JobLines(file, left_out):
        try:
            custom_id = _read_job(line).custom_id
        except NotAJob:
            continue
        if hash(custom_id) in suspects and (first := first_lines.setdefault(custom_id, number)) != number:
            yield number, line, first, custom_id


def _refuse_utf16(name: str, file: BinaryIO) -> None:
    start = file.read(4)
    # without its byte order mark every other byte of ASCII is 0
    if start.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in start:
        problem = "column 1: the file is UTF-16; save it as UTF-8"
        raise InvalidBatch(name, [LineProblem(line=1, problem=problem)])


def _require_unchanged(batch: BatchFile, status: os.stat_result) -> None:
    if (status.st_size, status.st_mtime_ns) != (batch.size, batch.modified):
        raise InvalidBatch(
            batch.name,
            [LineProblem(line=0, problem="the file has changed since it was checked; submit it again")],
        )
