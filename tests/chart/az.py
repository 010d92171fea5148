"""The real az, which here parses commands and runs none."""

import json
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

from tests.chart.helm import ROOT

PYTHON = ROOT / ".venv-azure-cli/bin/python"


def refusals(calls: Iterable[list[str]], folder: Path) -> list[tuple[str, str]]:
    """Each command that az does not take, and why. Of commands with the same options one is tried, to save time."""
    environment = {
        **os.environ,
        "AZURE_CONFIG_DIR": str(folder / "azure"),
        "AZURE_CORE_COLLECT_TELEMETRY": "false",
        "AZURE_EXTENSION_USE_DYNAMIC_INSTALL": "no",
    }
    done = subprocess.run(
        [PYTHON, ROOT / "tests/chart/parse_az.py"],
        input=json.dumps(list({_alike(call): call for call in calls}.values())),
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    return [(call, why) for call, why in json.loads(done.stdout)]


def _alike(call: list[str]) -> str:
    command = " ".join(call).partition(" -")[0]
    return f"{command} {sorted(word for word in call if word.startswith('-'))}"
