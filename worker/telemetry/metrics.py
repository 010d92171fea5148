"""Prometheus metrics: a listener to events. Labels come from configuration or closed lists, so they are bounded."""

import os
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from worker import interfaces as events
from worker.admission.admission import Admission
from worker.admission.closures import Closure
from worker.admission.gate import OUTAGE, SETUP
from worker.interfaces import Event
from worker.jobs.outcomes import (
    Answered,
    FailureCode,
    HandBackReason,
    Unfinished,
    Usage,
    WarningCode,
    label_of,
)
from worker.rate_limits import ThrottleKind
from worker.settings import Price

PREFIX = "aoai_worker"

CALL_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 600)
AGE_BUCKETS = (1, 5, 15, 60, 300, 900, 3_600, 14_400, 43_200, 86_400)
WRITE_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
TOKEN_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

OUTCOMES = (
    "answered",
    "refused",
    *FailureCode,
    "already_done",
    "dead_lettered",
    "handed_back",
    "faulted",
    "lock_lost",
)
TOKEN_KINDS = tuple(field.name for field in fields(Usage))
SETTLEMENTS = ("Complete", "DeadLetter", "Release", "Abandon")
GATE_GAUGES = {
    "gate_open": "1 while the deployment accepts calls",
    "calls_in_flight": "Calls to the deployment in flight",
    "concurrency_limit": "Calls that may be in flight at once; adapts",
    "jobs_parked": "Jobs that wait for the deployment",
    "budget_tokens_per_minute": "This pod's share of the tokens, by the service's estimate",
    "budget_requests_per_minute": "This pod's share of the requests",
    "quota_remaining_tokens": "Tokens left in the minute, as last reported by the service",
    "quota_remaining_requests": "Requests left in the minute, as last reported by the service",
}
MOST_DEPLOYMENTS = 64
"""Beyond those that are configured: names that producers bring in under `passthrough`. More count as `other`."""


