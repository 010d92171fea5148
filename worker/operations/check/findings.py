"""What `aoai-worker check` has found, and how it is told: as a document, as lines, or as a table on a terminal."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum

from worker.errors import Cause


class State(StrEnum):
    """From good to bad, as far as exit codes and the document's own state go."""

    OK = "ok"
    UNSEEN = "unseen"
    WARNING = "warning"
    WRONG = "wrong"


STYLES = {State.OK: "green", State.UNSEEN: "dim", State.WARNING: "yellow", State.WRONG: "bold red"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that must be true. `suggestion` is a command, or a sentence where no command can help; `cause` is
    that of a refusal by Azure."""

    state: State
    name: str
    detail: str
    suggestion: str | None = None
    cause: Cause | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """`refused`: the settings are such that nothing else could be looked at."""

    findings: Sequence[Finding]
    refused: bool = False

    @property
    def state(self) -> State:
        """The worst."""
        return max((finding.state for finding in self.findings), key=list(State).index)

    def exit_code(self, *, strict: bool) -> int:
        """0 nothing is wrong, 1 something is, 2 the settings are refused. With `strict` a warning is wrong."""
        if self.refused:
            return 2
        return int(self.state is State.WRONG or (strict and self.state is State.WARNING))


def as_json(report: Report) -> str:
    """The field names are a promise: docs/operations.md."""
    return json.dumps({"state": report.state, "findings": list(map(asdict, report.findings))}, indent=2)


def as_lines(report: Report) -> Iterator[str]:
    """For a log: a line for each finding, what fixes it indented below, the count at the end."""
    for finding in report.findings:
        yield f"{finding.state:<8} {finding.name}: {finding.detail}"
        for line in (finding.suggestion or "").splitlines():
            yield f"{'':<8}   -> {line}"
    yield summary(report)


def summary(report: Report) -> str:
    counts = Counter(finding.state for finding in report.findings)
    return ", ".join(f"{counts[state]} {state}" for state in reversed(State) if counts[state])


def suggestions(report: Report) -> Mapping[str, Sequence[Finding]]:
    """Each once, with all that it fixes."""
    found: dict[str, list[Finding]] = {}
    for finding in report.findings:
        if finding.suggestion:
            found.setdefault(finding.suggestion, []).append(finding)
    return found


def print_table(report: Report) -> None:
    """For somebody who watches. Remedies stand below the table, on lines that can be copied whole."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold", max_width=44)
    table.add_column(overflow="fold")
    for finding in report.findings:
        style = STYLES[finding.state]
        table.add_row(Text(finding.state, style), Text(finding.name), Text(finding.detail))
    console.print(table)
    for suggestion, findings in suggestions(report).items():
        names = ", ".join(finding.name for finding in findings)
        console.print(Text.assemble("\n", (names, STYLES[findings[0].state])), soft_wrap=True)
        console.print(Text(suggestion), soft_wrap=True)
    console.print(Text(f"\n{summary(report)}", STYLES[report.state]))
