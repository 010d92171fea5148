"""Makes k8s/base of the chart's output, so that the plain manifests and the chart cannot come apart."""

import subprocess
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts/aoai-worker"
HELM = ROOT / ".venv-deploy/bin/helm4"
NAMESPACE = "aoai-worker"
HELMS_OWN = ("helm.sh/chart", "app.kubernetes.io/managed-by", "checksum/config")
HEADER = "# Written by `make chart` out of charts/aoai-worker with the values of ci/default.yaml; change those.\n"


def render_base() -> dict[str, str]:
    """File names of k8s/base to their content. The settings are a file of their own, from which Kustomize makes a
    ConfigMap with a hash in its name, so that changed settings roll the pods."""
    objects = [as_plain(document) for document in render_chart() if not is_hook(document)]
    settings = next(item for item in objects if item["kind"] == "ConfigMap")
    files = {f"{item['kind'].lower()}.yaml": HEADER + dump(item) for item in objects if item is not settings}
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": sorted(files),
        "configMapGenerator": [
            {
                "name": settings["metadata"]["name"],
                "files": list(settings["data"]),
                "options": {"labels": settings["metadata"]["labels"]},
            }
        ],
    }
    return {
        **files,
        **{name: HEADER + content for name, content in settings["data"].items()},
        "kustomization.yaml": HEADER + dump(kustomization),
    }


def render_monitoring() -> dict[str, str]:
    """File names of the component k8s/components/monitoring to their content."""
    switches = [
        f"--set=monitoring.{name}.enabled=true" for name in ("podMonitor", "kedaPodMonitor", "prometheusRule")
    ]
    found = [item for item in render_chart(*switches) if item["kind"] in ("PodMonitor", "PrometheusRule")]
    files = {
        f"{item['metadata']['name']}-{item['kind'].lower()}.yaml": HEADER + dump(as_plain(item)) for item in found
    }
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1alpha1",
        "kind": "Component",
        "resources": sorted(files),
    }
    return {**files, "kustomization.yaml": HEADER + dump(kustomization)}


def render_chart(*options: str) -> list[dict[str, Any]]:
    command = [HELM, "template", "aoai-worker", CHART, "-n", NAMESPACE, "-f", CHART / "ci/default.yaml", *options]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [document for document in yaml.safe_load_all(output) if document]


def is_hook(document: dict[str, Any]) -> bool:
    return "helm.sh/hook" in document["metadata"].get("annotations", {})


def as_plain(document: dict[str, Any]) -> dict[str, Any]:
    """Without what only Helm needs, and without the namespace, which overlays choose."""
    plain: dict[str, Any] = _without_helm(document)
    del plain["metadata"]["namespace"]
    return plain


def _without_helm(node: Any) -> Any:
    if isinstance(node, list):
        return [_without_helm(part) for part in node]
    if not isinstance(node, dict):
        return node
    kept = {key: _without_helm(part) for key, part in node.items() if key not in HELMS_OWN}
    return {key: part for key, part in kept.items() if not (key == "annotations" and part == {})}


def dump(document: Any) -> str:
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=110)


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as blocks, lists indented as yamllint wants them."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> Any:
        return super().increase_indent(flow, False)


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)
