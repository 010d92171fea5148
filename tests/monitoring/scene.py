"""A fleet at work under observation: two workers, an embedded Azure with a quota, and a Prometheus that watches.

Traffic is mixed on purpose: streamed and whole answers, a deployment whose quota is too small, refused jobs.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from embedded_azure.config import Config, Deployment, QueueSpec, Role, RoleAssignment
from tests.monitoring.cluster import NAMESPACE, Cluster, served
from tests.monitoring.prometheus import Prometheus, Target, prometheus
from tests.support.processes import Azure, Worker, azure, command, config_for_tests, worker

MODELS = {
    "gpt-5.4-mini": [{"name": "gpt-5.4-mini"}],
    "gpt-5.4": [{"name": "gpt-5.4", "tokens_per_minute": 40_000, "requests_per_minute": 420}],
}
QUEUE_ROLES: tuple[Role, ...] = ("Azure Service Bus Data Receiver", "Azure Service Bus Data Sender")
PODS = ("aoai-worker-5d9c7-k2x4p", "aoai-worker-5d9c7-wz8rn")


@dataclass
class Scene:
    azure: Azure
    workers: Sequence[Worker]
    prometheus: Prometheus
    folder: Path
    submitted: list[int] = field(default_factory=list)

    async def submit(self, count: int) -> None:
        number = len(self.submitted)
        file = write_mixed_batch(self.folder / f"batch-{number}.jsonl", count)
        self.submitted.append(count)
        code, output = await command(self.azure, "submit", str(file), "--batch", f"batch-{number}")
        assert code == 0, output

    async def throttle(self, count: int, *, retry_after: float = 3.0) -> None:
        """The service refuses the next calls to the small quota: others have used it, which no pacing can know."""
        fault = {"status": 429, "retry_after": retry_after, "count": count, "deployment": "gpt-5.4"}
        await self.azure.control("/local/faults", fault)

    async def until(self, expression: str, *, patience: float = 60.0) -> None:
        """Asks Prometheus each second, its scrape interval, until the expression has a value."""
        async with asyncio.timeout(patience):
            while not await self.prometheus.has(expression):
                await asyncio.sleep(1)


def small_quota() -> Config:
    """One deployment without limits and one whose requests per minute are soon used up, and a queue for each."""
    config = config_for_tests(lock_duration=20.0)
    queues = [f"jobs-{model}" for model in MODELS]
    worker_id = config.identity("worker").object_id
    grants = [
        RoleAssignment(object_id=worker_id, role=role, scope=f"servicebus/{queue}")
        for queue in queues
        for role in QUEUE_ROLES
    ]
    return replace(
        config,
        queues=(*config.queues, *(QueueSpec(name=queue, lock_duration=20.0) for queue in queues)),
        role_assignments=(*config.role_assignments, *grants),
        deployments=(
            Deployment(name="gpt-5.4-mini", model="gpt-5.4-mini", latency=0.8, latency_sigma=0.5),
            Deployment(
                name="gpt-5.4", model="gpt-5.4", latency=1.5, requests_per_minute=360, tokens_per_minute=30_000
            ),
        ),
    )


@asynccontextmanager
async def watched_fleet(folder: Path, *, slots: int = 24) -> AsyncIterator[Scene]:
    async with AsyncExitStack() as stack:
        cloud = await stack.enter_async_context(azure(folder, small_quota()))
        prices = {model: {"input": 0.25, "output": 2.0} for model in MODELS}
        settings = {
            "models": json.dumps(MODELS),
            "prices": json.dumps(prices),
            "fleet_size": "2",
            "slots": str(slots),
            "sweep_every": "5",
        }
        workers = [await stack.enter_async_context(worker(cloud, pod=pod, **settings)) for pod in PODS]
        submitted: list[int] = []
        last_seen = {"settled": 0.0}
        cluster = Cluster(queue_length=lambda: max(0.0, sum(submitted) - last_seen["settled"]))
        port = await stack.enter_async_context(served(cluster))
        targets = [
            Target(one.port, {"namespace": NAMESPACE, "pod": pod}) for one, pod in zip(workers, PODS, strict=True)
        ]
        watching = await stack.enter_async_context(prometheus(folder / "prometheus", [*targets, Target(port, {})]))
        scene = Scene(cloud, workers, watching, folder, submitted)
        async with asyncio.TaskGroup() as tasks:
            follower = tasks.create_task(_follow_settled(scene, last_seen))
            try:
                yield scene
            finally:
                follower.cancel()


async def _follow_settled(scene: Scene, last_seen: dict[str, float]) -> None:
    """Keeps the stand-in for KEDA told how many messages have left the queue for good."""
    while True:
        found = await scene.prometheus.query(
            'sum(aoai_worker_settlements_total{settlement=~"Complete|DeadLetter"})'
        )
        if found:
            last_seen["settled"] = float(found[0]["value"][1])
        await asyncio.sleep(2)


def write_mixed_batch(path: Path, count: int) -> Path:
    """One job in eight for the small quota, one in three streamed, one in forty refused for its parameters."""
    with path.open("w") as file:
        for number in range(count):
            line = {"custom_id": f"q-{number}", "method": "POST", "url": "/v1/chat/completions"}
            file.write(json.dumps(line | {"body": _body(number)}) + "\n")
    return path


def _body(number: int) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": "gpt-5.4" if number % 8 == 7 else "gpt-5.4-mini",
        "messages": [{"role": "user", "content": f"What is {number} + {number}?"}],
        "reasoning_effort": "none",
        "max_completion_tokens": 0 if number % 40 == 39 else 64,
    }
    return body | ({"stream": True} if number % 3 == 0 else {})
