"""The job and its result on the wire: what is read, what is refused and how; nothing changes on the way."""

import json
import string
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.azure.openai.answers import read_answer
from worker.azure.openai.refusals import Exchange
from worker.errors import DeadLetterReason, NotAJob
from worker.interfaces import Target
from worker.jobs.batch_records import Manifest, decode_manifest, encode_manifest, manifest_id
from worker.jobs.job import (
    BATCH_ID,
    MAX_ID_LENGTH,
    MAX_NESTING,
    UNBATCHED,
    Envelope,
    Job,
    JobLine,
    Operation,
    decode,
    make_job_id,
    parse_line,
    rfc3339,
)
from worker.jobs.outcomes import Answered, Failed, FailureCode, Refused, Response, Usage
from worker.jobs.results import Record, decode_result, encode_result, result_id

DAY = 86_400.0
ENQUEUED = 1_800_000_000.0

custom_ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=300)
batch_ids = st.from_regex(BATCH_ID, fullmatch=True)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=10,
)
json_objects = st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), json_values, max_size=4)


def line_of(**changes: Any) -> bytes:
    """A good line with fields changed; a value of `...` takes the field away."""
    line: dict[str, Any] = {
        "custom_id": "a",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "gpt-5.4-mini", "messages": [{"role": "user", "content": "Is it?"}]},
    }
    line |= changes
    return json.dumps({name: value for name, value in line.items() if value is not ...}).encode()


def envelope_of(
    body: bytes | None = None,
    *,
    message_id: str | None = "b1/a",
    correlation_id: str | None = "b1",
    properties: Mapping[str, object] | None = None,
) -> Envelope:
    return Envelope(
        body=line_of() if body is None else body,
        queue="jobs",
        sequence_number=7,
        enqueued_at=ENQUEUED,
        message_id=message_id,
        correlation_id=correlation_id,
        properties=properties or {},
    )


def job_of(custom_id: str = "a", *, job_id: str = "b1/a", batch_id: str = "b1", replay: int = 0) -> Job:
    line = JobLine(custom_id=custom_id, operation=Operation.CHAT_COMPLETIONS, model="gpt-5.4-mini", body={})
    return Job(
        id=job_id,
        batch_id=batch_id,
        queue="jobs",
        line=line,
        enqueued_at=ENQUEUED,
        deadline=ENQUEUED + DAY,
        replay=replay,
    )


EXCHANGE = Exchange(target=Target(deployment="mini-1", endpoint="https://one.openai.azure.com"), headers={})
RECORD = Record(
    attempts=2,
    deployment="mini-1",
    endpoint="https://one.openai.azure.com",
    started=ENQUEUED + 1.5,
    finished=ENQUEUED + 4.0,
    call_seconds=2.25,
    pod="worker-0",
)


def answered(body: bytes) -> Answered:
    return Answered(response=Response(status=200, request_id="req-1", body=body))


def nested(levels: int) -> bytes:
    """A good line that nests exactly so many levels of arrays and objects."""
    inside = levels - 2  # the line itself, its body
    return line_of(body={"model": "m", "deep": "@"}).replace(b'"@"', b"[" * inside + b"]" * inside)


def refusal(body: bytes) -> NotAJob:
    with pytest.raises(NotAJob) as caught:
        parse_line(body)
    return caught.value


