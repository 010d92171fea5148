"""The files that a collection grows: `OUT.partial` and `ERR.partial`, which become OUT and ERR when all is there.

They survive a kill at any moment: what `add` has returned from is on the disk, a torn last line is cut off when
they are opened again, and OUT under its own name is always whole.
"""

import fcntl
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple

from worker.errors import WorkerError
from worker.jobs import ResultLine, decode_result, result_rank


class UnusableOutput(WorkerError):
    """Nothing can be collected into this file; the message says why and what to do."""


class OutputGone(WorkerError):
    """The file that results were written to is no longer under its name, so they must stay in the queue."""


class _Kept(NamedTuple):
    """Which of a job's results counts: the first of the highest rank."""

    replay: int
    failed: bool

    @property
    def rank(self) -> tuple[int, bool]:
        return result_rank(self.replay, self.failed)


class ResultFiles:
    """Each job of one batch at most once, in OUT or, if it failed and ERR was named, in ERR.

    In memory are the job ids only. Every method may block for the time of an fsync.
    """

    def __init__(self, batch_id: str, out: Path, errors: Path | None) -> None:
        """Nothing is opened yet. Raises UnusableOutput where both names mean one file."""
        if errors and errors.resolve() == out.resolve():
            raise UnusableOutput(f"{out} cannot take both the answers and the errors; name two files, or only one")
        self.batch_id = batch_id
        self.name = f"{out.name} and {errors.name}" if errors else out.name
        self._out = _GrowingFile(out)
        self._err = _GrowingFile(errors) if errors else self._out
        self._files = [self._out, self._err] if errors else [self._out]
        self._kept: dict[str, _Kept] = {}
        self._failed = 0
        self._has_superseded_lines = False
        self.published = False
        """OUT has its own name: this batch was whole before."""

    def __enter__(self) -> "ResultFiles":
        """Go on where an earlier collection ended. Raises UnusableOutput."""
        try:
            self._open()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def __len__(self) -> int:
        """Jobs whose result is here."""
        return len(self._kept)

    @property
    def failed(self) -> int:
        return self._failed

    def ranks(self) -> Iterator[tuple[str, tuple[int, bool]]]:
        """Each job whose result is here, and the rank of that result."""
        return ((job_id, kept.rank) for job_id, kept in self._kept.items())

    def add(self, lines: Sequence[ResultLine]) -> None:
        """Returns once every line that is new is on the disk.

        Raises OutputGone where a file was removed or replaced: what it was to hold must not be settled.
        """
        self._require_in_place()  # a file that is gone would be begun anew, without the lines it had
        news = [line for line in lines if self._note(line)]
        if news:
            self._open_all()
        for file in self._files:
            file.append([line.raw for line in news if self._file_of(line) is file])
        self._require_in_place()

    def publish(self) -> None:
        """Give the files their own names, OUT last: it is there only when all is there. Raises OutputGone."""
        self._require_in_place()
        if self._has_superseded_lines:
            for file in self._files:
                file.rewrite(self._counting_lines(file))
            self._has_superseded_lines = False
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
        self.published = was_there and bool(self._kept)
        if was_there and not self._kept:
            self._out.path.unlink(missing_ok=True)  # empty; left there it would mean that the batch is whole

    def _close(self) -> None:
        for file in self._files:
            file.close()

    def _read(self, file: "_GrowingFile") -> None:
        for number, raw in file.lines():
            line = self._parse(raw, file, number)
            if self._note(line) and self._file_of(line) is not file:
                # collected before without a file for the errors
                self._file_of(line).append([raw])
                self._has_superseded_lines = True

    def _note(self, line: ResultLine) -> bool:
        """Whether this line now counts for its job."""
        before = self._kept.get(line.job_id)
        if before is not None:
            self._has_superseded_lines = True
            if line.rank <= before.rank:
                return False
            self._failed -= before.failed
        self._kept[line.job_id] = _Kept(line.replay, line.failed)
        self._failed += line.failed
        return True

    def _file_of(self, line: ResultLine) -> "_GrowingFile":
        return self._err if line.failed else self._out

    def _counting_lines(self, file: "_GrowingFile") -> Iterator[bytes]:
        seen: set[str] = set()
        for number, raw in file.lines():
            line = self._parse(raw, file, number)
            counts = self._kept[line.job_id] == (line.replay, line.failed)
            if counts and self._file_of(line) is file and line.job_id not in seen:
                seen.add(line.job_id)
                yield raw

    def _parse(self, raw: bytes, file: "_GrowingFile", number: int) -> ResultLine:
        try:
            line = decode_result(raw)
        except ValueError as error:
            raise UnusableOutput(
                f"{file.origin}: line {number:,} is not a result of a worker ({error}); "
                "move the file away or collect into another name"
            ) from error
        if line.batch_id != self.batch_id:
            raise UnusableOutput(
                f"{file.origin} holds results of batch {line.batch_id}, not of {self.batch_id}; "
                "move the file away or collect into another name"
            )
        return line


class _Identity(NamedTuple):
    """Which file a name means, whatever the name."""

    device: int
    inode: int


def _identity(found: os.stat_result) -> _Identity:
    return _Identity(found.st_dev, found.st_ino)


class _GrowingFile:
    """`path`, while it grows under the name `path.partial`; one process at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._partial = path.with_name(f"{path.name}.partial")
        self._rewritten = path.with_name(f"{path.name}.partial.new")
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
                f"{self._name} was removed or replaced by another program while results were written to it. Those "
                "that the removed file already held are gone with it; the ones received last were not taken off "
                "the queue. Next: put the file back if you can, then the same command again"
            )

    def append(self, lines: Sequence[bytes]) -> None:
        if lines:
            self._is_needed = True
            file = self._opened
            file.write(b"".join(line + b"\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())

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
        self._file = self._partial.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            self._file = None
            raise UnusableOutput(
                f"{self._partial} is being written by another collect; wait for it, or collect into another name"
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
        with self._rewritten.open("wb") as file:
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
