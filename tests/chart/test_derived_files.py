"""What `make chart` writes is what is committed, and the plain manifests are the chart's."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from scripts.chart.alerts import render_alerts
from scripts.chart.manifests import as_plain, is_hook, render_base, render_chart, render_monitoring
from scripts.chart.readme import render_readme
from scripts.chart.schema import render_schema
from scripts.chart.values import flatten, read_values
from tests.chart.helm import BIN, CHART, ROOT, Object, only, render, run
from tests.chart.schemas import MINORS, crd_errors, is_custom

FILES = ROOT.glob("k8s/**/kustomization.yaml")
KUSTOMIZATIONS = {path.parent.name: path.parent for path in sorted(FILES) if "components" not in path.parts}
READMES = [CHART / "README.md", ROOT / "k8s/azure/README.md", ROOT / "tests/chart/crds/README.md"]
OPEN = ["/properties/global", "/properties/extraObjects/items"]
"""Objects that others fill: all charts of a release, and whole manifests."""
NEXT = "run `make chart` and commit what it writes"


def test_the_values_schema_is_what_values_and_settings_make() -> None:
    assert (CHART / "values.schema.json").read_text(encoding="utf-8") == render_schema(), NEXT


def test_the_readme_s_tables_are_what_values_and_settings_make() -> None:
    assert (CHART / "README.md").read_text(encoding="utf-8") == render_readme(), NEXT


def test_the_readme_s_least_values_make_a_worker() -> None:
    """Helm takes what the README says is enough, with nothing else of the matrix below it."""
    (values,) = re.findall(r"^```yaml\n(.*?)^```$", (CHART / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    done = run(BIN / "helm4", "template", "aoai-worker", CHART, "-f", "-", stdin=values)
    assert done.returncode == 0, done.stderr


def test_azure_s_alerts_are_those_of_the_rules_file() -> None:
    assert (ROOT / "k8s/azure/alerts.bicep").read_text(encoding="utf-8") == render_alerts(), NEXT


def test_the_base_s_files_are_what_the_chart_makes() -> None:
    found = {path.name: path.read_text(encoding="utf-8") for path in ROOT.glob("k8s/base/*")}
    assert found == render_base(), NEXT


def test_the_monitoring_of_the_overlays_is_what_the_chart_makes() -> None:
    files = ROOT.glob("k8s/components/monitoring/*")
    assert {path.name: path.read_text(encoding="utf-8") for path in files} == render_monitoring(), NEXT


def test_the_prod_overlay_makes_its_namespace_and_watches_it() -> None:
    objects = build("prod")
    namespace = only(objects, "Namespace")["metadata"]
    others = [item["metadata"]["namespace"] for item in objects if item["kind"] != "Namespace"]
    assert set(others) == {namespace["name"]}
    assert namespace["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    rules = [rule for group in only(objects, "PrometheusRule")["spec"]["groups"] for rule in group["rules"]]
    assert {rule["labels"]["namespace"] for rule in rules} == {namespace["name"]}
    assert {rule["labels"]["release"] for rule in rules} == {only(objects, "Deployment")["metadata"]["name"]}


LABEL = r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?"


def labels_refused(objects: list[Object]) -> dict[str, str]:
    """Kinds with a label that an API server refuses, and its value."""
    pairs = [(item["kind"], value) for item in objects for value in item["metadata"].get("labels", {}).values()]
    return {kind: value for kind, value in pairs if not re.fullmatch(LABEL, value)}


def test_an_overlay_that_is_not_filled_in_is_refused_by_the_cluster() -> None:
    assert labels_refused(build("dev")) == {"ServiceAccount": "<client id of the worker's identity>"}
    assert labels_refused(build("prod")).keys() == {"ServiceAccount", "TriggerAuthentication"}


def test_an_overlay_that_is_filled_in_has_its_values_where_they_belong(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "k8s", tmp_path / "k8s")
    file = tmp_path / "k8s/overlays/prod/values.yaml"
    filled = file.read_text().replace("<client id of the worker's identity>", "1-1").replace("my-namespace", "bus")
    file.write_text(filled.replace("<client id of KEDA's identity>", "2-2"))
    objects = build_folder(file.parent)
    assert labels_refused(objects) == {}
    account = only(objects, "ServiceAccount")["metadata"]
    assert account["annotations"]["azure.workload.identity/client-id"] == "1-1"
    assert only(objects, "TriggerAuthentication")["spec"]["podIdentity"]["identityId"] == "2-2"
    triggers = only(objects, "ScaledObject")["spec"]["triggers"]
    assert {item["metadata"]["namespace"] for item in triggers} == {"bus"}
    settings = yaml.safe_load(only(objects, "ConfigMap")["data"]["worker.yaml"])
    assert settings["servicebus_namespace"] == "bus.servicebus.windows.net"


@pytest.mark.parametrize("name", ["dev", "prod"])
def test_an_overlay_s_namespace_is_changed_in_one_place(name: str, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "k8s", tmp_path / "k8s")
    file = tmp_path / "k8s/overlays" / name / "kustomization.yaml"
    file.write_text(re.sub("^namespace: .*$", "namespace: night", file.read_text(), flags=re.MULTILINE))
    objects = build_folder(file.parent)
    assert only(objects, "Namespace")["metadata"]["name"] == "night"
    assert {item["metadata"].get("namespace", "night") for item in objects} == {"night"}


def test_the_base_builds_to_the_chart_s_output() -> None:
    built = [without_hash(item) for item in build("base")]
    rendered = [as_plain(item) for item in render_chart() if not is_hook(item)]
    assert by_kind(built) == by_kind(rendered)


@pytest.mark.parametrize("name", KUSTOMIZATIONS)
def test_every_kustomization_builds_valid_objects(name: str) -> None:
    for document in build(name):
        if is_custom(document):
            assert list(crd_errors(document)) == []
        else:
            for minor in MINORS:
                kubernetes_validate.validate(document, minor, strict=True)


@pytest.mark.parametrize("name", KUSTOMIZATIONS)
def test_the_settings_of_a_kustomization_are_mounted(name: str) -> None:
    objects = build(name)
    volume = only(objects, "Deployment")["spec"]["template"]["spec"]["volumes"][0]
    assert volume["configMap"]["name"] == only(objects, "ConfigMap")["metadata"]["name"]


def test_the_prod_overlay_s_triggers_are_what_the_chart_makes_of_its_settings() -> None:
    objects = build("prod")
    settings = yaml.safe_load(only(objects, "ConfigMap")["data"]["worker.yaml"])
    scaled = only(objects, "ScaledObject")["spec"]
    charts = only(render("prod", {"config": settings}), "ScaledObject")["spec"]
    assert scaled["triggers"] == charts["triggers"]
    assert scaled["advanced"]["scalingModifiers"] == charts["advanced"]["scalingModifiers"]


def test_the_prod_overlay_s_fleet_is_the_most_pods_there_can_be() -> None:
    objects = build("prod")
    settings = yaml.safe_load(only(objects, "ConfigMap")["data"]["worker.yaml"])
    assert settings["fleet_size"] == only(objects, "ScaledObject")["spec"]["maxReplicaCount"]


def test_every_overlay_s_grace_fits_into_the_pod_s() -> None:
    for name in KUSTOMIZATIONS:
        objects = build(name)
        settings = yaml.safe_load(only(objects, "ConfigMap")["data"]["worker.yaml"])
        spec = only(objects, "Deployment")["spec"]["template"]["spec"]
        assert spec["terminationGracePeriodSeconds"] >= settings["grace"] + 35


def test_every_value_has_a_description() -> None:
    values = read_values((CHART / "values.yaml").read_text(encoding="utf-8"))
    assert [value.path for value in flatten(values) if not value.description] == []


def test_every_object_of_the_schema_is_closed_and_every_value_described() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    assert list(open_objects(schema, "")) == OPEN
    sections = schema["properties"].values()
    assert all(part.get("description") or "properties" in part for part in sections)
    assert all(part.get("description") for part in schema["properties"]["config"]["properties"].values())


def open_objects(node: Any, path: str) -> Iterator[str]:
    if isinstance(node, list):
        for part in node:
            yield from open_objects(part, path)
    if isinstance(node, dict):
        if isinstance(node.get("properties"), dict) and node.get("additionalProperties") is not False:
            yield path
        for name, part in node.items():
            yield from open_objects(part, f"{path}/{name}")


@pytest.mark.parametrize("document", READMES, ids=lambda path: path.parent.name)
def test_no_link_of_a_readme_is_broken(document: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8"))
    own = [target.partition("#")[0] for target in targets if not target.startswith(("https://", "#"))]
    assert [target for target in own if not (document.parent / target).exists()] == []


def test_every_value_is_used_by_a_template() -> None:
    templates = "".join(
        path.read_text(encoding="utf-8") for path in (CHART / "templates").rglob("*") if path.is_file()
    )
    values = read_values((CHART / "values.yaml").read_text(encoding="utf-8"))
    rules = (CHART / "files/alerts.yaml").read_text(encoding="utf-8")
    unused = [
        ".".join(value.path)
        for value in flatten(values)
        if f".{value.path[-1]}" not in templates and f"<{value.path[-1]}>" not in rules
    ]
    # these two reach the worker by the mapping of all settings
    assert set(unused) <= {"config.grace", "config.models"}


def build(name: str) -> list[Object]:
    return build_folder(KUSTOMIZATIONS[name])


def build_folder(folder: Path) -> list[Object]:
    done = run(BIN / "kubectl", "kustomize", folder)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def without_hash(node: Any) -> Any:
    """Kustomize adds ten characters to the names of generated ConfigMaps."""
    if isinstance(node, dict):
        return {key: without_hash(part) for key, part in node.items()}
    if isinstance(node, list):
        return [without_hash(part) for part in node]
    return re.sub(r"^(aoai-worker)-[a-z0-9]{10}$", r"\1", node) if isinstance(node, str) else node


def by_kind(objects: list[Object]) -> dict[str, Object]:
    found = {item["kind"]: dict(item) for item in objects}
    if "ConfigMap" in found:  # the base's file has a line that says where it comes from
        text = found["ConfigMap"]["data"]["worker.yaml"]
        found["ConfigMap"] = {**found["ConfigMap"], "data": yaml.safe_load(text)}
    return found


def test_no_file_of_the_repository_s_deployment_names_a_package_index() -> None:
    names = ("requirements/deploy*", "scripts/deploy-environment", "scripts/extract_helm.py", "scripts/chart/*.py")
    files = [path for name in names for path in ROOT.glob(name)]
    for path in filter(Path.is_file, files):
        assert not re.search(r"index-url|https?://\S*(pypi|pythonhosted)", path.read_text(encoding="utf-8"))
