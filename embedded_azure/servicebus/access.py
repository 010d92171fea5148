"""Who may do what on one connection: the tokens put on it, the roles of their owners, and when they end.

A claim is needed for every link: `Send` to send, `Listen` to receive, settle and peek. It comes from a role of
the token's owner on the entity or what is above it, as Azure RBAC has it, or from the key that signed the token.
Nothing is allowed without a token.
"""

import hmac
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from functools import partial
from math import inf
from typing import Final

from embedded_azure.config import Config, Role, SharedAccessRule
from embedded_azure.entra.tokens import AccessTokens, Caller, TokenRefused
from embedded_azure.servicebus.shared_access import SCHEME, SignatureRefused, verify

AUDIENCE: Final = "https://servicebus.azure.net"
UNAUTHORIZED: Final = "amqp:unauthorized-access"


class Claim(Enum):
    SEND = "Send"
    LISTEN = "Listen"
    MANAGE = "Manage"


_ROLES: Final[Mapping[Claim, frozenset[Role]]] = {
    Claim.SEND: frozenset({"Azure Service Bus Data Sender", "Azure Service Bus Data Owner"}),
    Claim.LISTEN: frozenset({"Azure Service Bus Data Receiver", "Azure Service Bus Data Owner"}),
    Claim.MANAGE: frozenset({"Azure Service Bus Data Owner"}),
}


class AccessRefused(Exception):
    """No token, or not the role. The description may be shown to the client; `status` is that of put-token."""

    def __init__(self, description: str, status: int = 401) -> None:
        super().__init__(description)
        self.description = description
        self.status = status


