"""NOTES.txt tells what is still to do in Azure for exactly these values."""

import re

import pytest

from tests.chart.helm import MATRIX, notes
from worker.roles import GRANTS, ROLES


@pytest.mark.parametrize("values", MATRIX)
def test_every_role_that_is_named_is_one_of_ours(values: str) -> None:
    named = [line.split('"')[3] for line in notes(values).splitlines() if line.strip().startswith("grant ")]
    assert set(named) <= {role.name for role in ROLES}


def test_worker_and_keda_get_the_roles_they_need() -> None:
    told = notes("prod", {"config": {"sink": "queue"}})
    needed = {grant.role.name for grant in GRANTS if grant.holder in ("worker", "keda")}
    assert {name for name in needed if name not in told} == set()


def test_the_subject_of_the_federated_credential_is_this_service_account() -> None:
    assert "--subject system:serviceaccount:inference:aoai-worker" in notes()


def test_roles_are_given_on_each_queue_and_not_on_the_namespace() -> None:
    told = notes("prod")
    for queue in ("jobs", "jobs-gpt-5.4", "jobs-gpt-5.4-mini"):
        assert f'"Azure Service Bus Data Receiver" "$(queue {queue})"' in told
        assert f'"Azure Service Bus Data Owner" "$(queue {queue})"' in told


def test_the_worker_may_send_to_the_queues_of_models_alone_where_results_go_to_blob() -> None:
    told = notes("prod", {"config": {"queues": {"jobs-old": None}}})
    assert senders(told) == ["jobs-gpt-5.4", "jobs-gpt-5.4-mini"]
    assert "jobs-old (drained)" in told


def test_the_worker_may_send_to_the_results_queue_with_the_queue_sink_and_one_model() -> None:
    assert senders(notes("default", {"config": {"sink": "queue"}})) == ["results"]
    assert senders(notes()) == []


def senders(told: str) -> list[str]:
    return re.findall(r'grant "\$WORKER" "Azure Service Bus Data Sender" "\$\(queue (\S+)\)"', told)


def test_every_account_is_named() -> None:
    told = notes("prod")
    assert told.count('"Cognitive Services OpenAI User"') == 2
    assert "my-account-west.openai.azure.com" in told


def test_every_container_is_named() -> None:
    told = notes("everything-on")
    assert "/blobServices/default/containers/claims" in told


def test_keda_is_not_spoken_of_where_it_is_not_used() -> None:
    assert "keda" not in notes("keda-off").lower()


def test_an_identity_binding_takes_the_place_of_the_federated_credential() -> None:
    told = notes("default", {"workloadIdentity": {"identityBinding": {"enabled": True}}})
    assert "az aks identity-binding create" in told
    assert "system:serviceaccount:inference:aoai-worker" not in told


def test_azure_s_prometheus_is_said_not_to_read_the_rules() -> None:
    changed = {"monitoring": {"prometheusRule": {"enabled": True}}}
    assert "k8s/azure/alerts.bicep" in notes("azmonitoring", changed)


def test_a_fleet_size_below_the_most_pods_is_warned_of() -> None:
    assert "Warning: config.fleet_size is 1, but up to 3 pods can run" in notes(
        "default", {"config": {"fleet_size": 1}}
    )
    assert "Warning" not in notes()


def test_helm_test_is_the_way_to_see_that_it_works() -> None:
    assert "helm test aoai-worker -n inference" in notes()


def test_a_fleet_that_nobody_sees_at_zero_pods_is_warned_of() -> None:
    told = "set\nmonitoring.kedaPodMonitor.enabled=true"
    watched = {"podMonitor": {"enabled": True}}
    assert told in notes("default", {"monitoring": watched})
    assert told not in notes("default", {"monitoring": {**watched, "kedaPodMonitor": {"enabled": True}}})
    assert told not in notes("default", {"monitoring": watched, "autoscaling": {"minReplicas": 1}})
