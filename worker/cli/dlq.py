"""`aoai-worker dlq`: the dead letters of a queue, for the person who has to do something about them.

`list` and `show` take nothing and lock nothing. `replay` and `discard` first look, then say what they leave, then
take what is meant in one pass. Exit code 1 where something that was asked for was not done.
"""

import asyncio
import json
import sys
import time
from collections.abc import Collection, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Annotated

import typer

from worker.cli.terminal import FAILED, GOES_ON, WRONG_INPUT, complain, readable_errors
from worker.roles import SERVICE_BUS_DATA_RECEIVER, SERVICE_BUS_DATA_SENDER

if TYPE_CHECKING:
    from worker.jobs.job import Envelope
    from worker.jobs.replays import DeadLetter, NewDeadline, Plan, Selection, Survey
    from worker.operations.dead_letters.queue import DeadLetterQueue, Taken

NEEDS_RECEIVER = f'Needs the role "{SERVICE_BUS_DATA_RECEIVER.name}" on the queue.'
NEEDS_BOTH = (
    f'Needs the roles "{SERVICE_BUS_DATA_RECEIVER.name}" and "{SERVICE_BUS_DATA_SENDER.name}" on the queue.'
)

app = typer.Typer(
    help="Show, replay or discard dead letters.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Queue = Annotated[
    str | None, typer.Option("--queue", metavar="Q", help="The jobs queue; by default AOAI_WORKER_JOBS_QUEUE.")
]
Numbers = Annotated[list[int] | None, typer.Argument(metavar="SEQ", help="Sequence numbers, from dlq list.")]
Reason = Annotated[
    str | None,
    typer.Option(
        "--reason", metavar="R", help='All with this reason, such as InvalidJson; "" means without a reason.'
    ),
]
Everything = Annotated[bool, typer.Option("--all", help="All current dead letters.")]


@app.command("list", epilog=NEEDS_RECEIVER)
def list_letters(
    queue: Queue = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="Show at most N.")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """List dead letters, with time and reason. Read-only: nothing is removed or locked.

    It reads at most about 10,000. Standard error shows how many there are.
    """
    with readable_errors():
        from worker.operations.dead_letters.texts import as_document, as_line, print_list, summary

        name, survey = asyncio.run(_survey(queue))
    letters = survey.letters[:limit]
    if as_json:
        for letter in letters:
            typer.echo(json.dumps(as_document(letter)))
    elif letters and sys.stdout.isatty():
        print_list(letters)
    else:
        for letter in letters:
            typer.echo(as_line(letter))
    complain(summary(name, survey, len(letters)))


@app.command()
def show(
    number: Annotated[int, typer.Argument(metavar="SEQ", min=1, help="The sequence number, from dlq list.")],
    queue: Queue = None,
    body: Annotated[bool, typer.Option("--body", help="Print only the body, byte for byte.")] = False,
) -> None:
    """Show one dead letter in full. Read-only: nothing is removed or locked.

    To fix a line and submit it again, write it to a file with --body.
    """
    with readable_errors():
        from worker.operations.dead_letters.texts import describe, shown_body

        name, envelope = asyncio.run(_look_at(queue, number))
    if envelope is None:
        complain(f"There is no dead letter {number} in queue {name}. Next: aoai-worker dlq list")
        raise typer.Exit(FAILED)
    if body:
        sys.stdout.buffer.write(envelope.body)
        return
    for line in describe(envelope):
        typer.echo(line)
    typer.echo(f"\n{shown_body(envelope.body)}")


@app.command(epilog=NEEDS_BOTH)
def replay(
    numbers: Numbers = None,
    reason: Reason = None,
    everything: Everything = False,
    queue: Queue = None,
    deadline: Annotated[
        str | None,
        typer.Option(metavar="WHEN", help="Replace the message's deadline: RFC 3339 with a time zone, or none."),
    ] = None,
) -> None:
    """Send dead letters to their queue again and remove them. Prints each new message-id.

    Each is sent under the message-id <old id>~r<n>, without its time to live.
    Its result supersedes an earlier one. A dead letter is removed after the
    queue has confirmed its replay. If the command is killed in between, run it
    again: it uses the same ids, and duplicate detection drops the duplicates.
    """
    selection = _selection(numbers, reason, everything)
    with readable_errors(interrupted=GOES_ON):
        from worker.jobs.replays import read_deadline

        is_done = asyncio.run(_replay(queue, selection, read_deadline(deadline, time.time())))
    raise typer.Exit(0 if is_done else FAILED)


@app.command(epilog=NEEDS_RECEIVER)
def discard(
    save: Annotated[
        str,
        typer.Option(
            metavar="FILE", help="Append each one in full to this file, one line of JSON each; - prints them."
        ),
    ],
    numbers: Numbers = None,
    reason: Reason = None,
    everything: Everything = False,
    queue: Queue = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
) -> None:
    """Delete dead letters. Each is written to FILE first, so a copy remains."""
    selection = _selection(numbers, reason, everything)
    with readable_errors(interrupted=GOES_ON):
        name, survey = asyncio.run(_survey(queue))
        chosen = selection.of(survey.letters)
        is_found = _tell_missing(name, selection, survey)
        if not chosen:
            raise typer.Exit(0 if is_found else FAILED)
        _require_consent(name, chosen, save, yes)
        taken = asyncio.run(_discard(queue, [letter.sequence_number for letter in chosen], save))
    complain(f"{taken.done:,} discarded, saved to {'standard output' if save == '-' else save}.")
    raise typer.Exit(0 if _tell_rest(taken) and is_found else FAILED)


