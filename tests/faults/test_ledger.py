"""The ledger finds what is lost, doubled, wrong and paid twice."""

from dataclasses import replace
from typing import Any

import pytest

from tests.faults.scenario import Ledger, Scenario, reckon

FAULT_ENDED = 1_000.0
EACH_ANSWERED_ONCE = {"a": 1, "b": 1, "c": 1}


async def nothing(_stage: object) -> None: ...


SCENARIO = Scenario(name="three jobs", injected="nothing", inject=nothing, jobs=3, errors={"q-2": "max_deliveries"})


def answer(number: int, *, said: str | None = None) -> dict[str, Any]:
    message = {"content": said or f"{number} + {number} = {2 * number}"}
    return {
        "custom_id": f"q-{number}",
        "response": {"status_code": 200, "body": {"choices": [{"message": message}]}},
        "error": None,
        "worker": {"finished": "1970-01-01T00:16:42.500Z"},
    }


def error(number: int, code: str) -> dict[str, Any]:
    return answer(number) | {"response": None, "error": {"code": code, "message": ""}}


GOOD = (answer(0), answer(1), error(2, "max_deliveries"))


def ledger_of(
    *results: dict[str, Any],
    answers: dict[str, int] = EACH_ANSWERED_ONCE,
    blobs: tuple[str, ...] = (),
    left: int = 0,
) -> Ledger:
    return reckon(SCENARIO, results=results, blobs=blobs, answers=answers, left=left, fault_ended=FAULT_ENDED)


def test_a_batch_of_which_each_job_ended_as_it_should_has_no_problem() -> None:
    ledger = ledger_of(*GOOD)
    assert ledger.problems(SCENARIO) == []
    assert ledger.recovery == 2.5


def test_a_job_without_a_result_is_lost() -> None:
    assert ledger_of(*GOOD[1:]).lost == 1


def test_a_second_result_of_a_job_is_doubled() -> None:
    assert ledger_of(*GOOD, answer(0)).doubled == 1


def test_an_answer_and_an_error_of_one_job_in_blob_storage_are_doubled_and_those_of_a_replay_are_not() -> None:
    key, other = "0" * 32, "1" * 32
    names = (
        f"p/{key}.ok.json",
        f"p/{key}.err.json",
        f"p/{key}.r1000.ok.json",
        f"p/{other}.ok.json",
        "p/retries/1.json",
    )
    assert ledger_of(*GOOD, blobs=names).doubled == 1


def test_the_answer_to_another_question_is_wrong() -> None:
    assert ledger_of(answer(0, said="1 + 1 = 2"), *GOOD[1:]).wrong == 1


def test_an_error_that_no_job_should_end_with_is_wrong_and_so_is_an_answer_in_its_place() -> None:
    assert ledger_of(error(0, "max_deliveries"), *GOOD[1:]).wrong == 1
    assert ledger_of(*GOOD[:2], answer(2)).wrong == 1


@pytest.mark.parametrize(("status", "wrong"), [(418, 0), (503, 1), (200, 1)])
def test_a_refusal_is_wrong_unless_it_has_the_status_that_its_job_asked_for(status: int, wrong: int) -> None:
    scenario = replace(SCENARIO, jobs=1, statuses={"q-0": 418})
    refused = answer(0) | {"response": {"status_code": status, "body": {"error": {"code": "teapot"}}}}
    ledger = reckon(scenario, results=[refused], blobs=[], answers={}, left=0, fault_ended=FAULT_ENDED)
    assert ledger.wrong == wrong


def test_each_further_answer_to_a_prompt_is_paid_twice_and_a_problem_beyond_the_limit() -> None:
    ledger = ledger_of(*GOOD, answers={"a": 3, "b": 1})
    assert ledger.paid_twice == 2
    assert ledger.problems(SCENARIO) == ["three-jobs-blob: paid twice is 2; at most 0 is allowed"]


def test_messages_that_are_left_in_a_queue_are_a_problem() -> None:
    assert ledger_of(*GOOD, left=1).problems(SCENARIO) == ["three-jobs-blob: left is 1; at most 0 is allowed"]
