"""What the refusals of Azure OpenAI mean, whatever stands in them."""

import json
import string
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.json_values import json_values, texts
from worker.azure.openai.refusals import (
    LONGEST_WAIT,
    MAX_ERROR_TEXT,
    Exchange,
    classify,
    classify_within,
    plain_headers,
    read_headroom,
    retry_after,
)
from worker.errors import CallFailed, RefusedByService, SetupWrong, Throttled, Unavailable
from worker.interfaces import Target
from worker.jobs.job import JsonObject
from worker.rate_limits import RateLimits, ThrottleKind

TARGET = Target(deployment="mini-1", endpoint="https://account.openai.azure.com")
ERROR = b'{"error":{"code":"x","message":"what was wrong"}}'


def failure(
    status: int, body: bytes = ERROR, *, passthrough: bool = False, at: Target = TARGET, **headers: str
) -> CallFailed:
    return classify(status, body, Exchange(target=at, headers=named(headers), passthrough=passthrough))


def named(headers: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (302, SetupWrong),
        (307, SetupWrong),
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


TOKEN = b"eyJhbGciOiJSUzI1NiIsImtpZCI6IjEifQ.eyJhdWQiOiJodHRwczovL2F6dXJlIn0.c2lnbmF0dXJl-_"


@pytest.mark.parametrize(
    "body",
    [
        b'{"error":{"code":"x","message":"refused: authorization=Bearer %b"}}' % TOKEN,
        b'{"error":{"code":"x","message":"no","request":{"headers":{"Authorization":"bearer %b"}}}}' % TOKEN,
        b"<html>GET / Authorization: Bearer an-opaque-token-of-a-gateway</html>",
    ],
)
def test_a_token_that_the_service_echoes_never_reaches_the_result_or_the_log(body: bytes) -> None:
    error = failure(400, body)
    for said in (error.body.decode(), error.detail):
        assert "eyJ" not in said
        assert "opaque" not in said
    assert b"[redacted]" in error.body
    json.loads(error.body)


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


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (403, {"code": "403", "message": "Access denied due to Virtual Network/Firewall rules."}, SetupWrong),
        (403, {"code": "PermissionDenied", "message": "The principal lacks the required data action"}, SetupWrong),
        (403, {"code": "x", "message": "Your resource has been temporarily blocked"}, SetupWrong),
        (403, {"code": "content_filter", "message": "no"}, RefusedByService),
        (403, {"code": "x", "message": "Outbound network access is restricted. The hostname"}, RefusedByService),
        (403, {"code": "x", "param": "tools[0].server_url", "message": "no"}, RefusedByService),
        (403, {"code": "x", "param": "model", "message": "no"}, SetupWrong),
        (404, {"code": "DeploymentNotFound", "message": "The API deployment does not exist."}, SetupWrong),
        (404, {"code": "model_not_found", "param": "model", "message": "no"}, SetupWrong),
        (404, {"code": "404", "param": None, "message": "Resource not found"}, SetupWrong),
        (404, {"code": "x", "param": "previous_response_id", "message": "not found"}, RefusedByService),
        (401, {"code": "x", "param": "input", "message": "no"}, SetupWrong),
    ],
)
def test_a_403_or_404_is_our_set_up_unless_it_names_what_the_job_asked_for(
    status: int, error: JsonObject, kind: type[CallFailed]
) -> None:
    assert type(failure(status, orjson.dumps({"error": error}))) is kind


def test_an_error_without_its_envelope_is_read_too() -> None:
    said = b'{"code":"429","message":"The system is currently experiencing high demand."}'
    error = failure(429, said)
    assert isinstance(error, Throttled)
    assert error.kind is ThrottleKind.CAPACITY
    assert error.detail.endswith(": The system is currently experiencing high demand.")


@pytest.mark.parametrize("status", [400, 403, 429])
@pytest.mark.parametrize("field", [b"message", b"code", b"param"])
def test_hostile_nesting_in_an_error_costs_no_recursion(status: int, field: bytes) -> None:
    deep = b"[" * 1_010 + b"]" * 1_010
    assert failure(status, b'{"error":{"%b":%b}}' % (field, deep)).status == status


# Throttles