@pytest.mark.parametrize(
    ("body", "names"),
    [
        pytest.param(b"", ["0 bytes", "empty"], id="nothing"),
        pytest.param(b"\xff\xfe", ["2 bytes", "UTF-8"], id="not UTF-8"),
        pytest.param(line_of(custom_id="\u00e9").replace(b"\\u00e9", b"\xe9"), ["UTF-8"], id="Latin-1"),
        pytest.param(b"\xef\xbb\xbf{}", ["byte order mark"], id="byte order mark"),
        pytest.param(b"hello", ["line 1 column 1"], id="not JSON"),
        pytest.param(line_of() + line_of(), ["line 1 column"], id="two lines in one message"),
        pytest.param(line_of(body={"model": "m", "n": float("nan")}), ["line 1 column"], id="NaN"),
        pytest.param(line_of(body={"model": "m", "n": float("inf")}), ["line 1 column"], id="Infinity"),
        pytest.param(
            line_of(body={"model": "m", "n": "@"}).replace(b'"@"', b"1e400"),
            ["infinity"],
            id="a number beyond doubles",
        ),
        pytest.param(line_of(custom_id="@").replace(b"@", b"\\ud800"), ["surrogate"], id="half a character"),
        pytest.param(nested(10_000), ["depth"], id="10,000 levels"),
        pytest.param(b"[" * 10_000, ["depth"], id="10,000 levels left open"),
    ],
)
def test_what_is_not_json_is_dead_lettered_as_such_with_the_place(body: bytes, names: list[str]) -> None:
    error = refusal(body)
    assert error.reason is DeadLetterReason.INVALID_JSON
    assert f"{len(body):,} bytes" in error.description
    for name in names:
        assert name in error.description
    assert "Send one line of a Batch input file" in error.description


@pytest.mark.parametrize(
    ("body", "description"),
    [
        (b"[1, 2]", "the body is an array of 2; it must be one JSON object, a line of a Batch input file"),
        (b'"hello"', "the body is a string of 5 characters; it must be one JSON object"),
        (b"12", "the body is 12; it must be one JSON object"),
        (b"null", "the body is missing or null; it must be one JSON object"),
        (line_of(custom_id=...), '"custom_id" is missing or null; it must be a string that is unique in its batch'),
        (line_of(custom_id=None), '"custom_id" is missing or null; it must be a string'),
        (line_of(custom_id=""), '"custom_id" is ""; it must be a string'),
        (line_of(custom_id=17), '"custom_id" is 17; it must be a string'),
        (line_of(custom_id=["x"]), '"custom_id" is ["x"]; it must be a string'),
        (line_of(method=...), '"method" is missing or null; the only method is "POST"'),
        (line_of(method="GET"), '"method" is "GET"; the only method is "POST"'),
        (line_of(method="post"), '"method" is "post"; the only method is "POST"'),
        (line_of(method=1), '"method" is 1; the only method is "POST"'),
        (line_of(body=...), '"body" is missing or null; it must be the JSON object of the request'),
        (line_of(body=None), '"body" is missing or null; it must be the JSON object'),
        (line_of(body=[1]), '"body" is an array of 1; it must be the JSON object'),
        (line_of(body="{}"), '"body" is a string of 2 characters; it must be the JSON object'),
        (line_of(body=True), '"body" is true; it must be the JSON object'),
        (line_of(body={}), '"body.model" is missing or null; it must be the name of a model in the worker'),
        (line_of(body={"model": ""}), '"body.model" is ""; it must be the name of a model'),
        (line_of(body={"model": {"name": "x"}}), '"body.model" is {"name":"x"}; it must be the name'),
        (nested(MAX_NESTING + 1), "the body nests deeper than 200 levels; flatten it"),
    ],
)
def test_what_is_not_a_job_is_dead_lettered_with_the_value_and_what_it_must_be(
    body: bytes, description: str
) -> None:
    error = refusal(body)
    assert error.reason is DeadLetterReason.INVALID_JOB
    assert error.description.startswith(description)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (..., "missing or null"),
        (None, "missing or null"),
        ("", '""'),
        ("/v1/chat/completions/", '"/v1/chat/completions/"'),
        ("/v1/embeddings?input=x", '"/v1/embeddings?input=x"'),
        ("/v1/images/generations", '"/v1/images/generations"'),
        ("https://api.openai.com/v1/chat/completions", '"https://api.openai.com/v1/chat/completions"'),
        (5, "5"),
        (["/v1/chat/completions"], '["/v1/chat/completions"]'),
        ("/v1/v1/embeddings", '"/v1/v1/embeddings"'),
        ("chat/completions", '"chat/completions"'),
        ("/images/generations", '"/images/generations"'),
        ("/v2/embeddings", '"/v2/embeddings"'),
    ],
)
def test_an_operation_that_the_worker_cannot_call_is_dead_lettered_with_those_it_can(url: Any, shown: str) -> None:
    error = refusal(line_of(url=url))
    assert error.reason is DeadLetterReason.UNSUPPORTED_OPERATION
    supported = "/v1/chat/completions, /v1/responses, /v1/embeddings, /v1/completions, each also without /v1"
    assert error.description == f'"url" is {shown}; supported are: {supported}'


