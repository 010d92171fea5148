"""The pure parts of the embedded Azure OpenAI: requests, answers, phrases, quota."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedded_azure.openai.answers import Answer, Stamp
from embedded_azure.openai.answers import compose as compose_answer
from embedded_azure.openai.bodies import parse_body
from embedded_azure.openai.chat import ChatRequest, read_chat
from embedded_azure.openai.phrases import NO_WISH, Wish, read_wish
from embedded_azure.openai.quota import Quota
from embedded_azure.openai.refusals import Refused
from tests.support.clock import Clock

STAMP = Stamp(identifier="1", created=1, model="m")


def parse_chat(document: bytes) -> ChatRequest:
    return read_chat(parse_body(document))


def compose(request: ChatRequest, *, at_least: int = 0) -> Answer:
    return compose_answer(request.question, request.digest, request.max_tokens, wish=Wish(tokens=at_least))


def ask(question: str, **fields: object) -> ChatRequest:
    return parse_chat(orjson.dumps({"messages": [{"role": "user", "content": question}], **fields}))


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        (b"{", None, None),
        (b"[]", None, None),
        (b"{}", "messages", "missing_required_parameter"),
        (b'{"messages": "hi"}', "messages", "invalid_type"),
        (b'{"messages": []}', "messages", "empty_array"),
        (b'{"messages": ["hi"]}', "messages[0]", "invalid_type"),
        (b'{"messages": [{"content": "hi"}]}', "messages[0].role", "missing_required_parameter"),
        (b'{"messages": [{"role": "boss", "content": "hi"}]}', "messages[0].role", "invalid_value"),
        (b'{"messages": [{"role": [], "content": "hi"}]}', "messages[0].role", "invalid_value"),
        (b'{"messages": [{"role": "user", "content": 7}]}', "messages[0].content", "invalid_type"),
        (b'{"messages": [{"role": "user"}]}', "messages[0].content", "invalid_type"),
    ],
)
def test_a_bad_body_is_refused_as_the_service_does(body: bytes, param: str | None, code: str | None) -> None:
    with pytest.raises(Refused) as refused:
        parse_chat(body)
    error = refused.value.document["error"]
    assert (refused.value.status, error["type"]) == (400, "invalid_request_error")
    assert (error["param"], error["code"]) == (param, code)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"max_tokens": 1, "max_completion_tokens": 1}, "max_tokens"),
        ({"n": 129}, "n"),
        ({"model": 4}, "model"),
    ],
)
def test_a_bad_parameter_is_refused_by_name(fields: dict[str, object], param: str) -> None:
    with pytest.raises(Refused) as refused:
        ask("hi", **fields)
    assert refused.value.document["error"]["param"] == param


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)
FIELDS = st.sampled_from(["messages", "model", "max_tokens", "n", "stream", "max_completion_tokens"])


def status_of(body: bytes) -> int:
    try:
        parse_chat(body)
    except Refused as refused:
        return refused.status
    return 200


@given(st.dictionaries(FIELDS, JSON))
def test_any_json_is_parsed_or_refused_with_400(body: dict[str, object]) -> None:
    assert status_of(orjson.dumps(body)) in {200, 400}


def test_an_answer_is_a_function_of_the_question() -> None:
    assert compose(ask("Who are you?")) == compose(ask("Who are you?"))
    assert compose(ask("Who are you?")).text != compose(ask("Who am I?")).text


def test_the_order_of_keys_does_not_make_another_prompt() -> None:
    one = parse_chat(b'{"messages": [{"role": "user", "content": "hi"}]}')
    other = parse_chat(b'{"messages": [{"content": "hi", "role": "user"}]}')
    assert one.digest == other.digest


def test_parts_of_text_are_read_and_other_parts_are_not() -> None:
    parts = [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": "x"}}]
    assert parse_chat(orjson.dumps({"messages": [{"role": "user", "content": parts}]})).text == "look"


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What is 17 + 25?", "17 + 25 = 42"),
        ("And 999999999999 * 999999999999", "999999999999 * 999999999999 = 999999999998000000000001"),
        ("7 / 2 is", "7 / 2 = 3.5"),
        ("3 - -4", "3 - -4 = 7"),
    ],
)
def test_arithmetic_is_answered_plainly(question: str, answer: str) -> None:
    assert compose(ask(question)).text.startswith(f"{answer} (answer ")


@pytest.mark.parametrize("question", ["1 / 0", "on 2024-05-01", "v1.2 + 3", "x + y"])
def test_what_only_looks_like_arithmetic_is_answered_like_the_rest(question: str) -> None:
    assert compose(ask(question)).text.startswith("Answer ")


@given(st.text(max_size=200), st.integers(1, 50), st.integers(0, 200))
def test_an_answer_never_exceeds_max_tokens_and_says_when_it_was_cut(
    question: str, limit: int, at_least: int
) -> None:
    whole = compose(ask(question), at_least=at_least)
    answer = compose(ask(question, max_tokens=limit), at_least=at_least)
    assert answer.tokens <= limit
    assert whole.tokens >= at_least
    assert (answer.finish == "length") == (whole.tokens > limit)


def test_usage_adds_up_over_all_choices() -> None:
    request = ask("Who are you?", n=3)
    document = request.answer(NO_WISH, STAMP).document
    usage = document["usage"]
    assert usage["completion_tokens"] == 3 * compose(request).tokens
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert [choice["index"] for choice in document["choices"]] == [0, 1, 2]


@pytest.mark.parametrize(
    ("text", "wish"),
    [
        ("[[content-filter]]", Wish(filter_prompt=True)),
        ("[[content-filter-answer]]", Wish(filter_answer=True)),
        ("[[status:503]]", Wish(status=503)),
        ("please [[status:503x2]] then", Wish(status=503, times=2)),
        ("[[hang]]", Wish(hang=True)),
        ("[[malformed]]", Wish(malformed=True)),
        ("[[tokens:100]]", Wish(tokens=100)),
        ("[[status:200]] [[other]] [status:503]", NO_WISH),
    ],
)
def test_a_phrase_in_the_prompt_is_a_wish(text: str, wish: Wish) -> None:
    assert read_wish(text) == wish


def test_requests_are_limited_over_one_second_and_ten() -> None:
    clock = Clock()
    quota = Quota(60, None, clock)
    assert quota.admit(1) is None
    exceeded = quota.admit(1)
    assert exceeded is not None
    assert (exceeded.kind, exceeded.retry_after) == ("call", 1.0)


def test_refused_requests_count_and_keep_a_hammered_deployment_closed() -> None:
    clock = Clock()
    quota = Quota(60, None, clock)
    for _ in range(20):
        quota.admit(1)
    clock.now += 1.0
    exceeded = quota.admit(1)
    assert exceeded is not None
    assert exceeded.retry_after == 9.0  # to the end of the 10 s window that the refused ones have filled


def test_tokens_are_charged_at_admission_over_a_minute() -> None:
    clock = Clock()
    quota = Quota(None, 1_000, clock)
    assert quota.admit(600) is None
    exceeded = quota.admit(401)
    assert exceeded is not None
    assert (exceeded.kind, exceeded.retry_after) == ("token", 20.0)
    assert quota.admit(400) is None
    clock.now += 20.0
    assert quota.admit(1_000) is None


def test_a_request_larger_than_the_quota_is_sent_away_for_a_day() -> None:
    exceeded = Quota(None, 1_000, Clock()).admit(1_001)
    assert exceeded is not None
    assert exceeded.retry_after == 86_400.0


def test_headers_tell_of_limited_things_only() -> None:
    quota = Quota(None, 1_000, Clock())
    quota.admit(300)
    assert quota.headers() == {
        "x-ratelimit-limit-tokens": "1000",
        "x-ratelimit-remaining-tokens": "700",
        "x-ratelimit-reset-tokens": "20",
    }
    assert Quota(None, None, Clock()).headers() == {}


@given(st.integers(1, 600), st.lists(st.floats(0.0, 3.0), max_size=200))
def test_no_second_and_no_ten_seconds_admit_more_than_their_share(rpm: int, gaps: list[float]) -> None:
    clock = Clock()
    quota = Quota(rpm, None, clock)
    admitted: list[float] = []
    for gap in gaps:
        clock.now += gap
        if quota.admit(1) is None:
            admitted.append(clock.now)
    for seconds in (1.0, 10.0):
        share = -(-rpm * int(seconds) // 60)
        windows = [moment // seconds for moment in admitted]
        assert all(windows.count(window) <= share for window in set(windows))