QUOTA = (
    "Requests to the ChatCompletions_Create Operation under Azure OpenAI API version 2024-10-21 have exceeded "
    "token rate limit of your current OpenAI S0 pricing tier. Please retry after 7 seconds."
)
QUOTA_NOW = (
    "Your requests to mini-1 for gpt-5.4-mini in Sweden Central have exceeded the token rate limit for your "
    "current AIServices S0 pricing tier. This request was for ChatCompletions_Create under Azure OpenAI API "
    "version v1. Please retry after 3 seconds. To increase your default rate limit, visit: https://aka.ms/oai/quotaincrease."
)
PEAK = (
    "The system is currently experiencing high demand and cannot process your request. Your request exceeds the "
    "maximum usage size allowed during peak load. Please retry after 6 seconds. For improved latency reliability, "
    "consider switching to Provisioned Throughput."
)
GIVEN = Target(
    deployment="mini-1", endpoint="https://one.openai.azure.com", tokens_per_minute=1_000, requests_per_minute=6
)


def throttle(
    message: str, code: str = "429", headers: dict[str, str] | None = None, *, at: Target = GIVEN
) -> Throttled:
    body = orjson.dumps({"error": {"code": code, "message": message}})
    error = classify(429, body, Exchange(target=at, headers=named(headers or {})))
    assert isinstance(error, Throttled)
    return error


@pytest.mark.parametrize(
    ("message", "code", "headers", "kind"),
    [
        (QUOTA, "429", {}, ThrottleKind.QUOTA),
        (QUOTA, "RateLimitReached", {"x_ratelimit_limit_tokens": "1000"}, ThrottleKind.QUOTA),
        (QUOTA_NOW, "RateLimitReached", {"x_ratelimit_limit_tokens": "1000"}, ThrottleKind.QUOTA),
        (QUOTA_NOW, "RateLimitReached", {"x_ratelimit_limit_tokens": "600"}, ThrottleKind.CUT),
        ("Rate limit is exceeded. Try again in 60 seconds.", "429", {}, ThrottleKind.QUOTA),
        ("", "429", {}, ThrottleKind.QUOTA),
        (PEAK, "429", {}, ThrottleKind.CAPACITY),
        (PEAK, "429", {"azure_openai_deployment_utilization": "80"}, ThrottleKind.CAPACITY),
        ("The service is temporarily unable to process your request.", "429", {}, ThrottleKind.CAPACITY),
        ("No.", "NoCapacity", {}, ThrottleKind.CAPACITY),
        ("No.", "no_capacity", {}, ThrottleKind.CAPACITY),
        ("No.", "429", {"azure_openai_deployment_utilization": "101.5%"}, ThrottleKind.PROVISIONED),
        (QUOTA, "429", {"x_ratelimit_limit_tokens": "600"}, ThrottleKind.CUT),
        (QUOTA, "429", {"x_ratelimit_limit_requests": "5"}, ThrottleKind.CUT),
        (QUOTA, "429", {"x_ratelimit_limit_tokens": "-1", "x_ratelimit_limit_requests": "0"}, ThrottleKind.QUOTA),
    ],
)
def test_the_kinds_of_429_are_told_apart(
    message: str, code: str, headers: dict[str, str], kind: ThrottleKind
) -> None:
    assert throttle(message, code, headers).kind is kind


def test_a_cut_is_known_only_where_the_configuration_says_what_was_given() -> None:
    assert throttle(QUOTA, "429", {"x_ratelimit_limit_tokens": "600"}, at=TARGET).kind is ThrottleKind.QUOTA


def test_a_throttles_kind_is_its_own_and_not_its_classs() -> None:
    assert throttle(PEAK).kind is ThrottleKind.CAPACITY
    assert Throttled("plain").kind is ThrottleKind.QUOTA


# Errors within a 200


