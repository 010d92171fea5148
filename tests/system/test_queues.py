"""Several queues in one worker, jobs that the broker gives up, and jobs that ask for a stream."""

import asyncio
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from embedded_azure.config import Config, Deployment, QueueSpec, Role, RoleAssignment
from tests.support.patience import PATIENCE
from tests.support.processes import (
    Azure,
    Worker,
    assert_one_result_each,
    azure,
    command,
    config_for_tests,
    results_in,
    worker,
    write_batch,
)

ANSWERED = "aoai_worker_result_write_seconds_count"


def with_queues(config: Config, *queues: QueueSpec) -> Config:
    """The queues in place of `jobs`, each with the worker's and the producer's roles."""
    rights: list[tuple[str, Role]] = [
        ("worker", "Azure Service Bus Data Receiver"),
        ("worker", "Azure Service Bus Data Sender"),
        ("producer", "Azure Service Bus Data Sender"),
    ]
    roles = [
        RoleAssignment(object_id=config.identity(name).object_id, role=role, scope=f"servicebus/{queue.name}")
        for queue in queues
        for name, role in rights
    ]
    kept = tuple(queue for queue in config.queues if queue.name != "jobs")
    return replace(config, queues=(*queues, *kept), role_assignments=(*config.role_assignments, *roles))


def write_lines(path: Path, count: int, **body: Any) -> Path:
    with path.open("w") as file:
        for number in range(count):
            limits = {"reasoning_effort": "none", "max_completion_tokens": 64}
            asked = {"messages": [{"role": "user", "content": f"What is {number} + 1?"}], **limits, **body}
            line = {"custom_id": f"q-{number}", "method": "POST", "url": "/v1/chat/completions", "body": asked}
            file.write(json.dumps(line) + "\n")
    return path


async def submit(cloud: Azure, file: Path, batch: str, queue: str = "jobs") -> None:
    code, output = await command(cloud, "submit", str(file), "--batch", batch, AOAI_WORKER_JOBS_QUEUE=queue)
    assert code == 0, output


async def collect(cloud: Azure, batch: str, path: Path, *, expected: int = 0) -> list[dict[str, Any]]:
    code, output = await command(cloud, "collect", batch, "-o", str(path), "--follow")
    assert code == expected, output
    return results_in(path)


async def test_a_deployment_that_turns_forbidden_is_passed_over_and_the_pod_stays_ready(tmp_path: Path) -> None:
    config = replace(
        config_for_tests(),
        deployments=(
            Deployment(name="first", model="gpt-5.4-mini"),
            Deployment(name="second", model="gpt-5.4-mini"),
        ),
    )
    settings = {"models": json.dumps({"gpt-5.4-mini": ["first", "second"]}), "slots": "16"}
    async with azure(tmp_path, config) as cloud, worker(cloud, **settings) as one:
        await cloud.control("/local/faults", {"kind": "answer", "status": 403, "deployment": "first"})
        await submit(cloud, write_lines(tmp_path / "jobs.jsonl", 100, model="gpt-5.4-mini"), "batch")
        results = await collect(cloud, "batch", tmp_path / "out.jsonl")
        ready, _ = await one.get("/readyz")
        _, state = await one.get("/statez")
    assert {result["response"]["status_code"] for result in results} == {200}
    assert {result["worker"]["deployment"] for result in results} == {"second"}
    assert ready == 200
    waits_for = {gate["deployment"]: gate["waits_for"] for gate in json.loads(state)["gates"]}
    assert waits_for["first"].startswith("set-up: ")
    assert waits_for["second"] is None


async def test_a_throttled_model_holds_up_its_own_queue_and_no_other(tmp_path: Path) -> None:
    """Both models interleaved in the entry queue, one of them throttled for a minute."""
    mini, large = "gpt-5.4-mini", "gpt-5.4"
    config = with_queues(
        replace(
            config_for_tests(),
            deployments=(
                Deployment(name="mini", model=mini, latency=0.5, latency_sigma=0.0),
                Deployment(name="large", model=large, latency=0.5, latency_sigma=0.0),
            ),
        ),
        *[QueueSpec(name=name) for name in ("jobs", f"jobs-{mini}", f"jobs-{large}")],
    )
    settings = {
        "models": json.dumps({mini: ["mini"], large: ["large"]}),
        "slots": "16",
        "grace": "0.5",  # the throttled jobs cannot end in a stop, however long it is
    }
    async with azure(tmp_path, config) as cloud, worker(cloud, **settings) as one:
        alone = await seconds_for_mini(cloud, one, write_mixed(tmp_path / "alone.jsonl", 251, mini), 251)
        throttle = {"kind": "throttle", "reason": "call", "deployment": "large", "retry_after": 60}
        await cloud.control("/local/faults", throttle)
        both = write_mixed(tmp_path / "both.jsonl", 502, mini, large)
        beside = await seconds_for_mini(cloud, one, both, 502)
        _, state = await one.get("/statez")
        handed_back = await one.metric("aoai_worker_jobs_handed_back_total")
        assert await one.metric("aoai_worker_jobs_sorted_total") == 251 + 502
    queues = {queue["queue"] for queue in json.loads(state)["queues"]}
    gates = {gate["deployment"]: gate for gate in json.loads(state)["gates"]}
    assert queues == {f"jobs-{mini}", f"jobs-{large}"}
    assert gates["large"]["waits_for"] is not None, "nothing waits without a word"
    assert alone / beside >= 0.8, "docs/benchmarks.md has the figure; here other work may slow one of the two"
    assert handed_back <= 8


