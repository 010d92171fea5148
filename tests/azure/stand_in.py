"""A stand-in for az that writes down what it is asked for and answers every question with one word."""

import os
from pathlib import Path

from tests.azure.resources import AzureCli

_SCRIPT = """#!/bin/sh
printf '%s\\037' "$@" >>"$AZ_LOG"
printf '\\036' >>"$AZ_LOG"
echo value
"""
ENVIRONMENT = {
    "AZURE_SUBSCRIPTION_ID": "00000000-0000-4000-8000-000000000000",
    "AOAI_PROBE_MODEL": "a-model",
    "AOAI_PROBE_MODEL_VERSION": "1",
    "AOAI_PROBE_REASONING_MODEL": "another-model",
    "AOAI_PROBE_REASONING_MODEL_VERSION": "1",
}


def make(folder: Path) -> tuple[AzureCli, Path]:
    """In `folder`; also where it writes down."""
    program, log = folder / "az", folder / "az.log"
    program.write_text(_SCRIPT, encoding="utf-8")
    program.chmod(0o755)
    return AzureCli(program=str(program), environment={"PATH": os.environ["PATH"], "AZ_LOG": str(log)}), log


def calls(log: Path) -> list[list[str]]:
    """The words of each call, in order."""
    return [call.split("\x1f")[:-1] for call in log.read_text(encoding="utf-8").split("\x1e")[:-1]]
