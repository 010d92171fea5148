"""Dead letters as a person or a script reads them: a list, one whole, a line to keep.

Ids, descriptions and bodies are their producers': what could steer a terminal is shown escaped.
"""

import base64
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from worker.flow.sweeper import CODES
from worker.jobs.job import Envelope, rfc3339
from worker.jobs.printable import printable
from worker.jobs.replays import NOT_THE_PRODUCERS, DeadLetter, Survey, dead_letter_of, message_id_of

NONE = "-"


def as_document(letter: DeadLetter) -> dict[str, Any]:
    """The field names are a promise: docs/operations.md."""
    return {
        "sequence_number": letter.sequence_number,
        "enqueued": rfc3339(letter.enqueued_at),
        "message_id": letter.message_id,
        "batch_id": letter.batch_id,
        "reason": letter.reason,
        "description": letter.description,
        "size": letter.size,
    }


def saved_line(envelope: Envelope, *, value: object = None) -> bytes:
    """All of it. The body is text in `body`, or in `body_base64` where it is not UTF-8, or where it is no bytes at
    all it is `value`, in `body_value` as far as JSON can say it."""
    document = as_document(dead_letter_of(envelope)) | {
        "queue": envelope.queue,
        "content_type": envelope.content_type,
        "delivery_count": envelope.delivery_count,
        "properties": _producers(envelope),
        **(_saved_body(envelope.body) if value is None else {"body_value": _plain(value)}),
    }
    return json.dumps(document, ensure_ascii=False, default=_said).encode(errors="surrogatepass")


def as_line(letter: DeadLetter) -> str:
    """For another program: fields between tabs, in the order of the document's."""
    values = as_document(letter).values()
    return "\t".join(NONE if value in (None, "") else printable(str(value)) for value in values)


def as_lines(letter: DeadLetter, widths: Sequence[int]) -> tuple[str, str]:
    """For a terminal, which cuts them: what it is, and what is wrong with it."""
    number, size, batch = widths
    moment = rfc3339(letter.enqueued_at)[:16].replace("T", " ")
    batch_id = printable(letter.batch_id or NONE)
    head = (
        f"{letter.sequence_number:>{number}}  {moment}  {letter.size:>{size},}  "
        f"{_cut(batch_id, batch):<{batch}}  {printable(letter.message_id or NONE)}"
    )
    return head, printable(letter.description)


def widths_of(letters: Sequence[DeadLetter]) -> tuple[int, int, int]:
    """Of the sequence number, the size and the batch."""
    numbers = max((len(str(letter.sequence_number)) for letter in letters), default=0)
    sizes = max((len(f"{letter.size:,}") for letter in letters), default=0)
    batches = max((len(printable(letter.batch_id or NONE)) for letter in letters), default=0)
    return max(3, numbers), max(5, sizes), min(max(5, batches), 20)


def print_list(letters: Sequence[DeadLetter]) -> None:
    """For somebody who watches: two lines each, cut to the terminal's width."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    number, size, batch = widths = widths_of(letters)
    indent = " " * (number + 2)

    def show(text: Text) -> None:
        console.print(text, no_wrap=True, overflow="ellipsis")

    show(
        Text(f"{'SEQ':>{number}}  {'ENQUEUED (UTC)':<16}  {'BYTES':>{size}}  {'BATCH':<{batch}}  MESSAGE-ID", "dim")
    )
    for letter in letters:
        head, description = as_lines(letter, widths)
        show(Text(head))
        reason = (printable(letter.reason or "no reason"), "yellow")
        show(Text.assemble(indent, reason, f": {description}" if description else ""))


def summary(queue: str, survey: Survey, shown: int) -> str:
    """How many there are, of which reasons, and what to do next."""
    if not survey.letters:
        return f"No dead letters in queue {queue}."
    noun = "dead letter" if survey.count == "1" else "dead letters"
    lines = [f"{survey.count} {noun} in queue {queue}: {told_reasons(survey.letters)}."]
    if shown < len(survey.letters):
        lines.append(f"Shown are the first {shown:,}; --limit N shows more.")
    if any(letter.reason in CODES for letter in survey.letters):
        lines.append(
            f"A running worker ends those with a reason of the broker ({', '.join(CODES)}) with an error line."
        )
    lines.append("Next: aoai-worker dlq show SEQ, then dlq replay SEQ or dlq discard SEQ --save FILE.")
    return "\n".join(lines)


def told_reasons(letters: Sequence[DeadLetter]) -> str:
    """How many of each, the most frequent first."""
    reasons = Counter(letter.reason or "no reason" for letter in letters)
    told = [f"{count:,} {printable(reason)}" for reason, count in reasons.most_common(8)]
    return ", ".join([*told, "..."] if len(reasons) > 8 else told)


def describe(envelope: Envelope) -> Iterator[str]:
    """Everything but the body, a line each."""
    letter = dead_letter_of(envelope)
    fields = {
        "sequence number": letter.sequence_number,
        "queue": letter.queue,
        "enqueued": rfc3339(letter.enqueued_at),
        "message-id": letter.message_id,
        "correlation-id": letter.batch_id,
        "content-type": envelope.content_type,
        "delivery count": envelope.delivery_count,
        **{f"property {name}": value for name, value in _producers(envelope).items()},
        "reason": letter.reason,
        "description": letter.description,
        "replayed as": message_id_of(letter),
        "body": _told_size(letter.size),
    }
    width = max(len(name) for name in fields)
    for name, value in fields.items():
        yield f"{printable(name):<{width}}  {printable(_said(value))}"


def shown_body(body: bytes) -> str:
    return printable(body.decode(errors="backslashreplace"), keep="\n\t")


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _told_size(size: int) -> str:
    return f"{size:,} bytes" if size else "no bytes (an AMQP map or list is not shown; it is replayed unchanged)"


def _said(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    return NONE if value is None or value == "" else str(value)


def _plain(value: object) -> object:
    """With keys that JSON allows."""
    match value:
        case dict():
            return {_said(key): _plain(item) for key, item in value.items()}
        case list():
            return [_plain(item) for item in value]
        case _:
            return value


def _producers(envelope: Envelope) -> dict[str, object]:
    return {name: value for name, value in envelope.properties.items() if name not in NOT_THE_PRODUCERS}


def _saved_body(body: bytes) -> dict[str, str]:
    try:
        return {"body": body.decode()}
    except UnicodeDecodeError:
        return {"body_base64": base64.b64encode(body).decode()}
