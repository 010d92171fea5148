"""Writes the commands of docs/cli.md anew from the help texts: `make reference`. A unit test compares."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from worker.cli import app

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"
COMMANDS = "\n## aoai-worker"
"""Where the generated part begins; what stands before is written by hand."""
WIDTH = 100


def main() -> None:
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def render(page: str) -> str:
    """The page with the help of every command in place of what it has."""
    root = typer.main.get_command(app)
    by_hand, found, _ = page.partition(COMMANDS)
    if not found:
        raise ValueError(f"{PAGE}: there is no heading `{COMMANDS.strip()}`, from which on the page is generated")
    return by_hand + "".join(
        f"\n## {name}\n\n```text\n{text}\n```\n" for name, text in _helps(root, "aoai-worker", None)
    )


def _helps(command: Any, name: str, parent: Any) -> Iterator[tuple[str, str]]:
    # Any: typer brings a copy of click and exports no names for its classes
    context = command.make_context(
        name, [], parent, resilient_parsing=True, terminal_width=WIDTH, max_content_width=WIDTH
    )
    text = "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
    yield context.command_path, text
    for child, subcommand in getattr(command, "commands", {}).items():
        yield from _helps(subcommand, child, context)


if __name__ == "__main__":
    main()