@pytest.mark.parametrize("operation", list(Operation))
def test_every_operation_that_the_worker_can_call_is_a_job(operation: Operation) -> None:
    assert parse_line(line_of(url=operation.value)).operation is operation


@pytest.mark.parametrize("operation", list(Operation))
def test_the_urls_of_azures_batch_files_are_read_as_openais(operation: Operation) -> None:
    assert parse_line(line_of(url=operation.value.removeprefix("/v1"))).operation is operation


def test_a_line_that_a_javascript_producer_encoded_twice_is_read() -> None:
    line = line_of(body={"model": "m", "messages": [{"role": "user", "content": 'a "quoted" \\ word \u2028'}]})
    assert parse_line(json.dumps(line.decode()).encode()) == parse_line(line)


def test_a_line_is_unwrapped_once_only() -> None:
    thrice = json.dumps(json.dumps(line_of().decode())).encode()
    assert refusal(thrice).description.startswith("the body is a string of")


def test_a_text_that_begins_like_a_line_and_is_none_is_refused_with_the_place() -> None:
    assert "line 1 column" in refusal(json.dumps('{"custom_id": ').encode()).description


def test_nesting_up_to_the_limit_is_a_job() -> None:
    assert parse_line(nested(MAX_NESTING)).model == "m"


def with_number(text: bytes) -> bytes:
    return line_of(body={"model": "m", "tools": [{"a": 1}, {"n": "@"}]}).replace(b'"@"', text)


@pytest.mark.parametrize(
    "text",
    [
        b"18446744073709551616",
        b"-9223372036854775809",
        b"123456789012345678901234567890",
        b"1e-10000",
        b"1e-99999999999999999999",
        b"0.12345678901234567890",
        b"9007199254740993.0",
        b"0.10000000000000000001",  # 0.1, as a float
        b"8798241030269.028327228",
        b"90071992.54740991",
    ],
)
def test_a_number_that_would_be_sent_as_another_is_refused_by_name(text: bytes) -> None:
    error = refusal(with_number(text))
    assert error.reason is DeadLetterReason.INVALID_JOB
    assert error.description.startswith(f'"body.tools[1].n" is {text.decode()}, which cannot be sent exactly')


@pytest.mark.parametrize(
    "text",
    [
        b"18446744073709551615",
        b"-9223372036854775808",
        b"0.1",
        b"1e22",
        b"1E+3",
        b"0.0",
        b"0." + b"0" * 30,
        b"-0",
        b"0e0",
        b"5e-324",
    ],
)
def test_a_number_that_is_sent_as_it_came_is_read(text: bytes) -> None:
    body = parse_line(with_number(text)).body
    assert Decimal(orjson.dumps(body["tools"][1]["n"]).decode()) == Decimal(text.decode())


numbers = st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)


@given(numbers | st.decimals("-9e300", "9e300"))
def test_no_number_is_changed_silently(number: Any) -> None:
    try:
        body = parse_line(with_number(str(number).encode())).body
    except NotAJob:
        return
    assert Decimal(orjson.dumps(body["tools"][1]["n"]).decode()) == Decimal(str(number))


@pytest.mark.parametrize("model", ["m" * 129, "", "gpt 4", "gpt\n4", "\u202egpt", "-gpt", "gpt'4", "g" * 200_000])
def test_a_model_whose_name_is_too_long_or_strange_is_refused(model: str) -> None:
    error = refusal(line_of(body={"model": model}))
    assert error.description.startswith('"body.model" is ')
    assert len(error.description) < 300


