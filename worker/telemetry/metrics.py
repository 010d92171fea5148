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
    "gate_open": "1 while the deployment takes calls: no 429 pause, no wrong set-up, no outage",
    "calls_in_flight": "calls to the deployment now",
    "concurrency_limit": "calls that may be under way at once, as adapted",
    "jobs_parked": "jobs that wait for the deployment",
    "budget_tokens_per_minute": "this pod's tokens a minute, as the service counts; only if there is a budget",
    "budget_requests_per_minute": "this pod's requests a minute; only if there is a budget",
    "quota_remaining_tokens": "tokens left in the minute, as the service said last; only where it said",
    "quota_remaining_requests": "requests left in the minute, as the service said last; only where it said",
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
        Info(f"{PREFIX}_build", "the version that runs", registry=self.registry).info(
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
            self._gauge(
                "projected_token_age_seconds",
                "age of the projected token file, if there is one; NaN while it cannot be read",
            ).set_function(lambda: file_age(Path(token_file)))

    def _define(self) -> None:
        counter, gauge, histogram = self._counter, self._gauge, self._histogram
        self.received = counter("jobs_received", "messages received", ["queue"])
        self.redelivered = counter("jobs_redelivered", "of these, with a delivery count above 0", ["queue"])
        self.jobs = counter(
            "jobs",
            "deliveries by their outcome; deployment is none if none was called",
            ["queue", "deployment", "outcome"],
        )
        self.handed_back = counter(
            "jobs_handed_back",
            "deliveries handed back: shutdown, parked, setup, suspect, unknown_model",
            ["queue", "reason"],
        )
        self.paid_twice = counter(
            "jobs_paid_twice", "answers of jobs that already had one; known with the blob sink only", ["queue"]
        )
        self.suspects = counter(
            "jobs_suspect", "deliveries that run apart because they may have killed their process", ["queue"]
        )
        self.swept = counter(
            "dead_letters_swept",
            "jobs that the broker gave up and that now have an error result: expired, max_deliveries",
            ["queue", "reason"],
        )
        self.dead_letters = gauge(
            "dead_letters",
            "dead letters left by this pod's last sweep, at most 10,000; take the maximum over pods",
            ["queue"],
        )
        self.sorted = counter(
            "jobs_sorted", "jobs moved from the entry queue to the queue of their model", ["model"]
        )
        self.sort_seconds = histogram(
            "sort_seconds", "from receiving the first message of a batch until all are moved", [], WRITE_BUCKETS
        )
        self.sort_failures = counter(
            "sort_failures",
            "batches that a model's queue did not take; for the entry queue: claims that could not be read",
            ["queue"],
        )
        self.backlog_age = gauge(
            "backlog_age_seconds",
            "age of the message received last, since it was first enqueued; 0 when the queue was empty",
            ["queue"],
        )
        self.tokens = counter(
            "tokens",
            "tokens of answers as the service counts them: prompt, completion, cached",
            ["deployment", "kind"],
        )
        self.cost = counter(
            "cost", "price of the tokens of all calls, for models in AOAI_WORKER_PRICES", ["queue", "model"]
        )
        self.batch_tokens = counter(
            "batch_tokens",
            "tokens of all calls by batch; only with AOAI_WORKER_BATCH_LABELS",
            ["batch", "deployment", "kind"],
        )
        self.batch_cost = counter("batch_cost", "their price; only with AOAI_WORKER_BATCH_LABELS", ["batch"])
        self.calls = counter("calls", "calls by HTTP status, none where there was none", ["deployment", "status"])
        self.throttles = counter(
            "throttles",
            "calls answered 429: own quota, capacity of the service, rate cut for a while, provisioned full",
            ["deployment", "kind"],
        )
        self.gate_closed = counter(
            "gate_closed_seconds",
            "seconds for which gates closed, added when they close; reason is the kind of the 429, setup or outage",
            ["deployment", "reason"],
        )
        self.unfit = counter(
            "unfit_answers",
            "answers that are not the JSON their job asked for: invalid_json, schema_mismatch",
            ["deployment", "code"],
        )
        self.first_token = histogram(
            "first_token_seconds", "to the first token of a streamed answer", ["deployment"], CALL_BUCKETS
        )
        self.call_seconds = histogram(
            "call_seconds", "seconds of a call, failed ones included", ["deployment"], CALL_BUCKETS
        )
        self.wait_seconds = histogram(
            "queue_wait_seconds", "from enqueuing to the start of a delivery's processing", ["queue"], AGE_BUCKETS
        )
        self.job_seconds = histogram("job_seconds", "from enqueuing to the outcome", ["queue"], AGE_BUCKETS)
        self.write_seconds = histogram(
            "result_write_seconds", "the write of a result that succeeded", [], WRITE_BUCKETS
        )
        self.slots = gauge("slots", "jobs that may be in flight")
        self.in_flight = gauge("jobs_in_flight", "jobs whose result is not written yet")
        self.bytes_in_flight = gauge("in_flight_bytes", "bytes of jobs and answers that are held or reserved")
        self.bytes_limit = gauge("in_flight_bytes_limit", "bytes beyond which nothing is received")
        self.held = gauge("deliveries_held", "deliveries that are not settled yet")
        self.intake = gauge(
            "intake_closed", "1 while nothing is received for this reason; those of /readyz", ["reason"]
        )
        self.settlements = counter(
            "settlements",
            'Complete, DeadLetter, Release, Abandon; confirmed="false": may come again',
            ["settlement", "confirmed"],
        )
        self.renewals = counter("lock_renewals", "locks renewed")
        self.renewal_failures = counter(
            "lock_renewal_failures", "locks that a request failed to renew; they are tried again"
        )
        self.locks_lost = counter("locks_lost", "locks lost before the message was settled, as found by a renewal")
        self.restarts = counter("receiver_restarts", "receivers retired after an error", ["queue"])
        self.faults = counter("faults", "deliveries that failed by a fault of the worker itself")
        self.refreshes = counter("token_refreshes", "token requests: ok, failed", ["scope", "outcome"])
        self.refresh_failures = counter(
            "token_refresh_failures", "by AADSTS code of a closed list, other, timeout or none", ["scope", "code"]
        )
        self.refresh_seconds = histogram(
            "token_refresh_seconds", "token requests that succeeded", ["scope"], TOKEN_BUCKETS
        )
        self.token_expiry = gauge("token_expiry_timestamp_seconds", "when the token at hand expires", ["scope"])
        self.token_success = gauge("token_last_refresh_timestamp_seconds", "the last good refresh", ["scope"])

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
