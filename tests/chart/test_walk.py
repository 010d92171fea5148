"""docs/deploy.md: its commands are checked with shellcheck and run in order, by stand-ins for what needs Azure.

helm is a stand-in too; the values that the walk writes go through the real one. Of step 8 only the order and the
variables are checked: that pip can install the worker, and what `submit` and `collect` do, is tested elsewhere.
"""

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree

import pytest
import yaml

from tests.chart import az
from tests.chart.helm import BIN, CHART, HELMS, ROOT, run
from tests.support import stand_in
from tests.support.stand_in import Rule

PAGE = (ROOT / "docs/deploy.md").read_text(encoding="utf-8")
WALK = PAGE.partition("### Add a model")[0]
PROGRAMS = ("az", "kubectl", "helm", "docker", "git", "openssl", "python3", "sleep")
IN_VENV = ("pip", "aoai-worker", "python")
GUIDS = {
    "aoai-worker": "11111111-1111-4111-8111-111111111111",
    "aoai-worker-keda": "2" * 8 + "-2222-4222-8222-" + "2" * 12,
}
FAILING = '{"s0-azure-servicebus-jobs":{"numberOfFailures":5,"status":"Failing"}}'
HEALTHY = '{"s0-azure-servicebus-jobs":{"numberOfFailures":0,"status":"Happy"}}'
METRIC = "s0-azure-servicebus-jobs"
ANSWERS = [
    Rule(r"openssl rand", "abc123"),
    Rule(r"git rev-parse", "0123456789abcdef"),
    Rule(r"docker buildx inspect", status=1),
    Rule(r"^az group show .*-n (\S+) --query id", r"/subscriptions/S/resourceGroups/\1"),
    Rule(r"issuerUrl", "https://issuer"),
    Rule(r"identity show .*-n aoai-worker-keda .*clientId", GUIDS["aoai-worker-keda"]),
    Rule(r"identity show .*-n aoai-worker .*clientId", GUIDS["aoai-worker"]),
    Rule(r"identity show .*-n (\S+) .*principalId", r"principal-of-\1"),
    Rule(r"signed-in-user", "me"),
    Rule(r"list-models .*gpt-5.4-mini", "2026-03-17"),
    Rule(r"account show .*-n (\S+) .*properties.endpoint", r"https://\1.openai.azure.com/"),
    Rule(r"^az (\S+).* show .*-n (\S+) --query id ", r"/ids/\1/\2"),
    Rule(r"externalMetricNames", METRIC),
    Rule(r"status.health", HEALTHY),
    Rule(r"aoai-worker submit", "batch-1"),
]
"""What Azure, the cluster and the tools print where a later step uses it."""


def blocks(text: str) -> list[str]:
    return re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def step(title: str) -> str:
    return WALK.partition(f"## {title}\n")[2].partition("\n## ")[0]


