"""Whether an answer is the JSON that its job asked for.

Azure holds an answer to a strict schema while it is written, so what goes wrong is mostly an answer that was cut at
its token limit, one that the model refused to give, or a schema that is not strict. It is paid for, and a success
for the service; only the producer's parser would notice.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from worker.jobs.job import Job, JsonObject, Operation
from worker.jobs.outcomes import AnswerWarning, WarningCode
from worker.jobs.schemas import find_mismatch


@dataclass(frozen=True, slots=True)
class _Text:
    """A text of an answer. `refusal`: what the model said instead. `is_cut`: at the limit of its tokens."""

    where: str
    text: str
    is_cut: bool
    refusal: str | None = None


def check_answer(job: Job, body: bytes) -> AnswerWarning | None:
    """The first thing that is wrong; None where nothing is, or the job asked for no JSON."""
    wanted = _wanted_format(job)
    if wanted is None:
        return None
    kind, schema = wanted
    for text in _texts(job.line.operation, orjson.loads(body)):
        if text.refusal is not None:
            message = f"{text.where}: the model refused to answer: {text.refusal[:200]}"
            return AnswerWarning(code=WarningCode.INVALID_JSON, message=message)
        try:
            value = orjson.loads(text.text)
        except ValueError as error:
            return AnswerWarning(code=WarningCode.INVALID_JSON, message=_not_json(text, error))
        if kind == "json_object":
            schema = {"type": "object"}
        if mismatch := find_mismatch(schema, value):
            message = f"{text.where}: {mismatch}"
            return AnswerWarning(code=WarningCode.SCHEMA_MISMATCH, message=message[:500])
    return None


def _not_json(text: _Text, error: ValueError) -> str:
    if text.is_cut:
        return f"{text.where}: cut at its token limit, after {len(text.text):,} characters; allow more tokens"
    return f"{text.where}: not JSON: {error}"


def _wanted_format(job: Job) -> tuple[str, object] | None:
    """The type of JSON that the job asks for, and its schema."""
    body = job.line.body
    if job.line.operation is Operation.CHAT_COMPLETIONS:
        form = body.get("response_format")
        described = form.get("json_schema") if isinstance(form, dict) else None
    elif job.line.operation is Operation.RESPONSES:
        text = body.get("text")
        form = described = text.get("format") if isinstance(text, dict) else None
    else:
        return None
    kind = form.get("type") if isinstance(form, dict) else None
    if kind not in ("json_object", "json_schema"):
        return None
    return kind, described.get("schema") if isinstance(described, dict) else None


def _texts(operation: Operation, document: Any) -> Iterator[_Text]:
    """Of what was written to be read: not of calls of tools."""
    if not isinstance(document, dict):
        return
    if operation is Operation.CHAT_COMPLETIONS:
        for choice in _objects(document.get("choices")):
            yield from _text_of_choice(choice)
        return
    is_cut = document.get("status") == "incomplete"
    for number, item in enumerate(_objects(document.get("output"))):
        for part in _objects(item.get("content")):
            where = f"output[{number}]"
            if isinstance(refusal := part.get("refusal"), str):
                yield _Text(where, "", is_cut, refusal)
            elif part.get("type") == "output_text" and isinstance(text := part.get("text"), str):
                yield _Text(where, text, is_cut)


def _text_of_choice(choice: JsonObject) -> Iterator[_Text]:
    message, index = choice.get("message"), choice.get("index", 0)
    where = f"choices[{index}]" if isinstance(index, int) else "choices"
    if not isinstance(message, dict):
        return
    is_cut = choice.get("finish_reason") == "length"
    if isinstance(refusal := message.get("refusal"), str):
        yield _Text(where, "", is_cut, refusal)
    elif isinstance(text := message.get("content"), str):
        yield _Text(where, text, is_cut)


def _objects(value: object) -> list[JsonObject]:
    return [part for part in value if isinstance(part, dict)] if isinstance(value, list) else []
