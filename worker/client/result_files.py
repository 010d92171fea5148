"""What a collection writes to: files that grow, or standard output.

The files are `OUT.partial` and `ERR.partial`, which become OUT and ERR when all is there.
They survive a kill at any moment: what `add` has returned from is on the disk, a torn last line is cut off when
they are opened again, and OUT under its own name is always whole.
"""

import fcntl
import os
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol, Self

from worker.azure.blob.names import job_key
from worker.errors import WorkerError
from worker.jobs.results import ResultLine, decode_result

PARTIAL, REWRITTEN = ".partial", ".partial.new"
"""Suffixes of a file that grows, and of what replaces it where lines are left out."""
STANDARD_OUTPUT = (Path("-"), Path("/dev/stdout"))


class UnusableOutput(WorkerError):
    """Nothing can be collected into this file; the message says why and what to do."""


class OutputGone(WorkerError):
    """The file that results were written to is no longer under its name, so they must stay in the queue."""


class UnwritableOutput(WorkerError):
    """The system did not take a write: the disk is full, a limit is reached, the device failed."""

    def __init__(self, name: Path | str, error: OSError) -> None:
        super().__init__(
            f"{name} cannot be written: {error.strerror}. No result is lost: those not written "
            "are collected again. Next: free disk space, then run the same command again"
        )


class ResultOutput(Protocol):
    """Where results are kept; a context manager. `published`: all of the batch is there."""

    batch_id: str
    name: str
    is_stream: bool
    published: bool

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def __len__(self) -> int: ...

    @property
    def failed(self) -> int: ...

    def rank_of(self, key: bytes) -> tuple[int, bool] | None:
        """Of the result that is here of the job with this key (`job_key`); None where there is none."""

    def add(self, lines: Sequence[ResultLine]) -> None:
        """Returns when what is new is where it can be settled. Raises OutputGone or UnwritableOutput."""

    def publish(self) -> None:
        """All of the batch is there."""


def output_of(batch_id: str, out: Path, errors: Path | None) -> ResultOutput:
    """Nothing is opened yet. Raises UnusableOutput."""
    if errors in STANDARD_OUTPUT or (errors and out in STANDARD_OUTPUT):
        raise UnusableOutput(
            "standard output gets all results, including errors. Next: use `-o -` without --errors, or two files"
        )
    if out not in STANDARD_OUTPUT:
        return ResultFiles(batch_id, out, errors)
    if sys.stdout is None:  # it was closed from the start, so its descriptor may be a connection's by now
        raise UnusableOutput("standard output is closed. Next: leave out `>&-`, or collect into a file")
    return ResultStream(batch_id)


class _Verdicts:
    """Which result of each job counts: the first of the highest rank. In memory are some 100 bytes a job."""

    def __init__(self) -> None:
        self.ranks: dict[bytes, tuple[int, bool]] = {}
        self.failed = 0
        self.any_repeated = False

    def note(self, line: ResultLine) -> bool:
        """Whether this line now counts for its job."""
        key = job_key(line.job_id)
        before = self.ranks.get(key)
        if before is not None:
            self.any_repeated = True
            if line.rank <= before:
                return False
            self.failed -= not before[1]  # it was an error
        self.ranks[key] = line.rank
        self.failed += line.failed
        return True


class ResultStream:
    """Each result of one batch once, to a pipe or a redirected file; what supersedes another comes after it.

    There is no `.partial`, so nothing is known of an earlier collection.
    """

    is_stream = True
    name = "standard output"

    def __init__(self, batch_id: str, descriptor: int = 1) -> None:
        self.batch_id = batch_id
        self.published = False
        self._descriptor = descriptor
        self._verdicts = _Verdicts()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def __len__(self) -> int:
        return len(self._verdicts.ranks)

    @property
    def failed(self) -> int:
        return self._verdicts.failed

    def rank_of(self, key: bytes) -> tuple[int, bool] | None:
        return self._verdicts.ranks.get(key)

    def add(self, lines: Sequence[ResultLine]) -> None:
        """Returns when the pipe has taken every byte, or the disk where it is a file. Raises OutputGone or
        UnwritableOutput."""
        news = b"".join(line.raw + b"\n" for line in lines if self._verdicts.note(line))
        try:
            _write_all(self._descriptor, self.name, news)
        except BrokenPipeError as error:
            raise OutputGone(
                "standard output was closed by the program that reads it. Results that it did not read are "
                "still in the queue. Next: run the same command again"
            ) from error

    def publish(self) -> None:
        self.published = True


