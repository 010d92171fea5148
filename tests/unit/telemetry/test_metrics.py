"""Metrics: every event counted once, every series there from the start, no label that a producer could multiply."""

import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.examples import EVENT_TYPES, OUTCOMES, PAYLOAD, SETTLEMENTS, example_of
from worker import interfaces as events
from worker.admission.admission import Admission
from worker.interfaces import Target
from worker.jobs.outcomes import (
    Answered,
    HandBackReason,
    Lapse,
    Outcome,
    Response,
    Settlement,
    Unfinished,
    Usage,
    label_of,
)
from worker.rate_limits import ThrottleKind
from worker.settings import Price
from worker.telemetry.metrics import Metrics, file_age, scope_label

SCOPE = "https://cognitiveservices.azure.com/.default"
SERVICEBUS_SCOPE = "https://servicebus.azure.net//.default"

IGNORED = {
    events.Started,
    events.BackedOff,
    events.SetupCheckFailed,
    events.Draining,
    events.Drained,
    events.SweepFailed,
}
"""Events that only the log tells: each comes once in a process's life, or with another that is counted."""

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(
        queues=["jobs"],
        deployments=["mini-1", "mini-2"],
        scopes=[SCOPE, SERVICEBUS_SCOPE],
        slots=64,
        bytes_limit=1_000,
    )


def watch(metrics: Metrics) -> Admission:
    target = Target(deployment="mini-1", endpoint="https://a", tokens_per_minute=6_000)
    admission = Admission({"mini": [target]}, slots=4, observer=metrics)
    metrics.watch(admission)
    return admission


