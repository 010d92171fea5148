"""The job and its result on the wire: Batch input lines in, Batch output lines out.

Everything from outside is parsed here into a type that the rest trusts. `docs/job-format.md` is the contract.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from typing import Any

import orjson

from worker.errors import DeadLetterReason, NotAJob
from worker.jobs.copies import ENQUEUED_AT
from worker.jobs.model_names import MODEL, MODEL_ALPHABET

UNBATCHED = "unbatched"
BATCH_ID = re.compile(r"[A-Za-z0-9._-]{1,48}")
REPLAYED = re.compile(r"~r(\d{1,4})$")
HASHED = "sha256-"
MAX_ID_LENGTH = 128
"""Service Bus's limit for a message-id, and so for a job id."""
MAX_CUSTOM_ID = 512
"""Characters; it comes back in the result and stands in messages and logs."""
JOB_TYPES = frozenset(
    {"", "application/json", "application/jsonl", "application/x-ndjson", "application/octet-stream", "text/plain"}
)
"""Content types that say nothing against a line of JSON; many clients send none, or a general one."""
CLAIM_TYPE = "application/vnd.aoai-worker.claim+json"
SHA256 = re.compile(r"[0-9a-fA-F]{64}")
MAX_NESTING = 200
"""Levels of arrays and objects in a job. orjson itself stops at 1,024; no request comes near either."""

DIGITS_AS_ZEROS = bytes.maketrans(b"123456789", b"0" * 9)

NUMBERS = re.compile(rb"\[\s*+[-0-9][-+.0-9eE,\s]*+\]")
"""What looks like an array of numbers in JSON."""

JsonObject = dict[str, Any]


class Operation(StrEnum):
    """The urls of the Batch format that the worker can call."""

    CHAT_COMPLETIONS = "/v1/chat/completions"
    RESPONSES = "/v1/responses"
    EMBEDDINGS = "/v1/embeddings"
    COMPLETIONS = "/v1/completions"


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """The fields of a received message that the worker reads. Times are Unix seconds; `expires_at` None: never."""

    body: bytes
    queue: str
    sequence_number: int
    enqueued_at: float
    message_id: str | None = None
    correlation_id: str | None = None
    content_type: str | None = None
    delivery_count: int = 0
    dead_letter_reason: str | None = None
    expires_at: float | None = None
    properties: Mapping[str, object]

    @property
    def waiting_since(self) -> float:
        """When it was first enqueued: a job that was moved says so itself."""
        moment = moment_of(self.properties.get(ENQUEUED_AT))
        return self.enqueued_at if moment is None else moment


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A claim check: where the body of a job is that was too large for a message. `length` in bytes,
    `sha256` in hex, `etag` as Blob storage gave it or None."""

    url: str
    length: int
    sha256: str
    etag: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobLine:
    """One line of a Batch input file."""

    custom_id: str
    operation: Operation
    model: str
    body: JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job as the worker holds it. `deadline` and `enqueued_at` are Unix seconds."""

    id: str
    batch_id: str
    queue: str
    line: JobLine
    enqueued_at: float
    deadline: float
    replay: int = 0


def parse_line(raw: bytes) -> JobLine:
    """Raises NotAJob with what is wrong and how to fix it."""
    document = _parse_object(raw)
    custom_id = _require_text(document, "custom_id", "a string that is unique in its batch")
    if len(custom_id) > MAX_CUSTOM_ID:
        raise _invalid(f'"custom_id" is {_shown(custom_id)}; it has at most {MAX_CUSTOM_ID} characters')
    if document.get("method") != "POST":
        raise _invalid(f'"method" is {_shown(document.get("method"))}; the only method is "POST"')
    operation = _parse_operation(document.get("url"))
    body = document.get("body")
    if not isinstance(body, dict):
        raise _invalid(f'"body" is {_described(body)}; it must be the JSON object of the request')
    model = _require_text(body, "model", "the name of a model in the worker's configuration", within="body.")
    if not MODEL.fullmatch(model):
        raise _invalid(f'"body.model" is {_shown(model)}; a name has {MODEL_ALPHABET}')
    return JobLine(custom_id=custom_id, operation=operation, model=model, body=body)


def claim_of(envelope: Envelope) -> Claim | None:
    """The claim check that the message is, None where it carries its job itself. Raises NotAJob."""
    kind = _content_type(envelope)
    if kind in JOB_TYPES:
        return None
    if kind != CLAIM_TYPE:
        raise NotAJob(
            DeadLetterReason.UNSUPPORTED_CONTENT_TYPE,
            f"content-type is {_shown(envelope.content_type)}; send application/json, or {CLAIM_TYPE}",
        )
    return parse_claim(envelope.body)


def is_claim(envelope: Envelope) -> bool:
    return _content_type(envelope) == CLAIM_TYPE


def _content_type(envelope: Envelope) -> str:
    return (envelope.content_type or "").split(";", 1)[0].strip().lower()


