"""Sorting by real processes: killed between sending on and completing, beside queues that cannot be used, stopped.

Each job has one result, and none is paid for twice but those whose call was under way at a kill.
"""

import asyncio
import json
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

from embedded_azure.config import Config, Deployment, QueueSpec, RoleAssignment
from tests.support.administration import administration, waiting_in, with_owner
from tests.support.processes import (
    Azure,
    Worker,
    azure,
    command,
    config_for_tests,
    results_in,
    until,
    worker,
)

ENTRY = "jobs"
GROUPS, TOGETHER = 5, 4
"""Workers that are killed: so many at a time, as each takes a second of CPU to start."""
HALF_SORTED = (
    # completing goes unheard on the link and over the management link: what is sent on stays under its lock
    {"kind": "lose_answer", "on": "settle", "applied": False, "entity": ENTRY},
    {"kind": "lose_answer", "on": "management", "applied": False, "entity": ENTRY},
)


def queue_of(model: str) -> str:
    return f"{ENTRY}-{model}"


def config_for(models: Sequence[str], *, lock_duration: float = 60.0, latency: float = 0.05) -> Config:
    """An entry queue, and each model with a queue and a deployment of its name. The owner may manage queues."""
    config = with_owner(config_for_tests())
    rights = [
        *[("worker", "Azure Service Bus Data Receiver", queue_of(model)) for model in models],
        *[("worker", "Azure Service Bus Data Sender", queue_of(model)) for model in models],
    ]
    queues = [ENTRY, *map(queue_of, models)]
    return replace(
        config,
        role_assignments=(
            *config.role_assignments,
            *[
                RoleAssignment(
                    object_id=config.identity(name).object_id,
                    role=role,  # type: ignore[arg-type]
                    scope=f"servicebus/{queue}",
                )
                for name, role, queue in rights
            ],
        ),
        queues=(
            *[QueueSpec(name=name, lock_duration=lock_duration, max_delivery_count=100) for name in queues],
            QueueSpec(name="results", requires_session=True),
        ),
        deployments=tuple(
            Deployment(name=model, model=model, latency=latency, latency_sigma=0.0) for model in models
        ),
    )


