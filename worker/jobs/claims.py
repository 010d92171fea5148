"""Claim checks as they are made: a small message that stands for a body which is too large for one.

`{"claim": {"url", "length", "sha256", "etag"}}` under a content type of its own; `jobs.parse_claim` reads it.
"""

import hashlib

import orjson

from worker.errors import DeadLetterReason, NotAJob
from worker.jobs.job import Claim


def make_claim(url: str, body: bytes, *, etag: str | None) -> Claim:
    return Claim(url=url, length=len(body), sha256=hashlib.sha256(body).hexdigest(), etag=etag)


def encode_claim(claim: Claim) -> bytes:
    return orjson.dumps({"claim": claim})


def invalid_claim(what: str) -> NotAJob:
    """`what`: the field, the value seen and what is allowed. How to fix any of them is the same."""
    return NotAJob(
        DeadLetterReason.INVALID_CLAIM,
        f"{what}. Put the job's line into the container of claims and claim what is there, or let "
        "`aoai-worker submit` do both.",
    )
