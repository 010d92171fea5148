"""Fills in what files/alerts.yaml leaves open, as templates/prometheusrule.yaml does for Helm."""

from pathlib import Path
from typing import Any

import yaml

from scripts.chart.values import flatten, read_values

CHART = Path(__file__).parents[2] / "charts/aoai-worker"


def read_rules(namespace: str, fullname: str, **others: str) -> list[dict[str, Any]]:
    """The groups of rules of one release. `others` take the place of defaults of values.yaml."""
    text = (CHART / "files/alerts.yaml").read_text(encoding="utf-8")
    selectors = yaml.safe_load(text)["selectors"]
    for name, value in (selectors | _defaults() | others | {"namespace": namespace, "fullname": fullname}).items():
        text = text.replace(f"<{name}>", str(value))
    groups: list[dict[str, Any]] = yaml.safe_load(text)["groups"]
    for rule in (rule for group in groups for rule in group["rules"]):
        rule["labels"] = rule.get("labels", {}) | {"namespace": namespace, "release": fullname}
    return groups


def _defaults() -> dict[str, Any]:
    values = flatten(read_values((CHART / "values.yaml").read_text(encoding="utf-8")))
    return {
        value.path[-1]: value.default
        for value in values
        if value.path[:3] == ("monitoring", "prometheusRule", "thresholds") or value.path[-1] == "runbookBaseUrl"
    }
