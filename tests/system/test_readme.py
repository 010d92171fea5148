"""The demo prints what README.md says. The block is read out of it; `make demo` runs without make."""

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.pages import ROOT, blocks, broken_promises
from tests.support.processes import clean_environment, terminal

LONGEST_WALK = 240.0
"""Seconds for what a person does in one terminal; some 15 on an idle machine."""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the walk needs of a clone after `make demo`; what it leaves behind stays out of this one."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    return tmp_path


async def everything_printed(commands: str, folder: Path, environment: Mapping[str, str]) -> str:
    async with terminal(commands, folder, environment) as shell:
        async with asyncio.timeout(LONGEST_WALK):
            await shell.child.wait()
        await shell.ended()
        return shell.output


@pytest.mark.timeout(300)
async def test_the_demo_prints_what_the_readme_says(checkout: Path) -> None:
    (promised,) = [block.text for block in blocks("README.md") if block.language == "text"]
    command, _, promised = promised.partition("\n")
    assert command == "$ make demo"
    printed = await everything_printed(".venv/bin/python examples/demo.py", checkout, clean_environment())
    assert broken_promises(promised, printed) == [], printed