def write_mixed(path: Path, count: int, models: Sequence[str], *, padding: int = 0) -> Path:
    """A question of its own in each job; up to `padding` bytes more, varied."""
    with path.open("w") as file:
        for number in range(count):
            question = f"What is {number} + {number}? " + "x" * (padding - 37 * number % (padding // 2 + 1))
            body = {"model": models[number % len(models)], "messages": [{"role": "user", "content": question}]}
            line = {"custom_id": f"q-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(line) + "\n")
    return path


def models_setting(models: Sequence[str]) -> str:
    return json.dumps({model: [model] for model in models})


async def submit(cloud: Azure, path: Path) -> None:
    code, output = await command(cloud, "submit", str(path), "--batch", "mixed")
    assert code == 0, output


async def collect(cloud: Azure, path: Path) -> Counter[str]:
    """How many results each job has; all of them answers."""
    code, output = await command(cloud, "collect", "mixed", "-o", str(path), "--follow")
    assert code == 0, output
    results = results_in(path)
    assert {result["response"]["status_code"] for result in results} == {200}
    return Counter(result["custom_id"] for result in results)


def one_each(count: int) -> Counter[str]:
    return Counter(f"q-{number}" for number in range(count))


async def test_workers_killed_between_sending_on_and_completing_lose_and_double_no_job(tmp_path: Path) -> None:
    models, jobs, chance = ("mini", "large"), 757, random.Random(16)
    # a sorter may hold a quarter of this, some 40 of these jobs, so each of the workers gets some
    settings = {"models": models_setting(models), "slots": "1", "in_flight_bytes": str(1 << 20)}
    async with azure(tmp_path, config_for(models, lock_duration=5.0)) as cloud:
        await submit(cloud, write_mixed(tmp_path / "in.jsonl", jobs, models, padding=6_000))
        await cloud.control("/local/faults", HALF_SORTED, servicebus=True)
        for _ in range(GROUPS):
            async with AsyncExitStack() as stack:
                starting = [stack.enter_async_context(worker(cloud, **settings)) for _ in range(TOGETHER)]
                dying = await asyncio.gather(*starting)
                await asyncio.gather(*[kill_while_sorting(one, chance.randrange(2, 31)) for one in dying])
        assert await waiting_in(cloud, ENTRY) == jobs, "one was completed"
        waiting = sum([await waiting_in(cloud, queue_of(model)) for model in models])
        answered = len((await cloud.control("/local/stats"))["answers"])
        assert waiting + answered > GROUPS * TOGETHER, "sent on, each time by another worker; it is sent again"
        await cloud.control("/local/faults", [], servicebus=True)
        async with worker(cloud, models=models_setting(models)):
            results = await collect(cloud, tmp_path / "out.jsonl")
        assert await waiting_in(cloud, ENTRY) == 0
        stats = await cloud.control("/local/stats")
    assert results == one_each(jobs)
    assert len(stats["answers"]) == jobs
    under_way = GROUPS * TOGETHER  # one slot each
    assert sum(stats["answers"].values()) - jobs <= under_way


async def kill_while_sorting(one: Worker, received: int) -> None:
    async def has_received() -> bool:
        return await one.metric("aoai_worker_jobs_received_total", queue=ENTRY) >= received

    await until(has_received)
    one.process.child.kill()
    assert await one.process.ended() == -signal.SIGKILL


async def test_a_model_that_is_well_is_answered_beside_a_full_a_missing_and_a_throttled_queue(
    tmp_path: Path,
) -> None:
    models, jobs = ("well", "full", "missing", "throttled"), 801
    config = config_for(models)
    # three quarters of what its model is asked for
    limits = {queue_of("full"): 300_000}
    queues = [replace(queue, max_size_bytes=limits.get(queue.name, 1 << 30)) for queue in config.queues]
    throttles = [
        {"kind": "throttle", "reason": "call", "deployment": model, "retry_after": 5}
        for model in ("full", "throttled")
    ]
    async with (
        azure(tmp_path, replace(config, queues=tuple(queues))) as cloud,
        worker(cloud, models=models_setting(models), grace="0.5") as one,
    ):
        await one.process.printed('"event":"started"')
        await cloud.control("/local/faults", throttles)
        async with administration(cloud) as client:
            missing = await client.get_queue(queue_of("missing"))
            await client.delete_queue(missing.name)
            await submit(cloud, write_mixed(tmp_path / "in.jsonl", jobs, models, padding=2_000))
            await until(has_answered_all_of(one, "well", len(range(0, jobs, len(models)))))
            _, ready = await one.get("/readyz")
            _, state = await one.get("/statez")
            answered = {model: await answered_by(one, model) for model in models[1:]}
            assert answered == {"full": 0, "missing": 0, "throttled": 0}
            assert missing.name in json.loads(ready)["reasons"]["source"]
            waits_for = {gate["deployment"]: gate["waits_for"] for gate in json.loads(state)["gates"]}
            assert waits_for["well"] is None
            assert waits_for["throttled"].startswith("429")
            await until(has_told_of(one, queue_of("full"), "receive messages first"))
            await until(has_told_of(one, missing.name, "could not be found"))

            await client.create_queue(
                missing.name,
                lock_duration=missing.lock_duration,
                requires_duplicate_detection=True,
                duplicate_detection_history_time_window=missing.duplicate_detection_history_time_window,
            )
        await cloud.control("/local/faults", [])
        results = await collect(cloud, tmp_path / "out.jsonl")
        stats = await cloud.control("/local/stats")
        assert await waiting_in(cloud, ENTRY) == 0
    assert results == one_each(jobs)
    assert stats["answered_more_than_once"] == 0, "an answer was paid for twice"


async def answered_by(one: Worker, model: str) -> float:
    return await one.metric("aoai_worker_jobs_total", queue=queue_of(model), outcome="answered")


def has_answered_all_of(one: Worker, model: str, count: int) -> Callable[[], Awaitable[bool]]:
    async def answered() -> bool:
        return await answered_by(one, model) == count

    return answered


def has_told_of(one: Worker, queue: str, detail: str) -> Callable[[], Awaitable[bool]]:
    async def told() -> bool:
        return any(
            event["queue"] == queue and detail in event["detail"] for event in one.process.events("sorting_failed")
        )

    return told


async def test_a_worker_that_is_stopped_while_it_sorts_loses_and_doubles_no_job(tmp_path: Path) -> None:
    models, jobs = ("mini", "large"), 1_501
    async with azure(tmp_path, config_for(models)) as cloud:
        await submit(cloud, write_mixed(tmp_path / "in.jsonl", jobs, models, padding=500))
        await cloud.control("/local/faults", {"kind": "slow", "latency": 0.03}, servicebus=True)
        async with worker(cloud, models=models_setting(models)) as stopped:

            async def has_sorted() -> bool:
                return await stopped.metric("aoai_worker_jobs_sorted_total") > 0

            await until(has_sorted)
            stopped.process.child.send_signal(signal.SIGTERM)
            assert await stopped.process.ended() == 0
        assert 0 < await waiting_in(cloud, ENTRY) < jobs, "it was stopped before or after it sorted"
        await cloud.control("/local/faults", [], servicebus=True)
        async with worker(cloud, models=models_setting(models)):
            results = await collect(cloud, tmp_path / "out.jsonl")
        stats = await cloud.control("/local/stats")
    assert results == one_each(jobs)
    assert stats["answered_more_than_once"] == 0, "an answer was paid for twice"
