"""What tests of Blob storage need to stand before Azurite: it, a container of their own, and an identity."""

import json
import select
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from embedded_azure.blob.azurite import ACCOUNT, AUDIENCE, create_container
from embedded_azure.state import StateDirectory
from embedded_azure.supervisor import prepare_state
from embedded_azure.world import World, default_world
from tests.support.local_azure import SignedCredential
from tests.support.patience import PATIENCE
from worker.azure.blob.container import BlobContainer


@dataclass(frozen=True)
class BlobService:
    """A running Azurite, and the keys of the Azure around it."""

    port: int
    state: StateDirectory
    world: World

    def credential(self, *, audience: str = AUDIENCE) -> SignedCredential:
        return SignedCredential(
            private_key=self.state.entra_private_key.read_bytes(),
            tenant_id=self.world.tenant_id,
            identity=self.world.identity("worker"),
            audience=audience,
        )

    def url(self, container: str) -> str:
        return f"https://localhost:{self.port}/{ACCOUNT}/{container}"

    async def new_container(self) -> str:
        """The url of an empty one."""
        url = self.url(f"test-{uuid.uuid4().hex}")
        token = await self.credential().get_token(AUDIENCE)
        await create_container(url, token.token, self.state.ca)
        return url

    def open(self, url: str, *, audience: str = AUDIENCE, timeout: float = PATIENCE) -> BlobContainer:
        return BlobContainer(
            url, self.credential(audience=audience), ca_file=self.state.ca, connections=8, timeout=timeout
        )


@contextmanager
def blob_service(folder: Path) -> Iterator[BlobService]:
    """Skips the test where there is no Node.js; fails it where only Azurite is missing."""
    if shutil.which("node") is None:
        # all but Blob storage works without Node.js, as the README says; scripts/azurite warns of it before the run
        pytest.skip("BLOB STORAGE IS NOT TESTED: Node.js 20 or newer is missing on this machine")
    state, world = StateDirectory(folder), default_world()
    prepare_state(state, world)
    child = subprocess.Popen(
        [sys.executable, "-m", "embedded_azure.blob.azurite", "--state", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        yield BlobService(_port(child), state, world)
    finally:
        child.communicate(timeout=PATIENCE)


def _port(child: "subprocess.Popen[bytes]") -> int:
    assert child.stdout is not None
    assert child.stderr is not None
    ready, _, _ = select.select([child.stdout], [], [], PATIENCE)
    line = child.stdout.readline() if ready else b""
    if not line:
        child.kill()
        pytest.fail(f"Azurite did not start: {child.stderr.read().decode()}")
    return int(json.loads(line)["port"])
