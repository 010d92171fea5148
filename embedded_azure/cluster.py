"""The local Kubernetes cluster, as far as workload identity sees it: an OIDC issuer and a kubelet.

The issuer signs service-account tokens; the kubelet projects them into volumes and rewrites them at 80 % of
their life, by the same symlink swap as the real one, so that a reader sees a whole token at any moment.
"""

import asyncio
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from embedded_azure.certificates import public_pem
from embedded_azure.config import Identity

FEDERATION_AUDIENCE = "api://AzureADTokenExchange"
"""The audience Entra wants of an assertion, and the webhook therefore asks of the kubelet."""

KEY_ID = "local-cluster-1"
TOKEN_FILE = "azure-identity-token"
BINDING_TOKEN_FILE = "azure-identity-binding-token"
_ROTATE_AT = 0.8


class LocalCluster:
    """Signs and projects service-account tokens. `token_lifetime` is in seconds.

    `audiences`: by identity's name, for whom else than Entra it has a token (`BINDING_TOKEN_FILE`).
    """

    def __init__(
        self,
        key: RSAPrivateKey,
        issuer: str,
        token_lifetime: float,
        clock: Callable[[], float] = time.time,
        audiences: Mapping[str, str] | None = None,
    ) -> None:
        self._key = key
        self._audiences = audiences or {}
        self._issuer = issuer
        self._clock = clock
        self.token_lifetime = token_lifetime

    @property
    def public_key_pem(self) -> bytes:
        """What Entra fetches from the issuer's discovery document."""
        return public_pem(self._key)

    def sign_token(self, identity: Identity, audience: str = FEDERATION_AUDIENCE) -> str:
        """A service-account token as the API server's TokenRequest returns it."""
        now = self._clock()
        _, _, namespace, account = identity.subject.split(":")
        claims = {
            "aud": [audience],
            "iss": self._issuer,
            "sub": identity.subject,
            "iat": int(now),
            "nbf": int(now),
            "exp": int(now + self.token_lifetime),
            "jti": str(uuid.uuid4()),
            "kubernetes.io": {
                "namespace": namespace,
                "node": {"name": "local", "uid": _uid("node/local")},
                "pod": {"name": f"{account}-0", "uid": _uid(f"pod/{namespace}/{account}-0")},
                "serviceaccount": {"name": account, "uid": _uid(f"serviceaccount/{namespace}/{account}")},
            },
        }
        return jwt.encode(claims, self._key, algorithm="RS256", headers={"kid": KEY_ID})

    def project_token(self, identity: Identity, volume: Path) -> None:
        """Write a new token of `identity` as `volume/azure-identity-token`, in place of the old one."""
        files = {TOKEN_FILE: self.sign_token(identity).encode()}
        if audience := self._audiences.get(identity.name):
            files[BINDING_TOKEN_FILE] = self.sign_token(identity, audience).encode()
        swap_payload(volume, files)

    async def rotate_tokens(self, volumes: Mapping[Identity, Path]) -> None:
        """Rewrite every token at 80 % of its life, for ever. The first tokens are the caller's to project."""
        while True:
            await asyncio.sleep(self.token_lifetime * _ROTATE_AT)
            for identity, volume in volumes.items():
                self.project_token(identity, volume)


def swap_payload(volume: Path, files: Mapping[str, bytes]) -> None:
    """Replace all files of a projected volume at once, as Kubernetes' atomic writer lays them out.

    `NAME -> ..data/NAME`, `..data -> ..<generation>/`; renaming the link `..data` is the one visible step.
    """
    volume.mkdir(mode=0o700, parents=True, exist_ok=True)
    current = volume / "..data"
    before = current.readlink() if current.is_symlink() else None
    generation = Path(f"..{uuid.uuid4().hex}")
    _write_generation(volume / generation, files)
    _point(current, generation)
    _link_names(volume, files)
    if before is not None:
        shutil.rmtree(volume / before, ignore_errors=True)


def _write_generation(directory: Path, files: Mapping[str, bytes]) -> None:
    directory.mkdir(mode=0o700)
    for name, content in files.items():
        path = directory / name
        path.touch(mode=0o600)
        path.write_bytes(content)


def _link_names(volume: Path, names: Iterable[str]) -> None:
    for name in names:
        if not (volume / name).is_symlink():
            _point(volume / name, Path("..data") / name)


def _point(link: Path, target: Path) -> None:
    new = link.with_name(f"{link.name}_tmp")
    new.unlink(missing_ok=True)
    new.symlink_to(target)
    new.replace(link)


def _uid(name: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, name))
