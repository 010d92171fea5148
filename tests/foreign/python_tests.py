"""The live tests that azure-servicebus ships for Python, against the embedded Service Bus.

The tests are fetched with pip in the very version that requirements/ pins and are
kept, like the environment they run in, in `.foreign/`, which git ignores. adapter/ is all that stands between them
and the service; a test that is not run is named in skips.py.
"""

import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from tests.foreign.keys import write_keys
from tests.foreign.report import Result
from tests.foreign.skips import SKIPS

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".foreign"
FILES = (
    "async_tests/test_queues_async.py",
    "async_tests/test_topic_async.py",
    "async_tests/test_subscriptions_async.py",
    "async_tests/test_sb_client_async.py",
    "async_tests/test_sessions_async.py",
    "async_tests/test_list_sessions_async.py",
    "test_queues.py",
    "test_topic.py",
    "test_subscriptions.py",
    "test_sb_client.py",
    "test_sessions.py",
    "test_list_sessions.py",
)
# aiohttp and websocket-client: for AMQP over WebSockets, asynchronous and not.
PACKAGES = ("pytest", "pytest-asyncio", "pytest-timeout", "pytest-xdist", "aiohttp", "websocket-client")
LONGEST_TEST = 240
"""Seconds after which a test counts as failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """The tests of one version, unpacked, and the Python that runs them."""

    version: str
    tests: Path
    python: Path


def run_python(files: Sequence[str], only: str, jobs: int) -> tuple[str, list[Result]]:
    """What was tested, and every test's outcome. No `files` are all of them."""
    suite = prepare(pinned_version((ROOT / "requirements" / "dev.txt").read_text()))
    return f"azure-servicebus {suite.version}", run(suite, files or FILES, only, jobs)


def pinned_version(requirements: str) -> str:
    """The version of azure-servicebus that the lock file names. Raises LookupError if it names none."""
    match = re.search(r"^azure-servicebus==(\S+)", requirements, re.MULTILINE)
    if match is None:
        raise LookupError("requirements/dev.txt pins no azure-servicebus; run `make lock`")
    return match[1]


def prepare(version: str) -> Suite:
    """Fetches the tests and makes their environment, once for each version."""
    folder = CACHE / version
    suite = Suite(
        version=version,
        tests=folder / f"azure_servicebus-{version}" / "tests",
        python=folder / "venv" / "bin" / "python",
    )
    done = folder / "done"
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        (CACHE / ".gitignore").write_text("*\n")
        _fetch(version, folder)
        _make_environment(version, folder / "venv", suite.python)
        done.touch()
    return suite


def _fetch(version: str, folder: Path) -> None:
    _say(f"Fetching the source distribution of azure-servicebus {version}.")
    wanted = ("--no-binary", ":all:", "--no-deps", f"azure-servicebus=={version}")
    _pip(sys.executable, "download", *wanted, "--dest", str(folder))
    with tarfile.open(folder / f"azure_servicebus-{version}.tar.gz") as archive:
        archive.extractall(folder, filter="data")


def _make_environment(version: str, venv: Path, python: Path) -> None:
    _say(f"Making an environment for its tests in {venv}.")
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(venv)], check=True)
    _pip(str(python), "install", f"azure-servicebus=={version}", *PACKAGES)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _pip(python: str, command: str, *arguments: str) -> None:
    quiet = ("--quiet", "--disable-pip-version-check")
    subprocess.run([python, "-m", "pip", command, *quiet, *arguments], check=True)


def run(suite: Suite, files: Sequence[str], only: str, jobs: int) -> list[Result]:
    """Every test's outcome, in the order of the files."""
    keys = CACHE / "keys"
    write_keys(keys)
    outcomes = CACHE / "results.xml"
    command = [str(suite.python), "-P", "-m", "pytest", *files, "-k", only, "-n", str(jobs), "--dist", "worksteal"]
    command += [
        "-p",
        "tests.foreign.adapter.plugin",
        "-p",
        "no:cacheprovider",
        "-c",
        os.devnull,
        "--rootdir",
        str(suite.tests),
    ]
    command += [
        "--timeout",
        str(LONGEST_TEST),
        "-q",
        "--tb=short",
        f"--junitxml={outcomes}",
        "-o",
        "asyncio_mode=auto",
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "FOREIGN_KEYS": str(keys),
        "FOREIGN_SERVICE_PYTHON": sys.executable,
        "FOREIGN_SERVICE_ROOT": str(ROOT),
        "FOREIGN_SKIPS": json.dumps(dict(SKIPS)),
    }
    subprocess.run(command, cwd=suite.tests, env=environment, check=False)
    return [_result(case) for case in ElementTree.parse(outcomes).iter("testcase")]


def _result(case: ElementTree.Element) -> Result:
    outcome, reason = "passed", ""
    for child in case:
        if child.tag in ("failure", "error", "skipped"):
            outcome = "skipped" if child.tag == "skipped" else "failed"
            reason = (child.get("message") or "").strip()
    return Result(
        file=case.get("classname", "").rpartition(".")[0],
        name=case.get("name", ""),
        outcome=outcome,
        reason=reason,
        seconds=float(case.get("time", 0)),
    )
