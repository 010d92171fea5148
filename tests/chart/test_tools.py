"""What other people's tools say of every set of values: Helm, the schemas of Kubernetes and operators, trivy."""

import json
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from tests.chart.helm import BIN, CHART, HELMS, MATRIX, ROOT, render, run, template
from tests.chart.schemas import MINORS, crd_errors, is_custom

TRIVY_SKIPPED = {
    "KSV-0125": "knows the public cloud's registries only; which registry is trusted is the installer's to say",
}
"""Checks that are not about this chart, each with its reason."""


@pytest.mark.parametrize("helm", HELMS)
@pytest.mark.parametrize("values", MATRIX)
def test_helm_lint_has_nothing_to_say(helm: str, values: str) -> None:
    done = run(BIN / helm, "lint", "--strict", CHART, "-f", MATRIX[values])
    assert done.returncode == 0, done.stdout
    assert "[WARNING]" not in done.stdout


@pytest.mark.parametrize("values", MATRIX)
def test_helm_3_and_helm_4_make_the_same_objects(values: str) -> None:
    assert render(values, helm="helm3") == render(values, helm="helm4")


@pytest.mark.parametrize("minor", MINORS)
@pytest.mark.parametrize("values", MATRIX)
def test_every_object_is_valid_in_the_five_newest_minors(values: str, minor: str) -> None:
    for document in render(values):
        if not is_custom(document):
            kubernetes_validate.validate(document, minor, strict=True)


@pytest.mark.parametrize("values", MATRIX)
def test_every_custom_resource_fits_its_closed_schema(values: str) -> None:
    for document in filter(is_custom, render(values)):
        assert list(crd_errors(document)) == []


def test_a_misspelt_key_of_a_custom_resource_is_found() -> None:
    scaled = next(item for item in render() if item["kind"] == "ScaledObject")
    scaled["spec"]["maxReplicasCount"] = 3
    assert any("maxReplicasCount" in error for error in crd_errors(scaled))


def test_a_misspelt_key_of_a_kubernetes_object_is_found() -> None:
    broken = next(item for item in render() if item["kind"] == "Deployment")
    broken["spec"]["template"]["spec"]["terminationGracePeriod"] = 3
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, MINORS[0], strict=True)


@pytest.mark.parametrize("values", MATRIX)
def test_trivy_finds_no_misconfiguration(values: str, tmp_path: Path) -> None:
    (tmp_path / "chart.yaml").write_text(template(values), encoding="utf-8")
    assert trivy_findings(tmp_path) == {}


def test_trivy_looks(tmp_path: Path) -> None:
    privileged = template().replace("privileged: false", "privileged: true")
    (tmp_path / "chart.yaml").write_text(privileged, encoding="utf-8")
    assert trivy_findings(tmp_path) != {}


@pytest.mark.parametrize("values", MATRIX)
def test_no_key_is_written_twice(values: str) -> None:
    done = run(BIN / "yamllint", "-d", "{rules: {key-duplicates: enable}}", "-", stdin=template(values))
    assert done.returncode == 0, done.stdout


def test_yamllint_has_nothing_to_say_about_the_files_people_edit() -> None:
    written = ROOT / "k8s/components"  # with the long lines of rules
    plain = [path for path in ROOT.glob("k8s/**/*.yaml") if written not in path.parents]
    files = [*CHART.glob("*.yaml"), *CHART.glob("ci/*.yaml"), *plain]
    done = run(BIN / "yamllint", "--strict", "-c", ROOT / "tests/chart/yamllint.yaml", *files)
    assert done.returncode == 0, done.stdout


def test_the_values_schema_is_a_schema() -> None:
    done = run(BIN / "check-jsonschema", "--check-metaschema", CHART / "values.schema.json")
    assert done.returncode == 0, done.stdout


def test_the_chart_can_be_packaged(tmp_path: Path) -> None:
    done = run(BIN / "helm4", "package", CHART, "-d", tmp_path)
    assert done.returncode == 0, done.stderr


def trivy_findings(folder: Path) -> dict[str, str]:
    """Id of each failed check to its message, without those that are skipped."""
    done = run(
        BIN / "trivy",
        "config",
        "--quiet",
        "--skip-check-update",
        "--skip-version-check",
        "--format",
        "json",
        folder,
    )
    assert done.returncode == 0, done.stderr
    failed = [
        finding
        for result in json.loads(done.stdout).get("Results", [])
        for finding in result.get("Misconfigurations", [])
    ]
    return {item["ID"]: item["Message"] for item in failed if item["ID"] not in TRIVY_SKIPPED}


def test_every_skipped_check_of_trivy_has_its_reason() -> None:
    assert all(len(reason.split()) > 5 for reason in TRIVY_SKIPPED.values())


def test_the_matrix_covers_every_way_to_scale_and_every_network_policy() -> None:
    texts = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in MATRIX.values()]
    scaled = {text.get("autoscaling", {}).get("mode", "keda") for text in texts}
    policies = {text.get("networkPolicy", {}).get("mode", "none") for text in texts}
    assert (scaled, policies) == ({"keda", "hpa", "none"}, {"none", "kubernetes", "cilium"})
