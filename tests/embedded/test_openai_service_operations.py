"""Responses, completions and embeddings of the embedded Azure OpenAI: requests refused and documents made."""

import base64
import math
from array import array
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedded_azure.openai.answers import Stamp
from embedded_azure.openai.completions import read_completion
from embedded_azure.openai.embeddings import embed, read_embeddings
from embedded_azure.openai.operations import OPERATIONS, Operation, Request
from embedded_azure.openai.parameters import CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES
from embedded_azure.openai.phrases import NO_WISH, Wish
from embedded_azure.openai.refusals import Refused
from embedded_azure.openai.responses import read_response

STAMP = Stamp(identifier="1", created=1, model="m")
SMALL = "text-embedding-3-small"
INVALID_INPUT = "'$.input' is invalid."

inputs = st.text(min_size=1, max_size=30) | st.lists(st.integers(0, 100_000), min_size=1, max_size=5)


def made(request: Request, wish: Wish = NO_WISH) -> dict[str, Any]:
    return request.answer(wish, STAMP).document


def respond(given: object, **fields: object) -> dict[str, Any]:
    return made(read_response({"input": given, **fields}))


def complete(prompt: object, **fields: object) -> dict[str, Any]:
    return made(read_completion({"prompt": prompt, **fields}))


def vectors(given: object, **fields: object) -> list[Any]:
    document = made(read_embeddings({"input": given, **fields}, SMALL))
    return [one["embedding"] for one in document["data"]]


def refusal_of(operation: str, body: dict[str, Any], model: str = SMALL) -> dict[str, Any]:
    with pytest.raises(Refused) as refused:
        named(operation).read(body, model)
    assert refused.value.status == 400
    error: dict[str, Any] = refused.value.document["error"]
    assert error["type"] == "invalid_request_error"
    return error


def named(name: str) -> Operation:
    return next(operation for operation in OPERATIONS if operation.name == name)


# Requests


@pytest.mark.parametrize(
    ("operation", "body", "param", "code"),
    [
        ("responses", {}, "input", "missing_required_parameter"),
        ("responses", {"input": 7}, "input", "invalid_type"),
        ("responses", {"input": []}, "input", "empty_array"),
        ("responses", {"input": ["hi"]}, "input[0]", "invalid_type"),
        ("responses", {"input": [{"content": "hi"}]}, "input[0].role", "missing_required_parameter"),
        ("responses", {"input": [{"role": "tool", "content": "hi"}]}, "input[0].role", "invalid_value"),
        ("responses", {"input": [{"role": "user"}]}, "input[0].content", "invalid_type"),
        ("responses", {"input": "hi", "instructions": 1}, "instructions", "invalid_type"),
        ("responses", {"input": "hi", "max_output_tokens": 15}, "max_output_tokens", "integer_below_min_value"),
        ("responses", {"input": "hi", "store": "no"}, "store", "invalid_type"),
        ("responses", {"input": "hi", "background": True}, "background", None),
        ("responses", {"input": "hi", "model": 1}, "model", "invalid_type"),
        ("completion", {"prompt": 7}, "prompt", "invalid_type"),
        ("completion", {"prompt": []}, "prompt", "empty_array"),
        ("completion", {"prompt": ["a", 7]}, "prompt[1]", "invalid_type"),
        ("completion", {"prompt": [[]]}, "prompt[0]", "invalid_type"),
        ("completion", {"prompt": "a", "n": 129}, "n", "integer_above_max_value"),
        ("completion", {"prompt": "a", "n": 2, "best_of": 1}, "best_of", None),
        ("completion", {"prompt": "a", "max_tokens": 0}, "max_tokens", "integer_below_min_value"),
        ("completion", {"prompt": "a", "echo": 1}, "echo", "invalid_type"),
        ("embeddings", {"input": ["a"] * 2_049}, "input", "array_above_max_length"),
        ("embeddings", {"input": "a", "encoding_format": "hex"}, "encoding_format", "invalid_value"),
        ("embeddings", {"input": "a", "encoding_format": []}, "encoding_format", "invalid_value"),
        ("embeddings", {"input": "a", "dimensions": 0}, "dimensions", "integer_below_min_value"),
        ("embeddings", {"input": "a", "dimensions": 1_537}, "dimensions", "integer_above_max_value"),
        ("embeddings", {"input": "a", "dimensions": 2.5}, "dimensions", "invalid_type"),
    ],
)
def test_a_bad_request_is_refused_by_its_parameter(
    operation: str, body: dict[str, Any], param: str, code: str | None
) -> None:
    error = refusal_of(operation, body)
    assert (error["param"], error["code"]) == (param, code)


