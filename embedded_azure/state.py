"""The state directory: where the supervisor leaves keys and the config for the embedded Azure's processes.

The supervisor is the only writer, but for the blobs. What a file holds is said here and nowhere else; the
private key of the local cluster is in none of them, so nothing that can read the directory can mint a
service-account token.
"""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class StateDirectory:
    """Names of the files below `root`."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.json"

    @property
    def entra_private_key(self) -> Path:
        return self.root / "entra.key.pem"

    @property
    def entra_public_key(self) -> Path:
        return self.root / "entra.pub.pem"

    @property
    def cluster_public_key(self) -> Path:
        """What the cluster's OIDC discovery document would lead to."""
        return self.root / "cluster.pub.pem"

    @property
    def ca(self) -> Path:
        return self.root / "tls" / "ca.pem"

    @property
    def server_certificate(self) -> Path:
        return self.root / "tls" / "server.pem"

    @property
    def server_key(self) -> Path:
        return self.root / "tls" / "server.key"

    @property
    def blobs(self) -> Path:
        """What Blob storage holds, as long as its process lives. The only file that a process writes itself."""
        return self.root / "blobs.sqlite"

    def projected_volume(self, identity: str) -> Path:
        """The directory that is mounted into the pods of `identity`."""
        return self.root / "tokens" / identity

    def projected_token(self, identity: str) -> Path:
        return self.projected_volume(identity) / "azure-identity-token"

    def environment(self, identity: str) -> Path:
        """`export K=V` lines: the environment of a pod of `identity`."""
        return self.root / "env" / f"{identity}.env"


def write_atomically(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Readers see the old file or the whole new one, never a part. Makes missing directories (0700)."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
