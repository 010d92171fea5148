"""What the answers and refusals of Azure OpenAI mean, whatever stands in them."""

import json
import string
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.bench import EPOCH, target
from worker.azure_openai import LONGEST_WAIT, MAX_ERROR_TEXT, classify, read_answer, request_body, retry_after
from worker.errors import CallFailed, RefusedByService, SetupWrong, Throttled, Unavailable
from worker.jobs import Job, JobLine, JsonObject, Operation
from worker.outcomes import Usage

TARGET = target("mini-1")
ERROR = b'{"error":{"code":"x","message":"what was wrong"}}'

texts = st.text(st.characters(exclude_categories=["Cs"]))
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


def failure(status: int, body: bytes = ERROR, *, passthrough: bool = False, **headers: str) -> CallFailed:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return classify(status, named, body, target=TARGET, passthrough=passthrough)


def answer(**more: Any) -> bytes:
    return orjson.dumps({"choices": [{"message": {"content": "yes"}}]} | more)


# Refusals


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, RefusedByService),
        (401, SetupWrong),
        (402, RefusedByService),
        (403, SetupWrong),
        (404, SetupWrong),
        (405, RefusedByService),
        (408, Unavailable),
        (409, Unavailable),
        (413, RefusedByService),
        (415, RefusedByService),
        (422, RefusedByService),
        (424, Unavailable),
        (429, Throttled),
        (451, RefusedByService),
        (500, Unavailable),
        (502, Unavailable),
        (503, Unavailable),
        (504, Unavailable),
        (529, Unavailable),
        (599, Unavailable),
    ],
)
def test_a_status_means_what_the_table_of_the_design_says(status: int, kind: type[CallFailed]) -> None:
    assert type(failure(status)) is kind


@pytest.mark.parametrize("status", [400, 401, 403, 408, 429, 500])
def test_passing_models_through_changes_the_meaning_of_no_other_status(status: int) -> None:
    assert type(failure(status, passthrough=True)) is type(failure(status))


def test_a_deployment_that_a_producer_named_wrongly_is_the_jobs_fault() -> None:
    assert type(failure(404, passthrough=True)) is RefusedByService


def test_a_failure_tells_who_said_what() -> None:
    error = failure(400, x_request_id="req-1")
    assert error.detail == "400 from mini-1 at https://account.openai.azure.com: what was wrong"
    assert (error.status, error.request_id, error.body) == (400, "req-1", ERROR)
    assert str(error) == error.detail


def test_the_gateways_request_id_will_do() -> None:
    assert failure(400, apim_request_id="apim-1").request_id == "apim-1"
    assert failure(400, x_request_id="req-1", apim_request_id="apim-1").request_id == "req-1"
    assert failure(400).request_id is None


