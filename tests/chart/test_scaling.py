"""How many pods there are, and how the share of each in the fleet's budgets follows from that."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from tests.chart.helm import (
    BIN,
    CHART,
    HELMS,
    MATRIX,
    RELEASE,
    Object,
    deployment,
    failure,
    kinds,
    only,
    render,
    run,
    settings,
)

AUTOSCALERS = {"ScaledObject", "HorizontalPodAutoscaler"}


@pytest.mark.parametrize("values", MATRIX)
def test_there_is_one_autoscaler_or_a_number_of_replicas_and_never_both(values: str) -> None:
    objects = render(values)
    scalers = AUTOSCALERS & kinds(objects)
    has_replicas = "replicas" in only(objects, "Deployment")["spec"]
    assert len(scalers) + has_replicas == 1


@pytest.mark.parametrize("values", sorted(MATRIX.keys() - {"everything-on"}))
def test_the_fleet_s_size_is_the_most_pods_there_can_be(values: str) -> None:
    objects = render(values)
    assert settings(objects)["fleet_size"] == most_pods(objects)


def test_a_fleet_s_size_of_one_s_own_is_kept() -> None:
    assert settings(render("default", {"config": {"fleet_size": 2}}))["fleet_size"] == 2


def most_pods(objects: list[Object]) -> int:
    for item in objects:
        match item["kind"]:
            case "ScaledObject":
                return int(item["spec"]["maxReplicaCount"])
            case "HorizontalPodAutoscaler":
                return int(item["spec"]["maxReplicas"])
    return max(1, int(only(objects, "Deployment")["spec"]["replicas"]))


@limits(max_examples=15, deadline=None)
@given(
    tokens=st.integers(1_000, 50_000_000),
    requests=st.none() | st.integers(1, 100_000),
    slots=st.integers(1, 4_096),
    seconds=st.floats(0.1, 600),
    cost=st.integers(1, 100_000),
)
def test_as_many_pods_as_can_spend_the_quota(
    tokens: int, requests: int | None, slots: int, seconds: float, cost: int
) -> None:
    budget = {"name": "d", "tokens_per_minute": tokens, "requests_per_minute": requests}
    changes = {
        "config": {"models": {"gpt-5.4-mini": [budget]}, "slots": slots},
        "autoscaling": {"sizing": {"secondsPerCall": seconds, "tokensPerJob": cost}},
    }
    jobs = min(tokens / cost, requests or math.inf)
    wanted = jobs / (slots * 60 / seconds)
    found = most_pods(render("default", changes))
    # Go and Python round the last bit alike, but not in the same order
    assert found in {min(1000, max(1, math.ceil(wanted * error))) for error in (0.999999, 1, 1.000001)}


def test_a_deployment_that_two_models_share_is_counted_once() -> None:
    shared = [{"name": "d", "tokens_per_minute": 2_000_000}]
    once, twice = (
        most_pods(render("default", {"config": {"models": models}}))
        for models in ({"gpt-5.4-mini": shared}, {"gpt-5.4-mini": shared, "other": shared})
    )
    assert once == twice == 3


def test_the_budgets_of_several_deployments_add_up() -> None:
    models = {"gpt-5.4-mini": [{"name": f"d{n}", "tokens_per_minute": 2_000_000} for n in range(3)]}
    assert most_pods(render("default", {"config": {"models": models}})) == math.ceil(3 * 2000 / 768)


def test_a_maximum_of_one_s_own_wins() -> None:
    assert most_pods(render("default", {"autoscaling": {"maxReplicas": 17}})) == 17


def queues(objects: list[Object]) -> list[str]:
    return [item["metadata"]["queueName"] for item in only(objects, "ScaledObject")["spec"]["triggers"]]


def test_keda_looks_at_every_queue_with_its_own_identity() -> None:
    objects = render("prod")
    assert queues(objects) == ["jobs", "jobs-gpt-5.4", "jobs-gpt-5.4-mini"]
    triggers = only(objects, "ScaledObject")["spec"]["triggers"]
    assert {item["authenticationRef"]["name"] for item in triggers} == {
        only(objects, "TriggerAuthentication")["metadata"]["name"]
    }
    identity = only(objects, "TriggerAuthentication")["spec"]["podIdentity"]
    assert identity == {"provider": "azure-workload", "identityId": "22222222-2222-2222-2222-222222222222"}


def test_the_queues_of_models_are_named_after_the_entry_queue() -> None:
    assert queues(render("prod", {"config": {"jobs_queue": "inbox"}})) == [
        "inbox",
        "inbox-gpt-5.4",
        "inbox-gpt-5.4-mini",
    ]


def test_a_queue_that_is_named_takes_the_place_of_the_model_s_usual_one() -> None:
    assert queues(render("prod", {"config": {"queues": {"fast": "gpt-5.4-mini"}}})) == [
        "jobs",
        "fast",
        "jobs-gpt-5.4",
    ]


def test_a_model_may_have_two_queues_while_one_takes_the_other_s_place() -> None:
    changes = {"config": {"queues": {"new": "gpt-5.4", "old": "gpt-5.4"}}}
    assert queues(render("prod", changes)) == ["jobs", "jobs-gpt-5.4-mini", "new", "old"]


def test_the_entry_queue_may_be_named_as_the_queue_of_the_only_model() -> None:
    assert queues(render("default", {"config": {"queues": {"jobs": "gpt-5.4-mini"}}})) == ["jobs"]


def test_a_queue_that_is_drained_still_brings_pods_and_reaches_the_worker() -> None:
    objects = render("default", {"config": {"queues": {"jobs-old": None}}})
    assert queues(objects) == ["jobs", "jobs-old"]
    assert settings(objects)["queues"] == {"jobs-old": None}


def test_with_one_model_or_unknown_ones_there_is_the_entry_queue_alone() -> None:
    passthrough = {"config": {"models": "passthrough"}, "autoscaling": {"maxReplicas": 2}}
    for objects in (render(), render("default", passthrough)):
        assert queues(objects) == ["jobs"]
        assert "scalingModifiers" not in only(objects, "ScaledObject")["spec"]["advanced"]


@limits(max_examples=15, deadline=None)
@given(
    others=st.lists(
        st.from_regex(r"[a-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True), min_size=1, max_size=23, unique_by=str.lower
    ),
    named=st.integers(0, 23),
)
def test_pods_are_for_the_sum_of_all_queues(others: list[str], named: int) -> None:
    """A trigger's name is a variable of the formula, which takes neither the dots nor the hyphens of queues."""
    own = {f"own.queue-{number}": model for number, model in enumerate(others[:named])}
    changes = {
        "config": {"models": {model: ["d"] for model in others}, "queues": own or None, "slots": 96},
        "autoscaling": {"maxReplicas": 7, "keda": {"activationMessageCount": 11}},
    }
    objects = render("default", changes)
    scaled = only(objects, "ScaledObject")["spec"]
    names = [item["name"] for item in scaled["triggers"]]
    usual = {f"jobs-{model}" for model in ("gpt-5.4-mini", *others[named:])}
    assert queues(objects) == ["jobs", *sorted(own.keys() | usual)]
    assert names == [f"q{number}" for number in range(len(names))]
    assert scaled["advanced"]["scalingModifiers"] == {
        "formula": " + ".join(names),
        "target": "96",
        "activationTarget": "11",
        "metricType": "AverageValue",
    }


