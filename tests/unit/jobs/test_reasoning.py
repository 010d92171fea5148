"""Which models reason, and what they refuse, by the names that jobs give."""

from pathlib import Path
from typing import Any

import pytest

from worker.client.batch_files import read_batch_file
from worker.jobs.job import JobLine, Operation
from worker.jobs.reasoning import effort_of, refused_parameters

EXAMPLE = Path(__file__).parents[3] / "examples/chat.jsonl"


def line(
    body: dict[str, Any], operation: Operation = Operation.CHAT_COMPLETIONS, model: str = "gpt-5.4"
) -> JobLine:
    return JobLine(custom_id="a", operation=operation, model=model, body=body)


@pytest.mark.parametrize("model", ["gpt-5", "gpt-5.4", "gpt-5.4-mini", "gpt-5.6-2026-10-01", "o9", "o9-mini"])
def test_a_model_that_reasons_is_known_by_its_name(model: str) -> None:
    assert effort_of(model, {}) == "medium"


@pytest.mark.parametrize("model", ["gpt-5-chat", "gpt-5.3-chat", "gpt-50", "plain", "o9n", "my-gpt-5", "ft:gpt-5"])
def test_any_other_name_says_nothing(model: str) -> None:
    assert effort_of(model, {"reasoning_effort": "high"}) is None


@pytest.mark.parametrize(
    ("operation", "instead"),
    [(Operation.CHAT_COMPLETIONS, "max_completion_tokens"), (Operation.RESPONSES, "max_output_tokens")],
)
def test_max_tokens_is_refused_whatever_the_effort(operation: Operation, instead: str) -> None:
    body = {"max_tokens": 5, "reasoning_effort": "none", "reasoning": {"effort": "none"}}
    assert refused_parameters(line(body, operation)) == {"max_tokens": f"use {instead}"}


@pytest.mark.parametrize(
    ("name", "usual", "other"),
    [
        ("temperature", 1, 0),
        ("top_p", 1.0, 0.9),
        ("presence_penalty", 0, 0.5),
        ("frequency_penalty", 0.0, -1),
        ("logprobs", False, True),
        ("top_logprobs", 0, 3),
        ("logit_bias", {}, {"50256": -100}),
    ],
)
def test_sampling_is_refused_while_the_model_reasons_but_for_its_defaults(
    name: str, usual: object, other: object
) -> None:
    assert set(refused_parameters(line({name: other}))) == {name}
    assert not refused_parameters(line({name: usual}))
    assert not refused_parameters(line({name: None}))
    assert not refused_parameters(line({name: other, "reasoning_effort": "none"}))


def test_other_operations_and_other_models_refuse_nothing_here() -> None:
    body = {"max_tokens": 5, "temperature": 0}
    assert not refused_parameters(line(body, Operation.COMPLETIONS))
    assert not refused_parameters(line(body, model="plain"))


def test_the_example_has_nothing_to_warn_of() -> None:
    assert read_batch_file(EXAMPLE).warnings == []
