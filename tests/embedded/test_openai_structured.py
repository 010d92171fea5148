"""Structured outputs, tools, logprobs and reasoning of the embedded Azure OpenAI, by the openai package."""

import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, Literal

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from embedded_azure.config import Deployment
from embedded_azure.models import SMALL
from embedded_azure.openai.refusals import Refused
from embedded_azure.openai.schemas import check_strict, generate
from tests.support.openai_service import CONFIG, DEPLOYMENTS, open_client, token

CHAT, REASONS = "plain", "reasons"
REASONING = Deployment(name=REASONS, model=SMALL, latency=0.0, tokens_per_event=3)
SUM = "What is 17 + 25? Answer in JSON."


class Leaf(BaseModel):
    kind: Literal["leaf", "twig"]
    weight: float = Field(ge=0.5, le=2)


class Tree(BaseModel):
    """Contains itself, alternatives, arrays and bounds."""

    title: str
    age: int = Field(gt=10, lt=15)
    is_old: bool
    leaf: Leaf | None
    branches: list["Tree"] = Field(max_length=3)


@pytest.fixture
async def client() -> AsyncIterator[openai.AsyncOpenAI]:
    config = replace(CONFIG, deployments=(*DEPLOYMENTS, REASONING))
    async with open_client(config) as opened:
        made = openai.AsyncOpenAI(base_url=f"{opened.endpoint}/openai/v1/", api_key=token(), max_retries=0)
        async with made:
            yield made


def messages(question: str = SUM) -> Any:
    return [{"role": "user", "content": question}]


def described(**parameters: Any) -> dict[str, Any]:
    return {"type": "object", "properties": parameters, "required": [*parameters], "additionalProperties": False}


WEATHER = {"name": "get_weather", "strict": True, "parameters": described(city={"type": "string"})}
CLOCK = {"name": "get_time", "strict": True, "parameters": described(hours={"type": "integer", "minimum": 3})}
CHAT_TOOLS: Any = [{"type": "function", "function": tool} for tool in (WEATHER, CLOCK)]
TOOLS: Any = [{"type": "function", **tool} for tool in (WEATHER, CLOCK)]


# Schemas


def satisfies(value: Any, schema: dict[str, Any]) -> bool:
    """As far as `schemas` below go."""
    if "anyOf" in schema:
        return any(satisfies(value, one) for one in schema["anyOf"])
    if "enum" in schema:
        return value in schema["enum"]
    match schema["type"]:
        case "object":
            parts = schema["properties"]
            return (
                isinstance(value, dict)
                and set(value) == set(parts)
                and all(satisfies(value[name], part) for name, part in parts.items())
            )
        case "array":
            is_sized = isinstance(value, list) and schema["minItems"] <= len(value) <= schema["maxItems"]
            return is_sized and all(satisfies(one, schema["items"]) for one in value)
        case "integer":
            is_multiple = isinstance(value, int) and value % schema.get("multipleOf", 1) == 0
            return is_multiple and schema.get("minimum", value) <= value <= schema.get("maximum", value)
        case "string":
            return isinstance(value, str) and schema.get("minLength", 0) <= len(value) <= schema.get(
                "maxLength", 99
            )
        case "boolean":
            return isinstance(value, bool)
        case _:
            return value is None


lengths = st.integers(0, 12)
leaves = st.one_of(
    st.just({"type": "null"}),
    st.just({"type": "boolean"}),
    st.builds(lambda low, more: {"type": "string", "minLength": low, "maxLength": low + more}, lengths, lengths),
    st.builds(
        lambda low, step, more: {
            "type": "integer",
            "minimum": low,
            "maximum": low + step + more,
            "multipleOf": step,
        },
        st.integers(-10_000, 10_000),
        st.integers(1, 70),
        st.integers(0, 300),
    ),
    st.builds(lambda names: {"enum": names}, st.lists(st.text(max_size=5) | st.integers(), min_size=1, max_size=4)),
)