async def _survey(queue: str | None) -> "tuple[str, Survey]":
    """The queue's name, and what is in its dead-letter queue."""
    from worker.operations.dead_letters.queue import survey

    async with _open(queue) as opened:
        return opened.queue, await survey(opened.dead_letters)


async def _look_at(queue: str | None, number: int) -> "tuple[str, Envelope | None]":
    from worker.operations.dead_letters.queue import look_at

    async with _open(queue) as opened:
        return opened.queue, await look_at(opened.dead_letters, number)


async def _replay(queue: str | None, selection: "Selection", deadline: "NewDeadline | None") -> bool:
    """Whether all that was asked for was done."""
    from worker.jobs.replays import plan_replays
    from worker.operations.dead_letters.queue import survey

    async with _open(queue) as opened:
        found = await survey(opened.dead_letters)
        plan = plan_replays(found.letters, selection.of(found.letters), deadline, time.time())
        is_found = _tell_missing(opened.queue, selection, found)
        for number, why in plan.left.items():
            complain(f"{number} is left: {why}.")
        if not plan.replays:
            return is_found and not plan.left
        taken = await _send_again(opened, plan)
    complain(f"{taken.done:,} replayed.")
    return _tell_rest(taken) and is_found and not plan.left


async def _send_again(opened: "DeadLetterQueue", plan: "Plan") -> "Taken":
    from worker.operations.dead_letters.queue import take

    def report(envelope: "Envelope") -> None:
        typer.echo(f"{envelope.sequence_number}\t{plan.replays[envelope.sequence_number].message_id}")

    async with opened.resending(plan.replays) as resending:
        return await take(opened.dead_letters, plan.replays.keys(), resending, report)


async def _discard(queue: str | None, numbers: Sequence[int], path: str) -> "Taken":
    from worker.operations.dead_letters.queue import saving, take

    with saving(path) as save:
        async with _open(queue) as opened:
            return await take(opened.dead_letters, numbers, save, lambda _: None)


def _open(queue: str | None) -> "AbstractAsyncContextManager[DeadLetterQueue]":
    from worker.environment import load
    from worker.operations.dead_letters.queue import open_dead_letters
    from worker.settings import ServiceBusSettings

    return open_dead_letters(load(ServiceBusSettings), queue)


def _selection(numbers: Sequence[int] | None, reason: str | None, everything: bool) -> "Selection":
    """Exactly one way of saying it: what is meant by two together would be a guess."""
    from worker.jobs.replays import Selection

    ways = {"sequence numbers": bool(numbers), "--reason": reason is not None, "--all": everything}
    given = [way for way, is_given in ways.items() if is_given]
    if len(given) != 1:
        what = f"{' and '.join(given)} are given together" if given else "No dead letters are named"
        complain(f"{what}. Next: give sequence numbers from `aoai-worker dlq list`, --reason or --all")
        raise typer.Exit(WRONG_INPUT)
    return Selection(numbers=frozenset(numbers or ()), reason=reason, everything=everything)


def _require_consent(queue: str, chosen: "Sequence[DeadLetter]", save: str, yes: bool) -> None:
    from worker.operations.dead_letters.texts import told_reasons

    if yes:
        return
    if not sys.stdin.isatty():
        complain(
            "There is no terminal to ask for confirmation, so nothing was discarded. "
            "Next: the same command with --yes"
        )
        raise typer.Exit(WRONG_INPUT)
    what = f"Discard {len(chosen):,} of the dead letters of queue {queue} ({told_reasons(chosen)})"
    where = "print them" if save == "-" else f"add them to {save}"
    if not typer.confirm(f"{what} and {where}?", err=True):
        complain("Nothing was discarded.")
        raise typer.Exit(FAILED)


def _tell_missing(queue: str, selection: "Selection", survey: "Survey") -> bool:
    """Whether all that was asked for is there and was looked at."""
    missing = selection.missing(survey.letters)
    behind = "" if survey.is_whole else f" among the first {len(survey.letters):,}"
    for number in missing:
        complain(f"There is no dead letter {number} in queue {queue}{behind}. Next: aoai-worker dlq list")
    if selection.numbers:
        return not missing
    if not selection.of(survey.letters):
        complain(f"No dead letter in queue {queue}{behind} matches.")
    if not survey.is_whole:
        complain(f"Only the first {len(survey.letters):,} were read. Next: the same command again for the rest.")
    return survey.is_whole


def _tell_rest(taken: "Taken") -> bool:
    """Whether the pass did all that it was to do."""
    if taken.unconfirmed:
        complain(
            f"Done, but perhaps not removed, because the lock was lost: {_listed(taken.unconfirmed)}. "
            "Next: aoai-worker dlq list. To repeat the command is safe."
        )
    if taken.missing and taken.is_full:
        complain(
            f"Not reached: {_listed(taken.missing)}. There are too many dead letters before them in the queue. "
            "Next: replay or discard those first."
        )
    elif taken.missing:
        complain(
            f"Not processed: {_listed(taken.missing)}. Another process holds or has removed them, such as a "
            "worker's sweep. Next: aoai-worker dlq list in a few minutes."
        )
    return not taken.unconfirmed and not taken.missing


def _listed(numbers: Collection[int]) -> str:
    first = ", ".join(str(number) for number in sorted(numbers)[:20])
    return first if len(numbers) <= 20 else f"{first} and {len(numbers) - 20:,} more"