class Metrics:
    """An `Observer` with its own registry. Every series whose labels are known beforehand starts at zero."""

    def __init__(
        self,
        *,
        queues: Iterable[str],
        models: Iterable[str] = (),
        deployments: Iterable[str],
        scopes: Iterable[str],
        slots: int,
        bytes_limit: int,
        prices: Mapping[str, Price] = MappingProxyType({}),
        batch_labels: int = 0,
    ) -> None:
        """`prices`: by model; what others cost is not told. `batch_labels`: so many batches, the first that come,
        have series of their own; more count together as `other`. None has where it is 0."""
        self.registry = CollectorRegistry()
        self._prices = prices
        self._most_batches = batch_labels
        self._batches: set[str] = set()
        self._children: dict[tuple[Any, ...], Any] = {}
        self._deployments = set(deployments)
        self._most_deployments = len(self._deployments) + MOST_DEPLOYMENTS
        self._define()
        self._create_at_zero(
            tuple(queues), sorted(self._deployments), tuple(scope_label(scope) for scope in scopes)
        )
        for model in models:  # that are sorted
            self._child(self.sorted, model)
        self.slots.set(slots)
        self.bytes_limit.set(bytes_limit)
        Info(f"{PREFIX}_build", "The version that runs", registry=self.registry).info(
            {"version": version("aoai-worker")}
        )
        self._on: dict[type[Any], Callable[[Any], None]] = {
            events.JobsReceived: self._jobs_received,
            events.JobsSorted: self._jobs_sorted,
            events.SortingFailed: self._sorting_failed,
            events.JobStarted: self._job_started,
            events.CallEnded: self._call_ended,
            events.AnswerUnfit: self._answer_unfit,
            events.GateClosed: self._gate_closed,
            events.IntakeClosed: self._intake_closed,
            events.IntakeOpened: self._intake_opened,
            events.ResultWritten: self._result_written,
            events.JobEnded: self._job_ended,
            events.Settled: self._settled,
            events.LocksRenewed: self._locks_renewed,
            events.LocksNotRenewed: self._locks_not_renewed,
            events.ReceiverRestarted: self._receiver_restarted,
            events.TokenRefreshed: self._token_refreshed,
            events.TokenRefreshFailed: self._token_refresh_failed,
            events.JobFaulted: self._job_faulted,
            events.SuspectMet: self._suspect_met,
            events.DeadLetterSwept: self._dead_letter_swept,
            events.DeadLettersLeft: self._dead_letters_left,
        }

    def __call__(self, event: Event) -> None:
        handler = self._on.get(type(event))
        if handler is not None:
            handler(event)

    def watch(self, admission: Admission) -> None:
        """Gauges that are read when they are scraped."""
        state = admission.state
        self.in_flight.set_function(lambda: state.in_flight)
        self.bytes_in_flight.set_function(lambda: state.memory.used)
        self.held.set_function(lambda: state.held)
        self.registry.register(GateGauges(admission, self._deployments))
        token_file = os.environ.get("AZURE_FEDERATED_TOKEN_FILE")
        if token_file:
            self._gauge("projected_token_age_seconds", "Age of the projected token file").set_function(
                lambda: file_age(Path(token_file))
            )

    def _define(self) -> None:
        counter, gauge, histogram = self._counter, self._gauge, self._histogram
        self.received = counter("jobs_received", "Messages received", ["queue"])
        self.sorted = counter("jobs_sorted", "Jobs moved to the queue of their model", ["model"])
        self.sort_seconds = histogram("sort_seconds", "From receiving to moved, of a batch", [], WRITE_BUCKETS)
        self.sort_failures = counter("sort_failures", "Batches that a model's queue did not accept", ["queue"])
        self.handed_back = counter("jobs_handed_back", "Deliveries given back to the queue", ["queue", "reason"])
        self.paid_twice = counter("jobs_paid_twice", "Answers to jobs whose result was already written", ["queue"])
        self.suspects = counter("jobs_suspect", "Deliveries of suspects, which run apart", ["queue"])
        self.swept = counter(
            "dead_letters_swept", "Dead letters of the broker that got an error line", ["queue", "reason"]
        )
        self.dead_letters = gauge("dead_letters", "Dead letters left by this pod's last sweep", ["queue"])
        self.backlog_age = gauge("backlog_age_seconds", "Age of the message received last", ["queue"])
        self.redelivered = counter("jobs_redelivered", "Messages received again", ["queue"])
        self.jobs = counter("jobs", "Deliveries by their outcome", ["queue", "deployment", "outcome"])
        self.tokens = counter("tokens", "Tokens as the service counts them", ["deployment", "kind"])
        self.calls = counter("calls", "Calls by HTTP status; none if there was no answer", ["deployment", "status"])
        self.cost = counter("cost", "Price of the tokens of calls, by AOAI_WORKER_PRICES", ["queue", "model"])
        self.batch_tokens = counter("batch_tokens", "Tokens of calls by batch", ["batch", "deployment", "kind"])
        self.batch_cost = counter("batch_cost", "Price of the tokens of calls by batch", ["batch"])
        self.unfit = counter(
            "unfit_answers", "Answers that are not the JSON their job asked for", ["deployment", "code"]
        )
        self.throttles = counter("throttles", "Calls answered 429, by kind", ["deployment", "kind"])
        self.first_token = histogram(
            "first_token_seconds", "To a stream's first token", ["deployment"], CALL_BUCKETS
        )
        self.call_seconds = histogram("call_seconds", "Seconds of a call", ["deployment"], CALL_BUCKETS)
        self.wait_seconds = histogram("queue_wait_seconds", "From enqueuing to start", ["queue"], AGE_BUCKETS)
        self.job_seconds = histogram("job_seconds", "From enqueuing to the outcome", ["queue"], AGE_BUCKETS)
        self.write_seconds = histogram("result_write_seconds", "Writing a result", [], WRITE_BUCKETS)
        self.in_flight = gauge("jobs_in_flight", "Jobs whose result is not written yet")
        self.bytes_in_flight = gauge("in_flight_bytes", "Bytes of jobs and unwritten answers in memory")
        self.bytes_limit = gauge("in_flight_bytes_limit", "Limit of these bytes, above which nothing is received")
        self.held = gauge("deliveries_held", "Deliveries that are not settled yet")
        self.slots = gauge("slots", "Jobs that may be in flight")
        self.gate_closed = counter(
            "gate_closed_seconds", "Seconds for which gates closed", ["deployment", "reason"]
        )
        self.intake = gauge("intake_closed", "1 while nothing is received for this reason", ["reason"])
        self.settlements = counter("settlements", "Settlements by confirmation", ["settlement", "confirmed"])
        self.renewals = counter("lock_renewals", "Locks renewed")
        self.renewal_failures = counter("lock_renewal_failures", "Locks that a request failed to renew")
        self.locks_lost = counter("locks_lost", "Locks lost before the message was settled")
        self.restarts = counter("receiver_restarts", "Receivers retired after an error", ["queue"])
        self.faults = counter("faults", "Deliveries that failed by a fault of the worker")
        self.refreshes = counter("token_refreshes", "Token requests", ["scope", "outcome"])
        self.refresh_failures = counter("token_refresh_failures", "By AADSTS code", ["scope", "code"])
        self.refresh_seconds = histogram("token_refresh_seconds", "Token requests", ["scope"], TOKEN_BUCKETS)
        self.token_expiry = gauge("token_expiry_timestamp_seconds", "When the token expires", ["scope"])
        self.token_success = gauge("token_last_refresh_timestamp_seconds", "Last good refresh", ["scope"])

    def _create_at_zero(self, queues: Sequence[str], deployments: Sequence[str], scopes: Sequence[str]) -> None:
        for queue in queues:
            self._create_queue(queue)
            for deployment in deployments:
                for outcome in ("answered", "refused"):
                    self._child(self.jobs, queue, deployment, outcome)
        for deployment in deployments:
            self._create_deployment(deployment)
        for scope in scopes:
            self._child(self.refresh_seconds, scope)
            for outcome in ("ok", "failed"):
                self._child(self.refreshes, scope, outcome)
        for settlement in SETTLEMENTS:
            for confirmed in ("true", "false"):
                self._child(self.settlements, settlement, confirmed)
        for reason in Closure:
            self._child(self.intake, reason)

    def _create_queue(self, queue: str) -> None:
        for metric in (
            self.received,
            self.redelivered,
            self.wait_seconds,
            self.job_seconds,
            self.restarts,
            self.paid_twice,
            self.suspects,
            self.backlog_age,
            self.sort_failures,
        ):
            self._child(metric, queue)
        for outcome in OUTCOMES:
            self._child(self.jobs, queue, "none", outcome)
        for reason in HandBackReason:
            self._child(self.handed_back, queue, reason)
        for code in (FailureCode.EXPIRED, FailureCode.MAX_DELIVERIES):
            self._child(self.swept, queue, code)

    def _create_deployment(self, deployment: str) -> None:
        self._child(self.call_seconds, deployment)
        self._child(self.first_token, deployment)
        for code in WarningCode:
            self._child(self.unfit, deployment, code)
        for throttle in ThrottleKind:
            self._child(self.throttles, deployment, throttle)
        for reason in (*ThrottleKind, SETUP, OUTAGE):
            self._child(self.gate_closed, deployment, reason)
        for status in ("200", "429"):
            self._child(self.calls, deployment, status)
        for kind in TOKEN_KINDS:
            self._child(self.tokens, deployment, kind)

    def _jobs_received(self, event: events.JobsReceived) -> None:
        self._child(self.received, event.queue).inc(event.count)
        self._child(self.backlog_age, event.queue).set(event.age)
        if event.redelivered:
            self._child(self.redelivered, event.queue).inc(event.redelivered)

    def _jobs_sorted(self, event: events.JobsSorted) -> None:
        self._child(self.sorted, event.model).inc(event.count)
        self.sort_seconds.observe(event.seconds)

    def _sorting_failed(self, event: events.SortingFailed) -> None:
        self._child(self.sort_failures, event.queue).inc()

    def _job_started(self, event: events.JobStarted) -> None:
        self._child(self.wait_seconds, event.queue).observe(event.waited)

    def _call_ended(self, event: events.CallEnded) -> None:
        deployment = self._label_of(event.deployment)
        self._child(self.calls, deployment, event.status).inc()
        self._child(self.call_seconds, deployment).observe(event.seconds)
        if event.first_token is not None:
            self._child(self.first_token, deployment).observe(event.first_token)
        if event.throttle is not None:
            self._child(self.throttles, deployment, event.throttle).inc()
        if event.usage is not None:
            self._paid(event, event.usage)

    def _paid(self, event: events.CallEnded, usage: Usage) -> None:
        price = self._prices.get(event.model)
        if price is not None:
            self._child(self.cost, event.queue, event.model).inc(price.cost(usage))
        if not self._most_batches:
            return
        batch, deployment = self._batch_label(event.batch_id), self._label_of(event.deployment)
        for kind in TOKEN_KINDS:
            self._child(self.batch_tokens, batch, deployment, kind).inc(getattr(usage, kind))
        if price is not None:
            self._child(self.batch_cost, batch).inc(price.cost(usage))

    def _batch_label(self, batch_id: str) -> str:
        if batch_id not in self._batches:
            if len(self._batches) >= self._most_batches:
                return "other"
            self._batches.add(batch_id)
        return batch_id

    def _answer_unfit(self, event: events.AnswerUnfit) -> None:
        self._child(self.unfit, self._label_of(event.deployment), event.code).inc()

    def _gate_closed(self, event: events.GateClosed) -> None:
        self._child(self.gate_closed, self._label_of(event.deployment), event.reason).inc(event.seconds)

    def _intake_closed(self, event: events.IntakeClosed) -> None:
        self._child(self.intake, event.reason).set(1)

    def _intake_opened(self, event: events.IntakeOpened) -> None:
        self._child(self.intake, event.reason).set(0)

    def _result_written(self, event: events.ResultWritten) -> None:
        self.write_seconds.observe(event.seconds)
        if event.paid_twice:
            self._child(self.paid_twice, event.queue).inc()

    def _suspect_met(self, event: events.SuspectMet) -> None:
        self._child(self.suspects, event.queue).inc()

    def _dead_letter_swept(self, event: events.DeadLetterSwept) -> None:
        self._child(self.swept, event.queue, event.code).inc()

    def _dead_letters_left(self, event: events.DeadLettersLeft) -> None:
        self._child(self.dead_letters, event.queue).set(event.count)

    def _job_ended(self, event: events.JobEnded) -> None:
        deployment = self._label_of(event.deployment) if event.deployment else "none"
        self._child(self.jobs, event.queue, deployment, label_of(event.outcome)).inc()
        self._child(self.job_seconds, event.queue).observe(event.seconds)
        if isinstance(event.outcome, Unfinished):
            self._child(self.handed_back, event.queue, event.outcome.reason).inc()
        if isinstance(event.outcome, Answered) and (usage := event.outcome.response.usage):
            for kind in TOKEN_KINDS:
                self._child(self.tokens, deployment, kind).inc(getattr(usage, kind))

    def _settled(self, event: events.Settled) -> None:
        name = type(event.settlement).__name__
        self._child(self.settlements, name, "true" if event.confirmed else "false").inc()

    def _locks_renewed(self, event: events.LocksRenewed) -> None:
        self.renewals.inc(event.count)
        self.locks_lost.inc(event.lost)

    def _locks_not_renewed(self, event: events.LocksNotRenewed) -> None:
        self.renewal_failures.inc(event.count)

    def _receiver_restarted(self, event: events.ReceiverRestarted) -> None:
        self._child(self.restarts, event.queue).inc()

    def _job_faulted(self, event: events.JobFaulted) -> None:
        self.faults.inc()

    def _token_refreshed(self, event: events.TokenRefreshed) -> None:
        scope = scope_label(event.scope)
        self._child(self.refreshes, scope, "ok").inc()
        self._child(self.refresh_seconds, scope).observe(event.seconds)
        self._child(self.token_expiry, scope).set(event.expires_on)
        self._child(self.token_success, scope).set(time.time())

    def _token_refresh_failed(self, event: events.TokenRefreshFailed) -> None:
        scope = scope_label(event.scope)
        self._child(self.refreshes, scope, "failed").inc()
        self._child(self.refresh_failures, scope, event.code).inc()

    def _label_of(self, deployment: str) -> str:
        if deployment in self._deployments:
            return deployment
        if len(self._deployments) >= self._most_deployments:
            return "other"
        self._deployments.add(deployment)
        return deployment

    def _child(self, metric: Any, *labels: str) -> Any:
        """The series itself; looking it up anew would cost more than counting."""
        key = (metric, *labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = metric.labels(*labels)
        return child

    def _counter(self, name: str, text: str, labels: Iterable[str] = ()) -> Counter:
        return Counter(f"{PREFIX}_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, labels: Iterable[str] = ()) -> Gauge:
        return Gauge(f"{PREFIX}_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, labels: Iterable[str], buckets: Iterable[float]) -> Histogram:
        return Histogram(f"{PREFIX}_{name}", text, labels, buckets=tuple(buckets), registry=self.registry)


class GateGauges(Collector):
    """The state of every gate, read when it is scraped; of gates whose deployment is a label elsewhere too."""

    def __init__(self, admission: Admission, deployments: Container[str]) -> None:
        self._admission = admission
        self._deployments = deployments

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """What is not known, such as the budget of a deployment without one, has no series."""
        rows = [row for row in self._admission.gauges().items() if row[0] in self._deployments]
        for name, text in GATE_GAUGES.items():
            family = GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=["deployment"])
            for deployment, values in rows:
                if (value := values.get(name)) is not None:
                    family.add_metric([deployment], value)
            yield family


def scope_label(scope: str) -> str:
    """The resource's host: `servicebus.azure.net` for `https://servicebus.azure.net//.default`."""
    return scope.removeprefix("https://").split("/", 1)[0]


def file_age(path: Path) -> float:
    """Seconds since the file was written; NaN while it cannot be seen."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return float("nan")
