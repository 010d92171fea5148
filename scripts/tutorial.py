"""Runs the commands of docs/tutorial.md and writes what they print into it: `make tutorial`.

A comment before a block says what becomes of it:

    <!-- file NAME -->            the block is saved as this file
    <!-- terminal N -->           the commands run to their end in terminal N, one shell for the whole page
    <!-- terminal N until X -->   the last command goes on; its output is that up to a line with X

The `text` block that follows commands is their output. What differs from run to run is made the same.
"""

import os
import pty
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Timer
from typing import BinaryIO

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "tutorial.md"

BLOCK = re.compile(
    r"<!-- (?P<what>file|terminal) (?P<name>\S+?)(?: until (?P<until>.+?))? -->\n```\w+\n(?P<text>.*?)^```\n"
    r"(?:\n```text\n(?P<output>.*?)^```\n)?",
    re.MULTILINE | re.DOTALL,
)
DIFFERS: tuple[tuple[str, str], ...] = (
    (r"\x1b\[[0-9;]*m|\r", ""),
    (r"(?m)^(collected|submitted|waiting|sent again)\b.*\n", ""),  # progress
    (r"\b20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "2026-12-01T09:00:00.000Z"),
    (r"(?m)^\d\d:\d\d:\d\d(?= )", "09:00:00"),
    (r"\blocalhost:\d+", "localhost:40000"),
    (r"\bport=\d+", "port=9090"),
    (r"/\S*/(aoai-worker-local-)\w+", r"/tmp/\1x"),  # noqa: S108 - what the page shows
    (r"\b\d+\.\d(?= s after)", "1.0"),
    (r"\b\d+ s(?= ago)", "5 s"),
    (r"\b\d+(\.\d+)?(?= (a second|jobs/s))", "60"),
    (r"\bseconds=[\d.]+", "seconds=0.02"),
    (r"\bexpires_on=\d+", "expires_on=1796115600"),
    (r"\brefresh_on=[\d.]+", "refresh_on=1796072400"),
    (r'"(id|request_id|system_fingerprint)":( ?)"[^"]*"', r'"\1":\2"..."'),
)
"""Patterns, and what stands for all that they match."""

LONGEST = 120.0
"""Seconds for the commands of one block, before everything in that terminal is killed."""
END = "the commands have ended"


class NotRecorded(Exception):
    """The commands did not do what the page needs. The message says where, and what was printed."""


class Terminal:
    """A shell that is given commands; what they print is read from `output`."""

    def __init__(self, shell: "subprocess.Popen[bytes]", output: BinaryIO) -> None:
        self._shell = shell
        self._output = output

    def run(self, commands: str, until: str | None) -> str:
        assert self._shell.stdin is not None
        self._shell.stdin.write(f"{commands}echo '{END}'\n".encode())
        self._shell.stdin.flush()
        printed: list[str] = []
        hangs = Timer(LONGEST, self.stop, [signal.SIGKILL])
        hangs.start()
        try:
            for line in self._lines():
                if line.strip() == END:
                    return "".join(printed)
                printed.append(line)
                if until is not None and until in line:
                    return "".join(printed)
        finally:
            hangs.cancel()
        wanted = f"a line with {until!r}" if until else "the end of the commands"
        raise NotRecorded(f"{commands}did not come to {wanted} within {LONGEST:g} s; printed:\n{''.join(printed)}")

    def _lines(self) -> Iterator[str]:
        try:
            for line in self._output:
                yield line.decode()
        except OSError:  # how a pseudo-terminal says that its other side is closed
            return

    def stop(self, sign: signal.Signals) -> None:
        if self._shell.poll() is None:
            os.killpg(self._shell.pid, sign)


@contextmanager
def terminal(folder: Path, environment: dict[str, str], *, goes_on: bool) -> Iterator[Terminal]:
    """A command that goes on is watched by a person: its output is a pseudo-terminal."""
    screen, there = pty.openpty() if goes_on else os.pipe()
    with subprocess.Popen(
        ["sh"],
        cwd=folder,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=there,
        stderr=there,
        start_new_session=True,
    ) as shell:
        os.close(there)
        with os.fdopen(screen, "rb") as output:
            opened = Terminal(shell, output)
            try:
                yield opened
            finally:
                opened.stop(signal.SIGINT)
                late = Timer(30.0, opened.stop, [signal.SIGKILL])
                late.start()
                shell.communicate()
                late.cancel()


def record(page: str, folder: Path) -> str:
    """The page with what its commands print now. `folder`: an empty one, to run them in."""
    (folder / "examples").symlink_to(ROOT / "examples")
    (folder / ".venv").symlink_to(sys.prefix)
    strangers = ("AZURE_", "AOAI_", "OPENAI_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(strangers)}
    environment |= {"AOAI_WORKER_HTTP_HOST": "127.0.0.1", "AOAI_WORKER_HTTP_PORT": "0", "PYTHONUNBUFFERED": "1"}
    terminals: dict[str, Terminal] = {}
    with ExitStack() as stack:

        def carry_out(block: re.Match[str]) -> str:
            if block["what"] == "file":
                (folder / block["name"]).write_text(block["text"], encoding="utf-8")
                return block[0]
            if block["name"] not in terminals:
                goes_on = block["until"] is not None
                terminals[block["name"]] = stack.enter_context(terminal(folder, environment, goes_on=goes_on))
            printed = same(terminals[block["name"]].run(block["text"], block["until"]))
            if block["output"] is None:
                if printed:
                    raise NotRecorded(f"{block['text']}printed what the page has no `text` block for:\n{printed}")
                return block[0]
            start, end = (place - block.start() for place in block.span("output"))
            return block[0][:start] + printed + block[0][end:]

        return BLOCK.sub(carry_out, page)


def same(printed: str) -> str:
    """What was printed, without what differs from run to run."""
    for pattern, instead in DIFFERS:
        printed = re.sub(pattern, instead, printed)
    # these are asked for at once
    printed = re.sub(
        r"(^.* token_refreshed .*\n)+",
        lambda lines: "".join(sorted(lines[0].splitlines(True))),
        printed,
        flags=re.M,
    )
    return "".join(f"{line.rstrip()}\n" for line in printed.strip("\n").splitlines())


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        PAGE.write_text(record(PAGE.read_text(encoding="utf-8"), Path(folder)), encoding="utf-8")


if __name__ == "__main__":
    main()