def nested(parts: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.one_of(
        st.builds(lambda named: described(**named), st.dictionaries(st.text("abc", min_size=1), parts, max_size=4)),
        st.builds(
            lambda items, low, more: {"type": "array", "items": items, "minItems": low, "maxItems": low + more},
            parts,
            st.integers(0, 3),
            st.integers(0, 5),
        ),
        st.builds(lambda options: {"anyOf": options}, st.lists(parts, min_size=1, max_size=3)),
    )


schemas = st.recursive(leaves, nested, max_leaves=12)


@given(schemas, st.text("0123456789abcdef", min_size=12, max_size=12))
def test_what_is_generated_satisfies_its_schema_and_is_a_function_of_the_digest(
    schema: dict[str, Any], digest: str
) -> None:
    check_strict(described(value=schema), name="x", param="x")
    value = generate(schema, "said", digest, param="x")
    assert satisfies(value, schema)
    assert generate(schema, "said", digest, param="x") == value


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "array"}, "schema must be a JSON Schema of 'type: \"object\"'"),
        (
            {"type": "object", "properties": {}},
            "'additionalProperties' is required to be supplied and to be false.",
        ),
        (described(a={"type": "string"}) | {"required": []}, "Missing 'a'."),
        (
            described(a={"type": "object", "properties": {}}),
            "In context=('properties', 'a'), 'additionalProperties'",
        ),
        (described(a={"type": "array", "items": {"type": "object"}}), "('properties', 'a', 'items')"),
    ],
)
def test_a_schema_that_is_not_strict_is_refused_with_its_place(schema: dict[str, Any], words: str) -> None:
    with pytest.raises(Refused) as refused:
        check_strict(schema, name="response_format 'x'", param="response_format")
    error = refused.value.document["error"]
    assert error["message"].startswith("Invalid schema for response_format 'x': ")
    assert words in error["message"]
    assert error["param"] == "response_format"


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"$ref": "#/$defs/none"},
        {"type": "string", "pattern": "a+"},
        {"type": "string", "minLength": 10**9},
        {"type": "array", "minItems": 10**9},
        {"type": "integer", "multipleOf": "5"},
        {"type": "integer", "minimum": 1, "maximum": 4, "multipleOf": 5},
    ],
)
def test_a_schema_that_cannot_be_satisfied_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(Refused, match="Invalid schema"):
        generate(schema, "said", "0" * 12, param="response_format")


KEYWORDS = """
type properties items anyOf enum const required minItems maxItems minimum maximum multipleOf minLength $ref
"""
keywords = st.sampled_from(KEYWORDS.split())
garbage = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["object", "array", "integer", "#"]),
    lambda parts: st.lists(parts, max_size=3) | st.dictionaries(keywords | st.text("ab"), parts, max_size=5),
    max_leaves=15,
)


@given(st.dictionaries(keywords, garbage, max_size=6))
def test_garbage_in_place_of_a_schema_is_refused_or_satisfied_and_never_an_error(schema: dict[str, Any]) -> None:
    for act in (
        lambda: generate(schema, "said", "0" * 12, param="x"),
        lambda: check_strict(schema, name="x", param="x"),
    ):
        with contextlib.suppress(Refused):
            act()


# With the openai package


@pytest.mark.parametrize("model", [CHAT, REASONS])
@pytest.mark.parametrize("number", range(5))
async def test_chat_and_responses_parse_an_answer_into_a_model(
    client: openai.AsyncOpenAI, model: str, number: int
) -> None:
    question = f"What is 17 + {number}?"
    chat = await client.chat.completions.parse(model=model, messages=messages(question), response_format=Tree)
    response = await client.responses.parse(model=model, input=question, text_format=Tree)
    for tree in (chat.choices[0].message.parsed, response.output_parsed):
        assert isinstance(tree, Tree)
        assert tree.title.startswith(f"17 + {number} = {17 + number} (answer ")


@pytest.mark.parametrize("model", [CHAT, REASONS])
async def test_a_streamed_answer_is_parsed_as_the_whole_one(client: openai.AsyncOpenAI, model: str) -> None:
    whole = await client.chat.completions.parse(model=model, messages=messages(), response_format=Tree)
    async with client.chat.completions.stream(model=model, messages=messages(), response_format=Tree) as stream:
        final = await stream.get_final_completion()
    assert final.choices[0].message.parsed == whole.choices[0].message.parsed
    answered = await client.responses.parse(model=model, input=SUM, text_format=Tree)
    async with client.responses.stream(model=model, input=SUM, text_format=Tree) as events:
        response = await events.get_final_response()
    assert response.output_parsed == answered.output_parsed
    assert response.usage == answered.usage


