"""A job's result on the wire: one line of a Batch output file.

Everything from outside is parsed here into a type that the rest trusts. `docs/job-format.md` is the contract.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import orjson

from worker.jobs.batch_records import manifest_id
from worker.jobs.job import HASHED, MAX_ID_LENGTH, REPLAYED, Job, JsonObject, on_one_line, rfc3339
from worker.jobs.outcomes import Answered, AnswerWarning, Concluded, Failed, Refused, Usage
from worker.jobs.suggestions import suggestion_for

RESULT_SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What the worker adds to a result: who did the job, when and at what cost. Times are Unix seconds."""

    attempts: int
    deployment: str | None
    endpoint: str | None
    started: float
    finished: float
    call_seconds: float
    pod: str


def result_id(job: Job) -> str:
    """The message-id of the job's result: no other job's, whatever their batches, as one queue takes the results of
    all and its duplicate detection looks at nothing else. One for each replay, as its result supersedes the last.
    """
    replay = f"~r{job.replay}" if job.replay else ""
    # no batch id has a colon, so what follows one is never taken for the rest of an id that begins with its batch
    plain = job.id if job.id.startswith(f"{job.batch_id}/") else f"{job.batch_id}:{job.id}"
    is_fit = plain.isascii() and plain.isprintable() and len(plain + replay) <= MAX_ID_LENGTH
    is_taken = plain == manifest_id(job.batch_id) or job.id.startswith(HASHED) or REPLAYED.search(plain)
    if is_fit and not is_taken:
        return f"{plain}{replay}"
    return f"{job.batch_id}:{HASHED}{hashlib.sha256(job.id.encode()).hexdigest()}{replay}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultSummary:
    """What can be told of a result without reading its line. `code`: the HTTP status, or why there is none
    (`FailureCode`). `finished`: Unix seconds."""

    code: str
    model: str
    finished: float
    usage: Usage | None = None
    warning: str | None = None
    """A `WarningCode`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a sink writes of a job. `failed`: refused, or never answered."""

    job: Job
    line: bytes
    failed: bool
    summary: ResultSummary


def make_result(job: Job, outcome: Concluded, record: Record) -> Result:
    summary = ResultSummary(
        code=outcome.code.value if isinstance(outcome, Failed) else str(outcome.response.status),
        model=job.line.model,
        finished=record.finished,
        usage=None if isinstance(outcome, Failed) else outcome.response.usage,
        warning=outcome.warning.code.value if isinstance(outcome, Answered) and outcome.warning else None,
    )
    line = encode_result(job, outcome, record)
    return Result(job=job, line=line, failed=not isinstance(outcome, Answered), summary=summary)


def encode_summary(summary: ResultSummary) -> dict[str, str]:
    """As metadata of the result's blob: ASCII, and no name without a value."""
    usage = summary.usage or Usage()
    tokens = {"prompt": usage.prompt, "completion": usage.completion, "cached": usage.cached}
    return {
        "code": summary.code,
        "model": summary.model,
        "finished": f"{summary.finished:.3f}",
        **{name: str(count) for name, count in tokens.items() if count},
        **({"warning": summary.warning} if summary.warning else {}),
    }


def decode_summary(metadata: Mapping[str, str]) -> ResultSummary | None:
    """None where there is none, as of results of a version that wrote no metadata, or it is somebody else's."""
    try:
        return ResultSummary(
            code=metadata["code"],
            model=metadata["model"],
            finished=_require_moment(metadata["finished"]),
            usage=Usage(
                prompt=_require_count(metadata.get("prompt", "0")),
                completion=_require_count(metadata.get("completion", "0")),
                cached=_require_count(metadata.get("cached", "0")),
            ),
            warning=metadata.get("warning"),
        )
    except (KeyError, ValueError):
        return None


def _require_moment(text: str) -> float:
    """Whoever may write blobs writes their metadata too. Raises ValueError."""
    moment = float(text)
    if not 0 <= moment < 1e11:
        raise ValueError("not Unix seconds")
    return moment


def _require_count(text: str) -> int:
    if len(text) > 15 or not (text.isascii() and text.isdecimal()):
        raise ValueError("not a count")
    return int(text)


def encode_result(job: Job, outcome: Concluded, record: Record) -> bytes:
    """One line of a Batch output file, without the newline. The service's body is kept byte for byte."""
    response, error, usage = _verdict(outcome)
    return orjson.dumps(
        {
            "id": f"batch_req_{hashlib.sha256(job.id.encode()).hexdigest()[:24]}",
            "custom_id": job.line.custom_id,
            "response": response,
            "error": error,
            "worker": _worker_block(job, record, usage, _warnings(outcome), suggestion_for(job.line, outcome)),
        }
    )


def _verdict(outcome: Concluded) -> tuple[JsonObject | None, JsonObject | None, Usage | None]:
    match outcome:
        case Answered(response=response) | Refused(response=response):
            body = {
                "status_code": response.status,
                "request_id": response.request_id,
                "body": orjson.Fragment(response.body),
            }
            return body, None, response.usage
        case Failed(code=code, message=message):
            return None, {"code": code, "message": message}, None


def _warnings(outcome: Concluded) -> list[AnswerWarning]:
    return [outcome.warning] if isinstance(outcome, Answered) and outcome.warning else []


def _worker_block(
    job: Job, record: Record, usage: Usage | None, warnings: list[AnswerWarning], suggestion: str | None
) -> JsonObject:
    block: JsonObject = {
        "schema": RESULT_SCHEMA,
        "job_id": job.id,
        "batch_id": job.batch_id,
        "attempts": record.attempts,
        "deployment": record.deployment,
        "endpoint": record.endpoint,
        "queued": rfc3339(job.enqueued_at),
        "started": rfc3339(record.started),
        "finished": rfc3339(record.finished),
        "wait_seconds": round(max(0.0, record.started - job.enqueued_at), 3),
        "call_seconds": round(record.call_seconds, 3),
        "usage": usage,
        "pod": record.pod,
    }
    if warnings:
        block["warnings"] = warnings
    if suggestion:
        block["suggestion"] = suggestion
    if job.replay:
        block["replay"] = job.replay
    return block


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultLine:
    """What a collector reads of a result. `raw` is the line itself, without its newline.

    `failed`: a call that was never answered, or answered with a status from 400.
    """

    job_id: str
    batch_id: str
    replay: int
    failed: bool
    raw: bytes

    @property
    def rank(self) -> tuple[int, bool]:
        return result_rank(self.replay, self.failed)


@lru_cache(maxsize=256)  # one tuple for all alike: a collector keeps one for each job
def result_rank(replay: int, failed: bool) -> tuple[int, bool]:
    """Of a job's results the one of the highest rank counts: the latest replay, of it the answer before the error;
    of equals the first."""
    return replay, not failed


def decode_result(raw: bytes) -> ResultLine:
    """Raises ValueError when this is not a result of a worker."""
    document = orjson.loads(raw)
    try:
        worker, response = document["worker"], document["response"]
        failed = document["error"] is not None or response is None or _is_failed(response)
        return ResultLine(
            job_id=str(worker["job_id"]),
            batch_id=str(worker["batch_id"]),
            replay=int(worker.get("replay", 0)),
            failed=failed,
            raw=on_one_line(raw),
        )
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"not a result of a worker: {error!r}") from error


def _is_failed(response: JsonObject) -> bool:
    """An error status, or an object of `/v1/responses` that failed, which comes with a 200."""
    if int(response["status_code"]) >= 400:
        return True
    body = response["body"]
    return isinstance(body, dict) and body.get("object") == "response" and body.get("status") == "failed"