def parse_claim(body: bytes) -> Claim:
    """Raises NotAJob."""
    claim = _parse_object(body).get("claim")
    match claim:
        case {"url": str(url), "length": int(length), "sha256": str(sha256), **rest}:
            etag = rest.get("etag")
            is_size = not isinstance(length, bool) and length >= 0
            if is_size and SHA256.fullmatch(sha256) and isinstance(etag, str | None):
                return Claim(url=url, length=length, sha256=sha256.lower(), etag=etag)
    raise NotAJob(
        DeadLetterReason.INVALID_CLAIM,
        f'"claim" is {_described(claim)}; it must be an object with url, length in bytes, sha256 in hex, and etag',
    )


def decode(envelope: Envelope, *, max_age: float, body: bytes | None = None) -> Job:
    """Read a message as a job. `max_age`: seconds from enqueuing to the deadline of a job that names none;
    `body`: what the message's claim stands for, where it is one.

    Raises NotAJob.
    """
    line = parse_line(envelope.body if body is None else body)
    return Job(
        id=_job_id(envelope),
        batch_id=_batch_id(envelope.correlation_id),
        queue=envelope.queue,
        line=line,
        enqueued_at=envelope.waiting_since,
        deadline=_deadline(envelope, max_age),
        replay=_replay(envelope),
    )


def make_job_id(batch_id: str, custom_id: str) -> str:
    """The message-id under which a producer sends a job: stable, so that a resubmission is recognised."""
    plain = f"{batch_id}/{custom_id}"
    is_fit = plain.isascii() and plain.isprintable() and len(plain) <= MAX_ID_LENGTH
    # what looks like the id of a replay, or like a hash, could be taken for another job's
    if is_fit and not REPLAYED.search(plain) and not custom_id.startswith(HASHED):
        return plain
    return f"{batch_id}/{HASHED}{hashlib.sha256(custom_id.encode()).hexdigest()[:32]}"


def rfc3339(moment: float) -> str:
    """Unix seconds as UTC with milliseconds."""
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def moment_of(value: object) -> float | None:
    """Unix seconds, which `rfc3339` takes; None unless it is RFC 3339 with a time zone."""
    if not isinstance(value, str):
        return None
    try:
        moment = datetime.fromisoformat(value)
        seconds = moment.timestamp() if moment.tzinfo else None
        if seconds is not None:
            rfc3339(seconds)  # the first and the last day of the calendar have moments that are beyond it in UTC
    except (ValueError, OverflowError):
        return None
    return seconds


def _parse_object(raw: bytes) -> JsonObject:
    document = _parse_json(raw)
    if isinstance(document, str) and document.lstrip()[:1] == "{":
        # JavaScript's SDK encodes the body as JSON itself, so `body: JSON.stringify(job)` arrives encoded twice
        raw = document.encode()
        document = _parse_json(raw)
    if not isinstance(document, dict):
        raise _invalid(
            f"the body is {_described(document)}; it must be one JSON object, a line of a Batch input file"
        )
    if not _has_plain_numbers(document, raw):
        _require_exact_numbers(raw)
    return document


def _parse_json(raw: bytes) -> object:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise NotAJob(
            DeadLetterReason.INVALID_JSON,
            f"the body of {len(raw):,} bytes is not JSON in UTF-8: {error}. "
            "Send one line of a Batch input file unchanged.",
        ) from error


def _has_plain_numbers(document: JsonObject, raw: bytes) -> bool:
    """Whether every number is one that is surely sent as it came. Raises NotAJob where it nests too deep.

    Level by level, so that hostile nesting costs no recursion.
    """
    # a temperature of 0.0 is common; what became 0.0 has an exponent, or very many zeros
    least = 1e-5 if any(sign in raw for sign in (b"e-", b"E-", b"0" * 20)) else 0.0
    # what has 16 digits or more, whatever is left of them in the float, has 8 of them side by side
    has_many_digits = b"0" * 8 in raw.translate(DIGITS_AS_ZEROS)
    is_plain = True
    level: list[Any] = [document]
    for _ in range(MAX_NESTING):
        below: list[Any] = []
        for parent in level:
            for value in parent.values() if type(parent) is dict else parent:
                kind = type(value)
                if kind is dict or kind is list:
                    below.append(value)
                elif kind is float and is_plain:
                    # what orjson cannot hold becomes another float: whole numbers too large, many digits, 0.0
                    is_plain = least <= abs(value) < 1e15 and len(repr(value)) < 17 and not has_many_digits
        if not below:
            return is_plain
        level = below
    raise _invalid(f"the body nests deeper than {MAX_NESTING} levels; flatten it")


class _Inexact(str):
    """A number's text whose value would be changed on the way."""


