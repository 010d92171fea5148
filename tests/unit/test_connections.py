"""From the settings to the deployments that are called, and what people call them."""

import json

import pytest

from worker.connections import targets
from worker.settings import WorkerSettings

EAST = "https://east.openai.azure.com"
WEST = "https://west.openai.azure.com"


def labels(monkeypatch: pytest.MonkeyPatch, models: object) -> dict[str, list[str]]:
    monkeypatch.setenv("AOAI_WORKER_SERVICEBUS_NAMESPACE", "my-namespace.servicebus.windows.net")
    monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", EAST)
    monkeypatch.setenv("AOAI_WORKER_MODELS", json.dumps(models))
    found = targets(WorkerSettings())
    assert found is not None
    return {model: [target.label for target in some] for model, some in found.items()}


def test_a_deployment_is_called_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert labels(monkeypatch, {"gpt-4o": ["d"], "gpt-4o-too": ["d", "e"]}) == {
        "gpt-4o": ["d"],
        "gpt-4o-too": ["d", "e"],
    }


def test_deployments_of_one_name_in_two_regions_are_told_apart_by_their_hosts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    models = {"gpt-4o": ["d", {"name": "d", "endpoint": WEST}, {"name": "e", "endpoint": WEST}]}
    assert labels(monkeypatch, models) == {
        "gpt-4o": ["d@east.openai.azure.com", "d@west.openai.azure.com", "e"],
    }
