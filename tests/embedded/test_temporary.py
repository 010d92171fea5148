"""Temporary state directories: gone at the end, and swept when their user was killed."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from embedded_azure.temporary import PREFIX, sweep, temporary_directory

KILLED = """
import os, signal, tempfile
tempfile.tempdir = os.environ["FOLDER"]
from embedded_azure.temporary import temporary_directory
with temporary_directory() as root:
    (root / "config.json").write_text("x")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def kill_a_user_of(folder: Path) -> Path:
    ended = subprocess.run([sys.executable, "-c", KILLED], env={"FOLDER": str(folder)}, check=False)
    assert ended.returncode == -9
    (left,) = folder.iterdir()
    return left


def test_a_directory_is_private_and_gone_at_the_end(folder: Path) -> None:
    with temporary_directory() as root:
        assert root.stat().st_mode & 0o777 == 0o700
        (root / "tls").mkdir()
    assert list(folder.iterdir()) == []


def test_what_a_killed_user_left_is_removed_by_the_next(folder: Path) -> None:
    left = kill_a_user_of(folder)
    assert (left / "config.json").exists()
    with temporary_directory():
        assert not left.exists()


def test_a_directory_in_use_is_left_alone(folder: Path) -> None:
    with temporary_directory() as first, temporary_directory() as second:
        sweep(folder)
        assert first.exists()
        assert second.exists()


def test_what_is_not_ours_is_left_alone(folder: Path) -> None:
    unlocked = folder / f"{PREFIX}unlocked"
    other = folder / "other"
    for place in (unlocked, other):
        place.mkdir()
        (place / "file").write_text("x")
    (folder / f"{PREFIX}link").symlink_to(other)
    (other / ".in-use").write_text("")
    sweep(folder)
    assert (unlocked / "file").exists()
    assert (other / "file").exists()