@pytest.mark.parametrize("model", ["gpt-5.4-mini", "ft:gpt-5.4:org::id", "org/model_1@2", "m" * 128])
def test_the_names_that_models_have_are_read(model: str) -> None:
    assert parse_line(line_of(body={"model": model})).model == model


def test_a_custom_id_has_a_bounded_length() -> None:
    assert parse_line(line_of(custom_id="q" * 512)).custom_id == "q" * 512
    assert refusal(line_of(custom_id="q" * 513)).description.endswith("it has at most 512 characters")


def test_a_long_value_is_shown_by_its_beginning_and_its_length() -> None:
    error = refusal(line_of(method="G" * 5_000))
    assert error.description.startswith('"method" is "GGGG')
    assert "(5,000 characters)" in error.description
    assert len(error.description) < 200


def test_a_description_is_one_line_whatever_the_value() -> None:
    assert "\n" not in refusal(line_of(custom_id={"a\n": "b\r\n"})).description


def test_a_description_never_quotes_the_content_of_a_request() -> None:
    prompt = "a prompt that belongs to nobody but its author"
    for body in (json.dumps(prompt), json.dumps([prompt]), line_of(body=prompt).decode()):
        assert "prompt" not in refusal(body.encode()).description


@given(st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()))
def test_no_message_body_whatever_is_anything_but_a_job_or_not_a_job(body: bytes) -> None:
    with pytest.raises(NotAJob) as caught:
        parse_line(body)
    assert len(caught.value.description.splitlines()) == 1


