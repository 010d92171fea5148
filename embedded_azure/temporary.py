"""Temporary state directories that leave nothing behind: what a killed supervisor cannot remove, the next does.

Whoever uses a directory holds a lock on a file in it, which the system gives back however its holder ends.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

PREFIX: Final = "aoai-worker-local-"
_LOCK: Final = ".in-use"


@contextmanager
def temporary_directory() -> Iterator[Path]:
    """A new directory that only its owner can look into, removed at the end. Raises OSError."""
    sweep(Path(tempfile.gettempdir()))
    root = Path(tempfile.mkdtemp(prefix=PREFIX))
    lock = os.open(root / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)
        os.close(lock)


def sweep(folder: Path) -> None:
    """Removes our own directories that nobody uses any more. One that was never locked is left alone."""
    for lock in folder.glob(f"{PREFIX}*/{_LOCK}"):
        with suppress(OSError):  # in use, gone meanwhile, or somebody else's
            _remove_unless_locked(lock)


def _remove_unless_locked(lock: Path) -> None:
    if lock.parent.is_symlink() or lock.parent.stat().st_uid != os.getuid():
        return
    descriptor = os.open(lock, os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(lock.parent)
    finally:
        os.close(descriptor)
