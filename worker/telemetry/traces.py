"""Spans of every job, for those who install the extra `otel`: a listener to events.

A job's span begins when a worker takes it up, is linked to the producer's by the message's `traceparent`, and has a
child for each call. Names and attributes are OpenTelemetry's for messaging and generative AI (both still in
development there); no prompt and no answer is in them.
"""

import time
from collections.abc import Callable
from typing import Any

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from worker import interfaces as events
from worker.interfaces import Event
from worker.jobs.job import Operation
from worker.jobs.outcomes import AlreadyDone, Answered, label_of

OPERATIONS = {
    Operation.CHAT_COMPLETIONS: "chat",
    Operation.RESPONSES: "chat",
    Operation.EMBEDDINGS: "embeddings",
    Operation.COMPLETIONS: "text_completion",
}
"""OpenTelemetry's names of operations, `gen_ai.operation.name`."""

MOST_SPANS = 10_000
"""Jobs whose spans are open at once; more than any pod has in flight, so that a lost event cannot fill memory."""


def open_provider() -> TracerProvider:
    """Sends by OTLP over HTTP as the variables `OTEL_*` say. Shut it down at the end: that sends what is left."""
    provider = TracerProvider(resource=Resource.create({"service.name": "aoai-worker"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


class Traces:
    """An `Observer`. `clock`: Unix time in nanoseconds, as spans have it."""

    def __init__(self, provider: trace.TracerProvider, clock: Callable[[], int] = time.time_ns) -> None:
        self._tracer = provider.get_tracer("aoai_worker")
        self._clock = clock
        self._open: dict[str, tuple[Span, events.JobStarted]] = {}
        self._on: dict[type[Any], Callable[[Any], None]] = {
            events.JobStarted: self._job_started,
            events.CallEnded: self._call_ended,
            events.JobEnded: self._job_ended,
        }

    def __call__(self, event: Event) -> None:
        handler = self._on.get(type(event))
        if handler is not None:
            handler(event)

    def _job_started(self, event: events.JobStarted) -> None:
        if len(self._open) >= MOST_SPANS:
            return
        span = self._tracer.start_span(
            f"process {event.queue}",
            kind=SpanKind.CONSUMER,
            links=_links(event.traceparent),
            start_time=self._clock(),
            attributes={
                "messaging.system": "servicebus",
                "messaging.operation.type": "process",
                "messaging.destination.name": event.queue,
                "aoai_worker.job_id": event.job_id,
                "aoai_worker.waited_seconds": event.waited,
            },
        )
        self._open[event.job_id] = (span, event)

    def _call_ended(self, event: events.CallEnded) -> None:
        if event.job_id not in self._open:
            return
        parent, started = self._open[event.job_id]
        end = self._clock()
        operation = OPERATIONS[Operation(started.operation)]
        span = self._tracer.start_span(
            f"{operation} {started.model}",
            context=trace.set_span_in_context(parent),
            kind=SpanKind.CLIENT,
            start_time=end - int(event.seconds * 1e9),
            attributes={
                "gen_ai.operation.name": operation,
                "gen_ai.provider.name": "azure.ai.openai",
                "gen_ai.request.model": started.model,
                "aoai_worker.deployment": event.deployment,
            },
        )
        if event.usage is not None:
            span.set_attribute("gen_ai.usage.input_tokens", event.usage.prompt)
            span.set_attribute("gen_ai.usage.output_tokens", event.usage.completion)
            span.set_attribute("gen_ai.usage.cache_read.input_tokens", event.usage.cached)
        if event.first_token is not None:
            span.set_attribute("gen_ai.response.time_to_first_chunk", event.first_token)
        if event.detail is not None:
            span.set_attribute("error.type", event.status)
            span.set_status(Status(StatusCode.ERROR))
        span.end(end)

    def _job_ended(self, event: events.JobEnded) -> None:
        span, _ = self._open.pop(event.job_id or "", (None, None))
        if span is None:
            return
        outcome = label_of(event.outcome)
        span.set_attribute("aoai_worker.outcome", outcome)
        if not isinstance(event.outcome, (Answered, AlreadyDone)):
            span.set_attribute("error.type", outcome)
            span.set_status(Status(StatusCode.ERROR))
        span.end(self._clock())


def _links(traceparent: str | None) -> list[Link]:
    """To the producer's span; none where it sent nothing that can be read."""
    if traceparent is None:
        return []
    context = TraceContextTextMapPropagator().extract({"traceparent": traceparent})
    found = trace.get_current_span(context).get_span_context()
    return [Link(found)] if found.is_valid else []
