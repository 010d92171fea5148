"""Whether an answer is the JSON that its job asked for."""

import json
from dataclasses import replace
from typing import Any

import pytest

from tests.support.blob_jobs import make_job
from worker.jobs.answers import check_answer
from worker.jobs.job import Job, Operation
from worker.jobs.outcomes import WarningCode

SCHEMA = {
    "type": "object",
    "properties": {"mood": {"enum": ["good", "bad"]}},
    "required": ["mood"],
    "additionalProperties": False,
}
BY_SCHEMA = {"type": "json_schema", "json_schema": {"name": "mood", "strict": True, "schema": SCHEMA}}


def chat(form: object) -> Job:
    job = make_job()
    return replace(job, line=replace(job.line, body=job.line.body | {"response_format": form}))


def responses(form: object) -> Job:
    job = make_job()
    line = replace(job.line, operation=Operation.RESPONSES, body={"model": "m", "text": {"format": form}})
    return replace(job, line=line)


def completion(*contents: str | None, finish: str = "stop", **message: Any) -> bytes:
    choices = [
        {"index": number, "finish_reason": finish, "message": {"content": content, **message}}
        for number, content in enumerate(contents)
    ]
    return json.dumps({"choices": choices}).encode()


def response(*parts: dict[str, Any], status: str = "completed") -> bytes:
    output = [{"type": "reasoning"}, {"type": "message", "content": list(parts)}]
    return json.dumps({"object": "response", "status": status, "output": output}).encode()


@pytest.mark.parametrize(
    ("body", "code", "told"),
    [
        (completion('{"mood": "good"}'), None, ""),
        (
            completion('{"mood": "good"}', '{"mood": "so"}'),
            "schema_mismatch",
            "choices[1]: $.mood is none of the 2",
        ),
        (
            completion('{"mood": "go', finish="length"),
            "invalid_json",
            "cut at its token limit, after 12 characters",
        ),
        (completion("Good!"), "invalid_json", "choices[0]: not JSON: "),
        (completion(None, refusal="I will not."), "invalid_json", "the model refused to answer: I will not."),
        (completion(None, tool_calls=[{}]), None, ""),
        (b'{"choices": "none"}', None, ""),
        (b"[]", None, ""),
    ],
)
def test_a_chat_s_answer_is_held_to_its_schema(body: bytes, code: str | None, told: str) -> None:
    warning = check_answer(chat(BY_SCHEMA), body)
    assert (warning.code if warning else None) == code
    assert told in (warning.message if warning else "")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (response({"type": "output_text", "text": '{"mood": "bad"}'}), None),
        (response({"type": "output_text", "text": '{"mood": 1}'}), WarningCode.SCHEMA_MISMATCH),
        (response({"type": "output_text", "text": '{"mo'}, status="incomplete"), WarningCode.INVALID_JSON),
        (response({"type": "refusal", "refusal": "No."}), WarningCode.INVALID_JSON),
        (response(), None),
    ],
)
def test_a_response_s_text_is_held_to_its_schema(body: bytes, code: WarningCode | None) -> None:
    warning = check_answer(responses({"type": "json_schema", "name": "mood", "schema": SCHEMA}), body)
    assert (warning.code if warning else None) == code


@pytest.mark.parametrize("form", [None, "json", {}, {"type": "text"}, [BY_SCHEMA], {"type": ["json_schema"]}])
def test_a_job_that_asks_for_no_json_gets_no_warning(form: object) -> None:
    assert check_answer(chat(form), completion("Good!")) is None
    assert check_answer(responses(form), response({"type": "output_text", "text": "Good!"})) is None


def test_any_object_is_what_json_object_asks_for() -> None:
    job = chat({"type": "json_object"})
    assert check_answer(job, completion('{"a": 1}')) is None
    warning = check_answer(job, completion("[1]"))
    assert warning is not None
    assert warning.message == "choices[0]: $ is array; it must be object"


def test_a_schema_that_is_missing_allows_any_json() -> None:
    for described in (None, {}, "x", {"schema": None}):
        assert check_answer(chat({"type": "json_schema", "json_schema": described}), completion("1")) is None
