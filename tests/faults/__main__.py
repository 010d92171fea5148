"""`make faults`: all scenarios, one after the other, into the table of docs/reliability.md."""

import argparse
import asyncio
import fcntl
import sys
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from tests.faults.scenario import Ledger, Scenario, run
from tests.faults.scenarios import SCENARIOS

DOCUMENT = Path(__file__).parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
HEADINGS = (
    "scenario", "injected", "sink", "jobs", "lost", "doubled", "wrong", "paid twice", "recovery s", "measured",
)  # fmt: skip
LONGEST = 900.0
"""Seconds for one scenario: more is a hang."""


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def row(scenario: Scenario, ledger: Ledger, day: str) -> str:
    cells = (
        scenario.name, scenario.injected, scenario.sink,
        f"{ledger.jobs:,}", ledger.lost, ledger.doubled, ledger.wrong,
        f"{ledger.paid_twice} of at most {scenario.paid_twice}" if scenario.paid_twice else ledger.paid_twice,
        "-" if ledger.recovery is None else f"{ledger.recovery:.1f}", day,
    )  # fmt: skip
    return _line(cells)


def _line(cells: tuple[object, ...]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _key(line: str) -> tuple[str, str]:
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    return cells[0], cells[2]


def write(measured: Mapping[tuple[str, str], str]) -> None:
    """Put these rows in place of older ones; those of scenarios that are no more go.

    Several runs may write at the same time.
    """
    with DOCUMENT.open("r+") as document:
        fcntl.flock(document, fcntl.LOCK_EX)
        text = _with_rows(document.read(), measured)
        document.seek(0)
        document.write(text)
        document.truncate()


def _with_rows(text: str, measured: Mapping[tuple[str, str], str]) -> str:
    before, _, rest = text.partition(BEGIN)
    table, _, after = rest.partition(END)
    rows = {_key(line): line for line in table.strip().splitlines()[2:]} | dict(measured)
    kept = [rows[key] for one in SCENARIOS if (key := (one.name, one.sink)) in rows]
    lines = [_line(HEADINGS), "|---" * len(HEADINGS) + "|", *kept]
    return f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{after}"


async def main(words: list[str]) -> int:
    wanted = [one for one in SCENARIOS if not words or any(word in str(one) for word in words)]
    failures = []
    for scenario in wanted:
        try:
            with tempfile.TemporaryDirectory() as folder:
                async with asyncio.timeout(LONGEST):
                    ledger = await run(scenario, Path(folder))
        except (AssertionError, TimeoutError) as error:
            failures.append(f"{scenario}: not measured: {str(error) or 'it took too long'}")
            say(failures[-1])
            continue
        failures += ledger.problems(scenario)
        line = row(scenario, ledger, f"{datetime.now(UTC):%Y-%m-%d}")
        say(line)
        write({(scenario.name, scenario.sink): line})
    say("\n".join(failures) or f"{len(wanted)} scenarios: nothing lost, doubled or wrong")
    return 1 if failures else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--only", nargs="*", default=[], metavar="WORD", help="scenarios with one of these words")
    sys.exit(asyncio.run(main(parser.parse_args().only)))
