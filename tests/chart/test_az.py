"""The real az takes every command of docs/deploy.md and of k8s/azure/setup.sh, as far as its parser can tell."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.chart import stand_in
from tests.chart.helm import ROOT
from tests.chart.test_azure import ANSWERS, run_setup
from tests.chart.test_walk import WALK, blocks, make_checkout, walk

PYTHON = ROOT / ".venv-azure-cli/bin/python"
EXTENSION = "grafana"
"""`az grafana` comes from an extension, which no package index that the tests use has."""


def refusals(calls: list[list[str]], folder: Path) -> list[list[str]]:
    environment = {
        **os.environ,
        "AZURE_CONFIG_DIR": str(folder / "azure"),
        "AZURE_CORE_COLLECT_TELEMETRY": "false",
        "AZURE_EXTENSION_USE_DYNAMIC_INSTALL": "no",
    }
    done = subprocess.run(
        [PYTHON, ROOT / "tests/chart/parse_az.py"],
        input=json.dumps(calls),
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    found: list[list[str]] = json.loads(done.stdout)
    return found


def alike(call: list[str]) -> str:
    """Equal for calls that differ in names only: az needs half a second for each."""
    command = " ".join(call).partition(" -")[0]
    return f"{command} {sorted(word for word in call if word.startswith('-'))}"


def test_the_parser_refuses_what_az_does_not_know(tmp_path: Path) -> None:
    wrong = [["group", "create", "--nome", "x"], ["gruppe", "list"], ["account", "list", "--query", "[?"]]
    right = ["group", "create", "-n", "x", "-l", "y"]
    assert [call for call, _ in refusals([*wrong, right], tmp_path)] == [" ".join(call) for call in wrong]


def test_az_takes_the_commands_of_the_walk(tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path)
    walk(checkout, blocks(WALK))
    calls = [call[1:] for call in stand_in.calls(checkout / "stand-ins") if call[0] == "az"]
    assert len(calls) > 50
    different = list({alike(call): call for call in calls if call[0] != EXTENSION}.values())
    assert refusals(different, tmp_path) == []


@pytest.mark.parametrize("found", ["", "/its/id"], ids=["new", "existing"])
def test_az_takes_the_commands_of_the_script(tmp_path: Path, found: str) -> None:
    everything = {"RESULTS_QUEUE": "results", "PRODUCER": "producers", "INFERENCE_ONLY": "true"}
    calls = run_setup(tmp_path, everything, [stand_in.Rule("resource list", found), *ANSWERS])
    assert refusals(list({alike(call): call for call in calls}.values()), tmp_path) == []
