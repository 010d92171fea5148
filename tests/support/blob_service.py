"""What tests of Blob storage need to stand before it: the service, a container of their own, and identities."""

import json
import select
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from azure.storage.blob.aio import BlobServiceClient

from embedded_azure.blob.access import AUDIENCE
from embedded_azure.config import Config, RoleAssignment, default_config
from embedded_azure.state import StateDirectory
from embedded_azure.supervisor import prepare_state
from tests.support.azurite import azurite
from tests.support.local_azure import Authority, SignedCredential, bus_config
from tests.support.patience import PATIENCE
from worker.azure.blob.container import API_VERSION, BlobContainer


@dataclass(frozen=True)
class BlobService:
    """A running Blob storage, ours or Azurite, and the keys of the Azure around it."""

    port: int
    state: StateDirectory
    config: Config

    def credential(self, identity: str = "worker", *, audience: str = AUDIENCE) -> SignedCredential:
        return SignedCredential(
            private_key=self.state.entra_private_key.read_bytes(),
            tenant_id=self.config.tenant_id,
            identity=self.config.identity(identity),
            audience=audience,
        )

    @property
    def account_url(self) -> str:
        return f"https://localhost:{self.port}/{self.config.storage_account}"

    def url(self, container: str) -> str:
        return f"{self.account_url}/{container}"

    def client(self, identity: str = "worker", **options: Any) -> BlobServiceClient:
        """A client that tries nothing again."""
        return BlobServiceClient(
            self.account_url,
            self.credential(identity),
            connection_verify=str(self.state.ca),
            api_version=API_VERSION,
            retry_total=0,
            **options,
        )

    async def new_container(self) -> str:
        """The url of an empty one."""
        name = f"test-{uuid.uuid4().hex}"
        async with self.client() as client:
            await client.create_container(name)
        return self.url(name)

    def open(
        self, url: str, identity: str = "worker", *, audience: str = AUDIENCE, timeout: float = PATIENCE
    ) -> BlobContainer:
        credential = self.credential(identity, audience=audience)
        return BlobContainer(url, credential, ca_file=self.state.ca, connections=8, timeout=timeout)


def config_of_blobs() -> Config:
    """The demo's, where the worker and the owner of the tests' Service Bus may make containers, and the producer
    may only read."""
    config = default_config()
    writers = (config.identity("worker"), bus_config().identity("owner"))
    return replace(
        config,
        role_assignments=(
            *(
                RoleAssignment(object_id=each.object_id, role="Storage Blob Data Contributor", scope="blob")
                for each in writers
            ),
            RoleAssignment(
                object_id=config.identity("producer").object_id, role="Storage Blob Data Reader", scope="blob"
            ),
        ),
    )


@contextmanager
def embedded_blobs(folder: Path, authority: Authority) -> Iterator[BlobService]:
    """Ours, as a process."""
    service = _prepare(folder, authority)
    child = subprocess.Popen(
        [sys.executable, "-m", "embedded_azure.blob", "--state", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        yield replace(service, port=_port(child))
    finally:
        child.communicate(timeout=PATIENCE)


@contextmanager
def azurite_blobs(folder: Path, authority: Authority) -> Iterator[BlobService]:
    """Microsoft's. Skips the test where there is no Node.js."""
    service = _prepare(folder, authority)
    with azurite(service.state, service.config.storage_account) as port:
        yield replace(service, port=port)


def _prepare(folder: Path, authority: Authority) -> BlobService:
    """Believes the tokens of `authority`, as the embedded Service Bus of the tests does."""
    state, config = StateDirectory(folder), config_of_blobs()
    prepare_state(state, config)
    state.entra_private_key.write_bytes(authority.entra_private)
    state.entra_public_key.write_bytes(authority.entra_public)
    return BlobService(0, state, config)


def _port(child: "subprocess.Popen[bytes]") -> int:
    assert child.stdout is not None
    ready, _, _ = select.select([child.stdout], [], [], PATIENCE)
    line = child.stdout.readline() if ready else b""
    if not line:
        child.kill()
        pytest.fail("the embedded Blob storage did not start; what it said is above")
    return int(json.loads(line)["port"])
