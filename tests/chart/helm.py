"""Renders the chart with the real Helm, and finds objects in what comes out."""

import functools
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts/aoai-worker"
BIN = ROOT / ".venv-deploy/bin"
HELMS = ("helm4", "helm3")
NAMESPACE = "inference"
RELEASE = "aoai-worker"

MATRIX = {path.stem: path for path in sorted((CHART / "ci").glob("*.yaml"))}

Object = dict[str, Any]

yaml_loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class RenderingFailed(Exception):
    """Helm's own words."""


def run(*command: str | Path, stdin: str | None = None, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, check=False, capture_output=True, text=True, input=stdin, cwd=cwd)


def template(base: str = "default", changes: Mapping[str, Any] | None = None, *, helm: str = "helm4") -> str:
    """The values of the matrix named `base`, with `changes` (nested as in a values file) laid over them."""
    return _template(base, as_values(changes), helm)


def as_values(changes: Mapping[str, Any] | None) -> str:
    """A values file. JSON is YAML but for one character, which YAML wants escaped."""
    return json.dumps(changes or {}, ensure_ascii=False).replace("\x7f", "\\u007f")


@functools.cache
def _template(base: str, changes: str, helm: str) -> str:
    command = (BIN / helm, "template", RELEASE, CHART, "-n", NAMESPACE, "-f", MATRIX[base], "-f", "-")
    done = run(*command, stdin=changes)
    if done.returncode:
        raise RenderingFailed(done.stderr)
    return done.stdout


def render(base: str = "default", changes: Mapping[str, Any] | None = None, *, helm: str = "helm4") -> list[Object]:
    return [document for document in yaml.load_all(template(base, changes, helm=helm), yaml_loader) if document]


def failure(base: str = "default", changes: Mapping[str, Any] | None = None) -> str:
    """Why Helm refuses these values."""
    try:
        template(base, changes)
    except RenderingFailed as error:
        return str(error)
    raise AssertionError(f"Helm took {base} with {changes}")


def only(objects: list[Object], kind: str) -> Object:
    found = [item for item in objects if item["kind"] == kind]
    assert len(found) == 1, f"{len(found)} objects of kind {kind}"
    return found[0]


def kinds(objects: list[Object]) -> set[str]:
    return {item["kind"] for item in objects}


def deployment(base: str = "default", changes: Mapping[str, Any] | None = None) -> Object:
    return only(render(base, changes), "Deployment")


def pod(base: str = "default", changes: Mapping[str, Any] | None = None) -> Object:
    template_: Object = deployment(base, changes)["spec"]["template"]
    return template_


def container(base: str = "default", changes: Mapping[str, Any] | None = None) -> Object:
    found: Object = pod(base, changes)["spec"]["containers"][0]
    return found


def settings(objects: list[Object]) -> Object:
    """The worker's settings, as its pod will read them."""
    found = next(item for item in objects if item["kind"] == "ConfigMap" and "worker.yaml" in item["data"])
    document: Object = yaml.safe_load(found["data"]["worker.yaml"])
    return document


def notes(base: str = "default", changes: Mapping[str, Any] | None = None) -> str:
    """What `helm install` prints at its end."""
    command = (BIN / "helm4", "install", RELEASE, CHART, "-n", NAMESPACE, "-f", MATRIX[base], "-f", "-")
    done = run(*command, "--dry-run=client", stdin=as_values(changes))
    assert done.returncode == 0, done.stderr
    return done.stdout.partition("\nNOTES:\n")[2]
