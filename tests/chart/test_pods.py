"""What the pods look like: security, resources, probes, ending, spreading, labels."""

import pytest

from tests.chart.helm import CHART, HELMS, MATRIX, Object, container, deployment, kinds, only, pod, render

WITHOUT_TEST = {"everything-off"}
ALL_PODS = [(values, "Deployment") for values in MATRIX] + [
    (values, "Pod") for values in sorted(MATRIX.keys() - WITHOUT_TEST)
]


def pod_spec(values: str, kind: str) -> Object:
    """Of the workers' pods, or of the one of `helm test`."""
    found = only(render(values), kind)["spec"]
    spec: Object = found["template"]["spec"] if kind == "Deployment" else found
    return spec


@pytest.mark.parametrize(("values", "kind"), ALL_PODS)
def test_every_pod_meets_the_restricted_pod_security_standard(values: str, kind: str) -> None:
    spec = pod_spec(values, kind)
    context = spec["containers"][0]["securityContext"]
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert context["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()


@pytest.mark.parametrize(("values", "kind"), ALL_PODS)
def test_every_container_runs_as_a_numeric_user_on_a_read_only_root(values: str, kind: str) -> None:
    context = pod_spec(values, kind)["containers"][0]["securityContext"]
    assert (context["runAsUser"], context["runAsGroup"]) == (65532, 65532)
    assert context["readOnlyRootFilesystem"] is True


@pytest.mark.parametrize(("values", "kind"), ALL_PODS)
def test_no_pod_gets_the_token_of_the_cluster_s_own_api(values: str, kind: str) -> None:
    assert pod_spec(values, kind)["automountServiceAccountToken"] is False


@pytest.mark.parametrize("values", MATRIX)
def test_no_secret_is_made(values: str) -> None:
    assert "Secret" not in kinds(render(values))


@pytest.mark.parametrize("values", MATRIX)
def test_cpu_and_memory_are_asked_for_and_limited(values: str) -> None:
    resources = container(values)["resources"]
    assert resources["requests"].keys() == resources["limits"].keys() == {"cpu", "memory"}


def test_the_pods_pass_the_deployment_safeguards_of_aks() -> None:
    """Probes, at least 100m and 100Mi asked for, spreading, no tag `latest` (Microsoft's list of 2026-06)."""
    requests = container()["resources"]["requests"]
    assert int(requests["cpu"].removesuffix("m")) >= 100
    assert int(requests["memory"].removesuffix("Mi")) >= 100
    assert {"readinessProbe", "livenessProbe"} <= container().keys()
    assert pod()["spec"]["topologySpreadConstraints"]
    assert not container()["image"].endswith(":latest")


def test_the_probes_ask_the_worker_and_a_restart_is_not_tried_for_what_it_cannot_mend() -> None:
    probes = {name: container()[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")}
    assert probes == {
        "startup": {"path": "/livez", "port": "http"},
        "readiness": {"path": "/readyz", "port": "http"},
        "liveness": {"path": "/livez", "port": "http"},
    }


def test_the_port_of_probes_and_metrics_is_the_worker_s_own() -> None:
    changed = container("default", {"config": {"http_port": 8080}})
    assert changed["ports"] == [{"name": "http", "containerPort": 8080, "protocol": "TCP"}]


def test_a_pod_has_35_seconds_more_than_the_worker_to_hand_back() -> None:
    assert pod()["spec"]["terminationGracePeriodSeconds"] == 540 + 35


def test_a_broken_grace_is_rounded_up() -> None:
    changed = pod("default", {"config": {"grace": 10.2}})
    assert changed["spec"]["terminationGracePeriodSeconds"] == 11 + 35


def test_a_grace_of_zero_is_kept() -> None:
    assert pod("default", {"config": {"grace": 0}})["spec"]["terminationGracePeriodSeconds"] == 35


def test_the_default_ending_stays_below_the_ten_minutes_of_the_cluster_autoscaler() -> None:
    assert pod()["spec"]["terminationGracePeriodSeconds"] < 600


def test_changed_settings_roll_the_pods() -> None:
    before, after = (
        pod("default", changes)["metadata"]["annotations"]["checksum/config"]
        for changes in ({}, {"config": {"slots": 65}})
    )
    assert before != after


def test_a_change_of_scaling_alone_rolls_no_pods() -> None:
    assert pod() == pod("default", {"autoscaling": {"keda": {"pollingInterval": 60}}})


def test_no_old_pod_goes_before_its_successor_is_ready() -> None:
    assert deployment()["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_pods_are_spread_over_zones_and_nodes_by_their_own_labels() -> None:
    spread = pod()["spec"]["topologySpreadConstraints"]
    assert [item["topologyKey"] for item in spread] == ["topology.kubernetes.io/zone", "kubernetes.io/hostname"]
    selector = deployment()["spec"]["selector"]
    assert all(item["labelSelector"] == selector for item in spread)


def test_a_spreading_of_one_s_own_keeps_its_selector() -> None:
    own = {
        "maxSkew": 2,
        "topologyKey": "agentpool",
        "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"team": "a"}},
    }
    assert pod("default", {"topologySpreadConstraints": [own]})["spec"]["topologySpreadConstraints"] == [own]


@pytest.mark.parametrize("helm", HELMS)
def test_selectors_do_not_change_between_versions_of_the_chart(helm: str) -> None:
    # a Deployment's selector is immutable: whoever changes these lines breaks every upgrade
    selector = only(render(helm=helm), "Deployment")["spec"]["selector"]["matchLabels"]
    assert selector == {
        "app.kubernetes.io/name": "aoai-worker",
        "app.kubernetes.io/instance": "aoai-worker",
        "app.kubernetes.io/component": "worker",
    }


def test_labels_of_one_s_own_cannot_break_the_selector() -> None:
    labels = {"app.kubernetes.io/component": "else", "app.kubernetes.io/name": "else", "team": "a"}
    changed = deployment("default", {"commonLabels": labels, "podLabels": labels})
    assert changed["spec"]["selector"] == deployment()["spec"]["selector"]
    assert (
        changed["spec"]["selector"]["matchLabels"].items()
        <= changed["spec"]["template"]["metadata"]["labels"].items()
    )
    assert changed["metadata"]["labels"]["team"] == "a"


def test_the_pod_of_helm_test_is_not_selected_as_a_worker() -> None:
    check = only(render(), "Pod")["metadata"]["labels"]
    assert not deployment()["spec"]["selector"]["matchLabels"].items() <= check.items()


def test_helm_test_checks_the_set_up_as_the_worker_s_identity() -> None:
    check = only(render(), "Pod")
    assert check["metadata"]["annotations"]["helm.sh/hook"] == "test"
    assert check["spec"]["containers"][0]["args"] == ["check"]
    assert check["spec"]["serviceAccountName"] == pod()["spec"]["serviceAccountName"]
    assert check["metadata"]["labels"]["azure.workload.identity/use"] == "true"
    assert check["spec"]["containers"][0]["env"] == container()["env"]


def test_a_disruption_leaves_most_pods_and_may_always_take_an_unready_one() -> None:
    budget = only(render(), "PodDisruptionBudget")["spec"]
    assert budget["maxUnavailable"] == "25%"
    assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
    assert budget["selector"] == deployment()["spec"]["selector"]


def test_a_number_of_pods_that_may_be_missing_stays_a_number() -> None:
    assert only(render("everything-on"), "PodDisruptionBudget")["spec"]["maxUnavailable"] == 2


def test_a_digest_wins_over_the_tag() -> None:
    image = {"digest": "sha256:" + "a" * 64, "tag": "1.2.3"}
    assert container("default", {"image": image})["image"] == "myregistry.azurecr.io/aoai-worker@sha256:" + "a" * 64


def test_the_image_s_tag_is_the_chart_s_application_version_unless_set() -> None:
    assert container()["image"] == "myregistry.azurecr.io/aoai-worker:0.1.0"


def test_templates_in_extra_values_are_filled_in() -> None:
    assert {"name": "RELEASE", "value": "aoai-worker"} in container("everything-on")["env"]
    names = {item["metadata"]["name"] for item in render("everything-on")}
    assert "aoai-worker-more" in names


def test_pull_secrets_of_the_release_and_of_the_chart_are_both_named() -> None:
    assert pod("everything-on")["spec"]["imagePullSecrets"] == [{"name": "global-registry"}, {"name": "registry"}]


def test_variables_of_services_are_not_put_into_the_pod() -> None:
    assert pod()["spec"]["enableServiceLinks"] is False


def test_a_long_release_name_leaves_room_for_suffixes() -> None:
    objects = render("default", {"fullnameOverride": "a" * 52, "monitoring": {"dashboard": {"enabled": True}}})
    assert all(len(item["metadata"]["name"]) <= 63 for item in objects)


def test_the_chart_names_the_application_version_that_the_package_has() -> None:
    version = next(
        line
        for line in (CHART.parents[1] / "pyproject.toml").read_text().splitlines()
        if line.startswith("version")
    ).split('"')[1]
    assert f"\nappVersion: {version}\n" in (CHART / "Chart.yaml").read_text()


def test_recreate_takes_the_place_of_the_default_rolling_update() -> None:
    changed = deployment("default", {"updateStrategy": {"type": "Recreate"}})
    assert changed["spec"]["strategy"] == {"type": "Recreate"}


def test_a_container_of_one_s_own_and_hooks_stand_beside_the_worker() -> None:
    aliases = [{"ip": "10.0.0.4", "hostnames": ["my-account.openai.azure.com"]}]
    spec = pod("everything-on", {"hostAliases": aliases})["spec"]
    assert [item["name"] for item in spec["containers"]] == ["worker", "beside"]
    assert spec["containers"][0]["lifecycle"] == {"preStop": {"sleep": {"seconds": 5}}}
    assert spec["hostAliases"] == aliases
    assert spec["dnsPolicy"] == "ClusterFirst"


def test_common_annotations_are_on_every_object() -> None:
    own = [item for item in render("everything-on") if item["metadata"]["name"] != "aoai-worker-more"]
    assert {item["metadata"]["annotations"]["example.com/owner"] for item in own} == {"inference"}
    assert deployment("everything-on")["metadata"]["annotations"]["example.com/reload"] == "true"
