"""Makes values.schema.json: types from the defaults of values.yaml, what narrows them from its comments, `config`
from the worker's settings, and Kubernetes' own types, closed, from the schemas that kubernetes-validate carries."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate

from scripts.chart.values import Value, read_values
from scripts.reference.settings import texts
from worker.jobs.model_names import MODEL
from worker.settings import WorkerSettings

ROOT = Path(__file__).parents[2]
OLDEST_KUBERNETES = "1.31"
"""The minor of kubeVersion in Chart.yaml; newer ones only add fields."""

CHART_OWNED = {
    "pod": "each pod has its own name",
    "enable_azure_proxy": "workloadIdentity.identityBinding.enabled sets it",
}
"""Settings that `config` does not have, and why."""

QUEUE = r"[A-Za-z0-9][A-Za-z0-9._/-]{0,259}"
"""What the worker takes as the name of a queue."""
HOST = r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)+"
URL = r"https://[A-Za-z0-9.-]+(:[0-9]{1,4})?"
PATTERNS = {
    "servicebus_namespace": rf"^({HOST})?$",
    "servicebus_endpoint": rf"^{HOST}:[1-9][0-9]{{0,3}}$",
    "jobs_queue": f"^{QUEUE}$",
    "results_queue": f"^{QUEUE}$",
    "openai_endpoint": rf"^({URL}(/[A-Za-z0-9._~/-]*)?)?$",
    "endpoint": rf"^{URL}(/[A-Za-z0-9._~/-]*)?$",
    "openai_scope": r"^https://[A-Za-z0-9./-]+/\.default$",
    "blob_container": rf"^{URL}(/[A-Za-z0-9$-]+){{1,2}}/?$",
    "claims_container": rf"^{URL}(/[A-Za-z0-9$-]+){{1,2}}/?$",
    "ca_file": r"^/[A-Za-z0-9._/-]+$",
    "http_host": r"^[0-9A-Fa-f.:]+$",
}
"""What the settings check in code, which a schema of types does not show. Empty is allowed where the chart itself
tells what is missing."""

TRIGGER: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["type", "metadata"],
    "properties": {
        "type": {"type": "string", "minLength": 1},
        "name": {"type": "string", "pattern": "^[A-Za-z][A-Za-z0-9_]*$"},
        "metricType": {"enum": ["AverageValue", "Value", "Utilization"]},
        "useCachedMetrics": {"type": "boolean"},
        "metadata": {"type": "object", "additionalProperties": {"type": "string"}},
        "authenticationRef": {
            "type": "object",
            "additionalProperties": False,
            "required": ["name"],
            "properties": {
                "name": {"type": "string"},
                "kind": {"enum": ["TriggerAuthentication", "ClusterTriggerAuthentication"]},
            },
        },
    },
}
RELABELING: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "action": {"enum": ["replace", "keep", "drop", "hashmod", "labelmap", "labeldrop", "labelkeep"]},
        "modulus": {"type": "integer", "minimum": 1, "maximum": 1_000_000},
        "regex": {"type": "string"},
        "replacement": {"type": "string"},
        "separator": {"type": "string"},
        "sourceLabels": {"type": "array", "items": {"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_]*$"}},
        "targetLabel": {"type": "string"},
    },
}
PULL_SECRET: dict[str, Any] = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        {
            "type": "object",
            "additionalProperties": False,
            "required": ["name"],
            "properties": {"name": {"type": "string", "minLength": 1}},
        },
    ]
}
OWN_TYPES = {
    "keda.v1alpha1.Trigger": TRIGGER,
    "monitoring.v1.Relabeling": RELABELING,
    "chart.PullSecret": PULL_SECRET,
}
"""Named like Kubernetes' own types in values.yaml, `k8s:keda.v1alpha1.Trigger`. No package has their schemas."""

API_LIMITS = {"autoscaling.v2.HPAScalingRules": {"stabilizationWindowSeconds": {"minimum": 0, "maximum": 3600}}}
"""What the API server checks in code, so that Kubernetes' schemas do not have it, and KEDA's schema does."""

LIMITS = {"int32": 2**31 - 1, "int64": 2**53 - 1}
"""The largest numbers by format. Helm reads numbers as floats, which are exact up to 2^53."""

Schema = dict[str, Any]


def build_schema() -> Schema:
    values = read_values((ROOT / "charts/aoai-worker/values.yaml").read_text(encoding="utf-8"))
    schema = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Values of the chart aoai-worker",
        **_close({value.path[-1]: _describe(value) for value in values}),
    }
    # Helm itself adds `global` to the values of a chart that is part of another, with what others put there
    schema["properties"]["global"]["additionalProperties"] = True
    schema["definitions"] = dict(sorted(_kubernetes_types(schema).items()))
    return schema


def render_schema() -> str:
    return json.dumps(build_schema(), indent=2, ensure_ascii=False) + "\n"


def _close(properties: Schema) -> Schema:
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _describe(value: Value) -> Schema:
    described = {"description": value.description} if value.description else {}
    if value.is_config:
        return {**described, **_close(_config(value))}
    if value.children:
        return {**described, **_close({child.path[-1]: _describe(child) for child in value.children})}
    return {**described, **_narrow(_type_of(value.default), value.constraint)}


def _type_of(default: Any) -> str:
    names = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    return names[type(default)] if default is not None else "null"