async def test_a_json_object_wants_the_word_json_in_the_prompt(client: openai.AsyncOpenAI) -> None:
    form: Any = {"type": "json_object"}
    chat = await client.chat.completions.create(model=CHAT, messages=messages(), response_format=form)
    response = await client.responses.create(model=CHAT, input=SUM, text={"format": form})
    for text in (chat.choices[0].message.content, response.output_text):
        assert json.loads(text or "")["answer"].startswith("17 + 25 = 42")
    with pytest.raises(openai.BadRequestError, match="must contain the word 'json'"):
        await client.chat.completions.create(model=CHAT, messages=messages("hi"), response_format=form)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("choice", "question", "name", "finish"),
    [
        ("required", "hi", "get_weather", "tool_calls"),
        ("auto", "Please get_time", "get_time", "tool_calls"),
        ("get_time", "hi", "get_time", "stop"),
        ("auto", "hi", None, "stop"),
        ("none", "Please get_time", None, "stop"),
    ],
)
async def test_a_tool_is_called_where_it_is_wanted(
    client: openai.AsyncOpenAI, choice: str, question: str, name: str | None, finish: str, streamed: bool
) -> None:
    is_named = choice not in ("required", "auto", "none")
    of_chat: Any = {"type": "function", "function": {"name": choice}} if is_named else choice
    asked: Any = {"model": CHAT, "messages": messages(question), "tools": CHAT_TOOLS, "tool_choice": of_chat}
    if streamed:
        async with client.chat.completions.stream(**asked) as stream:
            chosen = (await stream.get_final_completion()).choices[0]
    else:
        chosen = (await client.chat.completions.create(**asked)).choices[0]
    calls: Any = chosen.message.tool_calls or []
    assert (chosen.finish_reason, [call.function.name for call in calls]) == (finish, [name] if name else [])
    of_responses: Any = {"type": "function", "name": choice} if is_named else choice
    asked = {"model": CHAT, "input": question, "tools": TOOLS, "tool_choice": of_responses}
    if streamed:
        async with client.responses.stream(**asked) as events:
            response: Any = await events.get_final_response()
    else:
        response = await client.responses.create(**asked)
    items = [item for item in response.output if item.type == "function_call"]
    assert [item.name for item in items] == ([name] if name else [])
    for arguments in [*(call.function.arguments for call in calls), *(item.arguments for item in items)]:
        given_ = json.loads(arguments)
        assert set(given_) == ({"city"} if name == "get_weather" else {"hours"})


async def test_the_result_of_a_tool_is_answered_in_words(client: openai.AsyncOpenAI) -> None:
    question = "Please get_time"
    first: Any = await client.chat.completions.create(model=CHAT, messages=messages(question), tools=CHAT_TOOLS)
    call = first.choices[0].message.tool_calls[0]
    history = [
        *messages(question),
        first.choices[0].message,
        {"role": "tool", "tool_call_id": call.id, "content": "9"},
    ]
    second = await client.chat.completions.create(model=CHAT, messages=history, tools=CHAT_TOOLS)
    assert (second.choices[0].finish_reason, second.choices[0].message.tool_calls) == ("stop", None)
    response: Any = await client.responses.create(model=CHAT, input=question, tools=TOOLS)
    output = {"type": "function_call_output", "call_id": response.output[0].call_id, "output": "9"}
    items: Any = [{"role": "user", "content": question}, response.output[0].model_dump(), output]
    assert (await client.responses.create(model=CHAT, input=items, tools=TOOLS)).output_text


async def test_a_tool_that_must_be_called_is_another_than_the_one_whose_result_is_there(
    client: openai.AsyncOpenAI,
) -> None:
    asked: Any = {"model": CHAT, "tools": CHAT_TOOLS, "tool_choice": "required"}
    history = messages("Please get_time")
    names = []
    for _ in range(2):
        chat: Any = await client.chat.completions.create(messages=history, **asked)
        (call,) = chat.choices[0].message.tool_calls
        names.append(call.function.name)
        result = {"role": "tool", "tool_call_id": call.id, "content": "9"}
        history = [*history, chat.choices[0].message.model_dump(), result]
    asked = {"model": CHAT, "tools": TOOLS, "tool_choice": "required"}
    items = messages("Please get_time")
    for _ in range(2):
        response: Any = await client.responses.create(input=items, **asked)
        (item,) = response.output
        names.append(item.name)
        result = {"type": "function_call_output", "call_id": item.call_id, "output": "9"}
        items = [*items, item.model_dump(), result]
    assert names == ["get_time", "get_weather"] * 2


