"""What counts as an answer of Azure OpenAI, whatever stands in it."""

import json
import tracemalloc
from contextlib import suppress
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.json_values import json_values
from worker.azure.openai.answers import REFUSING_CODES, read_answer
from worker.azure.openai.refusals import Exchange
from worker.errors import CallFailed, RefusedByService, Throttled, Unavailable
from worker.interfaces import Target
from worker.jobs.job import JsonObject, Operation
from worker.jobs.outcomes import Usage
from worker.rate_limits import RateLimits, ThrottleKind

TARGET = Target(deployment="mini-1", endpoint="https://account.openai.azure.com")
ERROR = b'{"error":{"code":"x","message":"what was wrong"}}'


def exchange(**headers: str) -> Exchange:
    return Exchange(target=TARGET, headers={name.replace("_", "-"): value for name, value in headers.items()})


EXCHANGE = exchange()


def answer(**more: Any) -> bytes:
    return orjson.dumps({"choices": [{"message": {"content": "yes"}}]} | more)


def test_an_answer_is_kept_byte_for_byte_with_its_usage() -> None:
    usage = {"prompt_tokens": 10, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}
    body = answer(usage=usage)
    response = read_answer(Operation.CHAT_COMPLETIONS, body, exchange(x_request_id="req-1"))
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
        read_answer(Operation.CHAT_COMPLETIONS, body, EXCHANGE)
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
            read_answer(Operation.CHAT_COMPLETIONS, body, EXCHANGE)
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
    assert read_answer(Operation.CHAT_COMPLETIONS, body, EXCHANGE).usage == read


@given(json_values, json_values, json_values)
def test_whatever_the_usage_its_counts_are_whole_and_not_negative(
    prompt: Any, completion: Any, details: Any
) -> None:
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "prompt_tokens_details": details}
    read = read_answer(Operation.CHAT_COMPLETIONS, answer(usage=usage), EXCHANGE).usage
    assert read is not None
    assert all(type(count) is int and count >= 0 for count in (read.prompt, read.completion, read.cached))


@given(st.binary(max_size=80) | json_values.map(orjson.dumps))
def test_whatever_the_body_it_is_an_answer_or_unavailable(body: bytes) -> None:
    try:
        response = read_answer(Operation.CHAT_COMPLETIONS, body, EXCHANGE)
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
    assert read_answer(operation, body, EXCHANGE).body is body


@pytest.mark.parametrize("operation", list(Operation))
def test_an_answer_to_a_question_of_another_kind_is_none(operation: Operation) -> None:
    keys = set(GOOD[operation])
    for other in (GOOD[one] for one in Operation if set(GOOD[one]) != keys):
        with pytest.raises(Unavailable, match="is not a whole"):
            read_answer(operation, orjson.dumps(other), EXCHANGE)


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
        read_answer(operation, orjson.dumps(GOOD[operation] | changed), EXCHANGE)
    assert caught.value.detail.endswith(why)


def test_a_response_that_was_cut_is_an_answer() -> None:
    cut = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}, "output": []}
    assert read_answer(Operation.RESPONSES, orjson.dumps(cut), exchange(x_request_id="req-1")).request_id == "req-1"


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
    assert read_answer(operation, orjson.dumps(GOOD[operation] | {"usage": usage}), EXCHANGE).usage == read


@given(st.sampled_from(Operation), st.binary(max_size=80) | json_values.map(orjson.dumps))
def test_whatever_the_body_and_the_operation_it_is_an_answer_or_a_failed_call(
    operation: Operation, body: bytes
) -> None:
    with suppress(CallFailed):
        assert read_answer(operation, body, EXCHANGE).body


def failed(**error: Any) -> bytes:
    return orjson.dumps({"object": "response", "status": "failed", "error": error or None, "output": []})


@pytest.mark.parametrize("code", sorted(REFUSING_CODES))
def test_a_response_that_failed_for_what_was_asked_is_the_services_last_word(code: str) -> None:
    body = failed(code=code, message="private")
    with pytest.raises(RefusedByService) as caught:
        read_answer(Operation.RESPONSES, body, exchange(x_request_id="req-1"))
    assert (caught.value.status, caught.value.body, caught.value.request_id) == (200, body, "req-1")
    assert caught.value.detail == f"the response of mini-1 failed: {code}"