def exposed(metrics: Metrics) -> Series:
    """What Prometheus would read, without the moments at which series were made."""
    text = generate_latest(metrics.registry).decode()
    return {
        (sample.name.removeprefix("aoai_worker_"), frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def value(metrics: Metrics, name: str, **labels: str) -> float:
    """Of one series; KeyError where there is none."""
    return exposed(metrics)[name, frozenset(labels.items())]


def changes(metrics: Metrics, event: events.Event) -> dict[str, float]:
    """By how much an event raised which series, buckets left out: `name{label=value}`."""
    before = exposed(metrics)
    metrics(event)
    return {
        f"{name}{{{','.join(sorted(f'{key}={label}' for key, label in labels))}}}": after
        - before.get((name, labels), 0)
        for (name, labels), after in exposed(metrics).items()
        if after != before.get((name, labels)) and not name.endswith("_bucket")
    }


def test_a_call_costs_what_its_model_s_tokens_cost_and_nothing_is_told_without_a_price() -> None:
    prices = {"small": Price(input=1.0, cached_input=0.1, output=4.0)}
    metrics = Metrics(queues=(), deployments=("d",), scopes=(), slots=1, bytes_limit=1, prices=prices)
    for model in ("small", "other"):
        usage = Usage(prompt=1_000_000, cached=500_000, completion=250_000)
        metrics(example_of(events.CallEnded, deployment="d", queue="jobs", model=model, usage=usage))
    assert value(metrics, "cost_total", queue="jobs", model="small") == pytest.approx(0.5 + 0.05 + 1.0)
    assert {labels for name, labels in exposed(metrics) if name == "cost_total"} == {
        frozenset({("queue", "jobs"), ("model", "small")})
    }
    assert not any(name.startswith("batch_") for name, _ in exposed(metrics)), "off by default"


def test_the_first_batches_that_come_have_series_of_their_own_and_more_count_together() -> None:
    prices = {"small": Price(input=1.0, output=4.0)}
    metrics = Metrics(
        queues=(), deployments=("d",), scopes=(), slots=1, bytes_limit=1, prices=prices, batch_labels=2
    )
    usage = Usage(prompt=1_000_000, cached=500_000, completion=250_000)
    for batch in ("first", "second", "third", "first", "fourth"):
        metrics(example_of(events.CallEnded, deployment="d", model="small", usage=usage, batch_id=batch))
    for batch, times in (("first", 2), ("second", 1), ("other", 2)):
        assert value(metrics, "batch_cost_total", batch=batch) == pytest.approx(2.0 * times)
        for kind, tokens in (("prompt", 1_000_000), ("completion", 250_000), ("cached", 500_000)):
            told = value(metrics, "batch_tokens_total", batch=batch, deployment="d", kind=kind)
            assert told == tokens * times
    assert len([1 for name, _ in exposed(metrics) if name == "batch_cost_total"]) == 3


def test_every_event_is_counted_or_ignored_on_purpose(metrics: Metrics) -> None:
    for kind in EVENT_TYPES:
        counted = bool(changes(metrics, example_of(kind)))
        assert counted is (kind not in IGNORED), kind


def test_what_is_exposed_is_what_prometheus_reads(metrics: Metrics) -> None:
    for kind in EVENT_TYPES:
        metrics(example_of(kind))
    names = {name for name, _ in exposed(metrics)}
    assert {"jobs_total", "calls_total", "call_seconds_bucket", "slots", "token_expiry_timestamp_seconds"} <= names
    families = list(text_string_to_metric_families(generate_latest(metrics.registry).decode()))
    assert all(family.name.startswith("aoai_worker_") for family in families)
    assert all(family.documentation for family in families)
    assert PAYLOAD not in generate_latest(metrics.registry).decode()


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("jobs_received_total", {"queue": "jobs"}),
        ("jobs_redelivered_total", {"queue": "jobs"}),
        ("queue_wait_seconds_count", {"queue": "jobs"}),
        ("job_seconds_count", {"queue": "jobs"}),
        ("receiver_restarts_total", {"queue": "jobs"}),
        ("jobs_paid_twice_total", {"queue": "jobs"}),
        ("jobs_suspect_total", {"queue": "jobs"}),
        ("backlog_age_seconds", {"queue": "jobs"}),
        *[("jobs_handed_back_total", {"queue": "jobs", "reason": reason}) for reason in HandBackReason],
        *[
            ("dead_letters_swept_total", {"queue": "jobs", "reason": code})
            for code in ("expired", "max_deliveries")
        ],
        ("result_write_seconds_count", {}),
        ("jobs_in_flight", {}),
        ("deliveries_held", {}),
        ("lock_renewals_total", {}),
        ("lock_renewal_failures_total", {}),
        ("locks_lost_total", {}),
        ("faults_total", {}),
        *[("jobs_total", {"queue": "jobs", "deployment": "none", "outcome": label_of(one)}) for one in OUTCOMES],
        *[
            series
            for deployment in ("mini-1", "mini-2")
            for series in [
                ("call_seconds_count", {"deployment": deployment}),
                ("first_token_seconds_count", {"deployment": deployment}),
                *[
                    ("unfit_answers_total", {"deployment": deployment, "code": code})
                    for code in ("invalid_json", "schema_mismatch")
                ],
                *[
                    ("throttles_total", {"deployment": deployment, "kind": kind})
                    for kind in ("quota", "capacity", "cut", "provisioned")
                ],
                *[
                    ("gate_closed_seconds_total", {"deployment": deployment, "reason": reason})
                    for reason in ("quota", "capacity", "cut", "provisioned", "setup", "outage")
                ],
                ("calls_total", {"deployment": deployment, "status": "200"}),
                ("calls_total", {"deployment": deployment, "status": "429"}),
                ("jobs_total", {"queue": "jobs", "deployment": deployment, "outcome": "answered"}),
                ("jobs_total", {"queue": "jobs", "deployment": deployment, "outcome": "refused"}),
                *[
                    ("tokens_total", {"deployment": deployment, "kind": k})
                    for k in ("prompt", "completion", "cached")
                ],
            ]
        ],
        *[
            ("settlements_total", {"settlement": type(one).__name__, "confirmed": confirmed})
            for one in SETTLEMENTS
            if not isinstance(one, Lapse)
            for confirmed in ("true", "false")
        ],
        *[
            ("intake_closed", {"reason": reason})
            for reason in ("start-up", "setup", "sink", "source", "claims", "suspects")
        ],
        *[
            ("token_refreshes_total", {"scope": scope, "outcome": outcome})
            for scope in ("cognitiveservices.azure.com", "servicebus.azure.net")
            for outcome in ("ok", "failed")
        ],
    ],
)
def test_a_series_whose_labels_are_known_is_there_from_the_start(
    metrics: Metrics, name: str, labels: Mapping[str, str]
) -> None:
    assert value(metrics, name, **labels) == 0.0