class ResultFiles:
    """Each job of one batch at most once, in OUT or, if it failed and ERR was named, in ERR.

    Every method may block for the time of an fsync.
    """

    is_stream = False

    def __init__(self, batch_id: str, out: Path, errors: Path | None) -> None:
        """Nothing is opened yet. Raises UnusableOutput where both names mean one file, or one that is no file."""
        for path in (out, errors):
            if path and path.exists() and not path.is_file():
                raise UnusableOutput(f"{path} is not a regular file. Next: name a file, or - for standard output")
        if errors and errors.resolve() == out.resolve():
            raise UnusableOutput(f"{out} is named for both answers and errors. Next: name two files, or only one")
        if errors and _names_while_growing(out) & _names_while_growing(errors):
            raise UnusableOutput(
                f"{out} and {errors}: while it is written, one would have the name of the other. "
                f"Next: use another name than {errors} for the errors"
            )
        for path in (out, errors):
            if path and not path.parent.is_dir():
                raise UnusableOutput(f"{path}: there is no folder {path.parent}. Next: create it, or name another")
        self.batch_id = batch_id
        self.name = f"{out.name} and {errors.name}" if errors else out.name
        self._out = _GrowingFile(out)
        self._err = _GrowingFile(errors) if errors else self._out
        self._files = [self._out, self._err] if errors else [self._out]
        self._verdicts = _Verdicts()
        self._must_rewrite = False
        self.published = False
        """OUT has its own name: this batch was whole before."""

    def __enter__(self) -> Self:
        """Go on where an earlier collection ended. Raises UnusableOutput."""
        try:
            self._open()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def __len__(self) -> int:
        """Jobs whose result is here."""
        return len(self._verdicts.ranks)

    @property
    def failed(self) -> int:
        return self._verdicts.failed

    def rank_of(self, key: bytes) -> tuple[int, bool] | None:
        return self._verdicts.ranks.get(key)

    def add(self, lines: Sequence[ResultLine]) -> None:
        """Returns once every line that is new is on the disk.

        Raises OutputGone where a file was removed or replaced, or UnwritableOutput: what it was to hold must not
        be settled.
        """
        self._require_in_place()  # a file that is gone would be begun anew, without the lines it had
        news = [line for line in lines if self._verdicts.note(line)]
        if news:
            self._open_all()
        for file in self._files:
            file.append([line.raw for line in news if self._file_of(line) is file])
        self._require_in_place()

    def publish(self) -> None:
        """Give the files their own names, OUT last: it is there only when all is there. Raises OutputGone."""
        self._require_in_place()
        if self._must_rewrite or self._verdicts.any_repeated:
            for file in self._files:
                file.rewrite(self._counting_lines(file))
            self._must_rewrite = self._verdicts.any_repeated = False
        for file in reversed(self._files):
            file.publish()
        self.published = True

    def _open_all(self) -> None:
        for file in self._files:
            file.open()

    def _require_in_place(self) -> None:
        for file in self._files:
            file.require_in_place()

    def _open(self) -> None:
        was_there = self._out.path.exists()
        self._open_all()
        for file in self._files:
            self._read(file)
        self.published = was_there and bool(self._verdicts.ranks)
        if was_there and not self._verdicts.ranks:
            self._out.path.unlink(missing_ok=True)  # empty; left there it would mean that the batch is whole

    def _close(self) -> None:
        for file in self._files:
            file.close()

    def _read(self, file: "_GrowingFile") -> None:
        for number, raw in file.lines():
            line = self._parse(raw, file, number)
            if self._verdicts.note(line) and self._file_of(line) is not file:
                # collected before without a file for the errors
                self._file_of(line).append([raw])
                self._must_rewrite = True

    def _file_of(self, line: ResultLine) -> "_GrowingFile":
        return self._err if line.failed else self._out

    def _counting_lines(self, file: "_GrowingFile") -> Iterator[bytes]:
        seen: set[bytes] = set()
        for number, raw in file.lines():
            line = self._parse(raw, file, number)
            key = job_key(line.job_id)
            counts = self._verdicts.ranks[key] == line.rank
            if counts and self._file_of(line) is file and key not in seen:
                seen.add(key)
                yield raw

    def _parse(self, raw: bytes, file: "_GrowingFile", number: int) -> ResultLine:
        try:
            line = decode_result(raw)
        except ValueError as error:
            raise UnusableOutput(
                f"{file.origin}: line {number:,} is not a result of a worker. {_ANOTHER_NAME}"
            ) from error
        if line.batch_id != self.batch_id:
            raise UnusableOutput(
                f"{file.origin} holds results of batch {line.batch_id}, not of {self.batch_id}. {_ANOTHER_NAME}"
            )
        return line


_ANOTHER_NAME = "It was left as it is. Next: move it away, or collect into another file"


def _write_all(descriptor: int, name: Path | str, content: bytes) -> None:
    """Return when a pipe has taken it, or the disk if it is a file. Raises BrokenPipeError or UnwritableOutput."""
    with _naming(name):
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.fsync(descriptor)