def make_checkout(folder: Path) -> Path:
    """What the walk reads of the repository; it writes beside it."""
    for name in ("charts", "k8s", "examples"):
        copytree(ROOT / name, folder / name)
    (folder / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    return folder


def walk(
    checkout: Path, commands: Sequence[str], rules: Sequence[Rule] = ANSWERS
) -> tuple[subprocess.CompletedProcess[str], list[list[str]]]:
    """The commands in one shell that has no variable but PATH and HOME, and ends at the first that fails."""
    stand_ins = checkout / "stand-ins"
    stand_in.install(stand_ins, PROGRAMS, rules)
    (checkout / ".venv").mkdir(exist_ok=True)
    stand_in.install(checkout / ".venv/bin", IN_VENV, rules)
    environment = {"PATH": f"{stand_ins}:/usr/bin:/bin", "HOME": str(checkout)}
    script = "\n".join(["set -eu", *commands])
    done = subprocess.run(
        ["bash", "-c", script], cwd=checkout, env=environment, check=False, capture_output=True, text=True
    )
    return done, stand_in.calls(stand_ins) + stand_in.calls(checkout / ".venv/bin")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return make_checkout(tmp_path)


@dataclass(frozen=True, slots=True)
class Walked:
    """The whole walk, once."""

    values: Path
    calls: list[list[str]]
    error: str
    """What the walk ended with, empty for success."""


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Walked:
    folder = make_checkout(tmp_path_factory.mktemp("walk"))
    done, calls = walk(folder, blocks(WALK))
    error = f"exit code {done.returncode}: {done.stderr}" if done.returncode else ""
    return Walked(folder / "my-values.yaml", calls, error)


def test_shellcheck_has_nothing_to_say_about_the_walk_and_the_scripts(tmp_path: Path) -> None:
    script = tmp_path / "walk.sh"
    script.write_text("#!/usr/bin/env bash\n" + "\n".join(blocks(PAGE)))
    readme = tmp_path / "readme.sh"
    readme.write_text("#!/usr/bin/env bash\n" + "\n".join(blocks((ROOT / "k8s/azure/README.md").read_text())))
    done = run(BIN / "shellcheck", script, readme, ROOT / "k8s/azure/setup.sh")
    assert done.returncode == 0, done.stdout


def test_shellcheck_looks(tmp_path: Path) -> None:
    (tmp_path / "bad.sh").write_text("#!/bin/sh\nrm $1\n")
    assert run(BIN / "shellcheck", tmp_path / "bad.sh").returncode == 1


def test_every_variable_is_set_by_an_earlier_command(walked: Walked) -> None:
    """The shell ends at a variable that is not set, setup.sh at one that is not exported."""
    assert walked.error == ""


def test_a_variable_that_nobody_sets_is_found(checkout: Path) -> None:
    watch = [block.replace("WORKSPACE=", "OTHER=") for block in blocks(step("9. Watch it"))]
    done, _ = walk(checkout, [blocks(WALK)[0], *watch])
    assert "WORKSPACE: unbound variable" in done.stderr


def test_az_takes_every_command_but_those_of_an_extension(walked: Walked, tmp_path: Path) -> None:
    """`az grafana` is an extension, which comes from no package index."""
    calls = [call[1:] for call in walked.calls if call[0] == "az" and call[1] != "grafana"]
    assert len(calls) > 50
    assert az.refusals(calls, tmp_path) == []


def test_az_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    wrong = [["group", "create", "--nome", "x"], ["gruppe", "list"], ["account", "list", "--query", "[?"]]
    right = ["group", "create", "-n", "x", "-l", "y"]
    assert [call for call, _ in az.refusals([*wrong, right], tmp_path)] == [" ".join(call) for call in wrong]


def test_every_name_that_must_be_unique_in_azure_ends_with_the_suffix(walked: Walked) -> None:
    made = [
        call[call.index("-n") + 1]
        for call in walked.calls
        if re.match(r"az (acr|aks|group|grafana) create ", " ".join(call))
    ]
    for kind in ("servicebus namespace", "storage account", "cognitiveservices account"):
        made += [
            call[call.index("-n") + 1] for call in walked.calls if " ".join(call).startswith(f"az {kind} create")
        ]
    assert len(made) >= 7
    assert all(name.endswith("abc123") for name in made), made


def test_what_is_printed_reaches_the_later_steps(walked: Walked) -> None:
    texts = [" ".join(call) for call in walked.calls]

    def only(start: str) -> str:
        (found,) = [text for text in texts if text.startswith(start)]
        return found

    watched = only("az aks update")
    assert "/ids/monitor/batch-metrics-abc123" in watched
    assert "/ids/grafana/batch-grafana-abc123" in watched
    alerts, queues = (text for text in texts if text.startswith("az deployment group create"))
    assert "clusterResourceId=/ids/aks/batch-aks-abc123" in alerts
    assert "/ids/servicebus/batch-bus-abc123" in queues
    assert all('actionGroupResourceIds=["/ids/monitor/batch-alerts"]' in text for text in (alerts, queues))
    assert "--model-version 2026-03-17" in only("az cognitiveservices account deployment create")
    assert "aoai-worker collect batch-1 " in only("aoai-worker collect")
    given = [text for text in texts if "role assignment create" in text]
    assert any("--assignee-object-id me --assignee-principal-type User" in text for text in given)


def test_the_image_is_built_for_both_kinds_of_nodes_and_is_the_one_of_the_values(walked: Walked) -> None:
    (build,) = [call for call in walked.calls if call[:3] == ["docker", "buildx", "build"]]
    assert build[build.index("--platform") + 1] == "linux/amd64,linux/arm64"
    image = yaml.safe_load(walked.values.read_text())["image"]
    assert build[build.index("-t") + 1] == f"{image['registry']}/aoai-worker:{image['tag']}"


@pytest.mark.parametrize("helm", HELMS)
def test_helm_takes_the_values_that_the_walk_writes(walked: Walked, helm: str) -> None:
    installs = [call for call in walked.calls if call[:2] in (["helm", "template"], ["helm", "upgrade"])]
    assert len(installs) == 3
    assert all("my-values.yaml" in call and "--reuse-values" not in call for call in installs)
    done = run(BIN / helm, "template", "aoai-worker", CHART, "-n", "aoai-worker", "-f", walked.values)
    assert done.returncode == 0, done.stderr
    for used in (
        *GUIDS.values(),
        "batch-bus-abc123.servicebus.windows.net",
        "https://batch-openai-abc123.openai.azure.com",
    ):
        assert used in done.stdout
    monitors = [item for item in yaml.safe_load_all(done.stdout) if item and item["kind"] == "PodMonitor"]
    assert {item["metadata"]["name"] for item in monitors} == {"aoai-worker", "aoai-worker-keda"}
    assert {item["apiVersion"] for item in monitors} == {"azmonitoring.coreos.com/v1"}


@pytest.mark.parametrize(
    ("rules", "proved"),
    [
        ([], True),
        (
            [
                Rule(r"get --raw", "Error from server", status=1),
                Rule("status.health", FAILING),
            ],
            False,
        ),
        ([Rule(r"get --raw", "64"), Rule("status.health", FAILING)], False),
        ([Rule("status.health", HEALTHY[:-1] + "," + FAILING[1:].replace("s0", "s1"))], False),
        ([Rule(r"externalMetricNames", ""), Rule(r"status.health", "{}")], False),
    ],
    ids=["reads", "refused", "falls back", "one of two", "never looked"],
)
def test_step_6_fails_where_kedas_identity_cannot_read_a_queue(
    checkout: Path, rules: list[Rule], proved: bool
) -> None:
    proof = blocks(step("6. Install"))[1]
    done, calls = walk(checkout, [proof], [*rules, *ANSWERS])
    assert (done.returncode == 0) is proved
    if Rule(r"externalMetricNames", "") not in rules:
        (asked,) = [call[-1] for call in calls if "--raw" in call]
        assert f"/namespaces/aoai-worker/{METRIC}?labelSelector=scaledobject.keda.sh%2Fname%3Daoai-worker" in asked


def test_the_account_is_purged_after_its_group_is_deleted(walked: Walked) -> None:
    texts = [" ".join(call) for call in walked.calls if call[0] == "az"]
    assert texts[-2:] == [
        "az group delete -n batch-abc123",
        "az cognitiveservices account purge -g batch-abc123 -n batch-openai-abc123 -l swedencentral",
    ]


def test_prose_is_wrapped() -> None:
    assert [line for line in PAGE.splitlines() if len(line) > 100 and not line.startswith("|")] == []
