"""How soon work goes on once the cause of a stop is gone."""

import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from tests.support.processes import (
    Worker,
    azure,
    command,
    config_for_tests,
    has_answered,
    until,
    worker,
    write_batch,
)

RESUMED_WITHIN = 30.0
"""Seconds."""


def is_unready(one: Worker) -> Callable[[], Awaitable[bool]]:
    """As it gets no token: to call with, or to write results with."""

    async def reached() -> bool:
        _, body = await one.get("/readyz")
        return bool({"setup", "sink"} & set(json.loads(body)["reasons"]))

    return reached


async def test_work_goes_on_soon_after_entra_is_back_though_no_token_was_valid_any_more(tmp_path: Path) -> None:
    # tokens of 40 s are used for 10, as none is used in its last 30 s
    async with (
        azure(tmp_path, config_for_tests(token_lifetime=40.0, latency=0.5)) as cloud,
        worker(cloud, slots="4") as one,
    ):
        batch = str(write_batch(tmp_path / "in.jsonl", 400))
        code, output = await command(cloud, "submit", batch, "--batch", "a-batch")
        assert code == 0, output
        await until(has_answered(one, 8))
        await cloud.control("/local/faults", {"kind": "answer", "status": 503}, entra=True)
        await until(is_unready(one))
        stopped_at = await one.metric("aoai_worker_jobs_total")
        await cloud.control("/local/faults", [], entra=True)
        fixed = time.monotonic()
        await until(has_answered(one, int(stopped_at) + 20))
        assert time.monotonic() - fixed < RESUMED_WITHIN