@given(custom_ids, json_objects)
def test_a_line_is_read_as_it_was_written(custom_id: str, body: dict[str, Any]) -> None:
    body |= {"model": "m"}
    line = parse_line(
        orjson.dumps({"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body})
    )
    assert line == JobLine(custom_id=custom_id, operation=Operation.CHAT_COMPLETIONS, model="m", body=body)


@pytest.mark.parametrize(
    ("envelope", "names", "fix"),
    [
        pytest.param(envelope_of(correlation_id=""), '""', "1 to 48 letters", id="empty batch id"),
        pytest.param(envelope_of(correlation_id="a/b"), '"a/b"', "1 to 48 letters", id="slash in the batch id"),
        pytest.param(envelope_of(correlation_id="b" * 49), "bbbb", "1 to 48 letters", id="long batch id"),
        pytest.param(envelope_of(correlation_id="b\n"), '"b\\n"', "1 to 48 letters", id="newline in the batch id"),
        pytest.param(
            envelope_of(correlation_id="\u00e9"), "\\u00e9", "1 to 48 letters", id="accent in the batch id"
        ),
        pytest.param(
            envelope_of(properties={"job-id": "j" * 129}),
            "(129 characters)",
            "text of 1 to 128 characters",
            id="long job-id",
        ),
        pytest.param(envelope_of(properties={"job-id": ""}), '""', "text of 1 to 128", id="empty job-id"),
        pytest.param(envelope_of(properties={"job-id": b"abc"}), "abc", "text", id="job-id in bytes"),
        pytest.param(envelope_of(properties={"job-id": 5}), "5", "text", id="job-id as a number"),
        pytest.param(envelope_of(properties={"job-id": False}), "false", "text", id="job-id as a truth value"),
        pytest.param(envelope_of(properties={"job-id": 10**30}), "1000", "text", id="job-id as a huge number"),
        pytest.param(
            envelope_of(message_id="m" * 129),
            "(129 characters)",
            "text of 1 to 128 characters",
            id="long message-id",
        ),
        pytest.param(
            envelope_of(properties={"deadline": "soon"}), '"soon"', "RFC 3339", id="deadline that is no time"
        ),
        pytest.param(envelope_of(properties={"deadline": ""}), '""', "RFC 3339", id="empty deadline"),
        pytest.param(
            envelope_of(properties={"deadline": "2026-11-23T18:00:00"}),
            '"2026-11-23T18:00:00"',
            "with a time zone",
            id="deadline without a time zone",
        ),
        pytest.param(envelope_of(properties={"deadline": 1_800_000_000}), "1800000000", "RFC 3339", id="a number"),
        pytest.param(envelope_of(properties={"deadline": 10**30}), "1000", "RFC 3339", id="a huge number"),
        pytest.param(envelope_of(properties={"deadline": b"x"}), "x", "RFC 3339", id="deadline in bytes"),
        pytest.param(
            envelope_of(properties={"deadline": "2026-13-01T00:00:00Z"}), "2026-13", "RFC 3339", id="month 13"
        ),
    ],
)
def test_bad_message_properties_are_dead_lettered_with_the_value_and_how_to_mend_it(
    envelope: Envelope, names: str, fix: str
) -> None:
    with pytest.raises(NotAJob) as caught:
        decode(envelope, max_age=DAY)
    assert caught.value.reason is DeadLetterReason.INVALID_JOB
    assert names in caught.value.description
    assert fix in caught.value.description
    assert len(caught.value.description) < 250


def test_the_message_id_is_the_job_id_unless_the_property_says_otherwise() -> None:
    assert decode(envelope_of(message_id="m"), max_age=DAY).id == "m"
    assert decode(envelope_of(message_id="m", properties={"job-id": "j"}), max_age=DAY).id == "j"


@pytest.mark.parametrize("message_id", [None, ""])
def test_a_message_without_an_id_is_named_after_its_queue_and_number(message_id: str | None) -> None:
    assert decode(envelope_of(message_id=message_id), max_age=DAY).id == "jobs/7"


def test_a_message_without_a_batch_is_unbatched() -> None:
    assert decode(envelope_of(correlation_id=None), max_age=DAY).batch_id == UNBATCHED


@given(st.floats(1.0, 1e7))
def test_a_job_that_names_no_deadline_gets_one_max_age_after_it_was_enqueued(max_age: float) -> None:
    assert decode(envelope_of(), max_age=max_age).deadline == ENQUEUED + max_age


@given(
    st.datetimes(
        min_value=datetime(1970, 1, 2),
        max_value=datetime(9999, 12, 30),
        timezones=st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes))),
    ),
    st.booleans(),
)
def test_a_deadline_is_the_moment_it_says_in_whatever_time_zone(moment: datetime, with_z: bool) -> None:
    if with_z:
        moment = moment.astimezone(UTC)
    text = moment.isoformat().replace("+00:00", "Z")
    job = decode(envelope_of(properties={"deadline": text}), max_age=DAY)
    assert job.deadline == pytest.approx(moment.timestamp(), abs=1e-3)


@given(st.floats(0, 4e9))
def test_times_are_written_so_that_they_are_read_as_deadlines(moment: float) -> None:
    job = decode(envelope_of(properties={"deadline": rfc3339(moment)}), max_age=DAY)
    assert job.deadline == pytest.approx(moment, abs=1e-3)


@pytest.mark.parametrize(
    ("message_id", "properties", "replay"),
    [
        ("b1/a", {}, 0),
        ("b1/a~r3", {}, 0),
        ("b1/a", {"job-id": "b1/a"}, 0),
        ("b1/a~r1", {"job-id": "b1/a"}, 1),
        ("b1/a~r1~r12", {"job-id": "b1/a"}, 12),
        ("b1/a~r", {"job-id": "b1/a"}, 0),
        (None, {"job-id": "b1/a"}, 0),
    ],
)
def test_a_replay_is_told_by_its_message_id_beside_a_job_id(
    message_id: str | None, properties: dict[str, object], replay: int
) -> None:
    assert decode(envelope_of(message_id=message_id, properties=properties), max_age=DAY).replay == replay


@given(batch_ids, custom_ids)
def test_a_job_id_is_short_ascii_and_of_its_batch(batch_id: str, custom_id: str) -> None:
    job_id = make_job_id(batch_id, custom_id)
    assert len(job_id) <= MAX_ID_LENGTH
    assert job_id.isascii()
    assert job_id.isprintable()
    assert job_id.startswith(f"{batch_id}/")


