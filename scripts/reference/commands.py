"""The commands of docs/cli.md, from the help texts."""

from collections.abc import Iterator
from typing import Any

import typer

from worker.cli import app

COMMANDS = "\n## aoai-worker"
"""Where the generated part begins; what stands before is written by hand."""
WIDTH = 100


def render(page: str) -> str:
    """The page with the help of every command in place of what it has."""
    root = typer.main.get_command(app)
    by_hand, found, _ = page.partition(COMMANDS)
    if not found:
        raise ValueError(
            f"docs/cli.md has no heading `{COMMANDS.strip()}`; what follows it is written from the code"
        )
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