def test_slots_and_version_are_told_from_the_start(metrics: Metrics) -> None:
    assert value(metrics, "slots") == 64
    assert any(name == "build_info" for name, _ in exposed(metrics))


def test_a_token_that_was_never_had_does_not_expire_in_1970(metrics: Metrics) -> None:
    assert not any(name == "token_expiry_timestamp_seconds" for name, _ in exposed(metrics))


@pytest.mark.parametrize(
    ("event", "counted"),
    [
        (
            events.JobsReceived(queue="jobs", count=5, redelivered=2, age=9.0),
            {
                "jobs_received_total{queue=jobs}": 5,
                "jobs_redelivered_total{queue=jobs}": 2,
                "backlog_age_seconds{queue=jobs}": 9,
            },
        ),
        (
            events.JobsReceived(queue="jobs", count=5, redelivered=0, age=0.0),
            {"jobs_received_total{queue=jobs}": 5},
        ),
        (
            example_of(events.JobStarted, queue="jobs", waited=2.5),
            {"queue_wait_seconds_count{queue=jobs}": 1, "queue_wait_seconds_sum{queue=jobs}": 2.5},
        ),
        (
            events.CallEnded(job_id="j", deployment="mini-1", status="200", seconds=1.5, first_token=0.25),
            {
                "first_token_seconds_count{deployment=mini-1}": 1,
                "first_token_seconds_sum{deployment=mini-1}": 0.25,
                "calls_total{deployment=mini-1,status=200}": 1,
                "call_seconds_count{deployment=mini-1}": 1,
                "call_seconds_sum{deployment=mini-1}": 1.5,
            },
        ),
        (
            events.CallEnded(job_id="j", deployment="mini-1", status="none", seconds=0.0, detail="timeout"),
            {"calls_total{deployment=mini-1,status=none}": 1, "call_seconds_count{deployment=mini-1}": 1},
        ),
        (
            events.CallEnded(
                job_id="j", deployment="mini-1", status="429", seconds=0.0, throttle=ThrottleKind.CAPACITY
            ),
            {
                "calls_total{deployment=mini-1,status=429}": 1,
                "call_seconds_count{deployment=mini-1}": 1,
                "throttles_total{deployment=mini-1,kind=capacity}": 1,
            },
        ),
        (
            events.GateClosed(deployment="mini-1", reason="quota", seconds=7.0),
            {"gate_closed_seconds_total{deployment=mini-1,reason=quota}": 7},
        ),
        (
            events.SuspectMet(queue="jobs", message_id="m", delivery_count=2),
            {"jobs_suspect_total{queue=jobs}": 1},
        ),
        (
            events.DeadLetterSwept(queue="jobs", message_id="m", code="expired"),
            {"dead_letters_swept_total{queue=jobs,reason=expired}": 1},
        ),
        (events.DeadLettersLeft(queue="jobs", count=7), {"dead_letters{queue=jobs}": 7}),
        (events.IntakeClosed(reason="sink", detail="down"), {"intake_closed{reason=sink}": 1}),
        (
            events.ResultWritten(queue="jobs", seconds=0.25, paid_twice=False),
            {"result_write_seconds_count{}": 1, "result_write_seconds_sum{}": 0.25},
        ),
        (
            events.ResultWritten(queue="jobs", seconds=0.0, paid_twice=True),
            {"result_write_seconds_count{}": 1, "jobs_paid_twice_total{queue=jobs}": 1},
        ),
        (
            events.LocksRenewed(count=100, lost=2, seconds=0.1),
            {"lock_renewals_total{}": 100, "locks_lost_total{}": 2},
        ),
        (events.LocksNotRenewed(count=3, detail="down"), {"lock_renewal_failures_total{}": 3}),
        (events.ReceiverRestarted(queue="jobs", detail="x"), {"receiver_restarts_total{queue=jobs}": 1}),
        (events.JobFaulted(message_id="m", error=ValueError()), {"faults_total{}": 1}),
        (
            events.TokenRefreshFailed(scope=SCOPE, seconds=1.0, code="700016", detail="x", usable_for=0.0),
            {
                "token_refreshes_total{outcome=failed,scope=cognitiveservices.azure.com}": 1,
                "token_refresh_failures_total{code=700016,scope=cognitiveservices.azure.com}": 1,
            },
        ),
    ],
)
def test_an_event_is_counted_where_it_belongs_and_nowhere_else(
    metrics: Metrics, event: events.Event, counted: dict[str, float]
) -> None:
    assert changes(metrics, event) == counted


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_every_delivery_is_counted_once_by_its_outcome(metrics: Metrics, outcome: Outcome) -> None:
    event = example_of(events.JobEnded, queue="jobs", deployment=None, outcome=outcome, seconds=4.0)
    counted = changes(metrics, event)
    jobs = {name: count for name, count in counted.items() if name.startswith("jobs_total")}
    assert jobs == {f"jobs_total{{deployment=none,outcome={label_of(outcome)},queue=jobs}}": 1}
    assert counted["job_seconds_sum{queue=jobs}"] == 4.0
    told = [name for name in counted if name.startswith("jobs_handed_back")]
    match outcome:
        case Unfinished(reason=reason):
            assert told == [f"jobs_handed_back_total{{queue=jobs,reason={reason}}}"]
        case _:
            assert told == []


