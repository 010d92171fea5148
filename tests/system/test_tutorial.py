"""Each command of docs/tutorial.md prints what the page says; and what the recorder does with pages that are wrong.

One thing is not typed as it stands there: the worker takes any free port instead of 9090.
"""

import asyncio
import time
from pathlib import Path

import pytest

from scripts.tutorial import PAGE, NotRecorded, record


def page(commands: str, output: str | None = None, until: str = "") -> str:
    text = f"\n```text\n{output}```\n" if output is not None else ""
    return f"<!-- terminal 1{until} -->\n```sh\n{commands}\n```\n{text}"


@pytest.mark.timeout(300)
async def test_the_tutorials_commands_print_what_the_page_says(tmp_path: Path) -> None:
    written = PAGE.read_text(encoding="utf-8")
    assert await asyncio.to_thread(record, written, tmp_path) == written, "Next: make tutorial"


def test_what_is_printed_takes_the_place_of_what_was_and_terminals_keep_their_variables(tmp_path: Path) -> None:
    recorded = record(page("name=first", None) + page('echo "$name on localhost:5671"', "old\n"), tmp_path)
    assert recorded == page("name=first", None) + page(
        'echo "$name on localhost:5671"', "first on localhost:40000\n"
    )


def test_output_that_the_page_has_no_place_for_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NotRecorded, match="no `text` block"):
        record(page("echo surprise"), tmp_path)


def test_a_command_that_ends_before_it_prints_the_line_is_an_error_that_shows_what_it_printed(
    tmp_path: Path,
) -> None:
    with pytest.raises(NotRecorded, match=r"a line with 'ready'(.|\n)*no such thing"):
        record(page("echo no such thing; exit 1", "", until=" until ready"), tmp_path)


def test_a_command_that_goes_on_is_stopped_at_the_end(tmp_path: Path) -> None:
    began = time.monotonic()
    assert "ready" in record(page("echo ready; sleep 100", "", until=" until ready"), tmp_path)
    assert time.monotonic() - began < 50
