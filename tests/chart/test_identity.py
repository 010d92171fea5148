"""Who the pods are: the workload identity by its webhook's labels and annotations, or an identity binding."""

from tests.chart.helm import container, kinds, only, pod, render, settings

CLIENT = "11111111-1111-1111-1111-111111111111"


def test_the_service_account_names_the_worker_s_identity() -> None:
    account = only(render(), "ServiceAccount")
    assert account["metadata"]["annotations"] == {"azure.workload.identity/client-id": CLIENT}


def test_tenant_and_lifetime_of_the_token_are_told_to_the_webhook() -> None:
    annotations = only(render("prod"), "ServiceAccount")["metadata"]["annotations"]
    assert annotations["azure.workload.identity/tenant-id"] == "33333333-3333-3333-3333-333333333333"
    assert annotations["azure.workload.identity/service-account-token-expiration"] == "7200"


def test_the_pod_template_has_the_label_without_which_the_webhook_does_nothing() -> None:
    assert pod()["metadata"]["labels"]["azure.workload.identity/use"] == "true"


def test_the_worker_is_told_to_be_its_workload_identity_and_nobody_else() -> None:
    assert settings(render())["credential"] == "workload"


def test_annotations_of_one_s_own_cannot_replace_the_identity() -> None:
    changed = {"serviceAccount": {"annotations": {"azure.workload.identity/client-id": "else", "team": "a"}}}
    annotations = only(render("default", changed), "ServiceAccount")["metadata"]["annotations"]
    assert annotations == {"azure.workload.identity/client-id": CLIENT, "team": "a"}


def test_an_identity_binding_is_switched_on_in_the_pod_and_in_the_worker() -> None:
    binding = {"workloadIdentity": {"identityBinding": {"enabled": True}}}
    annotations = pod("default", binding)["metadata"]["annotations"]
    assert annotations["azure.workload.identity/use-identity-binding"] == "true"
    assert settings(render("default", binding))["enable_azure_proxy"] is True


def test_an_identity_binding_lets_this_service_account_use_this_identity_only() -> None:
    objects = render("everything-on")
    rule = only(objects, "ClusterRole")["rules"]
    subject = only(objects, "ClusterRoleBinding")["subjects"]
    assert rule == [
        {"apiGroups": ["cid.wi.aks.azure.com"], "resources": [CLIENT], "verbs": ["use-managed-identity"]}
    ]
    assert subject == [{"kind": "ServiceAccount", "name": "batch", "namespace": "inference"}]


def test_without_an_identity_binding_there_are_no_rights_in_the_cluster() -> None:
    assert not {"ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"} & kinds(render())


def test_a_managed_identity_of_the_node_needs_no_webhook() -> None:
    changed = {"config": {"credential": "managed"}}
    assert "azure.workload.identity/use" not in pod("default", changed)["metadata"]["labels"]
    assert {"name": "AZURE_CLIENT_ID", "value": CLIENT} in container("default", changed)["env"]


def test_a_service_account_that_is_there_already_is_used_and_not_made() -> None:
    objects = render("everything-off")
    assert "ServiceAccount" not in kinds(objects)
    assert only(objects, "Deployment")["spec"]["template"]["spec"]["serviceAccountName"] == "somebody"
