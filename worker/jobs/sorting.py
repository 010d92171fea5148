"""What the sorter does with a message of the entry queue, and what the message that it sends on looks like.

Values and decisions only; `flow/sorter.py` acts on them.
"""

from collections.abc import Container
from dataclasses import dataclass

from worker.errors import NotAJob
from worker.jobs.copies import CHECK_RESULT, ENQUEUED_AT, MODEL_PROPERTY, Copy
from worker.jobs.job import Claim, Envelope, claim_of, is_claim, message_name, parse_line, rfc3339
from worker.jobs.outcomes import Failed, FailureCode


@dataclass(frozen=True, slots=True)
class SendOn:
    """To the queue of this model."""

    model: str


@dataclass(frozen=True, slots=True)
class Fetch:
    """Only the body that the claim stands for tells the model."""

    claim: Claim


@dataclass(frozen=True, slots=True)
class WorkHere:
    """No queue is for it: what is no job, a job whose time is over, one of a model that is not known here."""

    verdict: Failed | None = None


Decision = SendOn | Fetch | WorkHere

EXPIRED = WorkHere(
    Failed(code=FailureCode.EXPIRED, message="the message's time to live passed before the job was sorted")
)


def decide(envelope: Envelope, models: Container[str], now: float, *, body: bytes | None = None) -> Decision:
    """`models` are those that have a queue; `body`: what the message's claim stands for, once it is fetched."""
    if has_expired(envelope, now):
        return EXPIRED
    try:
        claim = claim_of(envelope) if body is None else None
        if claim is not None:
            model = envelope.properties.get(MODEL_PROPERTY)
            return SendOn(model) if isinstance(model, str) and model in models else Fetch(claim)
        model = parse_line(envelope.body if body is None else body).model
    except NotAJob:
        return WorkHere()
    return SendOn(model) if model in models else WorkHere()


def has_expired(envelope: Envelope, now: float) -> bool:
    return envelope.expires_at is not None and envelope.expires_at <= now


def sorted_copy(envelope: Envelope, model: str, now: float) -> Copy:
    """The id stays, so that duplicate detection drops what a crash makes us send twice."""
    name = message_name(envelope)
    changes: dict[str, str | bool | None] = {ENQUEUED_AT: rfc3339(envelope.waiting_since)}
    if envelope.message_id is None and "job-id" not in envelope.properties:
        changes["job-id"] = name
    if envelope.delivery_count:
        changes[CHECK_RESULT] = True
    if is_claim(envelope):
        changes[MODEL_PROPERTY] = model
    left = None if envelope.expires_at is None else envelope.expires_at - now
    return Copy(message_id=name, changes=changes, time_to_live=left)
