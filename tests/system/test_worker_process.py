"""The worker as a process among others: shared work, a stop under load, a kill, and set-ups that are wrong."""

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Awaitable
from pathlib import Path

import pytest

from tests.support.processes import (
    MODELS,
    Azure,
    Process,
    Worker,
    assert_one_result_each,
    azure,
    clean_environment,
    command,
    config_for_tests,
    has_answered,
    process,
    results_in,
    until,
    without_role,
    worker,
    write_batch,
)

BATCH = "a-batch"


async def submit_and_collect(cloud: Azure, folder: Path, count: int) -> Awaitable[list[dict[str, object]]]:
    """Submit at once; the collecting goes on meanwhile and its end is returned to be awaited."""
    code, output = await command(cloud, "submit", str(write_batch(folder / "in.jsonl", count)), "--batch", BATCH)
    assert code == 0, output

    async def collected() -> list[dict[str, object]]:
        code, output = await command(cloud, "collect", BATCH, "-o", str(folder / "out.jsonl"), "--follow")
        assert code == 0, output
        return results_in(folder / "out.jsonl")

    return asyncio.get_running_loop().create_task(collected())


async def test_two_workers_share_a_queue_and_each_job_has_one_result(tmp_path: Path) -> None:
    async with azure(tmp_path, config_for_tests()) as cloud, worker(cloud) as one, worker(cloud) as other:
        results = await (await submit_and_collect(cloud, tmp_path, 600))
        assert_one_result_each(results, 600)
        shares = [await each.metric("aoai_worker_jobs_total") for each in (one, other)]
        stats = await cloud.control("/local/stats")
    assert sum(shares) == 600
    assert min(shares) > 0
    assert stats["answered_more_than_once"] == 0, "an answer was paid for twice"


async def test_a_stop_under_load_loses_and_doubles_nothing(tmp_path: Path) -> None:
    async with azure(tmp_path, config_for_tests()) as cloud, worker(cloud) as staying:
        async with worker(cloud) as leaving:
            collected = await submit_and_collect(cloud, tmp_path, 600)
            await until(has_answered(leaving, 50))
            leaving.process.child.send_signal(signal.SIGTERM)
            assert await leaving.process.ended() == 0
        assert_one_result_each(await collected, 600)
        assert leaving.process.events("drained") != []
        stats = await cloud.control("/local/stats")
        assert await staying.metric("aoai_worker_jobs_redelivered_total") == 0
    assert stats["answered_more_than_once"] == 0, "an answer was paid for twice"


async def test_what_a_stop_cuts_off_is_handed_back_without_raising_its_delivery_count(tmp_path: Path) -> None:
    # so long that no call ends before the last of them has begun, however slow the machine is
    async with azure(tmp_path, config_for_tests(latency=15.0)) as cloud:
        async with worker(cloud, grace="0.2", slots="16") as leaving:
            collected = await submit_and_collect(cloud, tmp_path, 40)
            await until(lambda: in_flight(leaving, 16))
            leaving.process.child.send_signal(signal.SIGTERM)
            assert await leaving.process.ended() == 0
        [drained] = leaving.process.events("drained")
        assert drained["handed_back"] >= 16
        async with worker(cloud) as taking_over:
            assert_one_result_each(await collected, 40)
            assert await taking_over.metric("aoai_worker_jobs_redelivered_total") == 0


async def in_flight(one: Worker, count: int) -> bool:
    return await one.metric("aoai_worker_jobs_in_flight") >= count


async def test_a_killed_worker_loses_and_doubles_no_result(tmp_path: Path) -> None:
    async with azure(tmp_path, config_for_tests(lock_duration=5.0)) as cloud, worker(cloud) as staying:
        async with worker(cloud) as dying:
            collected = await submit_and_collect(cloud, tmp_path, 600)
            await until(has_answered(dying, 50))
            dying.process.child.kill()
            assert await dying.process.ended() == -signal.SIGKILL
        assert_one_result_each(await collected, 600)
        assert await staying.metric("aoai_worker_jobs_redelivered_total") > 0, "the kill came too late to count"


async def test_without_its_role_a_worker_is_not_ready_says_why_and_takes_no_job(tmp_path: Path) -> None:
    config = without_role(config_for_tests(), "worker", "Cognitive Services OpenAI User")
    async with azure(tmp_path, config) as cloud, worker(cloud) as one:
        await one.process.printed("setup_check_failed")
        status, body = await one.get("/readyz")
        assert status == 503
        assert "lacks the required data action" in json.loads(body)["reasons"]["start-up"]
        assert (await one.get("/livez"))[0] == 200
        code, _ = await command(cloud, "submit", str(write_batch(tmp_path / "in.jsonl", 3)))
        assert code == 0
        assert await one.metric("aoai_worker_jobs_received_total") == 0
        one.process.child.send_signal(signal.SIGTERM)
        assert await one.process.ended() == 0


async def test_a_throttled_deployment_is_left_alone_for_as_long_as_it_asks(tmp_path: Path) -> None:
    async with azure(tmp_path, config_for_tests()) as cloud, worker(cloud, slots="32") as one:
        await one.process.printed('"event":"started"')
        fault = {"status": 429, "count": 20, "retry_after_ms": 700, "deployment": "gpt-5.4-mini"}
        await cloud.control("/local/faults", fault)
        results = await (await submit_and_collect(cloud, tmp_path, 100))
        assert_one_result_each(results, 100)
        assert await one.metric("aoai_worker_gate_closed_seconds_total") >= 0.7
        attempts = [dict(result["worker"])["attempts"] for result in results]  # type: ignore[call-overload]
        assert sum(attempts) == 100 + 20


