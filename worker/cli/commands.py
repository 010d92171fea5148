"""The command `aoai-worker`: the worker, its check, and the local Azure. `batches.py` has the producer's commands,
`dlq.py` those for dead letters, `settings.py` one that shows what is set.

Standard output carries only what one would pipe; the rest goes to standard error. Exit codes: 0 done, 1 something
outside failed, 2 the input or the settings are wrong, 3 the batch is not complete, 4 it is complete and jobs
failed or were cancelled, 130 interrupted. What a command needs is imported by that command, so that `--help` is
quick.
"""

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

import typer

from worker.cli import batches, dlq, settings
from worker.cli.terminal import FAILED, complain, readable_errors

app = typer.Typer(
    name="aoai-worker",
    help="A keyless streaming batch worker for Azure OpenAI, fed through Azure Service Bus.",
    no_args_is_help=True,
    rich_markup_mode=None,  # plain text: paragraphs are wrapped anew, and flags show no <bool>
    pretty_exceptions_enable=False,
)
app.add_typer(batches.app)
app.add_typer(settings.app)
app.add_typer(dlq.app, name="dlq")


def main() -> None:
    app()


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"aoai-worker {version('aoai-worker')}")
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


@app.command()
def run() -> None:
    """Take jobs from the queue, call Azure OpenAI, write the results.

    This is the worker. It reads its settings from the environment, and from the YAML file that
    AOAI_WORKER_CONFIG names. `aoai-worker settings` shows every setting; docs/settings.md explains them.
    """
    with readable_errors():
        from worker.app import run as work
        from worker.environment import load
        from worker.settings import WorkerSettings

        code = work(load(WorkerSettings))
    raise typer.Exit(code)


@app.command()
def check(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit code 1 for a warning too.")] = False,
) -> None:
    """Check everything that `run` needs, and say how to fix it.

    It pays for nothing, and sends, receives and locks nothing. Exit code 1 if something is wrong, 2 if the settings
    are wrong.
    """
    with readable_errors():
        from worker.operations.check.checks import run as look_at_everything
        from worker.operations.check.findings import as_json as render
        from worker.operations.check.findings import as_lines, print_table

        report = look_at_everything()
    if as_json:
        typer.echo(render(report))
    elif sys.stdout.isatty():
        print_table(report)
    else:
        typer.echo("\n".join(as_lines(report)))
    raise typer.Exit(report.exit_code(strict=strict))


@app.command()
def local(
    write_env: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the environment of a worker's pod to this file.")
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Where to keep keys, certificates and tokens; by default a temporary directory."
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="JSON file of identities, roles, queues and deployments."),
    ] = None,
    entities: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="YAML file of Service Bus queues, topics, subscriptions and rules."),
    ] = None,
    sink: Annotated[
        Literal["blob", "queue"],
        typer.Option(help="Where results go: Blob storage, or the results queue."),
    ] = "blob",
) -> None:
    """Run an Azure on this machine, for trying out and for tests.

    It runs Entra, Service Bus, Blob storage and Azure OpenAI. Answers are generated without a model. Ctrl-C stops
    it.
    """
    try:
        from embedded_azure import supervisor
    except ModuleNotFoundError as error:
        complain(
            f"The local Azure is not installed: {error}. The production image does not contain it.\n"
            "Next: in a checkout of the repository: pip install -e '.[local]'"
        )
        raise typer.Exit(FAILED) from None
    with readable_errors():
        code = supervisor.run(write_env=write_env, state=state, config=config, entities=entities, sink=sink)
    raise typer.Exit(code)
