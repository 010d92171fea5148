"""The worker's settings in the ConfigMap are taken by the worker's own model, and the schema knows all of them."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chart.helm import BIN, CHART, MATRIX, ROOT, deployment, only, render, run, settings
from worker.environment import load
from worker.errors import InvalidSettings
from worker.settings import WorkerSettings

KUSTOMIZATIONS = [ROOT / "k8s/base", *sorted(ROOT.glob("k8s/overlays/*"))]


@pytest.fixture
def pod_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An environment as in a pod; settings written to the file are what `aoai-worker run` reads."""
    file = tmp_path / "worker.yaml"
    monkeypatch.setenv("AOAI_WORKER_CONFIG", str(file))
    return file


def take(file: Path, document: dict[str, Any]) -> WorkerSettings:
    if "ca_file" in document:
        authorities = file.with_name("ca.pem")
        authorities.touch()
        document = {**document, "ca_file": str(authorities)}
    file.write_text(yaml.safe_dump(document), encoding="utf-8")
    return load(WorkerSettings)


@pytest.mark.parametrize("values", MATRIX)
def test_the_worker_takes_the_settings_of_every_set_of_values(values: str, pod_environment: Path) -> None:
    rendered = settings(render(values))
    taken = take(pod_environment, rendered)
    assert {name: rendered[name] for name in ("slots", "grace", "fleet_size")} == {
        name: getattr(taken, name) for name in ("slots", "grace", "fleet_size")
    }


@pytest.mark.parametrize("folder", KUSTOMIZATIONS, ids=lambda path: path.name)
def test_the_worker_takes_the_settings_of_every_kustomization(folder: Path, pod_environment: Path) -> None:
    built = run(BIN / "kubectl", "kustomize", folder)
    assert built.returncode == 0, built.stderr
    text = only(list(yaml.safe_load_all(built.stdout)), "ConfigMap")["data"]["worker.yaml"]
    take(pod_environment, yaml.safe_load(text))


def test_the_worker_reads_the_file_that_is_mounted() -> None:
    spec = deployment()["spec"]["template"]["spec"]
    worker = spec["containers"][0]
    variables = {item["name"]: item["value"] for item in worker["env"]}
    folder = next(item["mountPath"] for item in worker["volumeMounts"] if item["name"] == "config")
    source = next(item["configMap"]["name"] for item in spec["volumes"] if item["name"] == "config")
    config_map = next(item for item in render() if item["kind"] == "ConfigMap")
    assert variables["AOAI_WORKER_CONFIG"] == f"{folder}/{next(iter(config_map['data']))}"
    assert source == config_map["metadata"]["name"]


def test_every_setting_of_the_worker_is_a_value_of_the_chart() -> None:
    from scripts.chart.schema import CHART_OWNED

    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    known = schema["properties"]["config"]["properties"].keys()
    assert known | CHART_OWNED.keys() == WorkerSettings.model_fields.keys()


def test_a_ca_of_one_s_own_is_mounted_where_the_worker_is_told_to_read_it() -> None:
    objects = render("everything-on")
    spec = only(objects, "Deployment")["spec"]["template"]["spec"]
    folder = next(i["mountPath"] for i in spec["containers"][0]["volumeMounts"] if i["name"] == "trusted-ca")
    assert settings(objects)["ca_file"] == f"{folder}/ca.crt"
    assert {"name": "trusted-ca", "configMap": {"name": "company-ca"}} in spec["volumes"]


def test_a_setting_that_is_null_is_left_to_the_worker() -> None:
    assert "slots" not in settings(render("default", {"config": {"slots": None}}))


def test_large_numbers_are_written_as_they_are() -> None:
    assert settings(render("everything-on"))["in_flight_bytes"] == 134_217_728


def test_settings_that_the_worker_refuses_are_found_by_these_tests(pod_environment: Path) -> None:
    with pytest.raises(InvalidSettings, match="AOAI_WORKER_SLOTS=0"):
        take(pod_environment, {**settings(render()), "slots": 0})


@pytest.mark.parametrize("values", MATRIX)
def test_keda_looks_at_the_queues_that_the_worker_receives(values: str, pod_environment: Path) -> None:
    objects = render(values)
    taken = take(pod_environment, settings(objects))
    received = {*taken.models_of_queues, *([taken.jobs_queue] if taken.sorts else [])}
    for scaled in (item["spec"] for item in objects if item["kind"] == "ScaledObject"):
        triggers = [item for item in scaled["triggers"] if item["type"] == "azure-servicebus"]
        assert {item["metadata"]["queueName"] for item in triggers} == received
