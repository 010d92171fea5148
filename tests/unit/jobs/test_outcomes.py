"""What became of a job decides what is said to the broker, and how it is counted."""

from typing import get_args

import pytest

from tests.support.examples import OUTCOMES, SETTLEMENTS
from worker.errors import DeadLetterReason
from worker.jobs.outcomes import (
    Abandon,
    AlreadyDone,
    Answered,
    Complete,
    Concluded,
    DeadLetter,
    Failed,
    FailureCode,
    Faulted,
    HandBackReason,
    Lapse,
    Lost,
    Outcome,
    Refused,
    Release,
    Response,
    Settlement,
    Unfinished,
    Unreadable,
    label_of,
    settlement_of,
)
from worker.telemetry import metrics

RESPONSE = Response(status=200, request_id=None, body=b"{}")

TABLE: list[tuple[Outcome, Settlement, str]] = [
    (Answered(response=RESPONSE), Complete(), "answered"),
    (Refused(response=RESPONSE), Complete(), "refused"),
    (Failed(code=FailureCode.EXPIRED, message=""), Complete(), "expired"),
    (Failed(code=FailureCode.MODEL_NOT_ALLOWED, message=""), Complete(), "model_not_allowed"),
    (Failed(code=FailureCode.ATTEMPTS_EXHAUSTED, message=""), Complete(), "attempts_exhausted"),
    (Failed(code=FailureCode.ANSWER_TOO_LARGE, message=""), Complete(), "answer_too_large"),
    (Failed(code=FailureCode.MAX_DELIVERIES, message=""), Complete(), "max_deliveries"),
    (Failed(code=FailureCode.BATCH_CANCELLED, message=""), Complete(), "batch_cancelled"),
    (
        Unreadable(reason=DeadLetterReason.INVALID_JSON, description="fix it"),
        DeadLetter(reason=DeadLetterReason.INVALID_JSON, description="fix it"),
        "dead_lettered",
    ),
    (Unfinished(reason=HandBackReason.SHUTDOWN), Release(), "handed_back"),
    (Unfinished(reason=HandBackReason.SHUTDOWN, is_perhaps_written=True), Abandon(), "handed_back"),
    (Unfinished(reason=HandBackReason.PARKED), Release(), "handed_back"),
    (Unfinished(reason=HandBackReason.SETUP), Release(), "handed_back"),
    (Unfinished(reason=HandBackReason.SUSPECT), Release(), "handed_back"),
    (Unfinished(reason=HandBackReason.UNKNOWN_MODEL), Release(), "handed_back"),
    (AlreadyDone(), Complete(), "already_done"),
    (Faulted(), Abandon(), "faulted"),
    (Lost(), Lapse(), "lock_lost"),
]


@pytest.mark.parametrize(("outcome", "settlement", "label"), TABLE)
def test_an_outcome_has_one_settlement_and_one_label(outcome: Outcome, settlement: Settlement, label: str) -> None:
    assert settlement_of(outcome) == settlement
    assert label_of(outcome) == label


def test_the_table_leaves_out_no_outcome_no_code_and_no_reason() -> None:
    outcomes = [outcome for outcome, _, _ in TABLE]
    assert {type(outcome) for outcome in outcomes} == set(get_args(Outcome))
    assert {outcome.code for outcome in outcomes if isinstance(outcome, Failed)} == set(FailureCode)
    assert {outcome.reason for outcome in outcomes if isinstance(outcome, Unfinished)} == set(HandBackReason)


def test_every_settlement_is_somebodys() -> None:
    assert {type(settlement_of(outcome)) for outcome in OUTCOMES} == set(get_args(Settlement))
    assert {type(settlement) for settlement in SETTLEMENTS} == set(get_args(Settlement))


def test_what_is_written_now_or_before_is_completed_and_nothing_else_is() -> None:
    for outcome in OUTCOMES:
        is_written = isinstance(outcome, (*get_args(Concluded), AlreadyDone))
        assert isinstance(settlement_of(outcome), Complete) is is_written


def test_labels_are_those_that_metrics_begin_with_at_zero() -> None:
    assert {label_of(outcome) for outcome in OUTCOMES} == set(metrics.OUTCOMES)


def test_only_a_fault_of_ours_raises_the_delivery_count() -> None:
    """Abandoning counts towards the dead-letter queue: throttles, outages and shutdowns must not."""
    assert [type(outcome) for outcome in OUTCOMES if isinstance(settlement_of(outcome), Abandon)] == [Faulted]