async def test_logprobs_tell_every_token_and_its_alternatives(client: openai.AsyncOpenAI) -> None:
    asked: Any = {"model": CHAT, "messages": messages(), "logprobs": True, "top_logprobs": 3}
    whole = await client.chat.completions.create(**asked)
    told: Any = whole.choices[0].logprobs
    assert "".join(one.token for one in told.content) == whole.choices[0].message.content
    assert {len(one.top_logprobs) for one in told.content} == {3}
    async with client.chat.completions.stream(**asked) as stream:
        streamed: Any = (await stream.get_final_completion()).choices[0].logprobs
    assert streamed.content == told.content
    include: Any = ["message.output_text.logprobs"]
    response: Any = await client.responses.create(model=CHAT, input=SUM, include=include, top_logprobs=2)
    part = response.output[0].content[0]
    assert "".join(one.token for one in part.logprobs) == part.text
    with pytest.raises(openai.BadRequestError, match="only allowed when 'logprobs'"):
        await client.chat.completions.create(model=CHAT, messages=messages(), top_logprobs=2)


@pytest.mark.parametrize(("effort", "tokens"), [("none", 0), ("low", 64), (None, 128), ("high", 256)])
async def test_a_model_that_reasons_charges_what_it_thinks(
    client: openai.AsyncOpenAI, effort: Any, tokens: int
) -> None:
    fields: Any = {} if effort is None else {"reasoning_effort": effort}
    chat: Any = await client.chat.completions.create(model=REASONS, messages=messages(), **fields)
    assert chat.usage.completion_tokens_details.reasoning_tokens == tokens
    assert chat.usage.completion_tokens == tokens + -(-len(chat.choices[0].message.content) // 4)
    fields = {} if effort is None else {"reasoning": {"effort": effort}}
    response: Any = await client.responses.create(model=REASONS, input=SUM, **fields)
    assert [item.type for item in response.output] == ["reasoning", "message"]
    assert response.usage.output_tokens_details.reasoning_tokens == tokens
    assert response.usage.output_tokens == tokens + -(-len(response.output_text) // 4)


async def test_a_budget_that_is_used_up_by_reasoning_is_a_400_of_chat_and_an_incomplete_response(
    client: openai.AsyncOpenAI,
) -> None:
    with pytest.raises(openai.BadRequestError, match="Could not finish the message because max_tokens"):
        await client.chat.completions.create(model=REASONS, messages=messages(), max_completion_tokens=128)
    cut = await client.chat.completions.create(model=REASONS, messages=messages(), max_completion_tokens=130)
    assert cut.choices[0].finish_reason == "length"
    response: Any = await client.responses.create(model=REASONS, input=SUM, max_output_tokens=100)
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert [item.type for item in response.output] == ["reasoning"]
    assert response.usage.output_tokens == 100


@pytest.mark.parametrize(
    ("model", "fields", "words"),
    [
        (REASONS, {"max_tokens": 500}, "Use 'max_completion_tokens' instead"),
        (REASONS, {"reasoning_effort": "hard"}, "Supported values are: 'high'"),
        (REASONS, {"logprobs": True}, "'logprobs' is not supported with this model"),
        (CHAT, {"reasoning_effort": "low"}, "'reasoning_effort' is not supported with this model"),
        (CHAT, {"tool_choice": "required"}, "only allowed when 'tools' are specified"),
        (CHAT, {"tools": CHAT_TOOLS, "tool_choice": "sometimes"}, "Supported values are: 'auto'"),
        (
            CHAT,
            {"tools": [{"type": "function", "function": {}}]},
            "Missing required parameter: 'tools\\[0\\].name'",
        ),
        (CHAT, {"response_format": {"type": "xml"}}, "Supported values are: 'json_object'"),
    ],
)
async def test_what_does_not_fit_the_model_or_the_tools_is_refused(
    client: openai.AsyncOpenAI, model: str, fields: Any, words: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=words):
        await client.chat.completions.create(model=model, messages=messages(), **fields)
