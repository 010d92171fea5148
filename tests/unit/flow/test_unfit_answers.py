"""An answer that is not the JSON which its job asked for: marked, and sought again where that is wanted."""

import json
from collections.abc import Sequence
from typing import Any

import pytest

from tests.support.bench import Bench, target
from worker.errors import RefusedByService, Unavailable
from worker.interfaces import AnswerUnfit, Target
from worker.jobs.job import Job
from worker.jobs.outcomes import Response
from worker.testing import answer

pytestmark = pytest.mark.looptime

LINE = json.dumps(
    {
        "custom_id": "a",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "m", "messages": [], "response_format": {"type": "json_object"}},
    }
).encode()


class Says:
    """Answers, or raises, in turn."""

    def __init__(self, *turns: str | Exception) -> None:
        self.turns = list(turns)

    async def __call__(self, job: Job, target: Target) -> Response:
        turn = self.turns.pop(0)
        if isinstance(turn, Exception):
            raise turn
        return answer(turn)


async def work(*turns: str | Exception, unfit_answers: int) -> tuple[Any, Sequence[AnswerUnfit], int]:
    """The result, what was told, and how many calls were made."""
    bench = Bench(Says(*turns), routes={"m": [target("mini")]}, unfit_answers=unfit_answers, attempts=2)
    bench.queue.send(LINE, message_id="batch/a")
    await bench.work()
    return bench.sink.results["batch/a"], bench.events.of(AnswerUnfit), len(bench.model.calls)


def said(result: dict[str, Any]) -> object:
    return result["response"]["body"]["choices"][0]["message"]["content"]


async def test_it_is_marked_and_kept() -> None:
    result, told, calls = await work("no JSON", unfit_answers=0)
    assert (said(result), calls) == ("no JSON", 1)
    [warning] = result["worker"]["warnings"]
    assert warning["code"] == "invalid_json"
    assert warning["message"].startswith("choices[0]: not JSON: ")
    assert [(event.code, event.deployment, event.is_called_again) for event in told] == [
        ("invalid_json", "mini", False)
    ]


async def test_it_is_sought_again_and_the_first_that_fits_is_kept_without_a_mark() -> None:
    result, told, calls = await work("no JSON", "[]", "{}", unfit_answers=3)
    assert (said(result), calls) == ("{}", 3)
    assert "warnings" not in result["worker"]
    assert [event.code for event in told] == ["invalid_json", "schema_mismatch"]
    assert result["worker"]["attempts"] == 3


async def test_after_the_last_try_the_last_answer_is_kept() -> None:
    result, told, calls = await work("one", "two", "three", unfit_answers=2)
    assert (said(result), calls) == ("three", 3)
    assert [event.is_called_again for event in told] == [True, True, False]


@pytest.mark.parametrize(
    "failure",
    [RefusedByService("no", status=400, body=b"{}", request_id="r"), Unavailable("gone", status=503)],
    ids=["refused", "unavailable"],
)
async def test_what_was_paid_for_is_kept_where_the_next_call_brings_nothing(failure: Exception) -> None:
    result, _, _ = await work("no JSON", failure, failure, unfit_answers=1)
    assert said(result) == "no JSON"
    assert result["worker"]["warnings"][0]["code"] == "invalid_json"


async def test_an_answer_that_fits_has_no_mark() -> None:
    result, told, calls = await work("{}", unfit_answers=5)
    assert "warnings" not in result["worker"]
    assert (list(told), calls) == ([], 1)