async def seconds_for_mini(cloud: Azure, one: Worker, file: Path, answered: int) -> float:
    """Until so many of its jobs were answered in all, from when the first of these was."""
    before = await one.metric(ANSWERED)
    await submit(cloud, file, file.stem)
    started = time.monotonic()
    async with asyncio.timeout(PATIENCE):
        while (now := await one.metric(ANSWERED)) < answered:
            if now == before:
                started = time.monotonic()
            await asyncio.sleep(0.05)  # another process: it tells by its metrics only
    return time.monotonic() - started


def write_mixed(path: Path, count: int, *models: str) -> Path:
    with path.open("w") as file:
        for number in range(count):
            asked = {"model": models[number % len(models)], "messages": [{"role": "user", "content": "?"}]}
            line = {"custom_id": f"q-{number}", "method": "POST", "url": "/v1/chat/completions", "body": asked}
            file.write(json.dumps(line) + "\n")
    return path


async def test_what_the_broker_gave_up_ends_in_an_error_line_so_that_the_batch_ends(tmp_path: Path) -> None:
    config = with_queues(config_for_tests(), QueueSpec(name="jobs", default_time_to_live=0.2))
    async with azure(tmp_path, config) as cloud:
        await submit(cloud, write_batch(tmp_path / "in.jsonl", 20), "late")
        await asyncio.sleep(0.5)  # in another process: their time to live passes
        async with worker(cloud, sweep_every="1") as one:
            results = await collect(cloud, "late", tmp_path / "out.jsonl", expected=4)
            assert await one.metric("aoai_worker_dead_letters_swept_total") == 20
    assert {result["error"]["code"] for result in results} == {"expired"}
    assert len(results) == 20


async def test_a_job_that_asks_for_a_stream_gets_the_whole_answer_and_the_first_token_is_timed(
    tmp_path: Path,
) -> None:
    async with azure(tmp_path, config_for_tests()) as cloud, worker(cloud) as one:
        streamed = write_lines(tmp_path / "streamed.jsonl", 10, model="gpt-5.4-mini", stream=True)
        whole = write_lines(tmp_path / "whole.jsonl", 10, model="gpt-5.4-mini")
        await submit(cloud, streamed, "streamed")
        await submit(cloud, whole, "whole")
        results = {batch: await collect(cloud, batch, tmp_path / f"{batch}.out") for batch in ("streamed", "whole")}
        assert await one.metric("aoai_worker_first_token_seconds_count") == 10
    said = {
        batch: {
            result["custom_id"]: result["response"]["body"]["choices"][0]["message"]["content"] for result in lines
        }
        for batch, lines in results.items()
    }
    assert said["streamed"] == said["whole"]
    usage = {result["custom_id"]: result["worker"]["usage"] for result in results["streamed"]}
    assert usage == {result["custom_id"]: result["worker"]["usage"] for result in results["whole"]}


async def test_several_receivers_of_one_queue_share_its_jobs_and_lose_none_at_a_stop(tmp_path: Path) -> None:
    async with azure(tmp_path, config_for_tests()) as cloud:
        await submit(cloud, write_batch(tmp_path / "in.jsonl", 300), "many")
        async with worker(cloud, receivers="3", slots="24") as leaving:
            async with asyncio.timeout(PATIENCE):
                while await leaving.metric("aoai_worker_jobs_total") < 50:
                    await asyncio.sleep(0.05)  # another process: it tells by its metrics only
            _, state = await leaving.get("/statez")
            assert [queue["queue"] for queue in json.loads(state)["queues"]] == ["jobs"] * 3
            assert json.loads(state)["in_flight"] <= 24
        async with worker(cloud, receivers="2"):
            results = await collect(cloud, "many", tmp_path / "out.jsonl")
        stats = await cloud.control("/local/stats")
    assert_one_result_each(results, 300)
    assert stats["answered_more_than_once"] == 0, "an answer was paid for twice"


async def test_a_broker_that_is_away_during_a_sweep_costs_no_job_under_way(tmp_path: Path) -> None:
    # calls that last: on a busy machine `submit` ends seconds after its jobs have begun
    async with azure(tmp_path, config_for_tests(latency=10.0)) as cloud, worker(cloud, sweep_every="1") as one:
        await submit(cloud, write_batch(tmp_path / "in.jsonl", 20), "b")
        async with asyncio.timeout(PATIENCE):
            while await one.metric("aoai_worker_jobs_in_flight") == 0:
                await asyncio.sleep(0.05)  # another process: it tells by its metrics only
        await cloud.control("/local/faults", {"kind": "restart", "seconds": 4}, servicebus=True)
        results = await collect_in_spite_of_the_outage(cloud, "b", tmp_path / "out.jsonl")
        assert_one_result_each(results, 20)
        assert one.process.child.returncode is None
        assert one.process.events("sweep_failed") != []


async def collect_in_spite_of_the_outage(cloud: Azure, batch: str, path: Path) -> list[dict[str, Any]]:
    """The collector gives up where the broker is away, and goes on where it ended."""
    async with asyncio.timeout(PATIENCE):
        while (await command(cloud, "collect", batch, "-o", str(path), "--follow"))[0] != 0:
            await asyncio.sleep(0.5)  # until the broker is back
    return results_in(path)
