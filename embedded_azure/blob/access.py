"""Who may do what in the storage account: Entra's tokens and data roles, and nothing else.

The account has shared key access disabled: its keys, and signatures made with them, are refused.
"""

from collections.abc import Mapping
from enum import Enum
from typing import Final

from embedded_azure.blob.refusals import Refused
from embedded_azure.config import Config, Role
from embedded_azure.entra.tokens import AccessTokens, Caller, TokenRefused

AUDIENCE: Final = "https://storage.azure.com"
FIRST_VERSION_WITH_TOKENS: Final = "2017-11-09"
_VERSION_LENGTH: Final = len(FIRST_VERSION_WITH_TOKENS)


class Right(Enum):
    READ = "read"
    WRITE = "write"
    """Delete as well: no data role has one without the other."""


_WRITERS: Final[frozenset[Role]] = frozenset({"Storage Blob Data Contributor", "Storage Blob Data Owner"})
_ROLES: Final[Mapping[Right, frozenset[Role]]] = {
    Right.READ: _WRITERS | {"Storage Blob Data Reader"},
    Right.WRITE: _WRITERS,
}


class Access:
    """Tokens and roles of one account. A role's scope is `blob`, the account, or `blob/<container>`."""

    def __init__(self, config: Config, tokens: AccessTokens) -> None:
        self._config = config
        self._tokens = tokens
        self._challenge = {
            "WWW-Authenticate": f"Bearer authorization_uri=https://login.microsoftonline.com/{config.tenant_id}"
            f"/oauth2/authorize resource_id={AUDIENCE}"
        }

    def authenticate(self, headers: Mapping[str, str], query: Mapping[str, str]) -> Caller:
        """Whom the bearer token speaks for. Raises Refused: 401 with a challenge, or 403 for a key."""
        scheme, _, token = headers.get("Authorization", "").partition(" ")
        if scheme.lower() in ("sharedkey", "sharedkeylite") or (not scheme and "sig" in query):
            raise Refused("KeyBasedAuthenticationNotPermitted")
        if scheme.lower() != "bearer" or not token:
            raise Refused("NoAuthenticationInformation", headers=self._challenge)
        _check_version(headers.get("x-ms-version", ""))
        try:
            return self._tokens.verify(token.strip(), AUDIENCE)
        except TokenRefused as refusal:
            raise Refused("InvalidAuthenticationInfo", refusal.reason, headers=self._challenge) from refusal

    def authorize(self, caller: Caller, right: Right, container: str | None) -> None:
        """Raises Refused unless a role of the caller on the container (on the account, for None) has the right."""
        scope = "blob" if container is None else f"blob/{container}"
        if not self._config.roles_of(caller.object_id, scope) & _ROLES[right]:
            raise Refused("AuthorizationPermissionMismatch")


def _check_version(version: str) -> None:
    if not version or (len(version) == _VERSION_LENGTH and version < FIRST_VERSION_WITH_TOKENS):
        raise Refused("AuthenticationFailed", "Authentication scheme Bearer is not supported in this version.")
    if len(version) != _VERSION_LENGTH or not version.replace("-", "").isdigit():
        raise Refused("InvalidHeaderValue", f"x-ms-version is {version!r:.80}; it is a date such as 2023-11-03")
