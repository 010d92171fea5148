"""What the commands share: exit codes, and every expected failure as a message with a next step.

Standard output carries only what one would pipe; what is said to a person goes to standard error.
"""

import logging
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Self

import typer
from azure.core.exceptions import AzureError

from worker.jobs.job import moment_of, rfc3339
from worker.jobs.model_names import MODEL
from worker.jobs.printable import printable

if TYPE_CHECKING:
    from worker.client.batch_files import InvalidBatch

FAILED = 1
WRONG_INPUT = 2
INCOMPLETE = 3
FAILED_JOBS = 4
INTERRUPTED = 130

GOES_ON = "Interrupted. Run the same command again to continue."

SILENCE = 10.0
"""Seconds after which a person is told what is being waited for."""


@contextmanager
def readable_errors(*, interrupted: str = "Interrupted.") -> Iterator[None]:
    """Every expected failure as a message and an exit code; a traceback is a fault of ours.

    `interrupted` is said at Ctrl-C.
    """
    from worker.errors import InvalidSettings, WorkerError

    # the SDK logs what it raises as well, with tracebacks, and logging prints that where nobody listens
    logging.getLogger("azure").addHandler(logging.NullHandler())
    try:
        yield
    except InvalidSettings as error:
        complain("\n".join(["The settings are wrong:", *(f"  {problem}" for problem in error.problems)]))
        raise typer.Exit(WRONG_INPUT) from error
    except (WorkerError, OSError, AzureError) as error:
        raise _ended_by(error) from error
    except (KeyboardInterrupt, RuntimeError) as error:
        # Python 3.11 puts what a `__set_name__` raises, as of a dataclass that is imported now, into a RuntimeError
        if not isinstance(error, KeyboardInterrupt) and not isinstance(error.__cause__, KeyboardInterrupt):
            raise
        complain(interrupted)
        raise typer.Exit(INTERRUPTED) from None


def _ended_by(error: Exception) -> typer.Exit:
    from worker.cli.advice import explain
    from worker.client import (
        AlreadyCollected,
        BatchIsCancelled,
        InvalidBatch,
        InvalidBatchId,
        InvalidCode,
        InvalidQueueName,
        NeedsBlob,
        OtherBatch,
        UncheckedBatch,
        UnusableOutput,
    )
    from worker.jobs.replays import InvalidDeadline

    if isinstance(error, InvalidBatch):
        complain(describe_problems(error))
    else:
        complain(explain(error))
    wrong_input = (
        AlreadyCollected,
        BatchIsCancelled,
        InvalidBatch,
        InvalidBatchId,
        InvalidCode,
        InvalidDeadline,
        InvalidQueueName,
        NeedsBlob,
        OtherBatch,
        UncheckedBatch,
        UnusableOutput,
    )
    return typer.Exit(WRONG_INPUT if isinstance(error, wrong_input) else FAILED)


UNITS = {"": 1, "s": 1, "m": 60, "h": 3_600, "d": 86_400}
LONGEST_WAIT = 7 * 86_400
LATEST = 365 * 86_400


def parse_seconds(text: str, option: str) -> float:
    """`90`, `90s`, `15m`, `1.5h`, `1d`. Raises typer.BadParameter, which names the option."""
    seconds = _read_seconds(text)
    if not 1 <= seconds <= LONGEST_WAIT:
        raise typer.BadParameter(
            f"{text!r} is not a time from 1s to 7d. Next: give seconds, or a number with s, m, h or d, such as 15m",
            param_hint=f"'{option}'",
        )
    return seconds


def parse_moment(text: str | None, option: str, now: float) -> datetime | None:
    """RFC 3339, or the time from `now` until then. Raises typer.BadParameter, also where it is not to come."""
    if text is None:
        return None
    moment = moment_of(text)
    if moment is None:
        moment = now + _read_seconds(text)
    if moment_of(f"{text}Z") is not None:
        raise typer.BadParameter(
            f"{text!r} has no time zone. Next: add one, such as {text}Z (UTC) or {text}+01:00",
            param_hint=f"'{option}'",
        )
    if not now < moment <= now + LATEST:
        raise typer.BadParameter(
            f"{text!r} is not a time within the next {LATEST // 86_400} days. Next: give RFC 3339 with a time "
            f"zone, such as {rfc3339(now + 14_400)}, or a number with s, m, h or d, such as 4h",
            param_hint=f"'{option}'",
        )
    return datetime.fromtimestamp(moment, UTC)


def _read_seconds(text: str) -> float:
    """0 where it is no time."""
    match = re.fullmatch(r"(\d{1,7}(?:\.\d{1,3})?)([smhd]?)", text.strip(), re.ASCII)
    return float(match[1]) * UNITS[match[2]] if match else 0.0


def parse_model_map(pairs: Sequence[str], option: str) -> Mapping[str, str]:
    """`OLD=NEW` each. Raises typer.BadParameter."""
    models: dict[str, str] = {}
    for pair in pairs:
        old, equals, new = pair.partition("=")
        if not (equals and MODEL.fullmatch(old) and MODEL.fullmatch(new)) or models.setdefault(old, new) != new:
            raise typer.BadParameter(
                f"{pair!r} is not OLD=NEW with two model names, or OLD already has another NEW. Next: give such as "
                "old-model=new-model",
                param_hint=f"'{option}'",
            )
    return models


def describe_problems(error: "InvalidBatch") -> str:
    lines = [f"{error.name} cannot be submitted; nothing was sent:", *(f"  {one}" for one in error.problems)]
    if error.count > len(error.problems):
        lines.append(f"  ... and {error.count - len(error.problems):,} more")
    return "\n".join(lines)


def complain(text: str) -> None:
    """To standard error. Names, records and errors in it may be anybody's."""
    typer.echo(printable(text, keep="\n\t"), err=True)


def tell(text: str) -> None:
    """The same to standard output."""
    typer.echo(printable(text, keep="\n\t"))


class Heartbeat:
    """Says what is waited for whenever nothing was said for `SILENCE`; a context manager.

    A thread, so that it also speaks while the event loop does not run: a large file is checked, or is waited for.
    """

    def __init__(self, waiting_for: str) -> None:
        self._waiting_for = waiting_for
        self._last_said = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def wait_for(self, what: str) -> None:
        """An empty text: a pause of our own, of which nothing is said."""
        self._waiting_for = what

    def note_said(self) -> None:
        self._last_said = time.monotonic()

    def say(self, text: str) -> None:
        complain(text)
        self.note_said()

    def _watch(self) -> None:
        while not self._ended.wait(max(0.0, self._last_said + SILENCE - time.monotonic())):
            if not self._waiting_for:
                self.note_said()
            elif time.monotonic() >= self._last_said + SILENCE:
                self.say(f"waiting for {self._waiting_for}")
