"""The report on foreign clients: a section for each suite with counts, and a reason for what did not pass."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tests.foreign.skips import EXPLANATIONS

OUTCOMES: Final = ("passed", "failed", "skipped")

_HEAD: Final = """\
# Clients that we did not write

`make foreign` runs these clients against the embedded Azure and writes this page.
`make foreign ONLY=javascript` runs one of `python`, `javascript` and `proton`, and writes its
section."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """`outcome` is one of OUTCOMES."""

    file: str
    name: str
    outcome: str
    reason: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One suite's part of the page. `ran` is what ran it or what it tests, with its version."""

    title: str
    about: str
    ran: str
    results: Sequence[Result]
    seconds: float


def put_section(page: str, section: Section, titles: Sequence[str]) -> str:
    """`page` with this section new, and the others as they were, in the order of `titles`."""
    bodies = dict(part.split("\n", 1) for part in page.split("\n## ")[1:])
    bodies[section.title] = "\n".join(_lines(section))
    parts = [f"## {title}\n{bodies[title].rstrip()}\n" for title in titles if title in bodies]
    return "\n".join([f"{_HEAD}\n", *parts])


def _lines(section: Section) -> list[str]:
    results = section.results
    return [
        "",
        *section.about.splitlines(),
        "",
        f"{section.ran}: {_counts(results)}, in {section.seconds:.0f} s.",
        "",
        "| tests | passed | failed | skipped |",
        "|---|---:|---:|---:|",
        *(_row(file, results) for file in dict.fromkeys(result.file for result in results)),
        "",
        *_reasons("Failed", "failed", results),
        *_reasons("Skipped", "skipped", results),
    ]


def _counts(results: Sequence[Result]) -> str:
    counts = Counter(result.outcome for result in results)
    return ", ".join(f"{counts[outcome]} {outcome}" for outcome in OUTCOMES)


def _row(file: str, results: Sequence[Result]) -> str:
    counts = Counter(result.outcome for result in results if result.file == file)
    return f"| `{file}` | {' | '.join(str(counts[outcome]) for outcome in OUTCOMES)} |"


def _reasons(title: str, outcome: str, results: Sequence[Result]) -> list[str]:
    found = [result for result in results if result.outcome == outcome]
    if not found:
        return []
    rows = [f"| `{result.name}` | `{result.file}` | {_cell(_reason(result))} |" for result in found]
    return [f"### {title}", "", "| test | of | reason |", "|---|---|---|", *rows, ""]


def explained(result: Result) -> str | None:
    """Why the test fails wherever it is run, if that is so."""
    return EXPLANATIONS.get(result.name.partition("[")[0]) if result.outcome == "failed" else None


def _reason(result: Result) -> str:
    return explained(result) or result.reason


def _cell(text: str) -> str:
    first = text.strip().partition("\n")[0]
    return first.replace("|", "\\|")[:300]
