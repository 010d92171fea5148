"""Spans: one for a job, one for each of its calls, linked to the producer's, and nothing of what was asked."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.trace import SpanKind, StatusCode

from tests.support.examples import EVENT_TYPES, PAYLOAD, example_of
from worker import interfaces as events
from worker.jobs.job import Operation
from worker.jobs.outcomes import Answered, HandBackReason, Outcome, Response, Unfinished, Usage
from worker.telemetry.traces import MOST_SPANS, OPERATIONS, Traces

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ANSWERED = Answered(response=Response(status=200, request_id=None, body=PAYLOAD.encode()))


class Recorded:
    """Traces whose clock stands still until it is told."""

    def __init__(self) -> None:
        self.now = 0
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.traces = Traces(provider, lambda: self.now)

    @property
    def spans(self) -> Sequence[ReadableSpan]:
        return self.exporter.get_finished_spans()

    def start(self, job_id: str = "j", traceparent: str | None = None) -> None:
        self.traces(
            events.JobStarted(
                job_id=job_id,
                queue="jobs",
                operation=Operation.CHAT_COMPLETIONS,
                model="gpt-5.4-mini",
                waited=1.5,
                traceparent=traceparent,
            )
        )

    def call(self, job_id: str = "j", **fields: object) -> None:
        given = {"deployment": "mini", "status": "200", "seconds": 2.0, **fields}
        self.traces(events.CallEnded(job_id=job_id, **given))  # type: ignore[arg-type]

    def end(self, job_id: str = "j", outcome: Outcome = ANSWERED) -> None:
        self.traces(example_of(events.JobEnded, job_id=job_id, outcome=outcome))


def test_a_job_has_a_span_and_each_call_is_a_child_of_it() -> None:
    recorded = Recorded()
    recorded.start()
    recorded.now = 3_000_000_000
    recorded.call(usage=Usage(prompt=10, completion=2, cached=4), first_token=0.25)
    recorded.now = 4_000_000_000
    recorded.end()
    call, job = recorded.spans
    assert (job.name, job.kind, job.start_time, job.end_time) == (
        "process jobs",
        SpanKind.CONSUMER,
        0,
        4_000_000_000,
    )
    assert (call.name, call.kind, call.start_time, call.end_time) == (
        "chat gpt-5.4-mini",
        SpanKind.CLIENT,
        1_000_000_000,
        3_000_000_000,
    )
    assert call.parent is not None
    assert job.context is not None
    assert call.parent.span_id == job.context.span_id
    assert dict(call.attributes or {}) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "azure.ai.openai",
        "gen_ai.request.model": "gpt-5.4-mini",
        "gen_ai.usage.input_tokens": 10,
        "gen_ai.usage.output_tokens": 2,
        "gen_ai.usage.cache_read.input_tokens": 4,
        "gen_ai.response.time_to_first_chunk": 0.25,
        "aoai_worker.deployment": "mini",
    }
    assert (job.attributes or {})["aoai_worker.outcome"] == "answered"


def test_attributes_and_operations_are_those_of_opentelemetry_s_conventions() -> None:
    names = {value for name, value in vars(gen_ai_attributes).items() if name.startswith("GEN_AI_")}
    operations = {operation.value for operation in gen_ai_attributes.GenAiOperationNameValues}
    recorded = Recorded()
    recorded.start()
    recorded.call(usage=Usage(prompt=10, completion=2, cached=4), first_token=0.25)
    recorded.end()
    told = {name for name in recorded.spans[0].attributes or {} if name.startswith("gen_ai.")}
    assert told
    assert told <= names
    assert set(OPERATIONS.values()) <= operations


def test_a_job_is_linked_to_the_span_of_its_producer() -> None:
    recorded = Recorded()
    recorded.start(traceparent=TRACEPARENT)
    recorded.end()
    [link] = recorded.spans[0].links
    assert f"{link.context.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"
    assert f"{link.context.span_id:016x}" == "b7ad6b7169203331"


@given(st.text(max_size=80))
def test_a_traceparent_that_cannot_be_read_links_to_nothing(traceparent: str) -> None:
    recorded = Recorded()
    recorded.start(traceparent=traceparent)
    recorded.end()
    assert list(recorded.spans[0].links) == []


def test_a_failed_call_and_a_job_without_an_answer_are_errors() -> None:
    recorded = Recorded()
    recorded.start()
    recorded.call(status="503", detail="gone")
    recorded.end(outcome=Unfinished(reason=HandBackReason.SHUTDOWN))
    call, job = recorded.spans
    assert [span.status.status_code for span in (call, job)] == [StatusCode.ERROR, StatusCode.ERROR]
    assert (call.attributes or {})["error.type"] == "503"
    assert (job.attributes or {})["error.type"] == "handed_back"


def test_what_was_never_started_has_no_span() -> None:
    recorded = Recorded()
    recorded.call("unknown")
    recorded.end("unknown")
    assert recorded.spans == ()


def test_open_spans_are_bounded_and_ended_ones_forgotten() -> None:
    recorded = Recorded()
    for number in range(MOST_SPANS + 10):
        recorded.start(f"j{number}")
    for number in range(MOST_SPANS + 10):
        recorded.end(f"j{number}")
    assert len(recorded.spans) == MOST_SPANS
    recorded.start("later")
    recorded.end("later")
    assert len(recorded.spans) == MOST_SPANS + 1


def test_no_span_holds_what_was_asked_or_answered() -> None:
    recorded = Recorded()
    recorded.start()
    for kind in EVENT_TYPES:
        fields = {"job_id": "j", "operation": Operation.CHAT_COMPLETIONS, "outcome": ANSWERED}
        recorded.traces(example_of(kind, **{n: v for n, v in fields.items() if n in kind.__slots__}))
    assert recorded.spans
    assert PAYLOAD not in "".join(span.to_json() for span in recorded.spans)


@pytest.mark.parametrize("operation", Operation)
def test_every_operation_has_a_name_in_spans(operation: Operation) -> None:
    assert OPERATIONS[operation]
