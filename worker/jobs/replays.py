"""Dead letters for people: which of them are meant, and which message sends one again. Values and decisions only;
`dead_letters.py` acts on them.

A replay is the message as it was, under a message-id of its own, as duplicate detection would swallow the old one.
The id follows from the dead letter alone, so a replay that is sent twice is dropped the second time.
"""

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from worker.errors import WorkerError
from worker.jobs.batch_records import FIRST_RETRY
from worker.jobs.copies import CHECK_RESULT, ENQUEUED_AT, Copy
from worker.jobs.job import HASHED, MAX_ID_LENGTH, REPLAYED, Envelope, moment_of, rfc3339

MOST_REPLAYS = FIRST_RETRY - 1

NOT_THE_PRODUCERS = ("DeadLetterReason", "DeadLetterErrorDescription", ENQUEUED_AT, CHECK_RESULT)
"""Application properties that dead-lettering and sorting add. A replay begins anew, and so does its deadline."""


class InvalidDeadline(WorkerError):
    """Not a moment to come in RFC 3339, nor `none`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A dead letter without its body, of which `size` is the bytes. `job_id` and `deadline` are the properties of
    that name, whatever their sender put there. `enqueued_at`: Unix seconds."""

    queue: str
    sequence_number: int
    enqueued_at: float
    size: int
    message_id: str | None
    batch_id: str | None
    reason: str | None
    description: str
    job_id: object
    deadline: object


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What was found by looking. `is_whole`: there were no more."""

    letters: Sequence[DeadLetter]
    is_whole: bool

    @property
    def count(self) -> str:
        total = f"{len(self.letters):,}"
        return total if self.is_whole else f"more than {total}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Dead letters by their sequence numbers, by their reason in any case (`""`: without one), or everything."""

    numbers: Collection[int] = frozenset()
    reason: str | None = None
    everything: bool = False

    def has(self, letter: DeadLetter) -> bool:
        if self.reason is not None:
            return (letter.reason or "").casefold() == self.reason.casefold()
        return self.everything or letter.sequence_number in self.numbers

    def of(self, letters: Sequence[DeadLetter]) -> Sequence[DeadLetter]:
        return [letter for letter in letters if self.has(letter)]

    def missing(self, letters: Sequence[DeadLetter]) -> Sequence[int]:
        """Sequence numbers that nothing has."""
        return sorted(set(self.numbers) - {letter.sequence_number for letter in letters})


@dataclass(frozen=True, slots=True, kw_only=True)
class NewDeadline:
    """Instead of the one that a message names; `moment` in Unix seconds, None for no deadline."""

    moment: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is replayed, and what is left where it is and why, both by sequence number."""

    replays: Mapping[int, Copy]
    left: Mapping[int, str]


def dead_letter_of(envelope: Envelope) -> DeadLetter:
    properties = envelope.properties
    return DeadLetter(
        queue=envelope.queue,
        sequence_number=envelope.sequence_number,
        enqueued_at=envelope.enqueued_at,
        size=len(envelope.body),
        message_id=envelope.message_id,
        batch_id=envelope.correlation_id,
        reason=envelope.dead_letter_reason,
        description=str(properties.get("DeadLetterErrorDescription") or ""),
        job_id=properties.get("job-id"),
        deadline=properties.get("deadline"),
    )


def read_deadline(text: str | None, now: float) -> NewDeadline | None:
    """Of the command line. Raises InvalidDeadline."""
    if text is None:
        return None
    if text.casefold() == "none":
        return NewDeadline(moment=None)
    moment = moment_of(text)
    if moment is None or moment <= now:
        raise InvalidDeadline(
            f"--deadline {text}: it must be a future time in RFC 3339 with a time zone, such as "
            f"{rfc3339(now + 3_600)}, or none"
        )
    return NewDeadline(moment=moment)


def plan_replays(
    found: Sequence[DeadLetter], chosen: Sequence[DeadLetter], deadline: NewDeadline | None, now: float
) -> Plan:
    """`found` are all that are known: what would be swallowed as the duplicate of another's replay is not sent."""
    ids = Counter(message_id_of(letter) for letter in found)
    left: dict[int, str] = {}
    replays: dict[int, Copy] = {}
    for letter in chosen:
        why = _objection(letter, deadline, now, ids)
        if why:
            left[letter.sequence_number] = why
        else:
            replays[letter.sequence_number] = replay_of(letter, deadline)
    return Plan(replays=replays, left=left)


def replay_of(letter: DeadLetter, deadline: NewDeadline | None = None) -> Copy:
    changes: dict[str, str | bool | None] = dict.fromkeys(NOT_THE_PRODUCERS)
    if letter.job_id is None:
        changes["job-id"] = _own_id(letter)
    if deadline:
        changes["deadline"] = None if deadline.moment is None else rfc3339(deadline.moment)
    return Copy(message_id=message_id_of(letter), changes=changes)


def message_id_of(letter: DeadLetter) -> str:
    """Of the letter's replay: what its producer called the message, and the next number."""
    number = _times_replayed(letter) + 1
    own = _own_id(letter)
    return replay_id(own if letter.job_id is None else REPLAYED.sub("", own), number)


def replay_id(message_id: str, number: int) -> str:
    """The message-id of the replay `number` of what was sent as `message_id`."""
    plain = f"{message_id}~r{number}"
    if len(plain) <= MAX_ID_LENGTH:
        return plain
    return f"{HASHED}{hashlib.sha256(message_id.encode()).hexdigest()}~r{number}"


def _own_id(letter: DeadLetter) -> str:
    """As the worker reads it, the job's id too where no property names that."""
    return letter.message_id or f"{letter.queue}/{letter.sequence_number}"


def _times_replayed(letter: DeadLetter) -> int:
    found = REPLAYED.search(letter.message_id or "") if letter.job_id is not None else None
    return int(found[1]) if found else 0


def _objection(letter: DeadLetter, deadline: NewDeadline | None, now: float, ids: Mapping[str, int]) -> str | None:
    moment = moment_of(str(letter.deadline))
    if deadline is None and moment is not None and moment <= now:
        return (
            f"its deadline {letter.deadline} has passed, so it would expire at once; "
            "give another by --deadline WHEN, or none by --deadline none"
        )
    if ids[message_id_of(letter)] > 1:
        return (
            f"another dead letter would be replayed as {message_id_of(letter)} too, and duplicate detection "
            "would drop one of the two; discard the one that is not wanted"
        )
    if _times_replayed(letter) >= FIRST_RETRY:
        return "`aoai-worker retry` sent it, under a number of its own; that command sends it again"
    if _times_replayed(letter) >= MOST_REPLAYS:
        return f"it has been replayed {MOST_REPLAYS:,} times, which is as often as can be"
    return None