@pytest.mark.parametrize("given", [None, 7, {}, [], [""], ["a", ""], ["a", 7], [1, "a"], [[]], [-1], [[1], [1.5]]])
def test_an_input_that_cannot_be_embedded_is_refused_without_a_parameter(given: object) -> None:
    error = refusal_of("embeddings", {"input": given})
    assert error["message"].startswith(INVALID_INPUT)
    assert error["param"] is None


def test_an_input_beyond_the_models_context_is_refused() -> None:
    assert "8193 in your prompt" in refusal_of("embeddings", {"input": ["a", [1] * 8_193]})["message"]


def test_a_vector_has_at_most_the_dimensions_of_its_model() -> None:
    assert read_embeddings({"input": "a"}, "text-embedding-3-large").dimensions == 3_072
    error = refusal_of("embeddings", {"input": "a", "dimensions": 1_537}, "text-embedding-3-small")
    assert (error["param"], error["code"]) == ("dimensions", "integer_above_max_value")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
KNOWN = {"chatCompletion": CHAT, "responses": RESPONSES, "completion": COMPLETIONS, "embeddings": EMBEDDINGS}
GOOD: dict[str, dict[str, Any]] = {
    "chatCompletion": {"messages": [{"role": "user", "content": "hi"}]},
    "responses": {"input": "hi"},
    "completion": {"prompt": "hi"},
    "embeddings": {"input": "hi"},
}
CALLS = st.sampled_from(OPERATIONS).flatmap(
    lambda operation: st.tuples(
        st.just(operation), st.dictionaries(st.sampled_from(sorted(KNOWN[operation.name])), JSON, max_size=5)
    )
)


@given(CALLS)
def test_any_json_is_answered_or_refused_with_400(call: tuple[Operation, dict[str, Any]]) -> None:
    operation, body = call
    try:
        request = operation.read({**GOOD[operation.name], **body}, SMALL)
    except Refused as refused:
        status = refused.status
    else:
        orjson.dumps(made(request))
        status = 200
    assert status in {200, 400}


# Responses


def test_a_response_has_the_shape_of_azures() -> None:
    document = respond("What is 17 + 25?", instructions="Only the number.", store=False, metadata={"a": "b"})
    assert document["id"] == "resp_1"
    assert (document["object"], document["status"], document["incomplete_details"]) == (
        "response",
        "completed",
        None,
    )
    assert (document["instructions"], document["store"]) == ("Only the number.", False)
    assert document["metadata"] == {"a": "b"}
    [message] = document["output"]
    assert (message["type"], message["role"], message["status"]) == ("message", "assistant", "completed")
    assert message["content"][0]["type"] == "output_text"
    assert message["content"][0]["text"].startswith("17 + 25 = 42")
    assert [one["source_type"] for one in document["content_filters"]] == ["prompt", "completion"]


def test_a_response_is_stored_unless_it_is_asked_not_to_be() -> None:
    assert respond("hi")["store"] is True


@given(st.integers(16, 60), st.integers(0, 80))
def test_a_response_that_its_limit_cuts_is_incomplete(limit: int, at_least: int) -> None:
    request = read_response({"input": "Who are you?", "max_output_tokens": limit})
    document = made(request, Wish(tokens=at_least))
    whole = made(read_response({"input": "Who are you?"}), Wish(tokens=at_least))
    usage = document["usage"]
    assert usage["output_tokens"] <= limit
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    is_cut = whole["usage"]["output_tokens"] > limit
    assert document["status"] == ("incomplete" if is_cut else "completed")
    assert document["incomplete_details"] == ({"reason": "max_output_tokens"} if is_cut else None)


def test_a_response_that_the_filter_cuts_is_incomplete() -> None:
    document = made(read_response({"input": "hi"}), Wish(filter_answer=True))
    assert (document["status"], document["incomplete_details"]) == ("incomplete", {"reason": "content_filter"})
    assert document["content_filters"][1]["blocked"] is True


