"""Jobs and result lines for the tests of Blob storage."""

import json
from typing import Any

from worker.jobs.job import Job, JobLine, Operation
from worker.jobs.results import Result
from worker.testing import result_of


def make_job(name: str = "a", *, batch_id: str = "b1", replay: int = 0, job_id: str | None = None) -> Job:
    body = {"model": "gpt-5.4-mini", "messages": [{"role": "user", "content": "Is it?"}]}
    line = JobLine(custom_id=name, operation=Operation.CHAT_COMPLETIONS, model="gpt-5.4-mini", body=body)
    return Job(
        id=job_id or f"{batch_id}/{name}",
        batch_id=batch_id,
        queue="jobs",
        line=line,
        enqueued_at=0.0,
        deadline=86_400.0,
        replay=replay,
    )


def make_line(job: Job, *, failed: bool = False, said: str = "yes") -> bytes:
    """What a worker writes for the job."""
    worker: dict[str, Any] = {"job_id": job.id, "batch_id": job.batch_id}
    if job.replay:
        worker["replay"] = job.replay
    line = {
        "id": "batch_req_1",
        "custom_id": job.line.custom_id,
        "response": None if failed else {"status_code": 200, "request_id": "r", "body": {"said": said}},
        "error": {"code": "expired", "message": "too late"} if failed else None,
        "worker": worker,
    }
    return json.dumps(line, separators=(",", ":")).encode()


def make_result(job: Job, *, failed: bool = False, said: str = "yes") -> Result:
    """What a worker gives its sink for the job."""
    return result_of(job, make_line(job, failed=failed, said=said), failed=failed)
