"""Whatever the dashboard, the rules and the runbooks ask Prometheus for exists, as far as it is the worker's."""

import promql_parser
import pytest

from tests.monitoring.expressions import (
    Named,
    annotation_expressions,
    is_of_the_worker,
    labels_of,
    metrics_of,
    metrics_of_the_worker,
    panel_expressions,
    recorded,
    rule_expressions,
    runbook_expressions,
)

EXPRESSIONS = panel_expressions() + annotation_expressions() + rule_expressions() + runbook_expressions()
KNOWN = metrics_of_the_worker()
TARGET_LABELS = {"cluster", "namespace", "pod"}
FOREIGN = {
    "container_cpu_usage_seconds_total",
    "container_memory_working_set_bytes",
    "keda_scaled_object_errors_total",
    "keda_scaler_detail_errors_total",
    "keda_scaler_metrics_value",
    "kube_deployment_spec_replicas",
    "kube_horizontalpodautoscaler_spec_max_replicas",
    "kube_horizontalpodautoscaler_status_current_replicas",
    "kube_pod_container_status_restarts_total",
    "up",
}
"""Metrics of KEDA's operator, of kube-state-metrics, of the kubelet and of Prometheus itself."""


@pytest.mark.parametrize("named", EXPRESSIONS, ids=lambda named: named.where)
def test_it_is_promql(named: Named) -> None:
    promql_parser.parse(named.expression)


@pytest.mark.parametrize("named", EXPRESSIONS, ids=lambda named: named.where)
def test_every_metric_it_names_exists(named: Named) -> None:
    assert metrics_of(named.expression) <= KNOWN.keys() | recorded() | FOREIGN


@pytest.mark.parametrize("named", EXPRESSIONS, ids=lambda named: named.where)
def test_every_label_it_matches_exists(named: Named) -> None:
    for metric, label in labels_of(named.expression):
        if is_of_the_worker(metric):
            assert label in KNOWN[metric] | TARGET_LABELS, f"{metric} has no label {label}"


def test_what_the_cluster_measures_is_used() -> None:
    used = set().union(*(metrics_of(named.expression) for named in EXPRESSIONS))
    assert used >= FOREIGN | recorded()