def test_messages_and_their_parts_are_read_and_the_last_of_the_user_is_answered() -> None:
    part = {"type": "input_text", "text": "What is 2 * 3?"}
    items = [
        {"role": "user", "content": "What is 17 + 25?"},
        {"type": "message", "role": "user", "content": [part, {"type": "input_image", "image_url": "x"}]},
        {"type": "function_call_output", "call_id": "c", "output": "7"},
    ]
    text = respond(items)["output"][0]["content"][0]["text"]
    assert text.startswith("2 * 3 = 6")


# Completions


def test_a_completion_is_made_of_every_prompt_as_often_as_asked() -> None:
    document = complete(["What is 17 + 25?", "What is 2 * 3?"], n=2, max_tokens=64)
    assert (document["id"], document["object"]) == ("cmpl-1", "text_completion")
    starts = [choice["text"].split(" (")[0] for choice in document["choices"]]
    assert starts == ["17 + 25 = 42", "17 + 25 = 42", "2 * 3 = 6", "2 * 3 = 6"]
    assert [choice["index"] for choice in document["choices"]] == [0, 1, 2, 3]
    usage = document["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_a_completion_without_a_limit_is_cut_at_16_tokens() -> None:
    [choice] = complete("Who are you, and where do you come from, and why?")["choices"]
    assert choice["finish_reason"] == "length"
    assert len(choice["text"]) == 16 * 4


def test_an_echo_repeats_the_prompt_and_costs_no_tokens() -> None:
    plain, echo = complete("Who are you?"), complete("Who are you?", echo=True)
    assert echo["choices"][0]["text"] == "Who are you?" + plain["choices"][0]["text"]
    assert echo["usage"] == plain["usage"]


def test_tokens_will_do_for_a_prompt() -> None:
    document = complete([[1, 2, 3], [4]])
    assert document["usage"]["prompt_tokens"] == 4
    assert len(document["choices"]) == 2


def test_what_the_service_generates_and_throws_away_is_charged_too() -> None:
    assert read_completion({"prompt": ["a", "b"], "n": 1, "best_of": 3}).choices == 6


# Embeddings


@given(inputs, st.integers(1, 1_536))
def test_a_vector_is_a_function_of_its_input_and_of_unit_length(one: str | list[int], dimensions: int) -> None:
    vector = embed(one, dimensions)
    assert vector == embed(one, dimensions)
    assert len(vector) == dimensions
    assert math.hypot(*vector) == pytest.approx(1.0, abs=1e-5)


@given(inputs, inputs)
def test_different_inputs_have_different_vectors(one: str | list[int], other: str | list[int]) -> None:
    assert (embed(one, 16) == embed(other, 16)) == (one == other)


@given(inputs, st.integers(2, 64))
def test_fewer_dimensions_are_the_beginning_of_the_whole_stretched_to_unit_length(
    one: str | list[int], dimensions: int
) -> None:
    beginning = embed(one, 1_536)[:dimensions]
    length = math.hypot(*beginning)
    assert list(embed(one, dimensions)) == pytest.approx([value / length for value in beginning], abs=1e-5)


def test_a_batch_has_the_vector_of_each_input_in_its_order() -> None:
    assert vectors(["a", "b"]) == [*vectors("a"), *vectors("b")]
    assert vectors([[1, 2], [3]]) == [*vectors([1, 2]), *vectors([3])]
    assert len(vectors("a")[0]) == 1_536
    assert len(vectors("a", dimensions=256)[0]) == 256


def test_base64_holds_the_same_floats_little_endian() -> None:
    [plain], [packed] = vectors("a"), vectors("a", encoding_format="base64")
    assert array("f", base64.b64decode(packed)).tolist() == plain


def test_embeddings_cost_the_tokens_of_their_inputs_and_no_others() -> None:
    request = read_embeddings({"input": ["12345678", [1, 2, 3]]}, SMALL)
    with pytest.raises(Refused):
        read_embeddings({"input": ["12345678", 1]}, SMALL)
    assert request.answer(NO_WISH, STAMP).tokens == 0
    assert made(request)["usage"] == {"prompt_tokens": 5, "total_tokens": 5}


def test_an_empty_text_by_itself_is_embedded() -> None:
    assert len(vectors("")) == 1


def test_the_same_words_asked_of_different_operations_are_different_prompts() -> None:
    bodies: dict[str, dict[str, Any]] = {
        "chatCompletion": {"messages": [{"role": "user", "content": "hi"}]},
        "responses": {"input": "hi"},
        "completion": {"prompt": "hi"},
        "embeddings": {"input": "hi"},
    }
    assert len({named(name).read(body, SMALL).digest for name, body in bodies.items()}) == 4
