"""How blobs are called: a batch's folder, a result's name, and which of a job's results counts.

    <prefix>/<batch>/manifest.json
    <prefix>/<batch>/<hash of the job id>[.r<replay>].ok.json | .err.json

All that is known of a job lies together in a listing, and what a listing shows is enough to count by.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from worker.jobs.job import Job
from worker.jobs.results import result_rank

CLAIMS = "claims"
"""The folder of bodies that claims stand for, in whatever container they are."""

_RESULT = re.compile(r"([0-9a-f]{32})(?:\.r([1-9]\d{0,3}))?\.(ok|err)\.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultName:
    """What the name of a result says. `name` is the blob's whole name, `key` stands for its job."""

    name: str
    key: str
    replay: int
    failed: bool

    @property
    def rank(self) -> tuple[int, bool]:
        return result_rank(self.replay, self.failed)


def job_key(job_id: str) -> str:
    return hashlib.sha256(job_id.encode()).hexdigest()[:32]


def batch_folder(prefix: str, batch_id: str) -> str:
    """A segment of dots would be resolved away; Azure advises against one that ends so. No batch id has a `~`."""
    return f"{prefix}/{batch_id}~/" if batch_id.endswith(".") else f"{prefix}/{batch_id}/"


def manifest_name(prefix: str, batch_id: str) -> str:
    return f"{batch_folder(prefix, batch_id)}manifest.json"


def job_prefix(prefix: str, job: Job) -> str:
    """What the names of all results of the job begin with, and no other job's."""
    return f"{batch_folder(prefix, job.batch_id)}{job_key(job.id)}."


def result_name(prefix: str, job: Job, *, failed: bool) -> str:
    replay = f"r{job.replay}." if job.replay else ""
    return f"{job_prefix(prefix, job)}{replay}{'err' if failed else 'ok'}.json"


def parse_result_name(name: str) -> ResultName | None:
    """None where this is not the name of a result."""
    found = _RESULT.fullmatch(name.rpartition("/")[2])
    if found is None:
        return None
    key, replay, verdict = found.groups()
    return ResultName(name=name, key=key, replay=int(replay or 0), failed=verdict == "err")


def counting(names: Iterable[str]) -> Iterator[ResultName]:
    """Of each job the result that counts; `names` as a listing has them, in alphabetical order."""
    results = (result for name in names if (result := parse_result_name(name)))
    for _, of_job in groupby(results, key=lambda result: result.key):
        yield max(of_job, key=lambda result: result.rank)
