"""How blobs are called: a batch's folder, a result's name, and which of a job's results counts.

    <prefix>/<batch>/manifest.json
    <prefix>/<batch>/cancelled.json
    <prefix>/<batch>/retries/<replay>.json
    <prefix>/<batch>/<hash of the job id>[.r<replay>].ok.json | .err.json
    <prefix>/~fleet/<pod>.json

All that is known of a job lies together in a listing, and what a listing shows is enough to count by.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from types import MappingProxyType

from worker.jobs.batch_records import KEY_SIZE
from worker.jobs.job import BATCH_ID, Job
from worker.jobs.results import result_rank

CLAIMS = "claims"
"""The folder of bodies that claims stand for, in whatever container they are."""

FLEET = "~fleet"
"""Where pods tell what they do: no batch id has a `~`."""
LONGEST_POD = 253
"""Characters, as of a host name."""

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")
_RESULT = re.compile(r"([0-9a-f]{32})(?:\.r([1-9]\d{0,3}))?\.(ok|err)\.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultName:
    """What the name of a result says. `name` is the blob's whole name, `key` its job's (`job_key`)."""

    name: str
    key: bytes
    replay: int
    failed: bool
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def rank(self) -> tuple[int, bool]:
        return result_rank(self.replay, self.failed)


def job_key(job_id: str) -> bytes:
    """16 bytes that stand for a job; its results are named by them in hexadecimal."""
    return hashlib.sha256(job_id.encode()).digest()[:KEY_SIZE]


def batch_folder(prefix: str, batch_id: str) -> str:
    """A segment of dots would be resolved away; Azure advises against one that ends so. No batch id has a `~`."""
    return f"{prefix}/{batch_id}~/" if batch_id.endswith(".") else f"{prefix}/{batch_id}/"


def manifest_name(prefix: str, batch_id: str) -> str:
    return f"{batch_folder(prefix, batch_id)}manifest.json"


def cancellation_name(prefix: str, batch_id: str) -> str:
    return f"{batch_folder(prefix, batch_id)}cancelled.json"


def retries_folder(prefix: str, batch_id: str) -> str:
    return f"{batch_folder(prefix, batch_id)}retries/"


def retry_name(prefix: str, batch_id: str, number: int) -> str:
    return f"{retries_folder(prefix, batch_id)}{number}.json"


def fleet_folder(prefix: str) -> str:
    return f"{prefix}/{FLEET}/"


def report_name(prefix: str, pod: str) -> str:
    """A pod's name may be anything that somebody set."""
    return f"{fleet_folder(prefix)}{_UNSAFE.sub('_', pod)[:LONGEST_POD]}.json"


def batch_of_folder(folder: str) -> str | None:
    """The batch id that `batch_folder` made this of; None where it is no batch's."""
    name = folder.removesuffix("/").rpartition("/")[2]
    batch_id = name.removesuffix("~")
    return batch_id if BATCH_ID.fullmatch(batch_id) and (name != batch_id) == batch_id.endswith(".") else None


def job_prefix(prefix: str, job: Job) -> str:
    """What the names of all results of the job begin with, and no other job's."""
    return f"{batch_folder(prefix, job.batch_id)}{job_key(job.id).hex()}."


def result_name(prefix: str, job: Job, *, failed: bool) -> str:
    replay = f"r{job.replay}." if job.replay else ""
    return f"{job_prefix(prefix, job)}{replay}{'err' if failed else 'ok'}.json"


def parse_result_name(name: str, metadata: Mapping[str, str] = MappingProxyType({})) -> ResultName | None:
    """None where this is not the name of a result."""
    found = _RESULT.fullmatch(name.rpartition("/")[2])
    if found is None:
        return None
    key, replay, verdict = found.groups()
    return ResultName(
        name=name,
        key=bytes.fromhex(key),
        replay=int(replay or 0),
        failed=verdict == "err",
        metadata=metadata,
    )


def counting(results: Iterable[ResultName]) -> Iterator[ResultName]:
    """Of each job the result that counts; `results` as a listing has them, in alphabetical order."""
    for _, of_job in groupby(results, key=lambda result: result.key):
        yield max(of_job, key=lambda result: result.rank)
