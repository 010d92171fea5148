"""What the package says of itself to its index."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def metadata(**environment: str) -> dict[str, Any]:
    ran = subprocess.run(
        [sys.executable, "-m", "hatchling", "metadata"],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    document: dict[str, Any] = json.loads(ran.stdout)
    return document


def test_a_release_says_where_the_project_is_and_a_checkout_does_not_guess() -> None:
    assert "urls" not in metadata(AOAI_WORKER_PROJECT_URL="")
    urls = metadata(AOAI_WORKER_PROJECT_URL="https://git.example/us/aoai-worker/")["urls"]
    assert urls["Source"] == "https://git.example/us/aoai-worker"
    assert urls["Issues"] == "https://git.example/us/aoai-worker/issues"
