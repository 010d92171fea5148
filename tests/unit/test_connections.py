"""From the settings to the deployments that are called, and what people call them; and what start-up proves."""

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from worker.azure.servicebus.jobs_queue import JobsQueue
from worker.connections import _queue_checks, targets
from worker.errors import SourceUnavailable
from worker.flow.startup import Queue, failure_of
from worker.settings import WorkerSettings

EAST = "https://east.openai.azure.com"
WEST = "https://west.openai.azure.com"


def labels(monkeypatch: pytest.MonkeyPatch, models: object) -> dict[str, list[str]]:
    monkeypatch.setenv("AOAI_WORKER_SERVICEBUS_NAMESPACE", "my-namespace.servicebus.windows.net")
    monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", EAST)
    monkeypatch.setenv("AOAI_WORKER_SINK", "queue")
    monkeypatch.setenv("AOAI_WORKER_MODELS", json.dumps(models))
    found = targets(WorkerSettings())
    assert found is not None
    return {model: [target.label for target in some] for model, some in found.items()}


def test_a_deployment_is_called_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert labels(monkeypatch, {"gpt-5.4": ["d"], "gpt-5.4-too": ["d", "e"]}) == {
        "gpt-5.4": ["d"],
        "gpt-5.4-too": ["d", "e"],
    }


def test_deployments_of_one_name_in_two_regions_are_told_apart_by_their_hosts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    models = {"gpt-5.4": ["d", {"name": "d", "endpoint": WEST}, {"name": "e", "endpoint": WEST}]}
    assert labels(monkeypatch, models) == {
        "gpt-5.4": ["d@east.openai.azure.com", "d@west.openai.azure.com", "e"],
    }


@dataclass
class Opened:
    """A receiver that counts how often those of its queue are opened; those of the queues `refused` are not."""

    queue: str
    opened: Counter[str]
    refused: list[str] = field(default_factory=list)

    async def open(self) -> None:
        self.opened[self.queue] += 1
        if self.queue in self.refused:
            raise SourceUnavailable(f"queue {self.queue!r}: refused")


async def test_every_receiver_of_a_queue_is_proved_and_the_queue_is_told_of_once() -> None:
    opened = Counter[str]()
    sources: list[Any] = [Opened(queue, opened, ["b"]) for queue in ("a", "b") for _ in range(3)]
    checks = _queue_checks("bus", cast(list[JobsQueue], sources))
    places = [Queue(namespace="bus", name=name, with_sessions=False) for name in "ab"]
    assert [(check.what, check.place) for check in checks] == [("queue a", places[0]), ("queue b", places[1])]
    failures = [await failure_of(check) for check in checks]
    assert opened == {"a": 3, "b": 3}
    assert [failure and str(failure.error) for failure in failures] == [None, "queue 'b': refused"]
