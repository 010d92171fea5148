"""For those who send work, end to end: a batch is watched, cancelled and sent again, by real processes."""

import asyncio
import json
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from embedded_azure.config import Deployment
from tests.support.processes import (
    Azure,
    assert_one_result_each,
    azure,
    command,
    config_for_tests,
    process,
    results_in,
    until,
    worker,
    write_batch,
)

BATCH = "a-batch"
JOBS = 60
PRICES = json.dumps({"gpt-5.4-mini": {"input": 1.0, "output": 2.0}})
WITHIN = 10.0
"""Seconds after which no pod makes a new call for a batch that was cancelled."""
THROTTLE = {"kind": "throttle", "reason": "call", "retry_after": 4}


async def told(cloud: Azure, *arguments: str, expect: int = 0) -> str:
    code, output = await command(cloud, *arguments, AOAI_WORKER_PRICES=PRICES)
    assert code == expect, output
    return output


async def detail_of(cloud: Azure) -> dict[str, Any]:
    detail: dict[str, Any] = json.loads(await told(cloud, "status", BATCH, "--json"))["detail"]
    return detail


async def requests(cloud: Azure) -> int:
    """Calls that Azure OpenAI has seen, whatever it answered."""
    count: int = (await cloud.control("/local/stats"))["requests"]
    return count


async def test_after_a_cancellation_no_pod_calls_and_a_retry_since_answers_what_was_left(tmp_path: Path) -> None:
    """Two pods whose gates are closed in the middle of the batch, and open again long after it was cancelled."""
    path = write_batch(tmp_path / "in.jsonl", JOBS)
    out, errors = tmp_path / "out.jsonl", tmp_path / "err.jsonl"
    collect = ("collect", BATCH, "-o", str(out), "--errors", str(errors))
    async with azure(tmp_path, config_for_tests(latency=1.0)) as cloud:
        await told(cloud, "submit", str(path), "--batch", BATCH)
        async with worker(cloud, slots="4") as one, worker(cloud, slots="4") as other:
            await until(lambda: has_called(cloud, 10))
            await cloud.control("/local/faults", THROTTLE)
            await until(lambda: is_throttled(cloud))
            assert "will not be called" in await told(cloud, "cancel", BATCH)
            cancelled_at = time.monotonic()
            assert f"{BATCH}: cancelled, " in await told(cloud, "status", BATCH)
            assert "cancelled, " in await told(cloud, *collect, expect=4)
            await asyncio.sleep(cancelled_at + WITHIN - time.monotonic())  # what is promised is this time
            called = await requests(cloud)
            await cloud.control("/local/faults", [])
            await until(lambda: have_met_all(cloud))
            assert await requests(cloud) == called, "though the gates have opened since"
            again = await told(cloud, "retry", BATCH, str(path))
            assert "sent again. Their results have worker.replay 1000" in again
            assert "complete, " in await told(cloud, *collect, "--follow")
            assert (await detail_of(cloud))["total_cost"] > 0
            assert "complete" in await told(cloud, "list")
            for pod in (one, other):
                pod.process.child.send_signal(signal.SIGTERM)
                assert await pod.process.ended() == 0
    assert_one_result_each(results_in(out), JOBS)
    assert results_in(errors) == []


async def has_called(cloud: Azure, count: int) -> bool:
    return await requests(cloud) >= count


async def is_throttled(cloud: Azure) -> bool:
    return any("429" in wait["why"] for wait in (await detail_of(cloud))["waits"])


async def have_met_all(cloud: Azure) -> bool:
    """Whether workers have ended each job that was left."""
    detail = await detail_of(cloud)
    return bool(detail["failures"].get("batch_cancelled") == detail["cancelled"])


async def test_what_failed_is_sent_again_and_whoever_watches_sees_it(tmp_path: Path) -> None:
    path, out = write_batch(tmp_path / "in.jsonl", 20), tmp_path / "out.jsonl"
    config = replace(config_for_tests(), deployments=(Deployment(name="gpt-5.4-mini", model="gpt-5.4-mini"),))
    async with azure(tmp_path, config) as cloud:
        await cloud.control("/local/faults", {"kind": "answer", "status": 400, "count": 6})
        await told(cloud, "submit", str(path), "--batch", BATCH)
        async with worker(cloud):
            assert "complete, 20 results (14 succeeded, 6 failed)" in await told(cloud, "status", BATCH, "--watch")
            assert "(14 succeeded, 6 failed)" in await told(cloud, "collect", BATCH, "-o", str(out), expect=4)
            assert "nothing to retry" in await told(cloud, "retry", BATCH, str(path), "--only", "429")
            output = await told(cloud, "retry", BATCH, str(path), "--only", "400", "--json")
            outcome = json.loads(next(line for line in output.splitlines() if line.startswith("{")))
            assert (outcome["number"], outcome["sent"], outcome["passed_over"]) == (1_000, 6, {"succeeded": 14})
            assert "complete, 20 results (20 succeeded, 0 failed)" in await told(cloud, "status", BATCH, "--watch")
            await told(cloud, "collect", BATCH, "-o", str(out))
    results = results_in(out)
    assert_one_result_each(results, 20)
    assert sum(result["worker"].get("replay") == 1_000 for result in results) == 6


async def test_watching_ends_by_ctrl_c_with_130_and_says_that_no_pod_works(tmp_path: Path) -> None:
    async with azure(tmp_path, config_for_tests()) as cloud:
        await told(cloud, "submit", str(write_batch(tmp_path / "in.jsonl", 1)), "--batch", BATCH)
        assert "no pod has reported within a minute" in await told(cloud, "status", BATCH)
        watching = ("-m", "worker", "status", BATCH, "--watch")
        async with process(*watching, environment=cloud.environment("producer")) as running:
            await running.printed("queued, 0 of 1 result")
            running.child.send_signal(signal.SIGINT)
            assert await running.ended() == 130
        assert "Traceback" not in running.output


async def test_with_results_in_a_queue_what_needs_blob_storage_says_so(tmp_path: Path) -> None:
    path = str(write_batch(tmp_path / "in.jsonl", 1))
    async with azure(tmp_path, config_for_tests(), "--sink", "queue") as cloud:
        commands = (("list",), ("cancel", BATCH), ("retry", BATCH, path), ("status", BATCH, "--watch"))
        outputs = await asyncio.gather(*[told(cloud, *arguments, expect=2) for arguments in commands])
    assert all("needs the results in Blob storage" in output for output in outputs)
