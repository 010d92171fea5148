"""Microsoft's Azurite as a process: a second opinion on what the embedded Blob storage answers.

It looks at a token's issuer, audience and times, and not at its signature nor at roles. Its account has a random
key that nobody is told, so that tokens are the only way in. All it holds is in memory.
"""

import base64
import os
import re
import secrets
import select
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from embedded_azure.state import StateDirectory
from tests.support.patience import PATIENCE

_FOLDER = Path(__file__).parents[1] / "azurite"
_STARTED = re.compile(rb"listens on https://[\d.]+:(\d+)")


@contextmanager
def azurite(state: StateDirectory, account: str) -> Iterator[int]:
    """Its port on loopback. Skips the test where there is no Node.js; fails it where only Azurite is missing."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("NOT COMPARED WITH AZURITE: Node.js 20 or newer is missing on this machine")
    if not (_FOLDER / "node_modules" / "azurite").is_dir():
        pytest.fail(f"Azurite is not installed in {_FOLDER}. Next: run scripts/azurite")
    child = subprocess.Popen(
        [
            *(node, str(_FOLDER / "start.js"), "--blobPort", "0"),
            *("--inMemoryPersistence", "--silent", "--disableTelemetry", "--disableProductStyleUrl"),
            *("--oauth", "basic", "--cert", str(state.server_certificate), "--key", str(state.server_key)),
        ],
        cwd=state.root,
        env={**os.environ, "AZURITE_ACCOUNTS": f"{account}:{base64.b64encode(secrets.token_bytes(64)).decode()}"},
        # never written to: its end tells Azurite to stop, and comes however the tests end
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        bufsize=0,  # what a buffer has taken in, select does not see
    )
    try:
        yield _port(child)
    finally:
        child.communicate(timeout=PATIENCE)


def _port(child: "subprocess.Popen[bytes]") -> int:
    assert child.stdout is not None
    said = b""
    while select.select([child.stdout], [], [], PATIENCE)[0] and (line := child.stdout.readline()):
        said += line
        if found := _STARTED.search(line):
            return int(found[1])
    child.kill()
    pytest.fail(f"Azurite did not start: {said.decode(errors='replace')}")
