"""`aoai-worker settings`: every setting, its value, and where that comes from."""

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from worker.cli.commands import app
from worker.settings import ConnectionSettings, WorkerSettings


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in os.environ:
        if name.upper().startswith(("AOAI_WORKER_", "AZURE_", "OPENAI_")):
            monkeypatch.delenv(name)
    file = tmp_path / "settings.yaml"
    file.write_text("slots: 7\nattempts: 3\nmodels: {m: [d]}\nopenai_endpoint: https://a.openai.azure.com\n")
    monkeypatch.setenv("AOAI_WORKER_CONFIG", str(file))
    monkeypatch.setenv("aoai_worker_slots", "9")
    monkeypatch.setenv("AOAI_WORKER_SINK", "queue")
    monkeypatch.setenv("AOAI_WORKER_SERVICEBUS_NAMESPACE", "n.servicebus.windows.net")


def test_each_setting_has_its_value_and_source() -> None:
    document = json.loads(CliRunner().invoke(app, ["settings", "--json"]).stdout)
    assert len(document) == len(WorkerSettings.model_fields)
    assert document["AOAI_WORKER_SLOTS"] == {"value": 9, "source": "environment"}
    assert document["AOAI_WORKER_ATTEMPTS"] == {"value": 3, "source": "file"}
    assert document["AZURE_OPENAI_ENDPOINT"] == {"value": "https://a.openai.azure.com", "source": "file"}
    assert document["AOAI_WORKER_PARKING"] == {"value": 900.0, "source": "default"}


def test_people_get_a_line_for_each() -> None:
    told = CliRunner().invoke(app, ["settings", "--producer"])
    lines = told.stdout.splitlines()
    assert told.exit_code == 0
    assert len(lines) == len(ConnectionSettings.model_fields)
    assert lines[0].split() == ["AOAI_WORKER_SERVICEBUS_NAMESPACE", "environment", "n.servicebus.windows.net"]


def test_wrong_settings_are_told_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AOAI_WORKER_SLOTS", "0")
    told = CliRunner().invoke(app, ["settings"])
    assert told.exit_code == 2
    assert "AOAI_WORKER_SLOTS='0': must be greater than or equal to 1" in told.stderr
