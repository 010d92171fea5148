"""Writes the schemas of the custom resources that the chart makes, out of the models of cloudcoil.

Run once by hand, on Python 3.12, when a newer schema is wanted; the JSON beside this file is what the tests use:

    python3.12 -m venv /tmp/crds
    /tmp/crds/bin/pip install cloudcoil-models-keda==2.16.1.0 cloudcoil-models-prometheus-operator==0.80.1.0
    /tmp/crds/bin/python tests/chart/crds/generate.py
"""

import importlib
import json
from pathlib import Path
from typing import Any

MODELS = {
    "keda.sh_v1alpha1_ScaledObject": "cloudcoil.models.keda.v1alpha1",
    "keda.sh_v1alpha1_TriggerAuthentication": "cloudcoil.models.keda.v1alpha1",
    "monitoring.coreos.com_v1_PodMonitor": "cloudcoil.models.prometheus_operator.v1",
    "monitoring.coreos.com_v1_PrometheusRule": "cloudcoil.models.prometheus_operator.v1",
}
GO_ONLY = "(?i)"
"""A flag inside a pattern, which Python does not take; the pattern is left out."""
FALLBACKS = ["static", "currentReplicas", "currentReplicasIfHigher", "currentReplicasIfLower"]
PROSE = ("description", "title", "default")


def close(node: Any) -> Any:
    """Without prose, and with every object closed, so that a misspelt key is an error."""
    if isinstance(node, list):
        return [close(part) for part in node]
    if not isinstance(node, dict):
        return node
    kept = {key: value for key, value in node.items() if key not in PROSE and key not in ("properties", "$defs")}
    if GO_ONLY in str(kept.get("pattern")):
        del kept["pattern"]
    closed = {key: close(value) for key, value in kept.items()}
    for group in ("properties", "$defs"):
        if group in node:
            closed[group] = {name: close(part) for name, part in node[group].items()}
    if node.get("properties"):
        closed.setdefault("additionalProperties", False)
    return closed


def main() -> None:
    for name, module in MODELS.items():
        model = getattr(importlib.import_module(module), name.rsplit("_", 1)[-1])
        schema = close(model.model_json_schema())
        if name.endswith("ScaledObject"):  # of KEDA 2.17; the newest models on this Python are of 2.16
            schema["$defs"]["Fallback"]["properties"]["behavior"] = {"enum": FALLBACKS}
        file = Path(__file__).with_name(f"{name}.json")
        file.write_text(json.dumps(schema, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
