"""The worker's decoders of what others write, each with a valid example and the errors that it may raise.

Used by the property tests (tests/unit/test_decoders.py) and by the fuzzer (tests/fuzz).
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import orjson

from worker.azure.blob.container import BlobFailed, listed_blobs, parse_page
from worker.azure.blob.names import parse_result_name
from worker.azure.openai.answers import read_answer
from worker.azure.openai.refusals import Exchange, classify, plain_headers, read_headroom, retry_after
from worker.azure.openai.streams import read_stream
from worker.client.batch_files import InvalidBatch, read_batch_file
from worker.client.batches import decode_record
from worker.client.blob_batches import Tally
from worker.errors import CallFailed, NotAJob
from worker.interfaces import Target
from worker.jobs.answers import check_answer
from worker.jobs.batch_records import (
    BatchRecords,
    decode_cancellation,
    decode_manifest,
    decode_report,
    decode_retry,
)
from worker.jobs.job import Envelope, Job, JobLine, Operation, claim_of, decode, parse_claim, parse_line
from worker.jobs.outcomes import Answered, Concluded, Refused, Response
from worker.jobs.results import Record, decode_result, make_result, result_id
from worker.jobs.sorting import sorted_copy
from worker.testing import job_line

NOW: Final = 1_795_000_000.0
EXCHANGE: Final = Exchange(target=Target(deployment="d", endpoint="https://a.openai.azure.com"), headers={})
SCHEMA: Final = {"$ref": "#/$defs/a", "$defs": {"a": {"items": {"$ref": "#/$defs/a"}}}}
WANTS_JSON: Final = Job(
    id="b/a",
    batch_id="b",
    queue="jobs",
    line=JobLine(
        custom_id="a",
        operation=Operation.CHAT_COMPLETIONS,
        model="m",
        body={"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
    ),
    enqueued_at=NOW,
    deadline=NOW,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """`read` raises one of `errors`, or nothing."""

    read: Callable[[bytes], object]
    valid: bytes
    errors: tuple[type[Exception], ...] = ()


def _write_result(job: Job, outcome: Concluded) -> None:
    """What the worker does with an outcome, and the collector with that."""
    record = Record(attempts=1, deployment="d", endpoint="e", started=NOW, finished=NOW, call_seconds=1.0, pod="p")
    decode_result(make_result(job, outcome, record).line)


def _read_message(raw: bytes) -> None:
    """All that a producer sets of a message, as far as its result."""
    fields: Any = orjson.loads(raw)
    if not isinstance(fields, dict):
        return
    message_id, correlation_id, content_type = (
        value if isinstance(value := fields.get(name), str) else None
        for name in ("message_id", "correlation_id", "content_type")
    )
    properties = fields.get("properties")
    envelope = Envelope(
        body=LINE,
        queue="jobs",
        sequence_number=1,
        enqueued_at=NOW,
        message_id=message_id,
        correlation_id=correlation_id,
        content_type=content_type,
        properties=properties if isinstance(properties, dict) else {},
    )
    if claim_of(envelope):
        return
    job = decode(envelope, max_age=86_400.0)
    sorted_copy(envelope, job.line.model, NOW)
    result_id(job)
    _write_result(job, Answered(response=read_answer(job.line.operation, ANSWER, EXCHANGE)))


def _read_chat(raw: bytes) -> None:
    """The answer, and whether it is the JSON that was asked for."""
    response = read_answer(Operation.CHAT_COMPLETIONS, raw, EXCHANGE)
    _write_result(WANTS_JSON, Answered(response=response, warning=check_answer(WANTS_JSON, response.body)))


def _read_refusal(raw: bytes) -> None:
    for status in (400, 401, 403, 404, 429, 500):
        error = classify(status, raw, EXCHANGE)
        _write_result(WANTS_JSON, Refused(response=Response(status=status, request_id=None, body=error.body)))


def _stream_reader(operation: Operation) -> Callable[[bytes], object]:
    def read(raw: bytes) -> None:
        async def chunks() -> AsyncIterator[bytes]:
            for start in range(0, len(raw), 7):
                yield raw[start : start + 7]

        asyncio.run(read_stream(operation, chunks(), EXCHANGE, started=0.0))

    return read


def _read_headers(raw: bytes) -> None:
    """A line each."""
    headers = plain_headers(
        (name, value) for name, _, value in (line.partition(b": ") for line in raw.split(b"\n"))
    )
    read_headroom(headers)
    read_headroom(headers, throttled=True)
    retry_after(headers, NOW)


def _read_listing(raw: bytes) -> None:
    """As `status` does."""
    tally = Tally(BatchRecords())
    for blob in listed_blobs(parse_page("https://a.blob.core.windows.net/c", raw)):
        if result := parse_result_name(blob.name, blob.metadata):
            tally.add(result)
    tally.status("b", (), NOW)


def _read_file(raw: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(raw)
        read_batch_file(Path(file.name))


LINE: Final = job_line()
ANSWER: Final = (
    b'{"id":"x","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":{"role":'
    b'"assistant","content":"[[1]]","refusal":null},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,'
    b'"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":1}}}'
)
RESPONSE: Final = (
    b'{"id":"r","object":"response","status":"completed","output":[{"type":"message","content":[{"type":'
    b'"output_text","text":"a"}]}],"error":null,"usage":{"input_tokens":1,"output_tokens":2}}'
)
RESULT: Final = (
    b'{"id":"x","custom_id":"a","response":{"status_code":200,"request_id":null,"body":{}},"error":null,'
    b'"worker":{"schema":1,"job_id":"b/a","batch_id":"b","replay":1}}'
)
CHUNKS: Final = (
    b'data: {"id":"x","model":"m","choices":[{"index":0,"delta":{"content":"a","tool_calls":[{"index":0,"function":'
    b'{"arguments":"{"}}]},"logprobs":{"content":[{"token":"a"}]},"content_filter_results":{"hate":{"severity":'
    b'"safe"}},"finish_reason":"stop"}]}\r\n\r\nevent: a\ndata: {"choices":[]}\n\ndata: [DONE]\n\n'
)
MESSAGE: Final = orjson.dumps(
    {
        "message_id": "b/a~r1",
        "correlation_id": "b",
        "content_type": "application/json",
        "properties": {"job-id": "b/a", "deadline": "2026-11-23T18:00:00Z", "enqueued-at": "2026-11-23T17:00:00Z"},
    }
)
CLAIM: Final = b'{"claim":{"url":"https://a/c/claims/x","length":1,"sha256":"%b","etag":null}}' % (b"0" * 64)
LISTING: Final = (
    b'<?xml version="1.0" encoding="utf-8"?><EnumerationResults><Blobs><Blob><Name>results/b/%b.ok.json</Name>'
    b"<Properties><Last-Modified>Mon, 23 Nov 2026 17:00:00 GMT</Last-Modified></Properties><Metadata>"
    b"<code>200</code><model>m</model><finished>1795000000.000</finished><prompt>3</prompt><warning>invalid_json</warning></Metadata>"
    b"</Blob></Blobs><NextMarker/></EnumerationResults>" % (b"0" * 32)
)
HEADERS: Final = (
    b"x-ratelimit-remaining-tokens: 10\nx-ratelimit-limit-requests: 5\nretry-after-ms: 20\nretry-after: "
    b"Mon, 23 Nov 2026 17:00:00 GMT\nazure-openai-deployment-utilization: 98.5%"
)
MANIFEST: Final = (
    b'{"batch_id":"b","total":3,"sha256":"e4","submitted_at":"2026-11-23T20:09:45Z","starts_at":"2026"}'
)
RETRY: Final = b'{"schema":1,"number":1000,"retried_at":"2026-11-23T20:09:45Z","keys":"%b"}' % (b"0" * 32)
REPORT: Final = (
    b'{"schema":1,"pod":"p","at":1795000000.5,"running":{"b":3},"waits":{"jobs":"closed, for another 3 s"}}'
)
RECORD: Final = (
    b'{"schema":1,"total":3,"sha256":"e4","submitted_at":"2026-11-23T20:09:45Z","succeeded":2,"failed":1,'
    b'"collected_at":"2026-11-23T20:12:03Z","out":"out.jsonl"}'
)

DECODERS: Final[Mapping[str, Decoder]] = MappingProxyType(
    {
        "job line": Decoder(read=parse_line, valid=LINE, errors=(NotAJob,)),
        "message": Decoder(read=_read_message, valid=MESSAGE, errors=(NotAJob, orjson.JSONDecodeError)),
        "claim": Decoder(read=parse_claim, valid=CLAIM, errors=(NotAJob,)),
        "batch file": Decoder(read=_read_file, valid=LINE + b"\n\xef\xbb\xbf", errors=(InvalidBatch,)),
        "result line": Decoder(read=decode_result, valid=RESULT, errors=(ValueError,)),
        "manifest": Decoder(read=decode_manifest, valid=MANIFEST, errors=(ValueError,)),
        "cancellation": Decoder(
            read=decode_cancellation, valid=b'{"replay":999,"cancelled_at":"2026"}', errors=(ValueError,)
        ),
        "retry": Decoder(read=decode_retry, valid=RETRY, errors=(ValueError,)),
        "pod report": Decoder(read=decode_report, valid=REPORT, errors=(ValueError,)),
        "record of a collection": Decoder(read=decode_record, valid=RECORD, errors=(ValueError,)),
        "listing": Decoder(read=_read_listing, valid=LISTING, errors=(BlobFailed,)),
        "chat completion": Decoder(read=_read_chat, valid=ANSWER, errors=(CallFailed,)),
        "response": Decoder(
            read=lambda raw: read_answer(Operation.RESPONSES, raw, EXCHANGE), valid=RESPONSE, errors=(CallFailed,)
        ),
        "embeddings": Decoder(
            read=lambda raw: read_answer(Operation.EMBEDDINGS, raw, EXCHANGE),
            valid=b'{"data":[{"embedding":[0.1,-2e-3]}],"usage":{"prompt_tokens":3}}',
            errors=(CallFailed,),
        ),
        "chat stream": Decoder(read=_stream_reader(Operation.CHAT_COMPLETIONS), valid=CHUNKS, errors=(CallFailed,)),
        "response stream": Decoder(
            read=_stream_reader(Operation.RESPONSES),
            valid=b'event: response.completed\ndata: {"type":"response.completed","response":%b}\n\n' % RESPONSE,
            errors=(CallFailed,),
        ),
        "refusal": Decoder(
            read=_read_refusal,
            valid=b'{"error":{"code":"invalid_request_error","param":"n","message":"m"}}',
        ),
        "headers": Decoder(read=_read_headers, valid=HEADERS),
    }
)
"""By what they read."""
