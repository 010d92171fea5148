"""The Azure side: Bicep that parses and resolves, an az script that does the same, one list of roles for all.

Neither is run against Azure. The script is run with a stand-in for az that writes down what it is asked for.
"""

import functools
import json
import os
import re
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from pycep import BicepParser

from scripts.chart.alerts import iso_duration
from scripts.chart.rules import read_rules
from tests.chart import az
from tests.chart.helm import ROOT
from tests.support import stand_in
from tests.support.stand_in import Rule
from worker import roles as azure_roles
from worker.roles import GRANTS, INFERENCE_ONLY_DATA_ACTIONS, ROLES

AZURE = ROOT / "k8s/azure"
GUID = re.compile(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b")
SET_UP = [grant for grant in GRANTS if grant.holder != "kubelet"]
"""AcrPull is given by `az aks update --attach-acr`."""

QUEUE = {
    "lockDuration": "PT5M",
    "maxDeliveryCount": 20,
    "requiresDuplicateDetection": True,
    "duplicateDetectionHistoryTimeWindow": "P1D",
    "enablePartitioning": False,
    "deadLetteringOnMessageExpiration": True,
    "maxSizeInMegabytes": 5120,
}
GROUP_ID = "/subscriptions/S/resourceGroups/Group"
ANSWERS = [
    Rule(r"group show .*--query id", GROUP_ID),
    Rule(r"issuerUrl", "https://issuer"),
    Rule(r"-n (\S+) .*principalId", r"principal-of-\1"),
    Rule(r" show ", "value"),
]
"""An empty resource group: what is looked for is not found."""
TEMPLATES = uuid.UUID("11fb06fb-712d-4ddd-98c7-e71bbd588830")
"""The namespace of guid() in Bicep, which makes a UUID of version 5 ("String functions for Bicep")."""
FILES = ["main.bicep", "roles.bicep", "alerts.bicep", "queue-alerts.bicep"]


def text_of(name: str) -> str:
    return (AZURE / name).read_text(encoding="utf-8")


@functools.cache
def bicep(name: str = "main.bicep") -> Any:
    return BicepParser().parse(text=text_of(name))


def properties(symbol: str, name: str = "main.bicep") -> dict[str, Any]:
    config = bicep(name)["resources"][symbol]["config"]
    found: dict[str, Any] = config.get("config", config)["properties"]
    return found


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """What setup.sh asks az for, with everything switched on."""
    return run_setup(tmp_path_factory.mktemp("az"), {"RESULTS_QUEUE": "results", "PRODUCER": "producers"})


def run_setup(folder: Path, more: dict[str, str], rules: Sequence[Rule] = ANSWERS) -> list[list[str]]:
    done = setup(folder, more, rules)
    assert done.returncode == 0, done.stderr
    return [call[1:] for call in stand_in.calls(folder)]


def setup(folder: Path, more: dict[str, str], rules: Sequence[Rule]) -> subprocess.CompletedProcess[str]:
    stand_in.install(folder, ["az"], rules)
    environment = {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "RESOURCE_GROUP": "group",
        "CLUSTER_GROUP": "clusters",
        "CLUSTER": "cluster",
        "NAMESPACE": "mynamespace",
        "ACCOUNT": "myaccount",
        "STORAGE": "mystorage",
        "WORKER_IDENTITY": "id-worker",
        "KEDA_IDENTITY": "id-keda",
        "JOBS_QUEUES": "jobs jobs-a jobs-b",
        **more,
    }
    return subprocess.run([AZURE / "setup.sh"], env=environment, check=False, capture_output=True, text=True)


def assignments(calls: list[list[str]]) -> list[list[str]]:
    return [call for call in calls if call[:3] == ["role", "assignment", "create"]]


def option(call: list[str], name: str) -> str:
    return call[call.index(name) + 1]


@pytest.mark.parametrize("name", FILES)
def test_the_bicep_parses(name: str) -> None:
    assert bicep(name)["resources"]


def test_every_role_id_in_bicep_and_script_is_one_of_ours() -> None:
    known = {role.id for role in ROLES}
    for name in ("roles.bicep", "setup.sh"):
        assert set(GUID.findall(text_of(name))) == known - {azure_roles.ACR_PULL.id}


def test_role_ids_stand_under_the_same_name_everywhere() -> None:
    variables = bicep("roles.bicep")["variables"]
    script = dict(re.findall(r"^([A-Z_]+)=([0-9a-f-]{36})$", text_of("setup.sh"), re.MULTILINE))
    for name, role in vars(azure_roles).items():
        if isinstance(role, azure_roles.Role) and role is not azure_roles.ACR_PULL:
            assert script[name] == role.id
            assert camel(name) in {key.lower() for key, item in variables.items() if item["value"] == role.id}


def camel(name: str) -> str:
    return name.replace("_", "").lower()


@pytest.mark.parametrize("symbol", ["jobs", "results"])
def test_the_bicep_makes_the_queues_that_the_worker_needs(symbol: str) -> None:
    assert properties(symbol) == {**QUEUE, "requiresSession": symbol == "results"}


def test_the_script_makes_the_same_queues(calls: list[list[str]]) -> None:
    made = {
        option(call, "--id").rsplit("/", 1)[1]: json.loads(option(call, "--properties"))
        for call in calls
        if call[:2] == ["resource", "create"]
    }
    assert made == {
        "jobs": properties("jobs"),
        "jobs-a": properties("jobs"),
        "jobs-b": properties("jobs"),
        "results": properties("results"),
    }


def test_keys_are_switched_off_everywhere() -> None:
    assert properties("namespace")["disableLocalAuth"] is True
    assert properties("newAccount")["disableLocalAuth"] is True
    assert properties("storage")["allowSharedKeyAccess"] is False


@pytest.mark.parametrize("found", ["", "/its/id"], ids=["new", "existing"])
def test_the_script_switches_keys_off_on_what_is_new_and_on_what_exists(tmp_path: Path, found: str) -> None:
    texts = [" ".join(call) for call in run_setup(tmp_path, {}, [Rule("resource list", found), *ANSWERS])]
    verb = "update" if found else "create"
    assert any(f"servicebus namespace {verb}" in text and "--disable-local-auth true" in text for text in texts)
    assert any(f"storage account {verb}" in text and "--allow-shared-key-access false" in text for text in texts)
    changed = [text for text in texts if text.startswith("resource update")]
    assert [re.search(r"properties\.\S+", text)[0] for text in changed] == [  # type: ignore[index]
        "properties.defaultToOAuthAuthentication=true",
        "properties.disableLocalAuth=true",
    ]
    assert any("cognitiveservices account create" in text for text in texts) is not bool(found)


@pytest.mark.parametrize("kind", ["ServiceBus", "Storage", "CognitiveServices"])
def test_the_script_stops_where_it_may_not_look(tmp_path: Path, kind: str) -> None:
    """A refused permission is not taken for a resource that is not there yet."""
    refusal = Rule(f"resource list .*Microsoft.{kind}/", "AuthorizationFailed", status=1)
    done = setup(tmp_path, {}, [refusal, *ANSWERS])
    last = stand_in.calls(tmp_path)[-1]
    assert (done.returncode, last[1:3]) == (1, ["resource", "list"])


@pytest.mark.parametrize("found", ["", "/its/id"], ids=["new", "existing"])
def test_az_takes_every_command_of_the_script(tmp_path: Path, found: str) -> None:
    everything = {"RESULTS_QUEUE": "results", "PRODUCER": "producers", "INFERENCE_ONLY": "true"}
    calls = run_setup(tmp_path, everything, [Rule("resource list", found), *ANSWERS])
    assert az.refusals(calls, tmp_path) == []


def test_the_script_hides_no_error() -> None:
    assert "2>" not in text_of("setup.sh")


def test_running_the_script_twice_makes_no_second_assignment(tmp_path: Path) -> None:
    everything = {"RESULTS_QUEUE": "results", "PRODUCER": "producers"}
    first = assignments(run_setup(tmp_path, everything))
    both = assignments(run_setup(tmp_path, everything, [Rule("resource list", "/its/id"), *ANSWERS]))
    assert both == first + first
    names = [option(call, "--name") for call in first]
    assert len(set(names)) == len(names)


def test_an_assignment_has_the_same_name_in_the_script_and_in_the_bicep(calls: list[list[str]]) -> None:
    for call in assignments(calls):
        seed = f"{option(call, '--scope').lower()}-{option(call, '--assignee-object-id')}-{option(call, '--role')}"
        assert option(call, "--name") == str(uuid.uuid5(TEMPLATES, seed))
    for block in bicep_assignments():
        named = re.search(r"^  name: guid\('\$\{toLower\((.+)\.id\)\}-\$\{(\w+)\}-\$\{(\w+)\}'\)$", block, re.M)
        given = [
            re.search(pattern, block, re.M)
            for pattern in (r"^  scope: (.+)$", r"principalId: (\w+)$", r"roleDefinitions', (\w+)\)$")
        ]
        assert named is not None, block
        assert list(named.groups()) == [found and found[1] for found in given], block


def test_the_bicep_gives_exactly_the_roles_of_the_list() -> None:
    assert sorted(bicep_grants()) == sorted((grant.holder, grant.role.id, grant.scope) for grant in SET_UP)


def test_the_script_gives_exactly_the_roles_of_the_list(calls: list[list[str]]) -> None:
    given = {script_grant(call) for call in assignments(calls)}
    assert given == {(grant.holder, grant.role.id, grant.scope) for grant in SET_UP}


def test_the_worker_may_receive_from_every_jobs_queue_and_send_to_those_of_models(calls: list[list[str]]) -> None:
    given = [
        (option(call, "--role"), option(call, "--scope").rsplit("/queues/", 1)[1])
        for call in assignments(calls)
        if option(call, "--assignee-object-id") == "principal-of-id-worker"
        and "/queues/" in option(call, "--scope")
    ]
    receiver, sender = azure_roles.SERVICE_BUS_DATA_RECEIVER.id, azure_roles.SERVICE_BUS_DATA_SENDER.id
    assert sorted(queue for role, queue in given if role == receiver) == ["jobs", "jobs-a", "jobs-b"]
    assert sorted(queue for role, queue in given if role == sender) == ["jobs-a", "jobs-b", "results"]


@pytest.mark.parametrize("results", ["", "results"])
def test_with_one_model_the_worker_may_send_to_the_results_queue_alone(tmp_path: Path, results: str) -> None:
    calls = run_setup(tmp_path, {"JOBS_QUEUES": "jobs", "KEDA_IDENTITY": "", "RESULTS_QUEUE": results})
    sender = azure_roles.SERVICE_BUS_DATA_SENDER.id
    sends = [option(call, "--scope") for call in calls if "--role" in call and option(call, "--role") == sender]
    assert [scope.rsplit("/", 1)[1] for scope in sends] == ([results] if results else [])
    made = [option(call, "--id").rsplit("/", 1)[1] for call in calls if call[:2] == ["resource", "create"]]
    assert made == ["jobs", results] if results else ["jobs"]


def test_old_claims_are_deleted_and_results_only_where_that_is_wanted(tmp_path: Path) -> None:
    def rules(**more: str) -> dict[str, tuple[list[str], int]]:
        calls = run_setup(tmp_path, {"CONTAINERS": "results more", **more})
        policy = next(option(call, "--policy") for call in calls if "management-policy" in call)
        (tmp_path / "log").unlink()
        return {
            rule["name"]: (
                rule["definition"]["filters"]["prefixMatch"],
                rule["definition"]["actions"]["baseBlob"]["delete"]["daysAfterModificationGreaterThan"],
            )
            for rule in json.loads(policy)["rules"]
        }

    claims = (["results/claims/", "more/claims/"], 30)
    assert rules() == {"old-claims": claims}
    kept = rules(KEEP_RESULTS_DAYS="90")
    assert kept == {"old-claims": claims, "old-results": (["results/results/", "more/results/"], 90)}
    text = text_of("main.bicep")
    assert re.findall(r"name: '(old-\w+)'", text) == list(kept)
    assert re.findall(r"prefixMatch: map\(containerNames, name => '\$\{name\}(/\w+/)'\)", text) == [
        "/claims/",
        "/results/",
    ]


def test_the_readme_s_table_is_the_list_of_roles() -> None:
    rows = [line.split(" | ") for line in text_of("README.md").splitlines() if line.count(" | ") == 3]
    told = [tuple(cell.strip("| ") for cell in row) for row in rows if row[0] != "| who"]
    assert told == [(grant.holder, grant.role.name, grant.scope, grant.purpose) for grant in GRANTS]


def test_the_script_gives_no_role_to_nobody(tmp_path: Path) -> None:
    calls = run_setup(tmp_path, {"KEDA_IDENTITY": ""})
    holders = {script_grant(call)[0] for call in assignments(calls)}
    assert holders == {"worker"}


def test_inference_only_takes_the_place_of_the_wider_role(tmp_path: Path) -> None:
    calls = run_setup(tmp_path, {"INFERENCE_ONLY": "true"})
    given = [option(call, "--role") for call in assignments(calls)]
    assert azure_roles.OPENAI_USER.id not in given
    rest = next(call for call in calls if call[0] == "rest")
    made = str(uuid.uuid5(TEMPLATES, f"{GROUP_ID}-{azure_roles.INFERENCE_ONLY}"))  # as in roles.bicep
    assert made in given
    assert option(rest, "--url").startswith(f"{GROUP_ID}/providers/Microsoft.Authorization/roleDefinitions/{made}?")
    definition = json.loads(option(rest, "--body"))["properties"]
    assert tuple(definition["permissions"][0]["dataActions"]) == INFERENCE_ONLY_DATA_ACTIONS
    assert definition["roleName"] == f"{azure_roles.INFERENCE_ONLY} (Group)"
    assert definition["assignableScopes"] == [GROUP_ID]
    seed = "guid(resourceGroup().id, 'Azure OpenAI Inference Only')"
    assert f"var inferenceOnlyRoleId = {seed}" in text_of("roles.bicep")


def test_the_bicep_s_custom_role_may_call_and_read_nothing() -> None:
    permissions = properties("inferenceOnlyRole", "roles.bicep")["permissions"][0]
    assert tuple(permissions["dataActions"]) == INFERENCE_ONLY_DATA_ACTIONS
    assert permissions["actions"] == []


def test_the_federated_credentials_are_of_the_worker_and_of_keda(calls: list[list[str]]) -> None:
    made = {
        option(call, "--identity-name"): (option(call, "--subject"), option(call, "--audience"))
        for call in calls
        if call[:2] == ["identity", "federated-credential"]
    }
    audience = "api://AzureADTokenExchange"
    assert made == {
        "id-worker": ("system:serviceaccount:aoai-worker:aoai-worker", audience),
        "id-keda": ("system:serviceaccount:kube-system:keda-operator", audience),
    }


@pytest.mark.parametrize("name", FILES)
def test_every_name_in_the_bicep_is_declared(name: str) -> None:
    text = text_of(name)
    tree = bicep(name)
    declared = {*tree["parameters"], *tree["variables"], *tree["resources"]}
    loops = set(re.findall(r"\[for \(?(\w+)(?:, (\w+)\))? in", text))
    declared |= {word for pair in loops for word in pair if word}
    used = set(re.findall(r"\$\{(\w+)\}", text)) | set(re.findall(r"(?:parent|scope): (\w+)", text))
    assert used - declared == set()


@pytest.mark.parametrize("file", ["main.bicep", "roles.bicep"])
def test_every_parameter_of_the_bicep_is_described_and_used(file: str) -> None:
    text = text_of(file)
    for name, parameter in bicep(file)["parameters"].items():
        assert any(decorator["type"] == "description" for decorator in parameter["decorators"]), name
        assert len(re.findall(rf"\b{name}\b", text)) > 1, name


def test_network_and_diagnostics_cover_all_three_services() -> None:
    for symbol in ("namespace", "newAccount", "storage"):
        assert properties(symbol)["publicNetworkAccess"] == "publicNetworkAccess"
    for symbol in ("newAccount", "storage"):
        assert properties(symbol)["networkAcls"]["defaultAction"] == "defaultAction"
    assert properties("namespaceFirewall")["defaultAction"] == "Deny"
    endpoints = bicep()["variables"]["endpoints"]["value"]
    assert re.findall(r"'group': '(\w+)'", str(endpoints)) == ["namespace", "account", "blob"]
    diagnosed = re.findall(
        r"^resource \w+ 'Microsoft.Insights/.*?scope: (\w+)$", text_of("main.bicep"), re.M | re.S
    )
    assert diagnosed == ["namespace", "account", "blobs"]


def test_every_api_version_is_that_of_the_readme_s_table() -> None:
    rows = re.findall(r"^\| `(Microsoft\.[\w/]+)` \| `([\w-]+)` \|", text_of("README.md"), re.MULTILINE)
    used = {found for name in FILES for found in re.findall(r"'(Microsoft\.[\w/]+)@([\w-]+)'", text_of(name))}
    versions = dict(rows)
    for kind, version in used:
        assert version == next(told for prefix, told in rows if kind.startswith(prefix)), kind
    assert {next(prefix for prefix in versions if kind.startswith(prefix)) for kind, _ in used} == versions.keys()
    script = text_of("setup.sh")
    assert re.findall(r"--api-version (\S+)", script) == [versions["Microsoft.ServiceBus"]]
    assert re.findall(r"\?api-version=([\d-]+)", script) == [versions["Microsoft.Authorization"]]


def test_the_module_of_roles_gets_every_parameter_it_has() -> None:
    given = bicep()["modules"]["roles"]["config"]["params"]
    assert given.keys() == bicep("roles.bicep")["parameters"].keys()


def test_the_parameter_file_sets_what_has_no_default() -> None:
    given = set(re.findall(r"^param (\w+)", text_of("main.bicepparam"), re.MULTILINE))
    parameters = bicep()["parameters"]
    assert given <= parameters.keys()
    assert {name for name, item in parameters.items() if item.get("default") is None} <= given


def test_azure_takes_the_rule_groups() -> None:
    """At most 20 rules a group, severities 0 to 4 (Azure Monitor, Prometheus rule groups)."""
    groups = [item["config"]["properties"] for item in bicep("alerts.bicep")["resources"].values()]
    rules = [rule for group in groups for rule in group["rules"]]
    assert max(len(group["rules"]) for group in groups) <= 20
    assert {rule["severity"] for rule in rules if "alert" in rule} <= {0, 1, 2, 3, 4}


def test_the_queues_are_watched_where_no_pod_is() -> None:
    """The metrics of a namespace that have the dimension EntityName, and windows that a metric alert may have."""
    rules = [item["config"]["properties"] for item in bicep("queue-alerts.bicep")["resources"].values()]
    criteria = [one for rule in rules for one in rule["criteria"]["allOf"]]
    assert {one["metricName"] for one in criteria} == {"ActiveMessages", "CompleteMessage", "DeadletteredMessages"}
    assert {one["dimensions"] for one in criteria} == {"queues"}
    assert {rule["windowSize"] for rule in rules} <= {"PT30M", "PT1H", "PT6H"}
    sections = re.findall(r"^## (AoaiWorker\w+)$", (ROOT / "docs/runbooks.md").read_text(), re.MULTILINE)
    assert all(rule["description"].rpartition(": ")[2].rstrip(".") in sections for rule in rules)


def test_every_rule_is_there_for_azure_with_its_expression() -> None:
    source = read_rules("${namespace}", "${fullname}")
    expected = [
        (rule.get("alert") or rule["record"], " ".join(rule["expr"].split())) for g in source for rule in g["rules"]
    ]
    groups = bicep("alerts.bicep")["resources"].values()
    found = [
        (rule.get("alert") or rule["record"], str(rule["expression"]).replace("\\\\", "\\"))
        for group in groups
        for rule in group["config"]["properties"]["rules"]
    ]
    assert found == expected


@pytest.mark.parametrize(
    ("prometheus", "iso"),
    [("5m", "PT5M"), ("1h30m", "PT1H30M"), ("45s", "PT45S"), ("3d", "P3D"), ("1d12h", "P1DT12H")],
)
def test_durations_are_written_as_azure_wants_them(prometheus: str, iso: str) -> None:
    assert iso_duration(prometheus) == iso


def bicep_assignments() -> list[str]:
    text = text_of("roles.bicep")
    return re.findall(r"^resource \w+ 'Microsoft.Authorization/roleAssignments.*?^}", text, re.M | re.S)


def bicep_grants() -> Iterator[tuple[str, str, str]]:
    """Holder, role and scope of each role assignment, by the names of the symbols."""
    scopes = {
        "jobs": "jobs queue",
        "jobs[i + 1]": "queue of a model",  # all but the first, the entry queue
        "results": "results queue",
        "account": "OpenAI account",
        "containers": "blob container",
    }
    variables = bicep("roles.bicep")["variables"]
    roles = {name: item["value"] for name, item in variables.items()} | {"openAIRole": azure_roles.OPENAI_USER.id}
    for block in bicep_assignments():
        scope = re.search(r"^  scope: (\w+(?:\[i \+ 1\])?)", block, re.M)
        role = re.search(r"subscriptionResourceId\('Microsoft.Authorization/roleDefinitions', (\w+)\)", block)
        holder = re.search(r"principalId: (\w+)PrincipalId$", block, re.M)
        assert scope is not None, block
        assert role is not None, block
        assert holder is not None, block
        yield holder[1], roles[role[1]], scopes[scope[1]]


def script_grant(call: list[str]) -> tuple[str, str, str]:
    holders = {"principal-of-id-worker": "worker", "principal-of-id-keda": "keda", "producers": "producer"}
    scope = option(call, "--scope")
    endings = {
        "/queues/jobs": "jobs queue",
        "/queues/results": "results queue",
        "/accounts/myaccount": "OpenAI account",
    }
    kind = next((name for ending, name in endings.items() if scope.endswith(ending)), "blob container")
    holder, role = holders[option(call, "--assignee-object-id")], option(call, "--role")
    if "/queues/jobs-" in scope:
        is_sorters = (holder, role) == ("worker", azure_roles.SERVICE_BUS_DATA_SENDER.id)
        kind = "queue of a model" if is_sorters else "jobs queue"
    return holder, role, kind