@dataclass(frozen=True, slots=True)
class Address:
    """Where in which namespace: what is left of `sb://<host>/<path>`, or of a path alone (host is then None)."""

    host: str | None
    path: str

    @classmethod
    def parse(cls, text: str) -> "Address":
        _, separator, rest = text.partition("://")
        if not separator:
            return cls(None, text.strip("/"))
        authority, _, path = rest.partition("/")
        return cls(authority.rpartition("@")[2].partition(":")[0].casefold(), path.strip("/"))

    @property
    def entity(self) -> str:
        """The entity it belongs to: `jobs` for `jobs/$DeadLetterQueue` and `jobs/$management`."""
        return self.path.partition("/$")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What one token is good for. `expires_at` in unix seconds."""

    owner: str
    expires_at: float
    allows: Callable[[Claim, Address], bool]


class Access:
    """The rights of one connection. `hosts` are the names the namespace goes by; `clock` gives unix seconds.

    `rules` are the keys by which tokens may be signed, `exists` says whether there is an entity of that path.
    """

    def __init__(
        self,
        tokens: AccessTokens,
        config: Config,
        hosts: frozenset[str],
        clock: Callable[[], float],
        *,
        rules: Sequence[SharedAccessRule] = (),
        exists: Callable[[str], bool] = lambda _path: True,
    ) -> None:
        self._tokens = tokens
        self._config = config
        self._hosts = hosts
        self._clock = clock
        self._rules = rules
        self._exists = exists
        self._grants: dict[str, Grant] = {}

    @property
    def has_keys(self) -> bool:
        """Whether there is any, so that local authentication is on."""
        return bool(self._rules)

    def put_token(self, audience: str, token: str) -> None:
        """Grants what is under `audience`, an `sb://` address, to whom the token is for. Raises AccessRefused."""
        address = self.own(audience)
        grant = self._by_signature(token, address) if token.startswith(SCHEME) else self._by_identity(token)
        if address.entity and not self._exists(address.entity):
            # Azure answers so early, and tells only those with a right there that there is nothing
            if not any(grant.allows(claim, address) for claim in Claim):
                raise AccessRefused("InvalidAudience: Invalid authorization token audience.")
            raise AccessRefused(f"The messaging entity '{self._name(address)}' could not be found.", status=404)
        self._grants[address.path.casefold()] = grant

    def put_key(self, name: str, key: str) -> bool:
        """Grants what the rule of that name grants, for as long as the connection lasts (SASL PLAIN)."""
        for rule in self._rules:
            if rule.name == name and hmac.compare_digest(rule.key.encode(), key.encode()):
                self._grants[rule.path.strip("/").casefold()] = Grant(
                    owner=name, expires_at=inf, allows=partial(_has_right, rule)
                )
                return True
        return False

    def _by_identity(self, token: str) -> Grant:
        try:
            caller = self._tokens.verify(token, AUDIENCE)
        except TokenRefused as refusal:
            raise AccessRefused(refusal.reason) from refusal
        return Grant(owner=caller.object_id, expires_at=caller.expires_at, allows=partial(self._has_role, caller))

    def _has_role(self, caller: Caller, claim: Claim, address: Address) -> bool:
        return bool(self._config.roles_of(caller.object_id, f"servicebus/{address.entity}") & _ROLES[claim])

    def _by_signature(self, token: str, audience: Address) -> Grant:
        try:
            signature = verify(token, self._rules, self._clock())
        except SignatureRefused as refusal:
            raise AccessRefused(str(refusal)) from refusal
        named = signature.resource
        resource = self.own(named if "://" in named else f"sb://{named}")  # some clients sign it without a scheme
        if not all(_covers(path, audience.path) for path in (resource.path, signature.rule.path)):
            raise AccessRefused("InvalidAudience: The authorization header contains a token with a wrong audience.")
        return Grant(
            owner=signature.rule.name, expires_at=signature.expires_at, allows=partial(_has_right, signature.rule)
        )

    def own(self, address: str) -> Address:
        """Raises AccessRefused for an address in another namespace."""
        parsed = Address.parse(address)
        if parsed.host is not None and parsed.host not in self._hosts:
            raise AccessRefused(
                f"InvalidAudience: '{parsed.host}' is not this namespace, which is '{self._config.namespace}'."
            )
        return parsed

    def check_token(self, address: Address) -> Grant:
        """The token that covers the address. Raises AccessRefused when there is none, or it has expired."""
        grant = self._grant(address.path)
        if grant is None:
            raise AccessRefused(
                f"Unauthorized access. A token for '{self._name(address)}' or what is above it is required to "
                "perform this operation; put one on $cbs first."
            )
        if grant.expires_at <= self._clock():
            raise AccessRefused(f"ExpiredToken: The token is expired. Expiration time: '{_utc(grant.expires_at)}'.")
        return grant

    def check(self, address: Address, *claims: Claim) -> None:
        """Raises AccessRefused unless the token's owner has one of the claims on the address."""
        grant = self.check_token(address)
        if not any(grant.allows(claim, address) for claim in claims):
            wanted = "' or '".join(claim.value for claim in claims)
            raise AccessRefused(
                f"Unauthorized access. '{wanted}' claim(s) are required to perform this operation. "
                f"Resource: '{self._name(address)}'. The token's owner is '{grant.owner}'."
            )

    def next_expiry(self) -> float | None:
        """Unix seconds."""
        return min((grant.expires_at for grant in self._grants.values()), default=None)

    def drop_expired(self) -> None:
        now = self._clock()
        self._grants = {path: grant for path, grant in self._grants.items() if grant.expires_at > now}

    def _grant(self, path: str) -> Grant | None:
        """The token put for the path itself, or for the nearest above it; the namespace's own path is empty."""
        path = path.casefold()
        while path not in self._grants:
            if not path:
                return None
            path = path.rpartition("/")[0]
        return self._grants[path]

    def _name(self, address: Address) -> str:
        return f"sb://{self._config.namespace}/{address.path}"


def _covers(above: str, path: str) -> bool:
    above, path = above.strip("/").casefold(), path.casefold()
    return not above or path == above or path.startswith(f"{above}/")


def _has_right(rule: SharedAccessRule, claim: Claim, _address: Address) -> bool:
    return claim.value in rule.rights or "Manage" in rule.rights


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
