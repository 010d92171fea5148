"""`aoai-worker settings`: every setting with its value and where that comes from."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from worker.cli.terminal import readable_errors

if TYPE_CHECKING:
    from worker.settings import ConnectionSettings

app = typer.Typer()


@app.command()
def settings(
    producer: Annotated[
        bool, typer.Option("--producer", help="Only the settings that the producer's commands read.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Show every setting, its value and its source.

    The source is the environment, the file that AOAI_WORKER_CONFIG names, or the default.

    It does not use Azure. docs/settings.md explains the settings.

    Exit codes: 0 shown; 2 the settings are wrong.
    """
    with readable_errors():
        from worker.environment import load
        from worker.settings import ConnectionSettings, WorkerSettings

        rows = rows_of(load(ConnectionSettings if producer else WorkerSettings))
    if as_json:
        document = {name: {"value": value, "source": source} for name, value, source in rows}
        typer.echo(json.dumps(document))
        return
    width = max(len(name) for name, _, _ in rows)
    for name, value, source in rows:
        shown = value if isinstance(value, str) else json.dumps(value)
        typer.echo(f"{name:<{width}}  {source:<11}  {shown}")


def rows_of(settings: "ConnectionSettings") -> list[tuple[str, Any, str]]:
    """Variable, value as JSON has it, and source of each, in the order of docs/settings.md."""
    from worker.environment import values_of_file, variables_set
    from worker.settings import variable_of

    environment, file = variables_set(), values_of_file()
    rows = []
    for name, value in settings.model_dump(mode="json").items():
        variable = variable_of(name)
        source = "environment" if variable in environment else "file" if name in file else "default"
        rows.append((variable, value, source))
    return rows
