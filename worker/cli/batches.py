"""The producer's commands: submit, list, status, cancel, retry, collect. `batch_texts.py` has what they say."""

import asyncio
import json
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from worker.cli.batch_texts import (
    describe_cancellation,
    describe_change,
    describe_collection,
    describe_in_full,
    describe_retry,
    describe_skipped,
    describe_tokens,
    retry_document,
    status_document,
    table,
)
from worker.cli.invalid_lines import InvalidLines
from worker.cli.progress import progress_of
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
    tell,
)
from worker.jobs.printable import printable

if TYPE_CHECKING:
    from worker.client import BatchFile, BatchRetry, BatchStatus, Collection, Progress, Submission
    from worker.settings import Price

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)

UNBROKEN = 1_000_000
"""Columns of what is not a terminal: nothing is wrapped there."""

InputFile = Annotated[
    Path,
    typer.Argument(
        exists=True,
        dir_okay=False,
        readable=True,
        allow_dash=True,
        metavar="FILE",
        path_type=str,  # as a Path typer does not know a dash
        help="A Batch input file in OpenAI's or Azure's format, plain or gzip; - is standard input.",
    ),
]
BatchId = Annotated[str, typer.Argument(metavar="BATCH", help="The batch id that submit printed.")]
ModelMap = Annotated[
    list[str] | None,
    typer.Option(metavar="OLD=NEW", help="Replace model OLD by NEW in body.model; may be repeated."),
]
SkipInvalid = Annotated[
    bool, typer.Option("--skip-invalid", help="Send the valid lines; write the others to FILE.invalid.jsonl.")
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on standard output.")]


@app.command()
def submit(
    file: InputFile,
    batch: Annotated[
        str | None, typer.Option(metavar="ID", help="The batch id; by default it is made from the content.")
    ] = None,
    deadline: Annotated[
        str | None,
        typer.Option(metavar="WHEN", help="Jobs not done by then expire; RFC 3339, or a time from now such as 4h."),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(metavar="WHEN", help="No worker receives the jobs before then; in the form of --deadline."),
    ] = None,
    queue: Annotated[
        str | None, typer.Option(metavar="NAME", help="Send all jobs to this queue, regardless of their models.")
    ] = None,
    model_map: ModelMap = None,
    skip_invalid: SkipInvalid = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check the file, and print jobs and tokens by model. Does not use Azure."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Send a Batch input file, one message for each line. Prints the batch id.

    All lines are checked before the first is sent. To submit again after a failure is safe: Service Bus drops
    messages that it has seen within its duplicate-detection window. A batch that was collected from the results
    queue is refused. So is another file under a batch id that is in use.

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
        _checked_file(Path(file), heartbeat, batch, models, skip_invalid, dry_run) as found,
    ):
        if dry_run:
            _show_plan(found, batch)
        else:
            submission = asyncio.run(
                _send(found, heartbeat, batch_id=batch, deadline=due, enqueue_at=start, queue=queue)
            )
            _report(submission, start, as_json)
    if found.left_out:
        raise typer.Exit(INCOMPLETE)


def _show_plan(found: "BatchFile", batch_id: str | None) -> None:
    from worker.client import make_batch_id, tokens_by_model
    from worker.environment import prices

    tell("\n".join(describe_tokens(tokens_by_model(found), prices())))
    complain(f"Nothing was sent. The batch id will be {batch_id or make_batch_id(found)}.")


def _report(submission: "Submission", at: datetime | None, as_json: bool) -> None:
    if submission.submitted_before:
        complain(
            f"This batch was submitted before, at {submission.submitted_before}. The queue's duplicate detection "
            "dropped the jobs that it still knew; the others were sent."
        )
    if at:
        complain(f"No worker receives them before {at:%Y-%m-%dT%H:%M:%SZ}.")
    jobs = "job" if submission.total == 1 else "jobs"
    complain(
        f"{submission.total:,} {jobs} submitted. "
        f"Next: aoai-worker collect {submission.batch_id} -o OUT.jsonl --follow"
    )
    typer.echo(json.dumps(asdict(submission)) if as_json else submission.batch_id)


@app.command("list")
def list_batches(
    limit: Annotated[int, typer.Option(min=1, max=1_000, metavar="N", help="Show at most N.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Show the newest batches. Read-only.

    It needs results in Blob storage. It counts the results of each batch that it shows, with one request for each
    2,000 results. DONE is results/jobs. JOBS/S is the rate of the last 5 minutes, and LEFT the time left at this
    rate. AGE is the time since the batch was submitted. With --json it prints one JSON object a line, like
    status --json.

    Exit codes: 0 shown, or there is no batch; 1 something outside failed; 2 the settings are wrong, or results go
    to a queue; 130 interrupted.
    """
    with readable_errors(), Heartbeat("a token and Blob storage to list its batches"):
        statuses, prices = asyncio.run(_newest(limit))
    if as_json:
        for one in statuses:
            typer.echo(json.dumps(status_document(one, prices, time.time())))
    elif statuses:
        tell(table(statuses, now=time.time(), width=_width()))
    else:
        complain("There is no batch. Next: aoai-worker submit FILE")


@app.command()
def status(
    batch: BatchId,
    watch: Annotated[
        bool, typer.Option("--watch", help="Update every few seconds until the batch is complete.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show the progress of a batch, its cost, and why it waits. Read-only.

    With results in a queue it shows how many can be collected. For a collected batch it shows when it was
    collected, the file and the counts. With results in Blob storage it shows everything, and --watch updates it
    until the batch is complete: in place on a terminal, else with one line (with --json one object) for each
    change. The cost is computed from AOAI_WORKER_PRICES.

    Exit codes: 0 shown, in any state; 1 nothing was submitted under this id, or something outside failed; 2
    the settings are wrong, or --watch and results go to a queue; 130 interrupted.
    """
    with readable_errors(), Heartbeat(f"a token and an answer about batch {batch}") as heartbeat:
        found = asyncio.run(_watch(batch, as_json, heartbeat) if watch else _status(batch, as_json))
    if found.is_unknown:
        raise typer.Exit(FAILED)


@app.command()
def cancel(batch: BatchId, as_json: AsJson = False) -> None:
    """Stop calling the jobs of a batch. Its results are kept.

    It needs results in Blob storage. After 10 s no pod makes a new call for the batch. Calls in flight are not
    stopped, as they are paid for. The batch counts as complete at once, and collect writes the results that exist.
    To cancel again, or a complete batch, changes nothing. retry sends the jobs that were not called.

    Exit codes: 0 cancelled, now or earlier, or the batch was complete; 1 nothing was submitted under this id, or
    something outside failed; 2 the settings are wrong, or results go to a queue; 130 interrupted.
    """
    with readable_errors(), Heartbeat(f"a token and Blob storage to cancel batch {batch}"):
        found, prices = asyncio.run(_cancel(batch))
    if as_json:
        typer.echo(json.dumps(status_document(found, prices, time.time())))
    else:
        tell(describe_cancellation(found))


@app.command()
def retry(
    batch: BatchId,
    file: InputFile,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CODE",
            help="Only jobs that failed with this code, such as 429 or attempts_exhausted; may be repeated.",
        ),
    ] = None,
    model_map: ModelMap = None,
    skip_invalid: SkipInvalid = False,
    as_json: AsJson = False,
) -> None:
    """Send the failed jobs of a batch again.

    FILE is the submitted file, or any file with the lines of the failed jobs. Repeat the --model-map and
    --skip-invalid of submit. For a cancelled batch, jobs without a result are sent too, if their content is that
    submitted. Wait half a minute after a cancellation: jobs whose calls are still in flight are paid for twice. The
    new results supersede the old ones. The batch is complete when all of them have arrived.

    It needs results in Blob storage. After an interruption, run the same command again: a job of an earlier retry
    without a result is sent under its earlier number, regardless of --only, and the queue drops duplicates.

    Exit codes: 0 sent, or nothing to retry; 1 nothing was submitted under this id, or something outside failed; 2
    the input or the settings are wrong, or results go to a queue; 130 interrupted.
    """
    with readable_errors(interrupted=GOES_ON), Heartbeat("the command to be loaded") as heartbeat:
        models = parse_model_map(model_map or (), "--model-map")
        outcome = _retry(batch, Path(file), only or [], models, skip_invalid, heartbeat)
    if as_json:
        typer.echo(json.dumps(retry_document(outcome)))
    else:
        tell(describe_retry(outcome))


@app.command()
def collect(
    batch: BatchId,
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="OUT.jsonl", help="The Batch output file; - is standard output.")
    ],
    errors: Annotated[
        Path | None,
        typer.Option(
            metavar="ERR.jsonl", help="A file for results that are errors; by default they are in OUT too."
        ),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Wait until the batch is complete.")] = False,
    timeout: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="With --follow: stop after this time without a new result, 15m by default; s, m, h or d.",
        ),
    ] = None,
    like: Annotated[
        Path | None,
        typer.Option(
            "--sort",
            metavar="INPUT.jsonl",
            exists=True,
            dir_okay=False,
            help="When complete, sort the results in the order of this file.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the results of a batch to a file. It removes them from the results queue; Blob storage keeps them.

    Without --follow it collects the results that exist when it starts. The file has the suffix .partial until every
    job has a result. After an interruption, the same command continues where it stopped, except with standard
    output.

    Exit codes: 0 complete, and every job succeeded; 1 something outside failed, or another process collects; 2 the
    input or the settings are wrong, or the batch was collected into other files; 3 results are missing; 4 complete,
    and jobs failed or were cancelled; 130 interrupted.
    """
    from worker.client.result_files import STANDARD_OUTPUT

    if timeout is not None and not follow:
        raise typer.BadParameter(
            f"{timeout!r} says how long --follow waits, which is not given. Next: --follow too, or no --timeout",
            param_hint="'--timeout'",
        )
    timeout = "15m" if timeout is None else timeout
    seconds = parse_seconds(timeout, "--timeout")
    with readable_errors(interrupted=GOES_ON), Heartbeat("a token") as heartbeat:
        if like and out in STANDARD_OUTPUT:
            raise typer.BadParameter("standard output cannot be sorted. Next: name a file", param_hint="'--sort'")
        if like:
            heartbeat.wait_for(f"the check of {like}")
            _require_order(like)  # now, as following may take a night
            heartbeat.wait_for("a token")
        collection = asyncio.run(_collect(batch, out, errors, follow, seconds, heartbeat))
        if like and collection.complete:
            heartbeat.wait_for(f"the results to be in the order of {like}")
            _sort(like, [out, *([errors] if errors else [])])
    complain(describe_collection(collection, out, errors, timeout))
    if as_json and out not in STANDARD_OUTPUT:
        typer.echo(json.dumps({**asdict(collection), "missing": collection.missing}))
    if not collection.complete:
        raise typer.Exit(INCOMPLETE)
    if collection.failed or collection.cancelled:
        raise typer.Exit(FAILED_JOBS)


@contextmanager
def _checked_file(
    file: Path,
    heartbeat: Heartbeat,
    batch_id: str | None = None,
    models: Mapping[str, str] = MappingProxyType({}),
    skip_invalid: bool = False,
    dry_run: bool = False,
) -> "Iterator[BatchFile]":
    from worker.client import read_batch_file
    from worker.client.batches import require_batch_id

    if batch_id is not None:
        require_batch_id(batch_id)
    with _regular_file(file, heartbeat) as (path, name), ExitStack() as stack:
        heartbeat.wait_for(f"the check of {name}")
        beside = file if path == file and not dry_run else None
        left_out = stack.enter_context(InvalidLines(beside)) if skip_invalid else None
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


async def _send(batch: "BatchFile", heartbeat: Heartbeat, **options: Any) -> "Submission":
    """`options`: of `JobClient.submit`."""
    from worker.client import JobClient, LikelyRefused

    heartbeat.wait_for("a token and a link to Service Bus")
    async with JobClient.from_environment() as client:
        with progress_of("submitted", heartbeat) as report, warnings.catch_warnings():
            warnings.simplefilter("ignore", LikelyRefused)  # said already, in the form of this command
            return await client.submit(batch, on_progress=report, on_waiting=heartbeat.wait_for, **options)


async def _newest(limit: int) -> "tuple[Sequence[BatchStatus], Mapping[str, Price]]":
    from worker.client import JobClient

    async with JobClient.from_environment() as client:
        return await client.newest(limit), client.prices


async def _cancel(batch_id: str) -> "tuple[BatchStatus, Mapping[str, Price]]":
    from worker.client import JobClient

    async with JobClient.from_environment() as client:
        return await client.cancel(batch_id), client.prices


async def _status(batch_id: str, as_json: bool) -> "BatchStatus":
    from worker.client import JobClient

    async with JobClient.from_environment() as client:
        found = await client.status(batch_id)
        typer.echo(_rendered(found, client.prices, as_json))
        return found


async def _watch(batch_id: str, as_json: bool, heartbeat: Heartbeat) -> "BatchStatus":
    from worker.client import JobClient

    told = ""
    async with JobClient.from_environment() as client:
        with _screen(as_json) as show:
            async for found in client.watch(batch_id, on_waiting=heartbeat.wait_for):
                heartbeat.note_said()
                if show:
                    show(_rendered(found, client.prices, as_json))
                elif (text := _line(found, client.prices, as_json)) != told:
                    told = text
                    typer.echo(text)
    return found


def _rendered(found: "BatchStatus", prices: "Mapping[str, Price]", as_json: bool) -> str:
    from worker.client.prices import cost_of

    if as_json:
        return json.dumps(status_document(found, prices, time.time()))
    cost = cost_of(found.detail.usage if found.detail else {}, prices)
    return printable(describe_in_full(found, cost, now=time.time(), width=_width()), keep="\n")


def _line(found: "BatchStatus", prices: "Mapping[str, Price]", as_json: bool) -> str:
    return json.dumps(status_document(found, prices, time.time())) if as_json else printable(describe_change(found))


@contextmanager
def _screen(as_json: bool) -> "Iterator[Callable[[str], None] | None]":
    """Shows a text in the place of the last one; None where nobody watches."""
    if as_json or not sys.stdout.isatty():
        yield None
        return
    from rich.live import Live
    from rich.text import Text

    with Live(auto_refresh=False) as live:
        yield lambda text: live.update(Text(text), refresh=True)


def _width() -> int:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else UNBROKEN


def _retry(
    batch_id: str, file: Path, only: list[str], models: Mapping[str, str], skip_invalid: bool, heartbeat: Heartbeat
) -> "BatchRetry":
    from worker.client.batches import require_batch_id
    from worker.client.retries import require_codes

    require_batch_id(batch_id)
    require_codes(only)
    with _checked_file(file, heartbeat, batch_id, models, skip_invalid) as found:
        return asyncio.run(_send_again(found, batch_id, only, heartbeat))


async def _send_again(batch: "BatchFile", batch_id: str, only: list[str], heartbeat: Heartbeat) -> "BatchRetry":
    from worker.client import JobClient

    heartbeat.wait_for("a token and a link to Service Bus")
    async with JobClient.from_environment() as client:
        with progress_of("sent again", heartbeat) as report:
            return await client.retry(batch, batch_id, only=only, on_progress=report, on_waiting=heartbeat.wait_for)


def _require_order(like: Path) -> None:
    from worker.client import InvalidBatch, read_batch_file

    try:
        read_batch_file(like, on_invalid=lambda problem, line: None)
    except InvalidBatch as error:
        raise typer.BadParameter(
            f"{like} has no line of a Batch input file, such as: {error.problems[0]}. Nothing was collected. "
            "Next: the file that was submitted",
            param_hint="'--sort'",
        ) from error


def _sort(like: Path, outputs: Sequence[Path]) -> None:
    from worker.client import sort_like
    from worker.client.batch_files import read_batch_file, read_jobs

    batch = read_batch_file(like, on_invalid=lambda problem, line: None)
    for output in (one for one in outputs if one.exists()):
        sort_like((job.custom_id for job in read_jobs(batch)), output)


async def _collect(
    batch_id: str, out: Path, errors: Path | None, follow: bool, timeout: float, heartbeat: Heartbeat
) -> "Collection":
    from worker.client import JobClient

    async with JobClient.from_environment() as client:
        with progress_of("collected", heartbeat) as report:

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