near_batches = st.text("a.", min_size=1, max_size=2)
near_ids = st.text("a/.~r1\u00e9\n", min_size=1, max_size=3) | st.sampled_from(["a" * 126, "a" * 127])


@given(near_batches, near_ids, near_batches, near_ids)
def test_different_jobs_have_different_ids(batch: str, custom_id: str, other_batch: str, other: str) -> None:
    same = make_job_id(batch, custom_id) == make_job_id(other_batch, other)
    assert same == ((batch, custom_id) == (other_batch, other))


@given(batch_ids, custom_ids)
def test_no_custom_id_can_pass_for_the_hash_of_another(batch_id: str, custom_id: str) -> None:
    job_id = make_job_id(batch_id, custom_id)
    look_alike = job_id.removeprefix(f"{batch_id}/")
    assert make_job_id(batch_id, look_alike) != job_id or look_alike == custom_id


@given(st.text(string.printable, min_size=1, max_size=40), st.integers(1, 9999))
def test_no_custom_id_can_pass_for_the_replay_of_another(custom_id: str, replay: int) -> None:
    replayed = job_of(custom_id, job_id=make_job_id("b1", custom_id), replay=replay)
    assert make_job_id("b1", f"{custom_id}~r{replay}") != result_id(replayed)


def test_job_ids_are_the_same_in_every_release() -> None:
    assert make_job_id("b1", "order-17") == "b1/order-17"
    assert make_job_id("b1", "\u00e9") == "b1/sha256-4a99557e4033c3539de2eb65472017ca"
    assert make_job_id("b1", "x" * 125) == "b1/" + "x" * 125
    assert make_job_id("b1", "x" * 126) == "b1/sha256-19981abaa977c9ab097c239adda74b22"


@given(batch_ids, custom_ids)
def test_a_submitted_job_is_decoded_under_the_id_it_was_submitted_with(batch_id: str, custom_id: str) -> None:
    job_id = make_job_id(batch_id, custom_id)
    body = line_of(custom_id=custom_id)
    job = decode(envelope_of(body, message_id=job_id, correlation_id=batch_id), max_age=DAY)
    assert (job.id, job.batch_id, job.line.custom_id, job.replay) == (job_id, batch_id, custom_id, 0)


@given(batch_ids, st.text(min_size=1, max_size=128), st.integers(0, 9999))
def test_a_result_id_is_short_ascii_and_of_its_batch(batch_id: str, job_id: str, replay: int) -> None:
    found = result_id(job_of(job_id=job_id, batch_id=batch_id, replay=replay))
    assert len(found) <= MAX_ID_LENGTH
    assert found.isascii()
    assert found.isprintable()
    assert found.startswith((f"{batch_id}/", f"{batch_id}:"))


near_jobs = st.tuples(
    near_batches,
    st.lists(st.sampled_from(["a", ".", "/", ":", "~r1", "sha256-", "\u00e9", "x" * 118]), min_size=1, max_size=5)
    .map("".join)
    .filter(lambda job_id: len(job_id) <= MAX_ID_LENGTH),
    st.integers(0, 2) | st.just(1111),
)


def result_id_of(batch_id: str, job_id: str, replay: int) -> str:
    return result_id(job_of(job_id=job_id, batch_id=batch_id, replay=replay))


@settings(max_examples=500)
@given(near_jobs, near_jobs)
def test_different_jobs_and_replays_have_different_result_ids(
    job: tuple[str, str, int], other: tuple[str, str, int]
) -> None:
    assert (result_id_of(*job) == result_id_of(*other)) == (job == other)


@given(near_jobs)
def test_no_job_id_can_pass_for_the_result_id_of_another(job: tuple[str, str, int]) -> None:
    batch_id, job_id, _ = job
    taken = result_id_of(*job)
    for look_alike in (taken, taken.removeprefix(f"{batch_id}:")):
        assert look_alike == job_id or result_id_of(batch_id, look_alike, 0) != taken