def test_tokens_are_counted_as_the_service_counts_them(metrics: Metrics) -> None:
    usage = Usage(prompt=10, completion=2, cached=4)
    answered = Answered(response=Response(status=200, request_id=None, body=b"{}", usage=usage))
    counted = changes(metrics, example_of(events.JobEnded, deployment="mini-1", outcome=answered))
    assert {name: count for name, count in counted.items() if name.startswith("tokens")} == {
        "tokens_total{deployment=mini-1,kind=prompt}": 10,
        "tokens_total{deployment=mini-1,kind=completion}": 2,
        "tokens_total{deployment=mini-1,kind=cached}": 4,
    }


def test_an_answer_without_usage_costs_no_tokens(metrics: Metrics) -> None:
    answered = Answered(response=Response(status=200, request_id=None, body=b"{}"))
    counted = changes(metrics, example_of(events.JobEnded, deployment="mini-1", outcome=answered))
    assert not any(name.startswith("tokens") for name in counted)


@pytest.mark.parametrize("settlement", SETTLEMENTS)
@pytest.mark.parametrize("confirmed", [True, False])
def test_settlements_are_counted_by_their_confirmation(
    metrics: Metrics, settlement: Settlement, confirmed: bool
) -> None:
    name = f"settlements_total{{confirmed={str(confirmed).lower()},settlement={type(settlement).__name__}}}"
    assert changes(metrics, events.Settled(settlement=settlement, confirmed=confirmed)) == {name: 1}


def test_the_intake_is_closed_until_it_is_opened(metrics: Metrics) -> None:
    metrics(events.IntakeClosed(reason="setup", detail="403"))
    metrics(events.IntakeClosed(reason="setup", detail="403"))
    assert value(metrics, "intake_closed", reason="setup") == 1
    assert value(metrics, "intake_closed", reason="sink") == 0
    metrics(events.IntakeOpened(reason="setup"))
    assert value(metrics, "intake_closed", reason="setup") == 0


def test_a_refresh_tells_when_the_token_expires_and_when_it_was(metrics: Metrics) -> None:
    began = time.time()
    metrics(events.TokenRefreshed(scope=SCOPE, seconds=0.5, expires_on=2_000_000_000.0, refresh_on=1.0))
    scope = "cognitiveservices.azure.com"
    assert value(metrics, "token_refreshes_total", scope=scope, outcome="ok") == 1
    assert value(metrics, "token_refresh_seconds_sum", scope=scope) == 0.5
    assert value(metrics, "token_expiry_timestamp_seconds", scope=scope) == 2_000_000_000.0
    assert began <= value(metrics, "token_last_refresh_timestamp_seconds", scope=scope) <= time.time()


def test_a_job_adds_no_series_of_its_own(metrics: Metrics) -> None:
    """Ids, details and the like must not become labels: a series for each job would drown Prometheus."""
    known: dict[str, Any] = {
        "queue": "jobs",
        "deployment": "mini-1",
        "scope": SCOPE,
        "reason": "sink",
        "status": "200",
    }

    def tell(number: int) -> None:
        for kind in EVENT_TYPES:
            texts = {
                name: known.get(name, f"{name}-{number}") for name in ("message_id", "job_id", "detail", "what")
            }
            fields = {**known, **texts, "code": "other"}
            metrics(example_of(kind, **{name: fields[name] for name in fields if name in kind.__slots__}))

    tell(0)
    series = set(exposed(metrics))
    for number in range(1, 20):
        tell(number)
    assert set(exposed(metrics)) == series