def _require_exact_numbers(raw: bytes) -> None:
    """Raises NotAJob naming a number that the worker would send as another one."""

    def read(text: str) -> object:
        try:
            is_exact = Decimal(text) == Decimal(repr(float(text)))
        except InvalidOperation:  # its exponent is beyond all bounds
            is_exact = False
        return 0 if is_exact else _Inexact(text)

    def read_whole(text: str) -> object:
        return 0 if len(text) <= 20 and -(2**63) <= int(text) < 2**64 else read(text)

    document = json.loads(raw, parse_int=read_whole, parse_float=read)
    path = _path_to_inexact(document)
    if path:
        *names, number = path
        raise _invalid(
            f"{_shown(''.join(names).lstrip('.'))} is {number[:40]}, which cannot be sent exactly; allowed are "
            "whole numbers of 64 bits and others of 17 significant digits. Send it as text, or rounded"
        )


def _path_to_inexact(value: object) -> list[str]:
    """The names on the way to it and its text; empty where there is none. It nests no deeper than MAX_NESTING."""
    if isinstance(value, _Inexact):
        return [value]
    pairs: Iterable[tuple[str, object]] = ()
    if isinstance(value, dict):
        pairs = ((f".{name}", inner) for name, inner in value.items())
    elif isinstance(value, list):
        pairs = ((f"[{place}]", inner) for place, inner in enumerate(value))
    for name, inner in pairs:
        if path := _path_to_inexact(inner):
            return [name, *path]
    return []


def _parse_operation(url: object) -> Operation:
    """Azure's own batch files leave out the `/v1` that OpenAI's have."""
    text = str(url)
    try:
        return Operation(text if text.startswith("/v1/") else f"/v1{text}")
    except ValueError:
        allowed = ", ".join(operation.value for operation in Operation)
        raise NotAJob(
            DeadLetterReason.UNSUPPORTED_OPERATION,
            f'"url" is {_shown(url)}; supported are: {allowed}, each also without /v1',
        ) from None


def _require_text(document: JsonObject, name: str, meaning: str, *, within: str = "") -> str:
    value = document.get(name)
    if isinstance(value, str) and value:
        return value
    raise _invalid(f'"{within}{name}" is {_shown(value)}; it must be {meaning}')


def message_name(envelope: Envelope) -> str:
    """The message-id; of a message that came without one, its place."""
    return envelope.message_id or f"{envelope.queue}/{envelope.sequence_number}"


def _job_id(envelope: Envelope) -> str:
    job_id = envelope.properties.get("job-id")
    if job_id is None:
        job_id = message_name(envelope)
    if not isinstance(job_id, str) or not 0 < len(job_id) <= MAX_ID_LENGTH:
        raise _invalid(f"the job id is {_shown(job_id)}; it must be text of 1 to {MAX_ID_LENGTH} characters")
    return job_id


def _batch_id(correlation_id: str | None) -> str:
    if correlation_id is None:
        return UNBATCHED
    if not BATCH_ID.fullmatch(correlation_id):
        raise _invalid(
            f"correlation-id (the batch id) is {_shown(correlation_id)}; "
            "allowed are 1 to 48 letters, digits, dots, underscores and hyphens"
        )
    return correlation_id


def _deadline(envelope: Envelope, max_age: float) -> float:
    value = envelope.properties.get("deadline")
    if value is None:
        return envelope.waiting_since + max_age
    moment = moment_of(value)
    if moment is None:
        raise _invalid(
            f'the property "deadline" is {_shown(value)}; it must be RFC 3339 with a time zone, '
            "such as 2026-11-23T18:00:00Z"
        )
    return moment


def _replay(envelope: Envelope) -> int:
    """A replayed dead letter has the message-id `<id>~r<n>`, as the old id would be swallowed as a duplicate."""
    if "job-id" not in envelope.properties or envelope.message_id is None:
        return 0
    found = REPLAYED.search(envelope.message_id)
    return int(found[1]) if found else 0


def _invalid(description: str) -> NotAJob:
    return NotAJob(DeadLetterReason.INVALID_JOB, description)


def _shown(value: object) -> str:
    """A value as an error message shows it: short, on one line."""
    if value is None:
        return "missing or null"
    # json rather than orjson: it escapes every line break of Unicode and takes any number
    try:
        text = json.dumps(value, separators=(",", ":"), default=str)
    except RecursionError:
        text = "a value that nests too deep to be shown"
    length = len(value) if isinstance(value, str) else len(text)
    return text if len(text) <= 60 else f"{text[:60]}... ({length:,} characters)"


def _described(value: object) -> str:
    """A value that may hold somebody's prompt, without its content: descriptions reach the log."""
    match value:
        case str():
            return f"a string of {len(value):,} characters"
        case list():
            return f"an array of {len(value):,}"
        case _:
            return _shown(value)


def without_numbers(raw: bytes) -> bytes:
    """JSON with `[0]` for each array of numbers, in texts too: parsed, the numbers of embeddings would take several
    times their bytes."""
    return NUMBERS.sub(b"[0]", raw)


def on_one_line(raw: bytes) -> bytes:
    """JSON without its line breaks, otherwise byte for byte.

    Between JSON's tokens a line break is only white space, and inside a string it cannot stand.
    """
    return raw.replace(b"\r", b" ").replace(b"\n", b" ") if b"\n" in raw or b"\r" in raw else raw