def test_one_job_id_in_two_batches_is_two_results() -> None:
    assert result_id_of("b1", "order-17", 0) != result_id_of("b2", "order-17", 0)


def test_no_result_can_pass_for_the_manifest_of_its_batch() -> None:
    job_id = make_job_id("b1", "manifest")
    assert result_id_of("b1", job_id, 0) != manifest_id("b1")
    assert result_id_of("b1", "manifest", 0) != manifest_id("b1")


def test_each_replay_of_a_job_has_a_result_of_its_own_however_long_its_id() -> None:
    for job_id in ("b1/a", "order-17", "j" * MAX_ID_LENGTH):
        assert len({result_id_of("b1", job_id, replay) for replay in range(4)}) == 4


def test_result_ids_are_the_same_in_every_release() -> None:
    assert result_id_of("b1", "b1/order-17", 0) == "b1/order-17"
    assert result_id_of("b1", "b1/order-17", 2) == "b1/order-17~r2"
    assert result_id_of("b1", "order-17", 0) == "b1:order-17"
    assert result_id_of("unbatched", "jobs/7", 0) == "unbatched:jobs/7"
    assert result_id_of("b1", "b1/" + "x" * 125, 1) == (
        "b1:sha256-5dba552593da72fb22461760fdfd2162979f26acacb7ec2c01fce150b8290bd1~r1"
    )
    assert result_id_of("b1", "b1/manifest", 0) == (
        "b1:sha256-880a257f38fe1c2ec69de90db8c079f07bcf74d6455fd2832306cf2062a43ca3"
    )


def test_an_answer_is_a_line_of_a_batch_output_file() -> None:
    usage = Usage(prompt=10, completion=2, cached=4)
    response = Response(status=200, request_id="req-1", body=b'{"choices":[1]}', usage=usage)
    line = json.loads(encode_result(job_of(), Answered(response=response), RECORD))
    assert list(line) == ["id", "custom_id", "response", "error", "worker"]
    assert line["id"].startswith("batch_req_")
    assert line["custom_id"] == "a"
    assert line["response"] == {"status_code": 200, "request_id": "req-1", "body": {"choices": [1]}}
    assert line["error"] is None
    assert line["worker"] == {
        "schema": 1,
        "job_id": "b1/a",
        "batch_id": "b1",
        "attempts": 2,
        "deployment": "mini-1",
        "endpoint": "https://one.openai.azure.com",
        "queued": "2027-01-15T08:00:00.000Z",
        "started": "2027-01-15T08:00:01.500Z",
        "finished": "2027-01-15T08:00:04.000Z",
        "wait_seconds": 1.5,
        "call_seconds": 2.25,
        "usage": {"prompt": 10, "completion": 2, "cached": 4},
        "pod": "worker-0",
    }


def test_a_refusal_is_a_response_and_not_an_error() -> None:
    refused = Refused(response=Response(status=400, request_id=None, body=b'{"error":{}}'))
    line = json.loads(encode_result(job_of(), refused, RECORD))
    assert line["response"] == {"status_code": 400, "request_id": None, "body": {"error": {}}}
    assert line["error"] is None


def test_a_call_that_was_never_answered_is_an_error_and_no_response() -> None:
    failed = Failed(code=FailureCode.EXPIRED, message="the deadline passed")
    line = json.loads(encode_result(job_of(), failed, RECORD))
    assert line["response"] is None
    assert line["error"] == {"code": "expired", "message": "the deadline passed"}


def test_a_replayed_job_says_so_in_its_result() -> None:
    failed = Failed(code=FailureCode.EXPIRED, message="")
    assert json.loads(encode_result(job_of(replay=3), failed, RECORD))["worker"]["replay"] == 3


def test_clocks_that_disagree_make_no_negative_wait() -> None:
    record = replace(RECORD, started=ENQUEUED - 5)
    failed = Failed(code=FailureCode.EXPIRED, message="")
    assert json.loads(encode_result(job_of(), failed, record))["worker"]["wait_seconds"] == 0.0