async def test_gauges_are_read_when_they_are_scraped(metrics: Metrics) -> None:
    admission = watch(metrics)
    with admission.slot(admission.intake("jobs"), 100):
        assert (value(metrics, "jobs_in_flight"), value(metrics, "deliveries_held")) == (1.0, 1.0)
        assert value(metrics, "in_flight_bytes") == 100
    assert (value(metrics, "jobs_in_flight"), value(metrics, "deliveries_held")) == (0.0, 0.0)
    assert value(metrics, "in_flight_bytes") == 0
    assert value(metrics, "in_flight_bytes_limit") == 1_000


async def test_a_gate_tells_its_state_and_what_is_not_known_has_no_series(metrics: Metrics) -> None:
    watch(metrics)
    assert value(metrics, "gate_open", deployment="mini-1") == 1.0
    assert value(metrics, "calls_in_flight", deployment="mini-1") == 0.0
    assert value(metrics, "budget_tokens_per_minute", deployment="mini-1") == 6_000
    assert not any(name == "quota_remaining_tokens" for name, _ in exposed(metrics))


def test_names_that_producers_bring_in_are_labels_up_to_a_bound(metrics: Metrics) -> None:
    for number in range(100):
        metrics(events.CallEnded(job_id="j", deployment=f"new-{number}", status="404", seconds=0.0))
    assert value(metrics, "calls_total", deployment="new-63", status="404") == 1
    assert value(metrics, "calls_total", deployment="other", status="404") == 36
    assert value(metrics, "calls_total", deployment="mini-1", status="200") == 0, "what is configured has its place"


async def test_a_gate_beyond_the_bound_on_labels_has_no_gauges(metrics: Metrics) -> None:
    admission = Admission(None, slots=4, observer=metrics)
    metrics.watch(admission)
    for number in range(65):
        metrics(events.CallEnded(job_id="j", deployment=f"new-{number}", status="404", seconds=0.0))
        admission.route(f"new-{number}")
    labels = [dict(labels)["deployment"] for name, labels in exposed(metrics) if name == "gate_open"]
    assert "new-63" in labels
    assert "new-64" not in labels


async def test_deployments_of_one_name_at_two_endpoints_are_two_series(metrics: Metrics) -> None:
    places = [Target(deployment="gpt", endpoint=f"https://{name}", alias=f"gpt@{name}") for name in ("a", "b")]
    metrics = Metrics(queues=["jobs"], deployments=[p.label for p in places], scopes=[], slots=4, bytes_limit=1)
    metrics.watch(Admission({"gpt": places}, slots=4, observer=metrics))
    labels = [dict(labels)["deployment"] for name, labels in exposed(metrics) if name == "gate_open"]
    assert sorted(labels) == ["gpt@a", "gpt@b"]


async def test_the_projected_token_tells_its_age(
    metrics: Metrics, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("x")
    os.utime(token, (time.time() - 600, time.time() - 600))
    monkeypatch.setenv("AZURE_FEDERATED_TOKEN_FILE", str(token))
    watch(metrics)
    assert value(metrics, "projected_token_age_seconds") == pytest.approx(600, abs=5)
    token.unlink()
    assert math.isnan(value(metrics, "projected_token_age_seconds"))


async def test_without_a_projected_token_there_is_no_age(metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_FEDERATED_TOKEN_FILE", raising=False)
    watch(metrics)
    assert not any(name == "projected_token_age_seconds" for name, _ in exposed(metrics))


def test_two_workers_in_one_process_count_apart(metrics: Metrics) -> None:
    other = Metrics(queues=["jobs"], deployments=[], scopes=[], slots=1, bytes_limit=1)
    metrics(events.JobsReceived(queue="jobs", count=5, redelivered=0, age=0.0))
    assert value(other, "jobs_received_total", queue="jobs") == 0


def test_a_scope_is_named_after_its_host() -> None:
    assert scope_label(SCOPE) == "cognitiveservices.azure.com"
    assert scope_label(SERVICEBUS_SCOPE) == "servicebus.azure.net"


def test_a_file_that_cannot_be_seen_has_no_age(tmp_path: Path) -> None:
    assert math.isnan(file_age(tmp_path / "none"))
