"""What the measurements say, as Markdown, and the blocks of `docs/benchmarks.md` that it replaces."""

import platform
import re
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from textwrap import fill

from benchmarks.processes import BenchmarkFailed

DOCUMENT = Path(__file__).parent.parent / "docs" / "benchmarks.md"
COLUMNS = 100
PACKAGES = (
    "uvloop",
    "openai",
    "httpx2",
    "aiohttp",
    "azure-servicebus",
    "azure-identity",
    "azure-core",
    "tenacity",
    "orjson",
    "prometheus-client",
)


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    ruler = "|" + "---|" * len(headings)
    return "\n".join([_row(headings), ruler, *map(_row, rows)])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def at_most(what: str, measured: float, target: float, unit: str) -> str:
    """A line that says whether the target is reached, and by how much it is missed."""
    fate = (
        "reached"
        if measured <= target
        else f"**missed**, by {measured / target - 1:.0%}"
        if target
        else "**missed**"
    )
    return f"- {what}: {measured:,.4g} {unit}; target at most {target:,g}: {fate}"


def at_least(what: str, measured: float, target: float, unit: str) -> str:
    fate = "reached" if measured >= target else f"**missed**, by {1 - measured / target:.0%}"
    return f"- {what}: {measured:,.4g} {unit}; target at least {target:,g}: {fate}"


def describe_disturbance(others: Sequence[float]) -> str:
    """`others`: per cent of a core that went to strangers in each run."""
    return (
        f"Other processes of the machine took {min(others):.0f} to {max(others):.0f} % of a core during the runs."
    )


def stamp() -> str:
    """When and of which code."""
    return f"Measured on {datetime.now(UTC):%Y-%m-%d} at {_commit()}."


def _commit() -> str:
    try:
        commit = _git("rev-parse", "--short", "HEAD")
        changed = _git("status", "--porcelain", "--", "worker", "benchmarks")
    except (OSError, subprocess.CalledProcessError):
        return "an unknown commit"
    return f"commit `{commit}`" + (" with changes that were not committed yet" if changed else "")


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(DOCUMENT.parent.parent), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def describe_machine() -> str:
    """Processor, system and versions."""
    names = re.findall(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text()) or [platform.machine()]
    kib = re.findall(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())[0]
    machine = f"{len(names)} cores ({names[0]}), {int(kib) / 2**20:.0f} GiB of memory, Linux {platform.release()}."
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return f"{machine} Python {platform.python_version()}, {packages}."


def replace_block(document: str, name: str, text: str) -> str:
    """Between `<!-- name -->` and `<!-- /name -->`. Raises BenchmarkFailed where the document has no such block."""
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, found, rest = document.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise BenchmarkFailed(f"{DOCUMENT}: has no block {begin.strip()} ... {end}; add one where {name} belongs")
    return f"{before}{begin}\n{text.strip()}\n\n{end}{after}"


def write_block(name: str, text: str) -> None:
    DOCUMENT.write_text(replace_block(DOCUMENT.read_text(), name, wrapped(text)))


def wrapped(text: str) -> str:
    """Prose at 100 columns, as in all documents; tables as they are."""
    return "\n".join(
        line
        if line.startswith("|")
        else fill(
            line,
            COLUMNS,
            subsequent_indent="  " if line.startswith("- ") else "",
            break_long_words=False,
            break_on_hyphens=False,
        )
        for line in text.splitlines()
    )