@pytest.mark.parametrize(
    ("error", "kind", "status"),
    [
        ({"code": "rate_limit_exceeded", "type": "too_many_requests"}, Throttled, 429),
        ({"code": None, "type": "too_many_requests"}, Throttled, 429),
        ({"code": 429}, Throttled, 429),
        ({"message": "Your requests have exceeded the call rate limit."}, Throttled, 429),
        ({"code": "content_filter"}, RefusedByService, 400),
        ({"code": "x", "type": "invalid_request_error"}, RefusedByService, 400),
        ({"status": 413, "code": "rate_limit_exceeded"}, RefusedByService, 413),
        ({"code": "server_error"}, Unavailable, 500),
        ({"code": "503"}, Unavailable, 503),
        ({"code": "200"}, Unavailable, 500),
        ({"code": "403"}, SetupWrong, 403),
        ({"code": "\u0664\u0662\u0669"}, Unavailable, 500),
        ({}, Unavailable, 500),
    ],
)
def test_an_error_within_a_200_means_what_its_status_would(
    error: JsonObject, kind: type[CallFailed], status: int
) -> None:
    failed = classify_within(error, Exchange(target=TARGET, headers={"retry-after": "3"}))
    assert type(failed) is kind
    assert (failed.status, failed.retry_after) == (status, 3.0)
    assert json.loads(failed.body) == {"error": error}


@given(
    st.dictionaries(texts, json_values, max_size=4)
    | st.fixed_dictionaries({"code": json_values, "type": json_values})
)
def test_whatever_the_error_within_a_200_it_is_a_failed_call(error: JsonObject) -> None:
    assert isinstance(classify_within(error, Exchange(target=TARGET, headers={})), CallFailed)


# RateLimits


COUNTS = {
    "x-ratelimit-limit-tokens": "1000",
    "x-ratelimit-remaining-tokens": "900",
    "x-ratelimit-limit-requests": "6",
    "x-ratelimit-remaining-requests": "5",
}


def test_the_headroom_is_what_the_headers_say() -> None:
    assert read_headroom(COUNTS) == RateLimits(
        limit_tokens=1_000, remaining_tokens=900, limit_requests=6, remaining_requests=5
    )
    assert read_headroom({"azure-openai-deployment-utilization": "87.5"}) == RateLimits(utilisation=0.875)
    assert failure(429, x_ratelimit_remaining_tokens="0").rate_limits == RateLimits(remaining_tokens=0)


@pytest.mark.parametrize("nothing", ["-1", "", "many", "1.5", "1e9", "\u0661", "\xb2", "9" * 400])
def test_a_count_that_is_none_is_unknown(nothing: str) -> None:
    assert read_headroom(dict.fromkeys(COUNTS, nothing), throttled=True) is None
    assert read_headroom(COUNTS | {"x-ratelimit-remaining-tokens": nothing}) == RateLimits(
        limit_tokens=1_000, limit_requests=6, remaining_requests=5
    )


def test_a_remainder_of_0_means_something_only_under_a_429() -> None:
    zeroes = dict.fromkeys(COUNTS, "0")
    assert read_headroom(zeroes) is None
    assert read_headroom(zeroes, throttled=True) == RateLimits(remaining_tokens=0, remaining_requests=0)


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("0", 0.0),
        ("100", 1.0),
        ("104.2", 1.042),
        (" 50% ", 0.5),
        ("-1", None),
        ("nan", None),
        ("inf", None),
        ("x", None),
    ],
)
def test_a_utilisation_is_percent_or_unknown(text: str, share: float | None) -> None:
    rate_limits = read_headroom({"azure-openai-deployment-utilization": text})
    assert (rate_limits and rate_limits.utilisation) == (None if share is None else pytest.approx(share))


@given(st.dictionaries(st.sampled_from([*COUNTS, "azure-openai-deployment-utilization"]), st.text(max_size=20)))
def test_whatever_the_headers_the_headroom_is_counts_or_none(headers: dict[str, str]) -> None:
    rate_limits = read_headroom(headers, throttled=True)
    if rate_limits is not None:
        counts = (rate_limits.limit_tokens, rate_limits.remaining_tokens, rate_limits.limit_requests)
        assert all(count is None or count >= 0 for count in counts)


def test_headers_are_found_by_their_lower_case_names() -> None:
    assert plain_headers([(b"X-Request-Id", b"a"), (b"Retry-After", b"1"), (b"retry-after", b"2\xe9")]) == {
        "x-request-id": "a",
        "retry-after": "2\u00e9",
    }


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
    seconds = retry_after(headers, 1_795_000_000.0)
    assert seconds is None or 0 < seconds <= LONGEST_WAIT