@pytest.mark.parametrize("values", MATRIX)
def test_keda_s_fallback_is_possible(values: str) -> None:
    """KEDA falls back only for an average value whose target is a whole number (its pkg/fallback)."""
    for scaled in (item["spec"] for item in render(values) if item["kind"] == "ScaledObject"):
        assert {item["metricType"] for item in scaled["triggers"]} == {"AverageValue"}
        for modifiers in [scaled["advanced"]["scalingModifiers"]] if len(scaled["triggers"]) > 1 else []:
            assert modifiers["metricType"] == "AverageValue"
            assert int(modifiers["target"]) > 0


def test_keda_s_identity_is_not_the_worker_s() -> None:
    objects = render()
    worker = only(objects, "ServiceAccount")["metadata"]["annotations"]["azure.workload.identity/client-id"]
    assert only(objects, "TriggerAuthentication")["spec"]["podIdentity"]["identityId"] != worker


def test_keda_scales_to_zero() -> None:
    assert only(render(), "ScaledObject")["spec"]["minReplicaCount"] == 0


def test_an_hpa_cannot_scale_to_zero() -> None:
    changed = {"autoscaling": {"minReplicas": 0}}
    assert only(render("hpa", changed), "HorizontalPodAutoscaler")["spec"]["minReplicas"] == 1


def test_a_pod_is_added_for_as_many_messages_as_it_takes_in_flight() -> None:
    trigger = only(render("default", {"config": {"slots": 200}}), "ScaledObject")["spec"]["triggers"][0]
    assert trigger["metadata"]["messageCount"] == "200"


def test_keda_gets_the_short_name_of_the_namespace() -> None:
    metadata = only(render(), "ScaledObject")["spec"]["triggers"][0]["metadata"]
    assert metadata["namespace"] == "my-namespace"
    assert "cloud" not in metadata


@pytest.mark.parametrize(
    ("host", "cloud"),
    [
        ("n.servicebus.usgovcloudapi.net", {"cloud": "AzureUSGovernmentCloud"}),
        ("n.servicebus.chinacloudapi.cn", {"cloud": "AzureChinaCloud"}),
        ("n.servicebus.example", {"cloud": "Private", "endpointSuffix": "servicebus.example"}),
    ],
)
def test_keda_is_told_the_cloud_of_the_namespace(host: str, cloud: dict[str, str]) -> None:
    changed = render("default", {"config": {"servicebus_namespace": host}})
    metadata = only(changed, "ScaledObject")["spec"]["triggers"][0]["metadata"]
    assert cloud.items() <= metadata.items()


