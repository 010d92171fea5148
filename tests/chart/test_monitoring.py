"""PodMonitor, PrometheusRule and dashboard, each by its switch."""

import json
from typing import Any

import pytest

from scripts.chart.rules import read_rules
from tests.chart.helm import CHART, NAMESPACE, Object, container, deployment, failure, kinds, only, render


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


def test_how_pods_are_scraped_is_in_the_values() -> None:
    monitor = next(item["spec"] for item in render("everything-on") if item["kind"] == "PodMonitor")
    endpoint = monitor["podMetricsEndpoints"][0]
    assert (monitor["sampleLimit"], endpoint["scrapeTimeout"]) == (5000, "10s")
    assert endpoint["relabelings"] == [{"targetLabel": "cluster", "replacement": "aks-1"}]


def test_labels_choose_the_prometheus_that_takes_monitor_and_rules() -> None:
    objects = render("everything-on")
    found = [item for item in objects if item["kind"] in ("PodMonitor", "PrometheusRule")]
    assert [item["metadata"]["labels"]["release"] for item in found] == ["prometheus"] * 3


@pytest.mark.parametrize(("values", "fullname"), [("prod", "aoai-worker"), ("everything-on", "batch-worker")])
def test_the_rules_are_those_of_the_file_for_this_release(values: str, fullname: str) -> None:
    assert only(render(values), "PrometheusRule")["spec"]["groups"] == read_rules(NAMESPACE, fullname)


def test_thresholds_severities_and_the_runbooks_place_are_values() -> None:
    changes = {"thresholds": {"backlogAgeSeconds": 7200}, "severities": {"AoaiWorkerBacklogOld": "page"}}
    monitoring = {"runbookBaseUrl": "https://wiki.example/runbooks", "prometheusRule": changes}
    found = only(render("prod", {"monitoring": monitoring}), "PrometheusRule")["spec"]["groups"]
    changed = next(r for g in found for r in g["rules"] if r.get("alert") == "AoaiWorkerBacklogOld")
    assert changed["labels"]["severity"] == "page"
    assert changed["expr"].endswith("> 7200")
    assert changed["annotations"]["runbook_url"] == "https://wiki.example/runbooks#aoaiworkerbacklogold"


def test_a_severity_for_an_alert_that_is_not_there_is_refused() -> None:
    wrong = {"monitoring": {"prometheusRule": {"severities": {"AoaiWorkerOld": "page"}}}}
    assert "severities names AoaiWorkerOld, which is no alert; there are AoaiWorkerAbsent," in failure(
        "prod", wrong
    )


def test_of_keda_s_metrics_those_of_this_release_are_kept() -> None:
    objects = render("everything-on")
    monitor = next(i["spec"] for i in objects if i["metadata"]["name"] == "batch-worker-keda")
    endpoint = monitor["podMetricsEndpoints"][0]
    assert monitor["namespaceSelector"] == {"matchNames": ["kube-system"]}
    assert endpoint["honorLabels"] is True
    assert endpoint["relabelings"][0]["replacement"] == "$1:8080"
    assert endpoint["metricRelabelings"][0]["regex"] == "inference;batch-worker"
    assert only(objects, "ScaledObject")["metadata"]["name"] == "batch-worker"


def test_an_alert_can_be_left_out() -> None:
    groups = read_rules(NAMESPACE, "aoai-worker")
    names = [rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule]
    changed = {"monitoring": {"prometheusRule": {"disabled": [names[0]]}}}
    rendered = only(render("prod", changed), "PrometheusRule")["spec"]["groups"]
    left = [rule["alert"] for group in rendered for rule in group["rules"] if "alert" in rule]
    assert sorted(left) == sorted(set(names) - {names[0]})


def test_the_dashboard_is_the_file_and_has_the_label_that_grafana_s_sidecar_looks_for() -> None:
    found = next(i for i in render("everything-on") if i["metadata"]["name"].endswith("-dashboard"))
    file = json.loads((CHART / "files/dashboard.json").read_text(encoding="utf-8"))
    drawn = json.loads(found["data"]["inference-batch-worker.json"])
    assert drawn["panels"] == file["panels"]
    assert drawn["annotations"] == file["annotations"]
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert found["metadata"]["annotations"]["grafana_folder"] == "Inference"


def drawn(**changes: Any) -> Object:
    monitoring = {"dashboard": {"enabled": True}, **changes.pop("monitoring", {})}
    objects = render("default", {"monitoring": monitoring, **changes})
    found = next(item for item in objects if item["metadata"]["name"].endswith("-dashboard"))
    (text,) = found["data"].values()
    dashboard: Object = json.loads(text)
    return dashboard


def test_each_release_has_a_dashboard_of_its_own() -> None:
    one, other = drawn(), drawn(fullnameOverride="nightly")
    assert one["uid"] != other["uid"]
    assert len(other["uid"]) <= 40
    assert other["title"] == "aoai-worker: inference/nightly"
    variables = {variable["name"]: variable for variable in other["templating"]["list"]}
    assert variables["release"]["query"] == "nightly"


def test_the_dashboard_links_to_runbooks_that_have_an_address() -> None:
    links = drawn(monitoring={"runbookBaseUrl": "https://wiki.example/runbooks"})["links"]
    assert [link["url"] for link in links] == ["https://wiki.example/runbooks"]
    assert not drawn().get("links")


def test_the_dashboard_fits_into_a_config_map() -> None:
    assert (CHART / "files/dashboard.json").stat().st_size < 900_000