def test_a_failure_carries_the_wait_that_the_service_asked_for() -> None:
    assert failure(429, retry_after="7").retry_after == 7.0
    assert failure(503, retry_after_ms="250").retry_after == 0.25
    assert failure(429).retry_after is None


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>Bad Gateway</html>", b"\xff\xfe", b"{", b'"\\ud800"', b"[" * 5_000, b"no\nJSON\r\nat all"],
)
def test_an_error_that_is_not_json_becomes_the_message_of_an_error_object(body: bytes) -> None:
    said = failure(502, body).body
    document = json.loads(said)
    assert document["error"]["code"] == "502"
    assert document["error"]["message"] == body[:MAX_ERROR_TEXT].decode(errors="replace")
    assert len(said.splitlines()) == 1


def test_a_proxys_long_page_is_kept_by_its_beginning() -> None:
    assert len(json.loads(failure(502, b"<" * 100_000).body)["error"]["message"]) == MAX_ERROR_TEXT


@given(st.integers(400, 599), st.binary(max_size=60) | json_values.map(orjson.dumps))
def test_whatever_the_body_a_failure_is_one_line_of_json_and_a_short_detail(status: int, body: bytes) -> None:
    error = failure(status, body)
    orjson.loads(error.body)
    assert len(error.body.splitlines()) == 1
    assert len(error.detail) < 500


@given(st.dictionaries(texts, json_values, max_size=3), st.sampled_from([b"\n", b"\r\n", b"\r"]))
def test_a_pretty_printed_error_becomes_one_line(document: dict[str, Any], newline: bytes) -> None:
    printed = json.dumps(document, indent=1).encode().replace(b"\n", newline)
    said = failure(400, printed).body
    assert json.loads(said) == document
    assert len(said.splitlines()) <= 1


@pytest.mark.parametrize(
    "body",
    [b"[]", b"5", b"null", b'"text"', b"{}", b'{"error":null}', b'{"error":"text"}', b'{"error":{"message":null}}'],
)
def test_an_error_of_another_form_is_kept_as_it_is(body: bytes) -> None:
    error = failure(400, body)
    assert error.body == body
    assert error.detail.startswith("400 from mini-1")


# The wait asked for


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": " 7 "}, 7.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after": "0"}, None),
        ({"retry-after": "0.0"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "1e300"}, None),
        ({"retry-after": "86400"}, 86_400.0),
        ({"retry-after": "86401"}, None),
        ({"retry-after": "999999999"}, None),
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after-ms": "0.5"}, 0.0005),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"retry-after-ms": "0", "retry-after": "7"}, 7.0),
        ({"retry-after-ms": "-1", "retry-after": "7"}, 7.0),
        ({"retry-after-ms": "soon", "retry-after": "7"}, 7.0),
        ({"retry-after-ms": "1e300", "retry-after": "7"}, 7.0),
        ({"retry-after-ms": "250", "retry-after": "soon"}, 0.25),
        ({"retry-after": "Wed, 18 Nov 2026 11:07:00 GMT"}, 420.0),
        ({"retry-after": "Wed, 18 Nov 2026 11:07:00 -0000"}, 420.0),
        ({"retry-after": "Wed, 18 Nov 2026 12:07:00 +0100"}, 420.0),
        ({"retry-after": "Wed, 18 Nov 2026 10:59:59 GMT"}, None),
        ({"retry-after": "Wed, 18 Nov 2015 11:07:00 GMT"}, None),
        ({"retry-after": "Fri, 31 Dec 9999 23:59:59 GMT"}, None),
        ({"retry-after": "Wed, 38 Nov 2026 11:07:00 GMT"}, None),
        ({"retry-after": "Wed, 18 Nov 99999 11:07:00 GMT"}, None),
        ({"retry-after": "Wed, 18 Nov 99999999999999999999 11:07:00 GMT"}, None),
    ],
)
def test_the_wait_asked_for_is_read_or_known_for_nonsense(headers: dict[str, str], seconds: float | None) -> None:
    now = datetime(2026, 11, 18, 11, tzinfo=UTC).timestamp()
    assert retry_after(headers, now) == (None if seconds is None else pytest.approx(seconds))


header_values = (
    st.text(string.printable, max_size=40)
    | st.floats().map(str)
    | st.datetimes(timezones=st.just(UTC)).map(lambda moment: format_datetime(moment, usegmt=True))
)


@given(st.dictionaries(st.sampled_from(["retry-after", "retry-after-ms"]), header_values))
def test_whatever_the_headers_the_wait_is_bounded_or_none(headers: dict[str, str]) -> None:
    seconds = retry_after(headers, EPOCH)
    assert seconds is None or 0 < seconds <= LONGEST_WAIT


# Answers


def test_an_answer_is_kept_byte_for_byte_with_its_usage() -> None:
    usage = {"prompt_tokens": 10, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}
    body = answer(usage=usage)
    response = read_answer(Operation.CHAT_COMPLETIONS, body, "req-1")
    assert response.body is body
    assert (response.status, response.request_id) == (200, "req-1")
    assert response.usage == Usage(prompt=10, completion=2, cached=4)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "zero-length"),
        (b"{", "line 1 column"),
        (answer()[:-3], "line 1 column"),
        (b"\xff" + answer(), "UTF-8"),
        (b"[]", "it is no object"),
        (b"null", "it is no object"),
        (b"{}", "it has no choices"),
        (b'{"choices":null}', "it has no choices"),
        (b'{"choices":[]}', "it has no choices"),
        (b'{"choices":"yes"}', "it has no choices"),
        (b'{"choices":{"0":1}}', "it has no choices"),
        (ERROR, "it has no choices"),
        (b"<html>Sign in to the proxy</html>", "it begins with b'<html>Sign in"),
    ],
)
def test_what_is_not_a_whole_answer_is_another_attempts_business(body: bytes, why: str) -> None:
    with pytest.raises(Unavailable) as caught:
        read_answer(Operation.CHAT_COMPLETIONS, body, None)
    assert caught.value.detail.startswith(f"the answer of {len(body):,} bytes is not a whole chat completion: ")
    assert why in caught.value.detail
    assert caught.value.status is None


