"""The report on a run of foreign tests: counts for each file, and each test that did not pass with its reason."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.foreign.skips import EXPLANATIONS

OUTCOMES: Final = ("passed", "failed", "skipped")

_ABOUT: Final = """\
`make foreign` fetches the source distribution of azure-servicebus in the version that `requirements/` pins, and
runs the live tests in it, written for Azure, against the embedded Service Bus: for each test a process of its
own, over TLS, with entities as the test's decorators ask for them. Only the SDK's private test tools are replaced
([tests/foreign/adapter](../tests/foreign/adapter)); the tests and the SDK are as published. Delivery-ids are not
checked (`strict_delivery_ids`), for some tests use one receiver from several threads. This page is written by
that command."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """`outcome` is one of OUTCOMES."""

    file: str
    name: str
    outcome: str
    reason: str
    seconds: float


def write_report(path: Path, version: str, results: Sequence[Result], seconds: float) -> None:
    path.write_text("\n".join(_lines(version, results, seconds)) + "\n")


def _lines(version: str, results: Sequence[Result], seconds: float) -> list[str]:
    return [
        "# Tests that we did not write",
        "",
        *_ABOUT.splitlines(),
        "",
        f"azure-servicebus {version}: {_counts(results)}, in {seconds:.0f} s.",
        "",
        "| tests | passed | failed | skipped |",
        "|---|---:|---:|---:|",
        *(_row(file, results) for file in dict.fromkeys(result.file for result in results)),
        "",
        *_reasons("Failed", "failed", results),
        *_reasons("Skipped", "skipped", results),
    ][:-1]


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
    return [f"## {title}", "", "| test | of | reason |", "|---|---|---|", *rows, ""]


def explained(result: Result) -> str | None:
    """Why the test fails wherever it is run, if that is so."""
    return EXPLANATIONS.get(result.name.partition("[")[0]) if result.outcome == "failed" else None


def _reason(result: Result) -> str:
    return explained(result) or result.reason


def _cell(text: str) -> str:
    first = text.strip().partition("\n")[0]
    return first.replace("|", "\\|")[:300]
