"""The demo prints what README.md says. The block is read out of it; `make demo` runs without make."""

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from tests.support.processes import Process, clean_environment

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")

LONGEST_WALK = 240.0
"""Seconds for what a person does in one terminal; some 15 on an idle machine."""
MEASURED = re.compile(r"\b\d+(\.\d+)?(?= s\b| jobs/s\b)")


def section(document: str, title: str) -> str:
    _, found, rest = document.partition(f"\n## {title}\n")
    assert found, f'there is no section "{title}"'
    return rest.partition("\n## ")[0]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def broken_promises(promised: str, printed: str) -> list[str]:
    """The promised lines that were not printed in this order; others may stand between them.

    `...` stands for anything, a measured time for any other, and spaces count as one.
    """
    rest = iter(printed.splitlines())
    lines = [line for line in promised.splitlines() if line.strip()]
    return [line for line in lines if not any(_shape(line).fullmatch(_plain(one)) for one in rest)]


def _shape(line: str) -> re.Pattern[str]:
    return re.compile(re.escape(_plain(line)).replace(r"\.\.\.", ".*"))


def _plain(line: str) -> str:
    return MEASURED.sub("0", " ".join(line.split()))


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the walk needs of a clone after `make demo`; what it leaves behind stays out of this one."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    return tmp_path


@asynccontextmanager
async def terminal(commands: str, folder: Path, environment: Mapping[str, str]) -> AsyncIterator[Process]:
    """A shell that is given these lines, in a process group as the shell of a terminal has one."""
    child = await asyncio.create_subprocess_exec(
        *("sh", "-c", commands),
        cwd=folder,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    shell = Process(child)
    shell.read()
    try:
        yield shell
    finally:
        with suppress(ProcessLookupError):  # it has ended
            os.killpg(child.pid, signal.SIGINT)
        try:
            await shell.ended()
        finally:
            if child.returncode is None:
                os.killpg(child.pid, signal.SIGKILL)


async def everything_printed(commands: str, folder: Path, environment: Mapping[str, str]) -> str:
    async with terminal(commands, folder, environment) as shell:
        async with asyncio.timeout(LONGEST_WALK):
            await shell.child.wait()
        await shell.ended()
        return shell.output


@pytest.mark.timeout(300)
async def test_the_demo_prints_what_the_readme_says(checkout: Path) -> None:
    (promised,) = blocks(section(README, "What the demo prints"), "text")
    command, _, promised = promised.partition("\n")
    assert command == "$ make demo"
    printed = await everything_printed(".venv/bin/python examples/demo.py", checkout, clean_environment())
    assert broken_promises(promised, printed) == [], printed
