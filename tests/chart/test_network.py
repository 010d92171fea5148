"""What may be reached, and by whom, under each network policy."""

from tests.chart.helm import Object, kinds, only, render

POLICIES = {"NetworkPolicy", "CiliumNetworkPolicy"}


def test_without_a_mode_there_is_no_policy() -> None:
    assert not POLICIES & kinds(render())


def test_kubernetes_policy_lets_out_names_https_and_amqp_only() -> None:
    egress = only(render("prod"), "NetworkPolicy")["spec"]["egress"]
    ports = [sorted({port["port"] for port in rule["ports"]}) for rule in egress]
    assert ports == [[53], [443, 5671]]


def test_kubernetes_policy_lets_in_the_scraper_only() -> None:
    ingress = only(render("prod"), "NetworkPolicy")["spec"]["ingress"]
    names = [item["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"] for item in ingress[0]["from"]]
    assert (names, ingress[0]["ports"]) == (["kube-system", "monitoring"], [{"protocol": "TCP", "port": "http"}])


def test_a_policy_that_lets_nobody_in_has_no_rule() -> None:
    changed: Object = {"networkPolicy": {"metricsNamespaces": []}}
    assert only(render("prod", changed), "NetworkPolicy")["spec"]["ingress"] == []


def test_a_managed_identity_may_reach_the_metadata_service() -> None:
    changed = {"networkPolicy": {"mode": "kubernetes"}}
    egress = only(render("everything-off", changed), "NetworkPolicy")["spec"]["egress"]
    assert {"cidr": "169.254.169.254/32"} in [peer.get("ipBlock") for rule in egress for peer in rule.get("to", [])]


def test_cilium_lets_out_exactly_the_hosts_in_use() -> None:
    assert hosts(render("cilium")) == {
        "my-namespace.servicebus.windows.net": "5671",
        "login.microsoftonline.com": "443",
        "my-account.openai.azure.com": "443",
        "my-account-west.openai.azure.com": "443",
        "myresults.blob.core.windows.net": "443",
    }


def test_cilium_lets_out_a_private_endpoint_in_place_of_the_namespace() -> None:
    found = hosts(render("azmonitoring", {"networkPolicy": {"mode": "cilium"}}))
    assert found["my-namespace.private.example"] == "5671"
    assert "my-namespace.servicebus.usgovcloudapi.net" not in found


def test_over_websockets_service_bus_needs_no_port_but_that_of_https() -> None:
    changed: Object = {"config": {"servicebus_transport": "websockets"}}
    assert hosts(render("cilium", changed))["my-namespace.servicebus.windows.net"] == "443"
    egress = only(render("prod", changed), "NetworkPolicy")["spec"]["egress"]
    assert [port["port"] for port in egress[1]["ports"]] == [443]


def test_a_private_endpoint_keeps_its_port_over_websockets() -> None:
    changed: Object = {"networkPolicy": {"mode": "cilium"}, "config": {"servicebus_transport": "websockets"}}
    assert hosts(render("azmonitoring", changed))["my-namespace.private.example"] == "5671"


def test_a_proxy_is_let_out_at_its_port() -> None:
    changed: Object = {"networkPolicy": {"extraHosts": ["proxy.example:3128", "more.example"]}}
    found = hosts(render("cilium", changed))
    assert (found["proxy.example"], found["more.example"]) == ("3128", "443")
    egress = only(render("prod", changed), "NetworkPolicy")["spec"]["egress"]
    assert [port["port"] for port in egress[1]["ports"]] == [3128, 443, 5671]


def test_a_port_in_an_endpoint_is_let_out() -> None:
    changed = {"config": {"openai_endpoint": "https://gateway.example:8443/openai"}}
    assert hosts(render("cilium", changed))["gateway.example"] == "8443"


def test_the_scope_of_tokens_is_no_host_to_be_reached() -> None:
    found = hosts(render("azmonitoring", {"networkPolicy": {"mode": "cilium"}}))
    assert "cognitiveservices.azure.us" not in found


def test_cilium_sees_the_names_that_are_asked_for() -> None:
    egress = only(render("cilium"), "CiliumNetworkPolicy")["spec"]["egress"]
    assert egress[0]["toPorts"][0]["rules"] == {"dns": [{"matchPattern": "*"}]}


def test_an_identity_binding_may_reach_the_cluster() -> None:
    egress = only(render("everything-on"), "CiliumNetworkPolicy")["spec"]["egress"]
    assert {
        "toEntities": ["kube-apiserver"],
        "toPorts": [{"ports": [{"port": "443", "protocol": "TCP"}]}],
    } in egress


def test_policies_hold_for_the_pod_of_helm_test_too() -> None:
    objects = render("cilium")
    selector = only(objects, "CiliumNetworkPolicy")["spec"]["endpointSelector"]["matchLabels"]
    assert selector.items() <= only(objects, "Pod")["metadata"]["labels"].items()


def hosts(objects: list[Object]) -> dict[str, str]:
    egress = only(objects, "CiliumNetworkPolicy")["spec"]["egress"]
    return {
        rule["toFQDNs"][0]["matchName"]: rule["toPorts"][0]["ports"][0]["port"]
        for rule in egress
        if "toFQDNs" in rule
    }
