"""What the chart refuses, and what it tells people to do about it."""

from typing import Any

import pytest

from tests.chart.helm import failure, render, template


@pytest.mark.parametrize(
    ("value", "changes", "command"),
    [
        ("image.registry", {"image": {"registry": ""}}, "az acr list"),
        ("config.servicebus_namespace", {"config": {"servicebus_namespace": ""}}, "az servicebus namespace list"),
        ("config.openai_endpoint", {"config": {"openai_endpoint": ""}}, "az cognitiveservices account list"),
        ("config.models", {"config": {"models": None}}, "az cognitiveservices account deployment list"),
        ("config.blob_container", {"config": {"blob_container": None}}, "az storage account list"),
        ("workloadIdentity.clientId", {"workloadIdentity": {"clientId": ""}}, "az identity show"),
        ("serviceAccount.name", {"serviceAccount": {"create": False}}, "kubectl get serviceaccounts"),
        ("autoscaling.keda.identityId", {"autoscaling": {"keda": {"identityId": ""}}}, "az identity show"),
        (
            "autoscaling.maxReplicas",
            {"config": {"models": {"gpt-5.4-mini": ["gpt-5.4-mini"]}}},
            "az cognitiveservices account deployment show",
        ),
        ("autoscaling.maxReplicas", {"config": {"models": "passthrough"}}, "az cognitiveservices"),
    ],
)
def test_what_is_missing_is_named_with_the_command_that_finds_it(
    value: str, changes: dict[str, Any], command: str
) -> None:
    told = failure("default", changes)
    assert f"- {value} is missing" in told
    assert command in told


def test_everything_that_is_missing_is_named_at_once() -> None:
    told = failure("default", {"image": {"registry": ""}, "workloadIdentity": {"clientId": ""}})
    assert told.count(" is missing") == 2


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"terminationGracePeriodSeconds": 541}, "terminationGracePeriodSeconds is 541, config.grace 540"),
        ({"autoscaling": {"minReplicas": 4}}, "autoscaling.minReplicas is 4"),
        (
            {"config": {"queues": {"jobs-5": "gpt-5"}}},
            "config.queues.jobs-5 names the model gpt-5, which config.models does not have; there are gpt-5.4-mini",
        ),
        (
            {"config": {"queues": {"jobs": "gpt-5.4-mini"}, "models": {"gpt-5.4": ["d"]}}},
            "config.queues.jobs is the entry queue",
        ),
        ({"config": {"queues": {"jobs": None}}}, "config.queues.jobs is the entry queue"),
        (
            {"config": {"models": {"org/model": ["d"]}}, "autoscaling": {"maxReplicas": 2}},
            "the queue jobs-org/model, named after its model,",
        ),
        (
            {"config": {"queues": {"Jobs": None}}},
            "the queues jobs and Jobs are one queue to Service Bus",
        ),
        (
            {"config": {"queues": {"a": None}, "models": "passthrough"}, "autoscaling": {"maxReplicas": 2}},
            "config.queues is set and config.models is passthrough",
        ),
        (
            {"trustedCA": {"configMap": "a"}, "config": {"ca_file": "/b"}},
            "trustedCA.configMap and config.ca_file are both set",
        ),
        (
            {"workloadIdentity": {"identityBinding": {"enabled": True}}, "config": {"credential": "managed"}},
            "needs config.credential workload, and it is managed",
        ),
        (
            {"monitoring": {"prometheusRule": {"enabled": True, "disabled": ["NoSuchAlert"]}}},
            "names NoSuchAlert, which is no alert",
        ),
    ],
)
def test_values_that_contradict_each_other_are_refused(changes: dict[str, Any], named: str) -> None:
    assert named in failure("default", changes)


def test_the_worker_s_grace_and_five_seconds_are_enough() -> None:
    assert render("default", {"terminationGracePeriodSeconds": 545})


@pytest.mark.parametrize(
    "changes",
    [
        {"imagee": {}},
        {"image": {"registy": "a"}},
        {"config": {"slotss": 1}},
        {"config": {"pod": "a"}},
        {"config": {"slots": 0}},
        {"config": {"api_key": "a"}},
        {"config": {"openai_endpoint": "http://my-account.openai.azure.com"}},
        {"config": {"models": {"m": [{"name": "d", "tpm": 1}]}}},
        {"config": {"queues": {"-mini": "gpt-5.4-mini"}}},
        {"config": {"queues": {"jobs-mini": ["gpt-5.4-mini"]}}},
        {"config": {"queues": {}}},
        {"image": {"tag": "latest"}},
        {"autoscaling": {"mode": "vpa"}},
        {"workloadIdentity": {"clientId": "my-identity"}},
        {"networkPolicy": {"mode": True}},
        {"tolerations": [{"keey": "a"}]},
        {"resources": {"limit": {}}},
        {"extraObjects": [{"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "a"}}]},
    ],
    ids=str,
)
def test_the_schema_refuses_what_is_misspelt_or_out_of_range(changes: dict[str, Any]) -> None:
    assert "values don't meet the specifications of the schema" in failure("default", changes)


@pytest.mark.parametrize(
    ("value", "item", "told"),
    [
        ("extraEnv", {"name": "AOAI_WORKER_CONFIG", "value": "x"}, "name AOAI_WORKER_CONFIG"),
        ("extraEnv", {"name": "AZURE_CLIENT_ID", "value": "x"}, "name AZURE_CLIENT_ID"),
        ("extraVolumes", {"name": "config", "emptyDir": {}}, "name config"),
        ("extraVolumeMounts", {"name": "x", "mountPath": "/etc/aoai-worker"}, "mountPath /etc/aoai-worker"),
        ("extraVolumeMounts", {"name": "x", "mountPath": "/etc/aoai-worker/"}, "mountPath /etc/aoai-worker/"),
        ("extraContainers", {"name": "worker", "image": "i:1"}, "name worker"),
        ("initContainers", {"name": "worker", "image": "i:1"}, "name worker"),
    ],
)
def test_a_name_of_the_chart_s_own_is_refused(value: str, item: dict[str, Any], told: str) -> None:
    assert f"- {value} has one with the {told}, which is the chart's own" in failure("default", {value: [item]})


@pytest.mark.parametrize(
    ("variable", "setting"),
    [
        ("AOAI_WORKER_SLOTS", "slots"),
        ("AOAI_WORKER_JOBS_QUEUE", "jobs_queue"),
        ("AZURE_OPENAI_ENDPOINT", "openai_endpoint"),
    ],
)
def test_a_variable_that_would_win_over_a_setting_of_the_chart_is_refused(variable: str, setting: str) -> None:
    told = failure("default", {"extraEnv": [{"name": variable, "value": "1"}]})
    assert f"- extraEnv has {variable}, which wins over config.{setting} in the worker" in told


def test_a_variable_that_the_chart_does_not_work_with_is_taken() -> None:
    made = template(changes={"extraEnv": [{"name": "AOAI_WORKER_LOG_LEVEL", "value": "debug"}]})
    assert "- name: AOAI_WORKER_LOG_LEVEL\n" in made
