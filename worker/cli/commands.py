"""The command `aoai-worker`: the worker, the local Azure, and the producer's submit, status and collect.

Standard output carries only what one would pipe; the rest goes to standard error. Exit codes: 0 done, 1 something
outside failed, 2 the input or the settings are wrong, 3 some of it is not done, 4 it is complete and jobs
failed, 130 interrupted. What a command needs is imported by that command, so that `--help` is quick. `dlq_cli.py`
has the commands for dead letters.
"""

import asyncio
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from datetime import datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from worker.cli import dlq as dlq_cli
from worker.cli.invalid_lines import InvalidLines
from worker.cli.terminal import (
    FAILED,
    FAILED_JOBS,
    GOES_ON,
    INCOMPLETE,
    Heartbeat,
    complain,
    parse_model_map,
    parse_moment,
    parse_seconds,
    readable_errors,
)

if TYPE_CHECKING:
    from worker.client import (
        BatchFile,
        BatchStatus,
        Collection,
        ModelTokens,
        Progress,
        Submission,
    )

app = typer.Typer(
    name="aoai-worker",
    help="A keyless streaming batch worker for Azure OpenAI, fed through Azure Service Bus.",
    no_args_is_help=True,
    rich_markup_mode=None,  # plain text: paragraphs are wrapped anew, and flags show no <bool>
    pretty_exceptions_enable=False,
)
app.add_typer(dlq_cli.app, name="dlq")

WAITING_AFTER = 60.0
"""Seconds without a new result after which a log says what is waited for."""

InputFile = Annotated[
    Path,
    typer.Argument(
        exists=True,
        dir_okay=False,
        readable=True,
        allow_dash=True,
        metavar="FILE",
        path_type=str,  # as a Path typer does not know a dash
        help="A Batch input file, of OpenAI's form or Azure's; gzip is read too, and - is standard input.",
    ),
]
BatchId = Annotated[str, typer.Argument(metavar="BATCH", help="The batch id, as submit printed it.")]


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

    This is the worker. The environment configures it: docs/settings.md.
    """
    with readable_errors():
        from worker.app import run as work
        from worker.settings import WorkerSettings, load

        code = work(load(WorkerSettings))
    raise typer.Exit(code)


@app.command()
def check(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit code 1 for a warning too.")] = False,
) -> None:
    """Check everything that `run` needs, and say how to fix it.

    Nothing is paid for, sent, received or locked. Exit code 1 where something is wrong, 2 where the settings are.
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
        Path | None, typer.Option(metavar="FILE", help="Write here the environment of a worker's pod.")
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep keys, certificates and tokens here; else in a temporary directory."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What exists: identities, roles, queues, deployments, as JSON."),
    ] = None,
    entities: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Queues, topics, subscriptions and rules of Service Bus, as YAML."),
    ] = None,
    blob: Annotated[
        bool,
        typer.Option("--blob", help="Results go to Blob storage, not to the results queue."),
    ] = False,
) -> None:
    """Run an Azure on this machine, for trying out and for tests.

    It has Entra, Service Bus, Blob storage and Azure OpenAI, and answers without a model. Ctrl-C stops it.
    """
    try:
        from embedded_azure import supervisor
    except ModuleNotFoundError as error:
        complain(
            f"The local Azure is not part of this installation: {error}. The production image leaves it out.\n"
            "Next: use a checkout of the repository, with its extra: pip install -e '.[local]'"
        )
        raise typer.Exit(FAILED) from None
    with readable_errors():
        code = supervisor.run(write_env=write_env, state=state, config=config, entities=entities, blob=blob)
    raise typer.Exit(code)


