"""What the result of a failed job says may help."""

import json
from typing import Any

import pytest

from worker.jobs.job import JobLine, Operation
from worker.jobs.outcomes import Answered, Failed, FailureCode, Refused, Response
from worker.jobs.suggestions import suggestion_for


def line(model: str = "gpt-5.4-mini", **body: Any) -> JobLine:
    return JobLine(custom_id="q", operation=Operation.CHAT_COMPLETIONS, model=model, body=body)


def refused(status: int, body: object) -> Refused:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Refused(response=Response(status=status, request_id=None, body=raw))


@pytest.mark.parametrize("code", FailureCode)
def test_each_failure_code_has_one(code: FailureCode) -> None:
    assert suggestion_for(line(), Failed(code=code, message=""))


def test_an_answer_has_none() -> None:
    assert suggestion_for(line(), Answered(response=Response(status=200, request_id=None, body=b"{}"))) is None


@pytest.mark.parametrize(
    ("given", "status", "error", "expected"),
    [
        ({"max_tokens": 5}, 400, {"param": "max_tokens"}, "use max_completion_tokens"),
        ({"temperature": 0.5}, 400, {"param": "temperature"}, "does not take temperature: leave it out"),
        ({}, 400, {"code": "content_filter", "param": "prompt"}, "content filter"),
        ({}, 400, {"code": "context_length_exceeded", "param": "messages"}, "shorten the prompt"),
        ({}, 404, {"code": "DeploymentNotFound"}, "--model-map"),
        (
            {},
            400,
            {"message": "Could not finish the message because max_tokens or model output limit was reached."},
            "allow more tokens",
        ),
        ({}, 503, {"code": "whatever"}, "aoai-worker retry"),
        ({}, 429, {}, "aoai-worker retry"),
    ],
)
def test_a_refusal_that_is_known_has_its_remedy(
    given: dict[str, Any], status: int, error: dict[str, Any], expected: str
) -> None:
    assert expected in (suggestion_for(line(**given), refused(status, {"error": error})) or "")


@pytest.mark.parametrize("body", [{"error": {"code": "new"}}, {"error": "text"}, {"detail": 1}, [], b"", b"<html>"])
def test_of_what_is_not_known_nothing_is_said(body: object) -> None:
    assert suggestion_for(line(), refused(400, body)) is None


def test_a_model_that_does_not_reason_is_not_told_to_reason_less() -> None:
    error = {"message": "Could not finish the message because max_tokens or model output limit was reached."}
    assert suggestion_for(line(model="plain"), refused(400, {"error": error})) is None