@pytest.mark.parametrize(
    "error",
    [
        {"code": "rate_limit_exceeded", "message": "Your requests to the deployment have exceeded rate limit."},
        {"code": None, "message": "Your requests have exceeded the token rate limit of your tier."},
        {"type": "too_many_requests", "message": "Wait."},
    ],
)
def test_a_response_that_failed_for_the_rate_limit_is_throttled(error: dict[str, Any]) -> None:
    with pytest.raises(Throttled) as caught:
        read_answer(Operation.RESPONSES, failed(**error), exchange(retry_after="7"))
    assert (caught.value.status, caught.value.retry_after, caught.value.kind) == (429, 7.0, ThrottleKind.QUOTA)


@pytest.mark.parametrize(
    "code", ["server_error", "vector_store_timeout", "failed_to_download_image", "new_code", 7]
)
def test_a_response_that_failed_for_what_may_pass_is_tried_again(code: object) -> None:
    with pytest.raises(Unavailable) as caught:
        read_answer(Operation.RESPONSES, failed(code=code, message="private"), EXCHANGE)
    assert caught.value.status is None
    assert "private" not in caught.value.detail


def test_a_response_that_failed_without_saying_why_is_tried_again() -> None:
    with pytest.raises(Unavailable, match="its status is failed"):
        read_answer(Operation.RESPONSES, failed(), EXCHANGE)


@pytest.mark.parametrize(
    "numbers", [b"[1,,2]", b"[1 2]", b"[-]", b"[0.1,]", b"[.5]", b"[1", b"1]", b"[1e]", b"[1,[2,3,,]]"]
)
def test_an_embedding_of_broken_numbers_is_none(numbers: bytes) -> None:
    whole = b'{"data":[{"embedding":[0.5,-1e-3],"index":0},{"embedding":%b,"index":1}]}'
    read_answer(Operation.EMBEDDINGS, whole % b"[ 1 , -2.5e+10 ]", EXCHANGE)
    with pytest.raises(Unavailable, match="not a whole list of embeddings"):
        read_answer(Operation.EMBEDDINGS, whole % numbers, EXCHANGE)


def test_the_numbers_of_embeddings_never_stand_in_memory_as_objects() -> None:
    numbers = orjson.dumps([n / 777_777 for n in range(1, 1_537)])
    one = b'{"object":"embedding","index":0,"embedding":%b}' % numbers
    body = b'{"object":"list","data":[%b],"usage":{"prompt_tokens":7}}' % b",".join([one] * 301)
    tracemalloc.start()
    try:
        response = read_answer(Operation.EMBEDDINGS, body, EXCHANGE)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert response.body is body
    assert response.usage == Usage(prompt=7)
    assert peak < len(body) / 10


@given(json_values)
def test_an_answer_of_embeddings_is_whole_exactly_if_it_is_when_parsed(value: object) -> None:
    body = json.dumps({"data": value, "model": "a [1,,2] b [3]"}).encode()
    is_whole = isinstance(value, list) and bool(value)
    try:
        read_answer(Operation.EMBEDDINGS, body, EXCHANGE)
    except Unavailable:
        assert not is_whole
    else:
        assert is_whole


def test_an_answer_tells_what_is_left_of_the_quota() -> None:
    headers = {"x_ratelimit_limit_tokens": "1000", "x_ratelimit_remaining_tokens": "900"}
    assert read_answer(Operation.CHAT_COMPLETIONS, answer(), exchange(**headers)).rate_limits == RateLimits(
        limit_tokens=1_000, remaining_tokens=900
    )
    assert read_answer(Operation.CHAT_COMPLETIONS, answer(), EXCHANGE).rate_limits is None


@pytest.mark.parametrize(
    ("body", "seen"),
    [
        (b"<!DOCTYPE html><title>Sign in</title>", "; it begins with b'<!DOCTYPE html><title>Sign in</title>'"),
        (b"\r\n <html>", "; it begins with b'\\r\\n <html>'"),
        (b"data: private", "(char 0)"),
        (b"private", "(char 0)"),
        (b'{"choices":[{"logprob":NaN}]}', "(char 23)"),
    ],
)
def test_only_a_page_of_a_proxy_is_quoted(body: bytes, seen: str) -> None:
    with pytest.raises(Unavailable) as caught:
        read_answer(Operation.CHAT_COMPLETIONS, body, EXCHANGE)
    assert caught.value.detail.endswith(seen)
    assert "private" not in caught.value.detail