def test_a_broken_answer_is_not_quoted_as_it_would_reach_the_log() -> None:
    for body in (
        b'{"choices":[{"message":{"content":"private',
        b' {"text":"private"}',
        b'{"choices":[],"x":"private"}',
    ):
        with pytest.raises(Unavailable) as caught:
            read_answer(Operation.CHAT_COMPLETIONS, body, None)
        assert "private" not in caught.value.detail


@pytest.mark.parametrize(
    ("usage", "read"),
    [
        (None, None),
        ("many", None),
        ([1, 2], None),
        (7, None),
        ({}, Usage()),
        ({"prompt_tokens": "10", "completion_tokens": None}, Usage()),
        ({"prompt_tokens": -1, "completion_tokens": 2}, Usage(completion=2)),
        ({"prompt_tokens": 1.5, "completion_tokens": True}, Usage()),
        ({"prompt_tokens": {}, "completion_tokens": []}, Usage()),
        ({"prompt_tokens": 10**30, "completion_tokens": 2}, Usage(completion=2)),
        ({"prompt_tokens": 10, "prompt_tokens_details": "none"}, Usage(prompt=10)),
        ({"prompt_tokens": 10, "prompt_tokens_details": [1]}, Usage(prompt=10)),
        ({"prompt_tokens": 10, "prompt_tokens_details": {"cached_tokens": "4"}}, Usage(prompt=10)),
        ({"prompt_tokens": 10, "prompt_tokens_details": {"cached_tokens": -4}}, Usage(prompt=10)),
    ],
)
def test_a_count_that_is_none_does_not_cost_the_answer(usage: Any, read: Usage | None) -> None:
    body = json.dumps({"choices": [1], "usage": usage}).encode()
    assert read_answer(Operation.CHAT_COMPLETIONS, body, None).usage == read


@given(json_values, json_values, json_values)
def test_whatever_the_usage_its_counts_are_whole_and_not_negative(
    prompt: Any, completion: Any, details: Any
) -> None:
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "prompt_tokens_details": details}
    read = read_answer(Operation.CHAT_COMPLETIONS, answer(usage=usage), None).usage
    assert read is not None
    assert all(type(count) is int and count >= 0 for count in (read.prompt, read.completion, read.cached))


@given(st.binary(max_size=80) | json_values.map(orjson.dumps))
def test_whatever_the_body_it_is_an_answer_or_unavailable(body: bytes) -> None:
    try:
        response = read_answer(Operation.CHAT_COMPLETIONS, body, None)
    except Unavailable:
        return
    assert orjson.loads(response.body)["choices"]


GOOD: dict[Operation, JsonObject] = {
    Operation.CHAT_COMPLETIONS: {"choices": [{"message": {"content": "yes"}}]},
    Operation.RESPONSES: {"object": "response", "status": "completed", "output": [{"type": "message"}]},
    Operation.EMBEDDINGS: {"object": "list", "data": [{"embedding": [0.6, 0.8]}]},
    Operation.COMPLETIONS: {"choices": [{"text": "yes"}]},
}


@pytest.mark.parametrize("operation", list(Operation))
def test_each_operations_own_answer_is_whole(operation: Operation) -> None:
    body = orjson.dumps(GOOD[operation])
    assert read_answer(operation, body, None).body is body


