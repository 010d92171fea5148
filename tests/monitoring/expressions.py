"""The PromQL of dashboard, rules and runbooks, taken apart: which metrics it names and what it compares."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import promql_parser as promql
from prometheus_client import CollectorRegistry

from scripts.chart.rules import read_rules
from tests.support.pages import blocks, is_promql, read
from worker.telemetry.metrics import GATE_GAUGES, PREFIX, Metrics

FILES = Path(__file__).resolve().parents[2] / "charts" / "aoai-worker" / "files"
DASHBOARD = FILES / "dashboard.json"
NAMESPACE = "batch"
COMPARISONS = (">", "<", ">=", "<=", "==", "!=")

VARIABLES = {
    "$__rate_interval": "20s",
    "$cluster": ".*",
    "$namespace": ".*",
    "$release": "aoai-worker",
    "$queue": ".*",
    "$deployment": ".*",
    "$pod": ".*",
}
"""What Grafana puts in their place; the rate interval fits a scrape every second."""


@dataclass(frozen=True)
class Named:
    """An expression and where it stands."""

    where: str
    expression: str


def dashboard() -> dict[str, Any]:
    return dict(json.loads(DASHBOARD.read_text()))


def panels() -> list[dict[str, Any]]:
    """All but the headings of rows."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def panel_expressions() -> list[Named]:
    return [
        Named(f"{panel['title']} {target['refId']}", with_values(target["expr"]))
        for panel in panels()
        for target in panel["targets"]
    ]


def annotation_expressions() -> list[Named]:
    return [
        Named(f"annotation {item['name']}", with_values(item["expr"]))
        for item in dashboard()["annotations"]["list"]
        if "expr" in item
    ]


def with_values(expression: str) -> str:
    for variable, value in VARIABLES.items():
        expression = expression.replace(variable, value)
    return expression


def rules() -> list[dict[str, Any]]:
    return [rule for group in read_rules(NAMESPACE, "aoai-worker") for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def rule_expressions() -> list[Named]:
    return [Named(rule.get("alert") or rule["record"], rule["expr"]) for rule in rules()]


def runbook_expressions() -> list[Named]:
    """Of the lines of docs/runbooks.md, and of its code spans."""
    text = read("docs/runbooks.md")
    lines = [line for block in blocks("docs/runbooks.md") for line in block.text.splitlines()]
    return [
        Named(f"runbooks: {line}", line) for line in (*lines, *re.findall(r"`([^`]+)`", text)) if is_promql(line)
    ]


def nodes(expression: Any) -> Iterator[Any]:
    """The expression and all below it."""
    yield expression
    match expression:
        case promql.BinaryExpr():
            below = [expression.lhs, expression.rhs]
        case promql.Call():
            below = list(expression.args)
        case promql.MatrixSelector():
            below = [expression.vector_selector]
        case promql.AggregateExpr() | promql.ParenExpr() | promql.UnaryExpr() | promql.SubqueryExpr():
            below = [expression.expr]
        case _:
            below = []
    for one in below:
        yield from nodes(one)


def metrics_of(expression: str) -> set[str]:
    return {str(node.name) for node in nodes(promql.parse(expression)) if isinstance(node, promql.VectorSelector)}


def labels_of(expression: str) -> Iterator[tuple[str, str]]:
    """Each metric with each label that is matched on it."""
    for node in nodes(promql.parse(expression)):
        if isinstance(node, promql.VectorSelector):
            for matcher in node.matchers.matchers:
                yield str(node.name), matcher.name


def compared(expression: str) -> list[str]:
    """The left sides of the comparisons: what must have data for the expression to be able to tell anything."""
    return [
        node.lhs.prettify()
        for node in nodes(promql.parse(expression))
        if isinstance(node, promql.BinaryExpr) and str(node.op) in COMPARISONS
    ]


def metrics_of_the_worker() -> dict[str, set[str]]:
    """Every sample name that the worker can serve, with its labels; from its own definitions."""
    metrics = Metrics(queues=["q"], deployments=["d"], scopes=["https://s/.default"], slots=1, bytes_limit=1)
    known = {f"{PREFIX}_{name}": {"deployment"} for name in GATE_GAUGES}
    known[f"{PREFIX}_projected_token_age_seconds"] = set()
    known[f"{PREFIX}_build_info"] = {"version"}
    return known | dict(_samples(metrics.registry))


def _samples(registry: CollectorRegistry) -> Iterator[tuple[str, set[str]]]:
    for collector, names in registry._collector_to_names.items():
        labels = set(getattr(collector, "_labelnames", ()))
        for name in names:
            # a counter's bare name is reserved, but served only with its suffix
            served = not any(f"{name}{suffix}" in names for suffix in ("_total", "_bucket", "_info"))
            if served and not name.endswith("_created"):
                yield name, labels | ({"le"} if name.endswith("_bucket") else set())


def recorded() -> set[str]:
    return {rule["record"] for rule in rules() if "record" in rule}


def is_of_the_worker(metric: str) -> bool:
    return metric.startswith(f"{PREFIX}_")