def test_when_keda_cannot_see_the_queues_half_of_the_pods_work_on() -> None:
    objects = render("default", {"autoscaling": {"maxReplicas": 7}})
    assert only(objects, "ScaledObject")["spec"]["fallback"] == {"failureThreshold": 3, "replicas": 4}


def test_a_fallback_to_no_pods_is_kept() -> None:
    objects = render("default", {"autoscaling": {"keda": {"fallback": {"replicas": 0}}}})
    assert only(objects, "ScaledObject")["spec"]["fallback"]["replicas"] == 0


def test_pods_come_quickly_and_go_slowly() -> None:
    behavior = only(render(), "ScaledObject")["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert behavior["scaleUp"]["stabilizationWindowSeconds"] == 0
    assert behavior["scaleDown"]["stabilizationWindowSeconds"] == 300


def test_without_an_autoscaler_the_number_of_pods_is_the_value() -> None:
    assert deployment("keda-off")["spec"]["replicas"] == 4


def scaled(base: str = "default", **keda: Any) -> Object:
    changes = {"autoscaling": {"keda": keda}}
    spec: Object = only(render(base, changes), "ScaledObject")["spec"]
    return spec


@pytest.mark.parametrize("helm", HELMS)
def test_without_a_fallback_the_pods_stay_as_they_are(helm: str) -> None:
    objects = render("default", {"autoscaling": {"keda": {"fallback": None}}}, helm=helm)
    assert "fallback" not in only(objects, "ScaledObject")["spec"]


def test_a_fallback_may_leave_a_larger_fleet_alone() -> None:
    fallback = scaled(fallback={"behavior": "currentReplicasIfHigher"})["fallback"]
    assert fallback == {"failureThreshold": 3, "replicas": 2, "behavior": "currentReplicasIfHigher"}


def test_all_pods_may_go_while_the_queues_are_empty() -> None:
    changes = {"autoscaling": {"minReplicas": 2, "keda": {"idleReplicaCount": 0, "initialCooldownPeriod": 0}}}
    spec = only(render("default", changes), "ScaledObject")["spec"]
    assert (spec["idleReplicaCount"], spec["minReplicaCount"], spec["initialCooldownPeriod"]) == (0, 2, 0)
    assert not {"idleReplicaCount", "initialCooldownPeriod"} & scaled().keys()


def test_no_idle_count_below_no_pods() -> None:
    assert "idleReplicaCount is 0 and" in failure("default", {"autoscaling": {"keda": {"idleReplicaCount": 0}}})


CRON = {"type": "cron", "name": "morning", "metadata": {"timezone": "UTC", "desiredReplicas": "2"}}


def test_a_further_trigger_stands_beside_the_queue_s() -> None:
    spec = scaled(extraTriggers=[CRON])
    assert spec["triggers"][1] == CRON
    assert "scalingModifiers" not in spec["advanced"]


def test_with_several_queues_a_further_trigger_needs_a_formula_that_names_it() -> None:
    assert "Set autoscaling.keda.formula" in failure("prod", {"autoscaling": {"keda": {"extraTriggers": [CRON]}}})
    formula = "max(q0 + q1 + q2, morning * 256)"
    assert (
        scaled("prod", extraTriggers=[CRON], formula=formula)["advanced"]["scalingModifiers"]["formula"] == formula
    )


def test_an_existing_trigger_authentication_takes_the_place_of_the_chart_s() -> None:
    reference = {"name": "platform", "kind": "ClusterTriggerAuthentication"}
    objects = render("default", {"autoscaling": {"keda": {"authenticationRef": reference, "identityId": ""}}})
    assert "TriggerAuthentication" not in kinds(objects)
    assert only(objects, "ScaledObject")["spec"]["triggers"][0]["authenticationRef"] == reference


def test_a_cluster_without_keda_is_told_how_to_get_it() -> None:
    told = failure_in_cluster("default", "keda.sh/v1beta1")
    assert "the cluster has no keda.sh/v1alpha1/ScaledObject" in told
    assert "--enable-keda" in told
    assert failure_in_cluster("default", "keda.sh/v1alpha1/ScaledObject") == ""


def failure_in_cluster(values: str, *kinds: str) -> str:
    """Why Helm refuses these values in a cluster that has these kinds beside Kubernetes' own."""
    versions = [f"--api-versions={kind}" for kind in ("apps/v1/Deployment", *kinds)]
    return run(BIN / "helm4", "template", RELEASE, CHART, "-f", MATRIX[values], *versions).stderr