@pytest.mark.parametrize("operation", list(Operation))
def test_an_answer_to_a_question_of_another_kind_is_none(operation: Operation) -> None:
    keys = set(GOOD[operation])
    for other in (GOOD[one] for one in Operation if set(GOOD[one]) != keys):
        with pytest.raises(Unavailable, match="is not a whole"):
            read_answer(operation, orjson.dumps(other), None)


@pytest.mark.parametrize(
    ("operation", "changed", "why"),
    [
        (Operation.RESPONSES, {"status": None}, "not a whole response: its status is none that is known"),
        (Operation.RESPONSES, {"status": "in_progress"}, "its status is in_progress"),
        (Operation.RESPONSES, {"status": "queued"}, "its status is queued"),
        (Operation.RESPONSES, {"status": ["completed"]}, "its status is none that is known"),
        (Operation.RESPONSES, {"status": "what was said"}, "its status is none that is known"),
        (Operation.RESPONSES, {"status": "failed"}, "its status is failed"),
        (
            Operation.RESPONSES,
            {"status": "failed", "error": {"code": "server_error", "message": "private"}},
            "its status is failed, its error's code server_error",
        ),
        (
            Operation.RESPONSES,
            {"status": "failed", "error": {"code": "a private thing"}},
            "its status is failed, its error's code none that is known",
        ),
        (Operation.RESPONSES, {"output": None}, "it has no output"),
        (Operation.RESPONSES, {"output": "yes"}, "it has no output"),
        (Operation.EMBEDDINGS, {"data": []}, "not a whole list of embeddings: it has no data"),
        (Operation.EMBEDDINGS, {"data": {"0": 1}}, "it has no data"),
        (Operation.COMPLETIONS, {"choices": []}, "not a whole completion: it has no choices"),
    ],
)
def test_what_an_operations_answer_lacks_is_told(operation: Operation, changed: JsonObject, why: str) -> None:
    with pytest.raises(Unavailable) as caught:
        read_answer(operation, orjson.dumps(GOOD[operation] | changed), None)
    assert caught.value.detail.endswith(why)


def test_a_response_that_was_cut_is_an_answer() -> None:
    cut = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}, "output": []}
    assert read_answer(Operation.RESPONSES, orjson.dumps(cut), "req-1").request_id == "req-1"


@pytest.mark.parametrize(
    ("operation", "usage", "read"),
    [
        (
            Operation.RESPONSES,
            {"input_tokens": 10, "output_tokens": 2, "input_tokens_details": {"cached_tokens": 4}},
            Usage(prompt=10, completion=2, cached=4),
        ),
        (Operation.RESPONSES, {"prompt_tokens": 10, "completion_tokens": 2}, Usage()),
        (Operation.EMBEDDINGS, {"prompt_tokens": 10, "total_tokens": 10}, Usage(prompt=10)),
        (Operation.COMPLETIONS, {"prompt_tokens": 10, "completion_tokens": 2}, Usage(prompt=10, completion=2)),
    ],
)
def test_the_usage_is_read_by_each_operations_own_names(operation: Operation, usage: Any, read: Usage) -> None:
    assert read_answer(operation, orjson.dumps(GOOD[operation] | {"usage": usage}), None).usage == read


@given(st.sampled_from(Operation), st.binary(max_size=80) | json_values.map(orjson.dumps))
def test_whatever_the_body_and_the_operation_it_is_an_answer_or_unavailable(
    operation: Operation, body: bytes
) -> None:
    with suppress(Unavailable):
        assert read_answer(operation, body, None).body


# What is sent


def sent(operation: Operation, *, responses_store: bool = False, **body: Any) -> JsonObject:
    line = JobLine(custom_id="a", operation=operation, model="mini", body={"model": "mini", **body})
    job = Job(id="b/a", batch_id="b", queue="jobs", line=line, enqueued_at=EPOCH, deadline=EPOCH + 60)
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


@pytest.mark.parametrize("operation", list(Operation))
def test_no_stream_and_nothing_in_the_background_is_asked_for(operation: Operation) -> None:
    body = sent(operation, stream=True, stream_options={"include_usage": True}, background=True, user="x")
    assert body.keys() - {"store"} == {"model", "user"}