@given(custom_ids, json_objects, st.booleans())
def test_a_result_is_one_line_that_holds_the_services_body_byte_for_byte(
    custom_id: str, body: dict[str, Any], ascii_only: bool
) -> None:
    # written by another library than ours: its spaces and its numbers must come through
    sent = json.dumps(body, ensure_ascii=ascii_only).encode()
    line = encode_result(job_of(custom_id), answered(sent), RECORD)
    assert b'"body":' + sent + b"}" in line
    assert len(line.splitlines()) == 1
    assert json.loads(line)["response"]["body"] == body
    assert json.loads(line)["custom_id"] == custom_id


@given(json_objects, st.sampled_from([b"\n", b"\r\n", b"\r"]))
def test_a_pretty_printed_answer_becomes_one_line(extra: dict[str, Any], newline: bytes) -> None:
    document = extra | {"choices": [{"index": 0}]}
    printed = json.dumps(document, indent=2).encode().replace(b"\n", newline)
    line = encode_result(
        job_of(), Answered(response=read_answer(Operation.CHAT_COMPLETIONS, printed, EXCHANGE)), RECORD
    )
    assert len(line.splitlines()) == 1
    assert json.loads(line)["response"]["body"] == document


def test_a_pretty_printed_answer_keeps_its_numbers_as_the_service_wrote_them() -> None:
    printed = b'{\n "choices": [{"logprob": -0.10, "id": 123456789012345678901234567890}]\n}'
    response = read_answer(Operation.CHAT_COMPLETIONS, printed, EXCHANGE)
    assert b"-0.10" in response.body
    assert b"123456789012345678901234567890" in response.body


@given(custom_ids, st.sampled_from([200, 400, 503]), st.integers(0, 3))
def test_a_collector_reads_what_the_worker_wrote(custom_id: str, status: int, replay: int) -> None:
    response = Response(status=status, request_id="r", body=b"{}")
    outcome = Answered(response=response) if status == 200 else Refused(response=response)
    line = encode_result(job_of(custom_id, replay=replay), outcome, RECORD)
    result = decode_result(line)
    assert (result.job_id, result.batch_id, result.replay) == ("b1/a", "b1", replay)
    assert result.failed == (status >= 400)
    assert result.raw == line


@pytest.mark.parametrize(
    "raw",
    [b"", b"x", b"[]", b"5", b"null", b"{}", b'{"worker":1,"response":null,"error":null}', b'{"worker":{}}'],
)
def test_what_is_not_a_result_is_told_apart(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        decode_result(raw)


@given(batch_ids, st.integers(0, 10**9), st.text(string.hexdigits))
def test_a_manifest_is_read_as_it_was_written(batch_id: str, total: int, sha256: str) -> None:
    manifest = Manifest(batch_id=batch_id, total=total, sha256=sha256, submitted_at="2026-11-23T18:00:00Z")
    assert decode_manifest(encode_manifest(manifest)) == manifest


@pytest.mark.parametrize("raw", [b"", b"x", b"[]", b"5", b"null", b"{}", b'{"batch_id":"b","total":null}'])
def test_what_is_not_a_manifest_is_told_apart(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        decode_manifest(raw)


@pytest.mark.parametrize(
    ("body", "failed"),
    [
        (b'{"object":"response","status":"failed","error":{"code":"invalid_prompt"}}', True),
        (b'{"object":"response","status":"completed"}', False),
        (b'{"object":"chat.completion","status":"failed"}', False),
        (b'["failed"]', False),
    ],
)
def test_a_response_that_failed_counts_as_failed_though_its_status_is_200(body: bytes, failed: bool) -> None:
    outcome = Answered(response=Response(status=200, request_id="r", body=body))
    line = encode_result(decode(envelope_of(message_id="m"), max_age=DAY), outcome, RECORD)
    assert decode_result(line).failed is failed