@contextmanager
def _naming(name: Path | str) -> Iterator[None]:
    """Errors of writing do not say which file it was."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UnwritableOutput(name, error) from error


class _Identity(NamedTuple):
    """Which file a name means, whatever the name."""

    device: int
    inode: int


def _identity(found: os.stat_result) -> _Identity:
    return _Identity(found.st_dev, found.st_ino)


def _names_while_growing(path: Path) -> set[Path]:
    names = (path.name, f"{path.name}{PARTIAL}", f"{path.name}{REWRITTEN}")
    return {path.parent.resolve() / name for name in names}


class _GrowingFile:
    """`path`, while it grows under the name `path.partial`; one process at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._partial = path.with_name(f"{path.name}{PARTIAL}")
        self._rewritten = path.with_name(f"{path.name}{REWRITTEN}")
        self._file: BinaryIO | None = None
        self._is_needed = True
        self._name = self._partial
        self._identity: _Identity | None = None
        """Of the file that was written; None until it is opened."""
        self.origin = self._partial
        """Where the lines come from that are there already."""

    def open(self) -> None:
        if self._file is not None:
            return
        self.origin = self._partial
        size = self._open_partial()
        if not size and self.path.exists() and self.path.stat().st_size:
            with self.path.open("rb") as whole:
                self._replace(whole)
            self._opened.close()  # what was renamed over it has the name now, and must have the lock
            size = self._open_partial()
            self.origin = self.path
        self._is_needed = size > 0 and self.origin is self._partial
        _sync_directory(self.path)

    def close(self) -> None:
        """Leaves no file in which there is nothing that is not elsewhere."""
        if self._file is None:
            return
        if not self._is_needed and self._is_in_place():
            self._partial.unlink()
        self._file.close()
        self._file = None

    def require_in_place(self) -> None:
        """Raises OutputGone unless the file that was written still has its name."""
        if not self._is_in_place():
            raise OutputGone(
                f"{self._name} was removed or replaced by another program while results were written to it. The "
                "results in the removed file are gone with it; those received last are still in the queue. "
                "Next: restore the file if you can, then run the same command again"
            )

    def append(self, lines: Sequence[bytes]) -> None:
        if lines:
            self._is_needed = True
            _write_all(self._opened.fileno(), self._partial, b"".join(line + b"\n" for line in lines))

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Numbered from 1, without newlines, as far as the file goes now."""
        with self._partial.open("rb") as file:
            for number, line in enumerate(file, start=1):
                yield number, line.removesuffix(b"\n")

    def rewrite(self, lines: Iterator[bytes]) -> None:
        """Keep only these; they may be read from this very file. Next it is published."""
        self._is_needed = True
        self._identity = self._replace(line + b"\n" for line in lines)

    def publish(self) -> None:
        """Without effect when nothing came since the last time."""
        if self._file is None:
            return
        self._file.close()
        self._file = None
        self._partial.replace(self.path)
        self._name = self.path
        _sync_directory(self.path)

    def _open_partial(self) -> int:
        """Open it and lock it. Returns how many bytes of whole lines it has."""
        self._file = self._partial.open("a+b", buffering=0)  # what a full disk refused must not come at the end
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            self._file = None
            raise UnusableOutput(
                f"{self._partial} is being written by another collect. Next: wait for it, or use another file"
            ) from None
        self._name, self._identity = self._partial, _identity(os.fstat(self._file.fileno()))
        return self._cut_torn_line()

    def _is_in_place(self) -> bool:
        if self._identity is None:
            return True  # not opened yet
        try:
            return _identity(self._name.stat()) == self._identity
        except FileNotFoundError:
            return False

    def _replace(self, lines: Iterable[bytes]) -> _Identity:
        with _naming(self._rewritten), self._rewritten.open("wb") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())  # before it takes the name: a name without content would hide what was there
            identity = _identity(os.fstat(file.fileno()))
        self._rewritten.replace(self._partial)
        return identity

    @property
    def _opened(self) -> BinaryIO:
        if self._file is None:
            raise ValueError(f"{self._partial} is not open")
        return self._file

    def _cut_torn_line(self) -> int:
        """A write that a kill cut short: its message was not completed, so the line comes again.

        Returns how many bytes stay.
        """
        file = self._opened
        whole = 0
        with self._partial.open("rb") as reader:
            for line in reader:
                whole += len(line) if line.endswith(b"\n") else 0
        file.truncate(whole)
        os.fsync(file.fileno())  # what a killed process wrote counts as collected from now on, so it must last
        return whole


def _sync_directory(path: Path) -> None:
    """A new name is on the disk only when its directory is."""
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