def _narrow(kind: str, constraint: Schema) -> Schema:
    if "$ref" in constraint:
        return {"allOf": [_local_refs(constraint)]}
    return {"type": kind, **_local_refs(constraint)}


def _local_refs(node: Any) -> Any:
    """`k8s:core.v1.Probe` in values.yaml is a definition of this schema."""
    if isinstance(node, dict):
        return {name: _local_refs(value) for name, value in node.items()}
    if isinstance(node, list):
        return [_local_refs(value) for value in node]
    return node.replace("k8s:", "#/definitions/") if isinstance(node, str) and node.startswith("k8s:") else node


def _config(value: Value) -> Schema:
    """The worker's settings as its own model describes them, in the order of the model."""
    told = {child.path[-1]: child.description for child in value.children}
    model = WorkerSettings.model_json_schema(by_alias=False)
    properties = {}
    for name, schema in model["properties"].items():
        if name not in CHART_OWNED:
            description = told.get(name) or texts()[name]
            setting = _setting(name, schema, model["$defs"])
            if name in told and value.default[name] is None:
                setting = _or_null(setting)
            properties[name] = {"description": description, **setting}
    return properties


def _or_null(setting: Schema) -> Schema:
    """What the chart works out, or tells people to set, is null until then."""
    alternatives = setting.get("anyOf", [setting])
    return {"anyOf": [*alternatives, {"type": "null"}]}


def _setting(name: str, schema: Schema, definitions: Schema) -> Schema:
    resolved = _inline(schema, definitions)
    resolved = {key: part for key, part in resolved.items() if key not in ("description", "title")}
    if name == "models":
        resolved["anyOf"] = [_keyed_by(MODEL.pattern, part) for part in resolved["anyOf"]]
    if name == "queues":
        model_or_null = {"type": ["string", "null"], "pattern": f"^{MODEL.pattern}$"}
        return _keyed_by(QUEUE, {"type": "object", "minProperties": 1, "additionalProperties": model_or_null})
    return _with_pattern(name, resolved)


def _keyed_by(pattern: str, schema: Schema) -> Schema:
    """A mapping whose names match all of the pattern."""
    values = schema.pop("additionalProperties", None)
    if values is None:
        return schema
    return {"additionalProperties": False, "patternProperties": {f"^{pattern}$": values}, **schema}


def _inline(node: Any, definitions: Schema) -> Any:
    """pydantic's schema without references, titles and formats, and with the short forms that the settings take."""
    if isinstance(node, list):
        return [_inline(part, definitions) for part in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        name = node["$ref"].rsplit("/", 1)[-1]
        whole = _whole(definitions[name], definitions)
        return {"anyOf": [{"type": "string", "minLength": 1}, whole]} if name == "Deployment" else whole
    skipped = ("title", "format", "description")
    return {
        key: _inline(part, definitions)
        for key, part in node.items()
        if key not in skipped or isinstance(part, dict)
    }


def _whole(schema: Schema, definitions: Schema) -> Schema:
    properties = {
        name: _with_pattern(name, _inline(part, definitions)) for name, part in schema["properties"].items()
    }
    return {**_close(properties), "required": schema["required"]}


def _with_pattern(name: str, schema: Schema) -> Schema:
    if name not in PATTERNS:
        return schema
    if "anyOf" in schema:
        return {**schema, "anyOf": [_with_pattern(name, part) for part in schema["anyOf"]]}
    return {**schema, "pattern": PATTERNS[name]} if schema.get("type") == "string" else schema


def _kubernetes_types(schema: Schema) -> Schema:
    """What the schema refers to, and what that refers to."""
    known = _kubernetes_definitions()
    found: Schema = {}
    wanted = list(_references(schema))
    while wanted:
        name = wanted.pop()
        if name not in found:
            found[name] = _types_only(known[name])
            for field, limits in API_LIMITS.get(name, {}).items():
                found[name]["properties"][field] |= limits
            wanted += _references(found[name])
    return found


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "$ref" and isinstance(value, str):
                yield value.removeprefix("#/definitions/")
            else:
                yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)


def _kubernetes_definitions() -> Schema:
    folder = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"
    file = folder / f"v{OLDEST_KUBERNETES}.0-local-strict" / "_definitions.json"
    definitions = json.loads(file.read_text(encoding="utf-8"))["$defs"]
    return {_short(name): schema for name, schema in definitions.items()} | OWN_TYPES


def _short(name: str) -> str:
    return re.sub(r"^io\.k8s\.(api|apimachinery\.pkg\.api|apimachinery\.pkg\.apis|apimachinery\.pkg)\.", "", name)


def _types_only(node: Any) -> Any:
    """Without prose and null: what is null would be absent, and in a list it would be an error."""
    if isinstance(node, list):
        return [_types_only(part) for part in node]
    if not isinstance(node, dict):
        return node
    kept = {}
    for key, value in node.items():
        if key == "properties":
            kept[key] = {name: _types_only(part) for name, part in value.items()}
        elif key == "$ref":
            kept[key] = "#/definitions/" + _short(value.rsplit("/", 1)[-1])
        elif key == "type" and isinstance(value, list):
            names = [name for name in value if name != "null"]
            kept[key] = names[0] if len(names) == 1 else names
        elif key == "format" and value in LIMITS:
            kept |= {"minimum": -LIMITS[value], "maximum": LIMITS[value]}
        elif not (key in ("description", "title", "format") and isinstance(value, str)) and not key.startswith(
            "x-"
        ):
            kept[key] = _types_only(value)
    return kept
