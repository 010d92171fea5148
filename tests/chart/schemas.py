"""The Kubernetes minors that are supported, and the operators' closed schemas of their custom resources."""

import functools
import json
from collections.abc import Iterator
from typing import Any

import jsonschema

from tests.chart.helm import ROOT, Object

MINORS = ("1.33", "1.34", "1.35", "1.36", "1.37")
CRDS = ROOT / "tests/chart/crds"


def is_custom(document: Object) -> bool:
    group = document["apiVersion"].partition("/")[0]
    return group in ("keda.sh", "cilium.io") or group.endswith("monitoring.coreos.com")


def crd_errors(document: Object) -> Iterator[str]:
    for error in crd_validator(document["apiVersion"], document["kind"]).iter_errors(document):
        yield f"{error.json_path}: {error.message}"


@functools.cache
def crd_validator(api_version: str, kind: str) -> Any:
    # the operator's resources by another name: Microsoft documents the same schema
    known = api_version.replace("azmonitoring.", "monitoring.").replace("/", "_")
    schema = json.loads((CRDS / f"{known}_{kind}.json").read_text(encoding="utf-8"))
    schema["properties"]["apiVersion"] = {"const": api_version}
    return jsonschema.Draft202012Validator(schema)
