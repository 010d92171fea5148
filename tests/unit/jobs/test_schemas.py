"""JSON Schema in bounded steps, beside a library that follows the whole of it."""

from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from referencing import Registry

from worker.jobs.schemas import find_mismatch

NAMES = st.sampled_from(["a", "b", "c"])
SCALARS = (
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.5, 1.0, -2.0]) | st.text("xy", max_size=3)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)
TYPES = st.sampled_from(["object", "array", "string", "boolean", "null", "number", "integer"])


def _schemas(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries(
        {},
        optional={
            "type": TYPES | st.lists(TYPES, min_size=1, max_size=3, unique=True),
            "enum": st.lists(VALUES, min_size=1, max_size=3),
            "const": VALUES,
            "properties": st.dictionaries(NAMES, inner, max_size=3),
            "required": st.lists(NAMES, max_size=2, unique=True),
            "additionalProperties": st.booleans() | inner,
            "items": inner,
            "prefixItems": st.lists(inner, min_size=1, max_size=2),
            "anyOf": st.lists(inner, min_size=1, max_size=3),
            "allOf": st.lists(inner, min_size=1, max_size=2),
            "minimum": st.integers(-2, 2),
            "exclusiveMaximum": st.integers(-2, 2),
            "minLength": st.integers(0, 2),
            "maxItems": st.integers(0, 2),
            "$ref": st.sampled_from(["#/$defs/one", "#/$defs/two"]),
        },
    )


SCHEMAS: st.SearchStrategy[Any] = st.recursive(st.booleans() | st.just({}), _schemas, max_leaves=8)


@settings(max_examples=300, deadline=None)
@given(
    schema=_schemas(SCHEMAS).filter(lambda schema: "$ref" not in schema),
    one=SCHEMAS.filter(lambda schema: "$ref" not in str(schema)),
    two=SCHEMAS.filter(lambda schema: "$ref" not in str(schema)),
    value=VALUES,
)
def test_a_fault_is_found_where_the_library_finds_one(
    schema: dict[str, Any], one: Any, two: Any, value: Any
) -> None:
    schema = {**schema, "$defs": {"one": one, "two": two}}
    is_valid = jsonschema.Draft202012Validator(schema, registry=Registry()).is_valid(value)
    found = find_mismatch(schema, value)
    assert (found is None) or not is_valid, found
    # beside a reference nothing else is looked at
    if "$ref" not in str(schema):
        assert (found is None) == is_valid


@pytest.mark.parametrize(
    ("schema", "value", "told"),
    [
        ({"type": "object", "required": ["a"]}, {}, "$ has no 'a'"),
        ({"properties": {"a": {"type": "integer"}}}, {"a": "x"}, "$.a is string; it must be integer"),
        ({"items": {"type": ["string", "null"]}}, ["x", None, 1], "$[2] is number; it must be string or null"),
        ({"additionalProperties": False, "properties": {"a": True}}, {"b": 1}, "$.b must not be there"),
        ({"enum": [1, 2]}, True, "$ is none of the 2 values of its enum"),
        ({"anyOf": [{"type": "null"}, {"maximum": 1}]}, 2, "$ fits none of 2 alternatives"),
        ({"maxLength": 1}, "xx", "$ is longer than maxLength, which is 1"),
    ],
)
def test_a_fault_names_the_place_what_is_there_and_what_is_allowed(schema: Any, value: Any, told: str) -> None:
    assert find_mismatch(schema, value) == told


def alternatives(levels: int) -> dict[str, Any]:
    """Which a library would follow 2 ** levels times."""
    steps = {f"s{n}": {"anyOf": [{"$ref": f"#/$defs/s{n + 1}"}] * 2} for n in range(levels)}
    return {"$ref": "#/$defs/s0", "$defs": {**steps, f"s{levels}": {"type": "string"}}}


NESTED: dict[str, Any] = {"type": "object"}
for _ in range(500):
    NESTED = {"items": NESTED}


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"$ref": "https://example.com/schema.json"},
        {"$ref": "#/nowhere/at/all"},
        {"$ref": 1, "type": 2, "enum": 3, "required": "a", "properties": [], "anyOf": {}, "minimum": "x"},
        {"type": "of another draft"},
        {"pattern": "(a+)+$", "not": {}},
        alternatives(60),
        [],
        None,
        "schema",
    ],
)
@pytest.mark.parametrize("value", [1, "a" * 50 + "!", [[[]]], {"a": {"a": {}}}])
def test_a_schema_that_is_none_or_would_take_too_long_finds_no_fault(schema: Any, value: Any) -> None:
    assert find_mismatch(schema, value) is None


def test_a_value_that_is_nested_deeper_than_a_job_may_be_is_given_up() -> None:
    value: Any = 1
    for _ in range(500):
        value = [value]
    assert find_mismatch(NESTED, value) is None
