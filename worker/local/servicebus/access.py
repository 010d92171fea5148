"""Who may do what on one connection: the tokens put on it, the roles of their owners, and when they end.

A claim is needed for every link: `Send` to send, `Listen` to receive, settle and peek. It comes from a role of
the token's owner on the queue or the namespace, as Azure RBAC has it. Nothing is allowed without a token.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Final

from worker.local.tokens import AccessTokens, Caller, TokenRefused
from worker.local.world import Role, World

AUDIENCE: Final = "https://servicebus.azure.net"
UNAUTHORIZED: Final = "amqp:unauthorized-access"
_SAS: Final = "SharedAccessSignature"


class Claim(Enum):
    SEND = "Send"
    LISTEN = "Listen"


_ROLES: Final[Mapping[Claim, frozenset[Role]]] = {
    Claim.SEND: frozenset({"Azure Service Bus Data Sender", "Azure Service Bus Data Owner"}),
    Claim.LISTEN: frozenset({"Azure Service Bus Data Receiver", "Azure Service Bus Data Owner"}),
}


class AccessRefused(Exception):
    """No token, or not the role. The description may be shown to the client."""

    def __init__(self, description: str) -> None:
        super().__init__(description)
        self.description = description


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
    def queue(self) -> str:
        """The queue an entity belongs to: `jobs` for `jobs/$DeadLetterQueue` and `jobs/$management`."""
        return self.path.partition("/$")[0]


class Access:
    """The rights of one connection. `hosts` are the names the namespace goes by; `clock` gives unix seconds."""

    def __init__(
        self, tokens: AccessTokens, world: World, hosts: frozenset[str], clock: Callable[[], float]
    ) -> None:
        self._tokens = tokens
        self._world = world
        self._hosts = hosts
        self._clock = clock
        self._callers: dict[str, Caller] = {}

    def put_token(self, audience: str, token: str) -> None:
        """Grants what is under `audience`, an `sb://` address, to whom the token is for. Raises AccessRefused."""
        if token.startswith(_SAS):
            raise AccessRefused(
                "InvalidAuthorization: local (SAS) authentication is disabled for this namespace; "
                "use a Microsoft Entra token."
            )
        address = self.own(audience)
        try:
            caller = self._tokens.verify(token, AUDIENCE)
        except TokenRefused as refusal:
            raise AccessRefused(refusal.reason) from refusal
        self._callers[address.path.casefold()] = caller

    def own(self, address: str) -> Address:
        """Raises AccessRefused for an address in another namespace."""
        parsed = Address.parse(address)
        if parsed.host is not None and parsed.host not in self._hosts:
            raise AccessRefused(
                f"InvalidAudience: '{parsed.host}' is not this namespace, which is '{self._world.namespace}'."
            )
        return parsed

    def check_token(self, address: Address) -> Caller:
        """Whose token covers the address. Raises AccessRefused when there is none, or it has expired."""
        caller = self._caller(address.path)
        if caller is None:
            raise AccessRefused(
                f"Unauthorized access. A token for '{self._name(address)}' or what is above it is required to "
                "perform this operation; put one on $cbs first."
            )
        if caller.expires_at <= self._clock():
            raise AccessRefused(
                f"ExpiredToken: The token is expired. Expiration time: '{_utc(caller.expires_at)}'."
            )
        return caller

    def check(self, address: Address, *claims: Claim) -> None:
        """Raises AccessRefused unless the token's owner has one of the claims on the address."""
        caller = self.check_token(address)
        roles = self._world.roles_of(caller.object_id, f"servicebus/{address.queue}")
        if not any(roles & _ROLES[claim] for claim in claims):
            wanted = "' or '".join(claim.value for claim in claims)
            raise AccessRefused(
                f"Unauthorized access. '{wanted}' claim(s) are required to perform this operation. "
                f"Resource: '{self._name(address)}'. The token's owner is '{caller.object_id}'."
            )

    def next_expiry(self) -> float | None:
        """Unix seconds."""
        return min((caller.expires_at for caller in self._callers.values()), default=None)

    def drop_expired(self) -> None:
        now = self._clock()
        self._callers = {path: caller for path, caller in self._callers.items() if caller.expires_at > now}

    def _caller(self, path: str) -> Caller | None:
        """The token put for the path itself, or for the nearest above it; the namespace's own path is empty."""
        path = path.casefold()
        while path not in self._callers:
            if not path:
                return None
            path = path.rpartition("/")[0]
        return self._callers[path]

    def _name(self, address: Address) -> str:
        return f"sb://{self._world.namespace}/{address.path}"


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
