"""Every pod of the chart passes what AKS Automatic asks of pods, evaluated with CEL as an API server does."""

import copy
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from cel_expr_python import cel

from tests.chart.helm import MATRIX, Object, only, render
from tests.chart.schemas import MINORS

POLICY = yaml.safe_load((Path(__file__).parent / "safeguards.yaml").read_text(encoding="utf-8"))
WITHOUT_PROBES = "every container has a readiness and a liveness probe"


def pods(values: str) -> list[Object]:
    return [item for item in render(values) if item["kind"] in ("Pod", "Deployment")]


def evaluate(expression: str, **data: Any) -> Any:
    environment = cel.NewEnv(variables=dict.fromkeys(data, cel.Type.DYN))
    return environment.compile(expression).eval(data=data).plain_value()


def refusals(document: Object) -> list[str]:
    """The messages of the rules that this object breaks."""
    spec = POLICY["spec"]
    variables = {item["name"]: evaluate(item["expression"], object=document) for item in spec["variables"]}
    return [
        rule["message"]
        for rule in spec["validations"]
        if evaluate(rule["expression"], object=document, variables=variables) is not True
    ]


def test_the_policy_is_one_that_a_cluster_takes() -> None:
    kubernetes_validate.validate(POLICY, MINORS[0], strict=True)


@pytest.mark.parametrize("values", MATRIX)
def test_aks_automatic_takes_every_pod(values: str) -> None:
    assert {item["metadata"]["name"]: refusals(item) for item in pods(values)} == {
        item["metadata"]["name"]: [] for item in pods(values)
    }


@pytest.mark.parametrize("probe", ["readinessProbe", "livenessProbe"])
@pytest.mark.parametrize("kind", ["Pod", "Deployment"])
def test_a_pod_without_a_probe_is_refused(kind: str, probe: str) -> None:
    document = copy.deepcopy(only(render(), kind))
    spec = document["spec"] if kind == "Pod" else document["spec"]["template"]["spec"]
    del spec["containers"][0][probe]
    assert refusals(document) == [WITHOUT_PROBES]


def test_the_probes_of_helm_test_ask_nothing_while_a_check_runs() -> None:
    container = only(render(), "Pod")["spec"]["containers"][0]
    assert container["readinessProbe"] == container["livenessProbe"]
    assert container["livenessProbe"]["initialDelaySeconds"] >= 300
