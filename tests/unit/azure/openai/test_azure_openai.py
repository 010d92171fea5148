"""What is sent to Azure OpenAI."""

import tracemalloc
from typing import Any

import pytest

from worker.azure.openai.model import encode_request, request_body
from worker.errors import AnswerTooLarge, NotAJob
from worker.flow.caller import last_word
from worker.flow.retry import JobProgress
from worker.interfaces import Target
from worker.jobs.job import Job, JobLine, JsonObject, Operation, parse_line
from worker.jobs.outcomes import Failed, FailureCode

TARGET = Target(deployment="mini-1", endpoint="https://account.openai.azure.com")


def sent(operation: Operation, *, responses_store: bool = False, **body: Any) -> JsonObject:
    line = JobLine(custom_id="a", operation=operation, model="mini", body={"model": "mini", **body})
    job = Job(id="b/a", batch_id="b", queue="jobs", line=line, enqueued_at=0.0, deadline=60.0)
    return request_body(job, TARGET, responses_store=responses_store)


@pytest.mark.parametrize(
    ("body", "responses_store", "store"),
    [
        ({}, False, False),
        ({"store": None}, False, False),
        ({"store": True}, False, True),
        ({"store": False}, False, False),
        ({}, True, ...),
        ({"store": None}, True, None),
        ({"store": False}, True, False),
    ],
)
def test_a_response_is_kept_by_the_service_only_where_the_job_or_the_setting_says_so(
    body: JsonObject, responses_store: bool, store: object
) -> None:
    body = sent(Operation.RESPONSES, responses_store=responses_store, input="Is it?", **body)
    assert body.get("store", ...) is store


@pytest.mark.parametrize("operation", [one for one in Operation if one is not Operation.RESPONSES])
def test_only_responses_are_told_whether_to_be_kept(operation: Operation) -> None:
    assert sent(operation, user="x") == {"model": "mini-1", "user": "x"}
    assert sent(operation, store=True)["store"] is True


STREAMED = [Operation.CHAT_COMPLETIONS, Operation.COMPLETIONS, Operation.RESPONSES]


@pytest.mark.parametrize("operation", list(Operation))
def test_nothing_in_the_background_is_asked_for(operation: Operation) -> None:
    assert sent(operation, background=True, user="x").keys() - {"store"} == {"model", "user"}


@pytest.mark.parametrize("operation", STREAMED)
def test_a_stream_is_asked_for_with_its_usage(operation: Operation) -> None:
    wanted: JsonObject = {"include_obfuscation": False}
    if operation is not Operation.RESPONSES:
        wanted["include_usage"] = True
    body = sent(operation, stream=True, stream_options={"include_obfuscation": False})
    assert (body["stream"], body["stream_options"]) == (True, wanted)


def test_the_usage_is_asked_for_even_where_a_job_does_not_want_it() -> None:
    wanted = {"include_usage": True}
    for options in (None, "x", {}, {"include_usage": False}):
        assert sent(Operation.CHAT_COMPLETIONS, stream=True, stream_options=options)["stream_options"] == wanted
    assert sent(Operation.CHAT_COMPLETIONS, stream=True)["stream_options"] == wanted
    assert "stream_options" not in sent(Operation.RESPONSES, stream=True)
    assert "stream_options" not in sent(Operation.RESPONSES, stream=True, stream_options=None)


@pytest.mark.parametrize("stream", [False, None, "true", 1, {}])
def test_what_does_not_ask_for_a_stream_gets_none(stream: object) -> None:
    body = sent(Operation.CHAT_COMPLETIONS, stream=stream, stream_options={"include_usage": True}, user="x")
    assert body == {"model": "mini-1", "user": "x"}


def test_embeddings_cannot_be_streamed() -> None:
    assert sent(Operation.EMBEDDINGS, stream=True, stream_options={}, input="x") == {
        "model": "mini-1",
        "input": "x",
    }


@pytest.mark.parametrize(
    "line",
    [b'{"temperature":NaN}', b'{"temperature":Infinity}', b'{"temperature":1e999}', b'{"seed":%b}' % (b"9" * 400)],
)
def test_a_number_that_json_does_not_know_never_reaches_the_service(line: bytes) -> None:
    message = b'{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{"model":"m",%b}' % line[1:]
    with pytest.raises(NotAJob, match=r"the body of \d+ bytes is not JSON in UTF-8: .* Send one line of a Batch"):
        parse_line(message + b"}")


def test_an_answer_that_is_too_large_to_be_taken_in_is_an_error_of_its_own() -> None:
    concluded = last_word(
        AnswerTooLarge("the answer has more than the 65,536 bytes that are taken in"), JobProgress()
    )
    assert concluded == Failed(
        code=FailureCode.ANSWER_TOO_LARGE, message="the answer has more than the 65,536 bytes that are taken in"
    )


@pytest.mark.parametrize("letters", [1_999, 25_000, 300_001, 2_500_000])
def test_a_request_holds_no_more_memory_than_its_bytes(letters: int) -> None:
    """It is held until its answer has come, a thousand at once."""
    body = {"messages": [{"role": "user", "content": "x" * letters}]}
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        request = encode_request(body)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < len(request) + 500