@app.command()
def submit(
    file: InputFile,
    batch: Annotated[
        str | None, typer.Option(metavar="ID", help="The batch id; else one made from what is sent.")
    ] = None,
    deadline: Annotated[
        str | None,
        typer.Option(metavar="WHEN", help="Jobs that are not done by then expire: RFC 3339, or a time such as 4h."),
    ] = None,
    at: Annotated[
        str | None, typer.Option(metavar="WHEN", help="No worker receives the jobs before; as --deadline.")
    ] = None,
    queue: Annotated[
        str | None, typer.Option(metavar="NAME", help="Send all jobs to this queue, whatever their models.")
    ] = None,
    model_map: Annotated[
        list[str] | None,
        typer.Option(metavar="OLD=NEW", help="Send body.model OLD as NEW; for each model once."),
    ] = None,
    skip_invalid: Annotated[
        bool,
        typer.Option("--skip-invalid", help="Send the valid lines; write the others to FILE.invalid.jsonl."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the file and print jobs and tokens by model. Asks no Azure.")
    ] = False,
) -> None:
    """Send a Batch input file, one message a line. Prints the batch id.

    Every line is checked before the first is sent. The same file under the same id is sent once only: what Service
    Bus has seen within its duplicate-detection window it drops, so submitting again after a failure is safe.
    A batch that was collected from the results queue is refused, as is another file under an id that is taken.

    \b
    Examples:
      aoai-worker submit jobs.jsonl
      aoai-worker submit jobs.jsonl --dry-run
      aoai-worker submit jobs.jsonl --at 2h --deadline 10h
      aoai-worker submit jobs.jsonl --model-map old-model=new-model
      make-jobs | aoai-worker submit - --skip-invalid

    Exit codes: 0 submitted; 1 something outside failed; 2 the input or the settings are wrong, or the batch was
    collected before; 3 submitted without the lines that --skip-invalid left out; 130 interrupted.
    """
    now = time.time()
    due, start = parse_moment(deadline, "--deadline", now), parse_moment(at, "--at", now)
    if due and start and due <= start:
        raise typer.BadParameter(
            f"{deadline!r} is not after --at {at}, when workers can receive the jobs. Next: a later deadline",
            param_hint="'--deadline'",
        )
    models = parse_model_map(model_map or (), "--model-map")
    with (
        readable_errors(interrupted=GOES_ON),
        Heartbeat("the command to be loaded") as heartbeat,
        _checked_file(Path(file), batch, models, skip_invalid, heartbeat) as found,
    ):
        if dry_run:
            _show_plan(found, batch)
        else:
            submission = asyncio.run(
                _send(found, heartbeat, batch_id=batch, deadline=due, enqueue_at=start, queue=queue)
            )
            _report(submission, at=start)
    if found.left_out:
        raise typer.Exit(INCOMPLETE)


def _show_plan(found: "BatchFile", batch_id: str | None) -> None:
    from worker.client import make_batch_id, tokens_by_model

    typer.echo("\n".join(describe_tokens(tokens_by_model(found))))
    complain(f"Nothing was sent. The batch id will be {batch_id or make_batch_id(found)}.")


def describe_tokens(by_model: "Mapping[str, ModelTokens]") -> list[str]:
    """A table: tokens are estimates, as they are before a call."""
    rows = [("model", "jobs", "prompt tokens, about", "answer tokens, about")]
    rows += [(name, f"{of.jobs:,}", f"{of.prompt:,}", f"{of.answer:,}") for name, of in by_model.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]


def _report(submission: "Submission", *, at: datetime | None) -> None:
    if submission.submitted_before:
        complain(
            f"This batch was submitted before, at {submission.submitted_before}: jobs that the queue still knows, "
            "by its duplicate detection, were dropped; the others were sent."
        )
    if at:
        complain(f"No worker receives them before {at:%Y-%m-%dT%H:%M:%SZ}.")
    jobs = "job" if submission.total == 1 else "jobs"
    complain(
        f"{submission.total:,} {jobs} submitted. "
        f"Next: aoai-worker collect {submission.batch_id} -o OUT.jsonl --follow"
    )
    typer.echo(submission.batch_id)


@app.command()
def status(
    batch: BatchId,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Show how many results can be collected. Read-only.

    Of a batch that was collected it shows when, into which file, and the counts.

    Exit code 1 where nothing of such a batch is there: nothing was submitted under this id.
    """
    with readable_errors(), Heartbeat(f"a token and an answer about batch {batch}"):
        found = asyncio.run(_status(batch))
    typer.echo(json.dumps(_as_document(found)) if as_json else describe(found))
    if found.is_unknown:
        raise typer.Exit(FAILED)


@app.command()
def collect(
    batch: BatchId,
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="OUT.jsonl", help="The Batch output file; - is standard output.")
    ],
    errors: Annotated[
        Path | None, typer.Option(metavar="ERR.jsonl", help="Results that are errors; else they are in OUT too.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Wait until the batch is complete.")] = False,
    timeout: Annotated[
        str,
        typer.Option(metavar="TIME", help="With --follow: end after this time without anything new; s, m, h or d."),
    ] = "15m",
) -> None:
    """Write the results of a batch to a file. The queue then has them no longer; Blob storage keeps them.

    Without --follow it takes what is there when it begins. The file has the suffix .partial until every job has its
    result. Interrupted or killed, the same command goes on where it was; not so with standard output.

    Exit codes: 0 complete, and every job succeeded; 1 something outside failed, or another process collects; 2 the
    input or the settings are wrong, or the batch was collected into other files; 3 results are missing; 4 complete,
    and jobs failed; 130 interrupted.
    """
    seconds = parse_seconds(timeout, "--timeout")
    with readable_errors(interrupted=GOES_ON), Heartbeat("a token") as heartbeat:
        collection = asyncio.run(_collect(batch, out, errors, follow, seconds, heartbeat))
    complain(describe_collection(collection, out, errors, timeout))
    if not collection.complete:
        raise typer.Exit(INCOMPLETE)
    if collection.failed:
        raise typer.Exit(FAILED_JOBS)


@contextmanager
def _checked_file(
    file: Path, batch_id: str | None, models: Mapping[str, str], skip_invalid: bool, heartbeat: Heartbeat
) -> "Iterator[BatchFile]":
    from worker.client import read_batch_file
    from worker.client.batches import require_batch_id

    if batch_id is not None:
        require_batch_id(batch_id)
    with _regular_file(file, heartbeat) as (path, name), ExitStack() as stack:
        heartbeat.wait_for(f"the check of {name}")
        left_out = stack.enter_context(InvalidLines(file if path == file else None)) if skip_invalid else None
        found = read_batch_file(path, name=name, model_map=models, on_invalid=left_out)
        if left_out and left_out.count:
            heartbeat.say(left_out.describe(name))
        if skipped := describe_skipped(found):
            heartbeat.say(skipped)
        for warning in found.warnings:
            heartbeat.say(warning)
        yield found


@contextmanager
def _regular_file(file: Path, heartbeat: Heartbeat) -> Iterator[tuple[Path, str]]:
    """A file that can be read twice, and its name to people."""
    from worker.client.batch_files import spooled

    if str(file) == "-":
        heartbeat.wait_for("the end of standard input")
        with spooled(sys.stdin.buffer) as path:
            yield path, "standard input"
    elif file.is_file():
        yield file, str(file)
    else:
        heartbeat.wait_for(f"the end of {file}")
        with file.open("rb") as pipe, spooled(pipe) as path:
            yield path, str(file)


def describe_skipped(batch: "BatchFile") -> str:
    counts = [(batch.blank_lines, "blank line"), (batch.byte_order_marks, "byte order mark")]
    skipped = [f"{count:,} {what}{'' if count == 1 else 's'}" for count, what in counts if count]
    return f"{batch.name}: skipped {' and '.join(skipped)}" if skipped else ""


async def _send(batch: "BatchFile", heartbeat: Heartbeat, **options: Any) -> "Submission":
    """`options`: of `JobClient.submit`."""
    from worker.client import JobClient, LikelyRefused

    heartbeat.wait_for("a token and a link to Service Bus")
    async with JobClient.from_environment() as client:
        with _progress("submitted", heartbeat) as report, warnings.catch_warnings():
            warnings.simplefilter("ignore", LikelyRefused)  # said already, in the form of this command
            return await client.submit(batch, on_progress=report, on_waiting=heartbeat.wait_for, **options)


async def _status(batch_id: str) -> "BatchStatus":
    from worker.client import JobClient

    async with JobClient.from_environment() as client:
        return await client.status(batch_id)


async def _collect(
    batch_id: str, out: Path, errors: Path | None, follow: bool, timeout: float, heartbeat: Heartbeat
) -> "Collection":
    from worker.client import JobClient

    async with JobClient.from_environment() as client:
        with _progress("collected", heartbeat) as report:

            def note(now: "Progress") -> None:
                heartbeat.note_said()  # there was an answer; `report` says when nothing new comes
                report(now)

            return await client.collect(
                batch_id,
                out,
                errors,
                follow=follow,
                timeout=timeout,
                on_progress=note,
                on_waiting=heartbeat.wait_for,
            )


def describe(status: "BatchStatus") -> str:
    from worker.client.batches import counted

    if status.being_collected_by_other:
        return f"{status.batch_id}: being collected by another process, which alone sees the results"
    if status.is_unknown:
        return (
            f"{status.batch_id}: unknown. There is neither a manifest nor a result of such a batch. Next: check "
            "the id, which submit printed, and that the settings are those of submit"
        )
    done = status.succeeded + status.failed
    counts = f"({status.succeeded:,} succeeded, {status.failed:,} failed)"
    if record := status.collected:
        return (
            f"{status.batch_id}: collected at {record.collected_at} into {record.out}, "
            f"{counted(done, 'result')} {counts}" + _describe_later(status.later)
        )
    wait = "" if status.detail else " to be collected"
    if status.total is None:
        return f"{status.batch_id}: {counted(done, 'result')}{wait} {counts}; no manifest, so the total is unknown"
    if status.complete:
        return f"{status.batch_id}: complete, {counted(done, 'result')}{wait} {counts}"
    return f"{status.batch_id}: {done:,} of {counted(status.total, 'result')}{wait} {counts}"


def _describe_later(later: int) -> str:
    from worker.client.batches import counted

    if not later:
        return ""
    return f"; {counted(later, 'later result')} to be collected. Next: collect into the same file, which adds them"


def describe_collection(collection: "Collection", out: Path, errors: Path | None, timeout: str) -> str:
    from worker.client.batches import counted
    from worker.client.result_files import STANDARD_OUTPUT

    done = collection.succeeded + collection.failed
    counts = f"{collection.succeeded:,} succeeded, {collection.failed:,} failed"
    where = "standard output" if out in STANDARD_OUTPUT else str(out)
    if collection.complete:
        also = f" and {errors}" if errors else ""
        return f"{collection.batch_id}: complete, {counted(done, 'result')} ({counts}) in {where}{also}"
    gave_up = (
        f"\nNeither a manifest nor a new result came within {timeout} (--timeout)." if collection.timed_out else ""
    )
    if collection.total is None and not done:
        return (
            f"{collection.batch_id}: there is neither a manifest nor a result of such a batch{gave_up}\n"
            "Next: check the id, which submit printed, and that the settings are those of submit"
        )
    if collection.missing is None:
        missing = "its manifest has not come, so it is not known how many are missing; was it submitted?"
    else:
        missing = f"{collection.missing:,} of {collection.total:,} are missing"
    return (
        f"{collection.batch_id}: {counted(done, 'result')} so far ({counts}); {missing}{gave_up}\n"
        f"Next: `aoai-worker status {collection.batch_id}` shows what is there; "
        + (
            "what was written to standard output does not come again."
            if out in STANDARD_OUTPUT
            else "the same command again, or with --follow, goes on where this one ended."
        )
    )


def _as_document(status: "BatchStatus") -> dict[str, Any]:
    return {
        "batch_id": status.batch_id,
        "total": status.total,
        "succeeded": status.succeeded,
        "failed": status.failed,
        "complete": status.complete,
        "being_collected_by_other": status.being_collected_by_other,
        "collected": asdict(status.collected) if status.collected else None,
        "later": status.later,
    }


@contextmanager
def _progress(verb: str, heartbeat: Heartbeat | None = None) -> "Iterator[Callable[[Progress], None]]":
    """A bar where somebody watches; elsewhere a line for each tenth."""
    if not sys.stderr.isatty():
        yield _Lines(verb, heartbeat.say if heartbeat else complain)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeElapsedColumn(),
    )
    speed = _Speed()
    with Bars(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(verb, total=None, speed="")

        def move(now: "Progress") -> None:
            described = speed.describe(now)
            bar.update(task, completed=_shown(now), total=now.total, description=_label(verb, now), speed=described)
            if heartbeat:
                heartbeat.note_said()

        yield move


def _shown(now: "Progress") -> int:
    return now.done if now.total is None else min(now.done, now.total)


class _Speed:
    """Jobs a second since the first progress, which may begin in the middle, and the time left at that speed."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began: tuple[float, int] | None = None

    def describe(self, now: "Progress") -> str:
        """`9,000/s, 0:01:30 left`; empty where nothing is known yet."""
        if now.total is None or now.held:
            return ""
        moment = self._clock()
        began, before = self._began = self._began or (moment, now.done)
        if moment <= began or now.done <= before:
            return ""
        rate = (now.done - before) / (moment - began)
        left = timedelta(seconds=round(max(0, now.total - now.done) / rate))
        return f"{rate:,.0f}/s" + (f", {left} left" if now.done < now.total else "")


class _Lines:
    """Progress for a log: a line when another tenth is done, and when nothing has come for a minute."""

    def __init__(
        self, verb: str, say: Callable[[str], None] = complain, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._verb = verb
        self._say = say
        self._clock = clock
        self._speed = _Speed(clock)
        self._told = ""
        self._done = -1
        self._done_at = clock()

    def __call__(self, now: "Progress") -> None:
        if now.done != self._done:
            self._done, self._done_at = now.done, self._clock()
        text, speed = self._describe(now), self._speed.describe(now)
        if text != self._told:
            self._told = text
            self._say(f"{text} ({now.done:,}{'; ' if speed else ''}{speed})")

    def _describe(self, now: "Progress") -> str:
        label = _label(self._verb, now)
        if label != self._verb or not now.total:
            return label
        if now.done < now.total and self._clock() - self._done_at >= WAITING_AFTER:
            return f"waiting for the other {now.total - now.done:,} of {now.total:,} results"
        return f"{label}: {min(10, now.done * 10 // now.total) * 10} %"


def _label(verb: str, now: "Progress") -> str:
    if now.held:
        return "waiting for another collector to end"
    if now.total is None:
        return "waiting for the batch's manifest"
    return verb