async def test_every_wrong_setting_is_listed_and_the_exit_code_is_2() -> None:
    environment = clean_environment() | {
        "AOAI_WORKER_SLOTS": "many",
        "AOAI_WORKER_SLOTZ": "4",
        "AZURE_OPENAI_ENDPOINT": "http://plain.example",
        "AZURE_OPENAI_API_KEY": "a-secret-value",
    }
    async with process("-m", "worker", "run", environment=environment) as running:
        assert await running.ended() == 2
    for said in (
        "AOAI_WORKER_SERVICEBUS_NAMESPACE is missing",
        "AOAI_WORKER_MODELS is missing",
        "AOAI_WORKER_SLOTS='many'",
        "did you mean AOAI_WORKER_SLOTS",
        "AZURE_OPENAI_ENDPOINT='http://plain.example': must be an https:// URL",
        "AZURE_OPENAI_API_KEY is set",
    ):
        assert said in running.output
    assert "a-secret-value" not in running.output
    assert "Traceback" not in running.output


@pytest.mark.parametrize("name", ["AZURE_CLIENT_ID", "AZURE_TENANT_ID"])
async def test_a_pod_without_its_webhooks_variables_is_told_which_are_missing(tmp_path: Path, name: str) -> None:
    environment = clean_environment() | {
        "AZURE_CLIENT_ID": "c",
        "AZURE_TENANT_ID": "t",
        "AZURE_FEDERATED_TOKEN_FILE": str(tmp_path / "token"),
        "AOAI_WORKER_SERVICEBUS_NAMESPACE": "ns.servicebus.windows.net",
        "AZURE_OPENAI_ENDPOINT": "https://account.openai.azure.com",
        "AOAI_WORKER_SINK": "queue",
        "AOAI_WORKER_MODELS": "passthrough",
    }
    del environment[name]
    async with process("-m", "worker", "run", environment=environment) as running:
        assert await running.ended() == 2
    assert f"{name} is missing: the workload identity webhook sets it" in running.output


async def signalled_until_it_ended(running: Process) -> int:
    """SIGTERM again and again, as from a supervisor that repeats itself; the exit code."""
    while running.child.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            # not Popen's: it looks whether the child has ended, and the loop would never learn its exit code
            os.kill(running.child.pid, signal.SIGTERM)
        await asyncio.sleep(0.005)
    return await running.ended()


async def test_a_signal_that_comes_again_until_the_end_is_no_other_end(tmp_path: Path) -> None:
    async with azure(tmp_path, config_for_tests()) as cloud, worker(cloud) as one:
        await one.process.printed('"event":"started"')
        assert await signalled_until_it_ended(one.process) == 0
        assert one.process.events("stopped") != []


async def test_a_signal_that_comes_again_during_an_import_is_no_other_end() -> None:
    environment = clean_environment() | {"PYTHONPROFILEIMPORTTIME": "1"}
    async with process("-m", "worker", "run", environment=environment) as running:
        await running.printed("typer.colors")
        assert await signalled_until_it_ended(running) == 0
    assert "settings are wrong" not in running.output, "it came too late to meet an import"


async def test_a_worker_that_is_stopped_while_it_still_imports_ends_with_0() -> None:
    # each import is told as it ends, so the signal comes in the midst of them however slow the machine is
    environment = clean_environment() | {"PYTHONPROFILEIMPORTTIME": "1"}
    async with process("-m", "worker", "run", environment=environment) as running:
        await running.printed("typer.colors")
        running.child.send_signal(signal.SIGTERM)
        assert await running.ended() == 0
    assert "settings are wrong" not in running.output, "it came too late to meet an import"


async def test_a_port_that_is_taken_is_said_with_the_setting_that_names_another(tmp_path: Path) -> None:
    async with azure(tmp_path, config_for_tests()) as cloud, worker(cloud) as one:
        settings = {"AOAI_WORKER_MODELS": MODELS, "AOAI_WORKER_HTTP_HOST": "127.0.0.1"}
        code, output = await command(cloud, "run", **settings, AOAI_WORKER_HTTP_PORT=str(one.port))
    assert code == 1
    assert f"port {one.port}: Address already in use" in output
    assert "AOAI_WORKER_HTTP_PORT" in output
    assert "Traceback" not in output


async def test_one_result_that_is_not_confirmed_stops_no_receiving(tmp_path: Path) -> None:
    async with azure(tmp_path, config_for_tests()) as cloud, worker(cloud, slots="16") as one:
        fault = {"kind": "lose_answer", "on": "send", "entity": "results", "count": 1}
        code, output = await command(
            cloud, "submit", str(write_batch(tmp_path / "in.jsonl", 300)), "--batch", BATCH
        )
        assert code == 0, output
        await cloud.control("/local/faults", fault, servicebus=True)
        code, output = await command(cloud, "collect", BATCH, "-o", str(tmp_path / "out.jsonl"), "--follow")
        assert code == 0, output
        closed = [event["reason"] for event in one.process.events("intake_closed")]
    assert_one_result_each(results_in(tmp_path / "out.jsonl"), 300)
    assert "sink" not in closed
