"""PodMonitor, PrometheusRule and dashboard, each by its switch."""

import json

import pytest
import yaml

from tests.chart.helm import CHART, container, deployment, kinds, only, render


def test_nothing_is_monitored_unless_asked_for() -> None:
    assert not {"PodMonitor", "PrometheusRule"} & kinds(render())
    assert [item["kind"] for item in render() if item["metadata"]["name"].endswith("-dashboard")] == []


@pytest.mark.parametrize(
    ("values", "api_version"),
    [("prod", "monitoring.coreos.com/v1"), ("azmonitoring", "azmonitoring.coreos.com/v1")],
)
def test_the_pod_monitor_is_of_the_prometheus_that_is_there(values: str, api_version: str) -> None:
    assert only(render(values), "PodMonitor")["apiVersion"] == api_version


def test_the_pod_monitor_scrapes_the_workers_by_the_name_of_their_port() -> None:
    monitor = only(render("prod"), "PodMonitor")["spec"]
    assert monitor["selector"] == deployment("prod")["spec"]["selector"]
    assert monitor["podMetricsEndpoints"][0]["port"] == container("prod")["ports"][0]["name"]


def test_labels_choose_the_prometheus_that_takes_monitor_and_rules() -> None:
    objects = render("everything-on")
    for kind in ("PodMonitor", "PrometheusRule"):
        assert only(objects, kind)["metadata"]["labels"]["release"] == "prometheus"


def test_the_rules_are_those_of_the_file() -> None:
    groups = yaml.safe_load((CHART / "files/alerts.yaml").read_text(encoding="utf-8"))["groups"]
    assert only(render("prod"), "PrometheusRule")["spec"]["groups"] == groups


def test_an_alert_can_be_left_out() -> None:
    groups = yaml.safe_load((CHART / "files/alerts.yaml").read_text(encoding="utf-8"))["groups"]
    names = [rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule]
    changed = {"monitoring": {"prometheusRule": {"disabled": [names[0]]}}}
    rendered = only(render("prod", changed), "PrometheusRule")["spec"]["groups"]
    left = [rule["alert"] for group in rendered for rule in group["rules"] if "alert" in rule]
    assert sorted(left) == sorted(set(names) - {names[0]})


def test_the_dashboard_is_the_file_and_has_the_label_that_grafana_s_sidecar_looks_for() -> None:
    found = next(i for i in render("everything-on") if i["metadata"]["name"].endswith("-dashboard"))
    file = json.loads((CHART / "files/dashboard.json").read_text(encoding="utf-8"))
    assert json.loads(found["data"]["aoai-worker.json"]) == file
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert found["metadata"]["annotations"] == {"grafana_folder": "Inference"}


def test_the_dashboard_fits_into_a_config_map() -> None:
    assert (CHART / "files/dashboard.json").stat().st_size < 900_000
