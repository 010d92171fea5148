"""What tests of the embedded Azure need to stand before it: keys, a credential of their own, SDK clients.

Values only; the fixtures are in the `conftest.py` of the folder that uses them.
"""

import ssl
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from azure.core.credentials import AccessToken
from azure.servicebus import TransportType
from azure.servicebus.aio import ServiceBusClient

from embedded_azure.certificates import make_server_identity, make_signing_key, private_pem, public_pem
from embedded_azure.config import Config, Identity, QueueSpec, RoleAssignment, RuleSpec, SubscriptionSpec, TopicSpec
from embedded_azure.entra.tokens import TokenIssuer
from embedded_azure.servicebus.server import ServiceBus


@dataclass(frozen=True)
class Authority:
    """The keys of this run: Entra's, and a certificate for `localhost` with its CA."""

    entra_private: bytes
    entra_public: bytes
    ca_file: Path
    certificate_file: Path
    key_file: Path

    def tls(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate_file, self.key_file)
        return context

    def trust(self) -> ssl.SSLContext:
        """What a client believes."""
        return ssl.create_default_context(cafile=self.ca_file)


def make_authority(folder: Path) -> Authority:
    """Writes the certificates into `folder`."""
    key = make_signing_key()
    server = make_server_identity()
    authority = Authority(
        entra_private=private_pem(key),
        entra_public=public_pem(key),
        ca_file=folder / "ca.pem",
        certificate_file=folder / "server.pem",
        key_file=folder / "server.key",
    )
    authority.ca_file.write_bytes(server.ca_pem)
    authority.certificate_file.write_bytes(server.certificate_pem)
    authority.key_file.write_bytes(server.key_pem)
    return authority


@dataclass
class SignedCredential:
    """Signs tokens itself. `claimed_lifetime` is what the SDK is told, `lifetimes` the truth, each in its turn."""

    private_key: bytes
    tenant_id: str
    identity: Identity
    audience: str | None = None
    lifetimes: list[float] = field(default_factory=lambda: [3600.0])
    claimed_lifetime: float = 3600.0
    asked: int = 0

    async def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        lifetime = self.lifetimes[min(self.asked, len(self.lifetimes) - 1)]
        self.asked += 1
        token = TokenIssuer(self.private_key, self.tenant_id, lifetime).issue(
            audience=self.audience or scopes[0].removesuffix("/.default"),
            client_id=self.identity.client_id,
            object_id=self.identity.object_id,
        )
        return AccessToken(token, int(time.time() + self.claimed_lifetime))

    async def close(self) -> None: ...

    async def __aenter__(self) -> "SignedCredential":
        return self

    async def __aexit__(self, *error: object) -> None: ...


@dataclass(frozen=True)
class Bus:
    """The embedded Service Bus, and how to get clients of it."""

    tls_port: int | None
    plain_port: int | None
    config: Config
    authority: Authority
    service: ServiceBus | None = None
    """Inside this process, or None when it has one of its own."""

    def credential(self, identity: str = "owner", **options: Any) -> SignedCredential:
        return SignedCredential(
            private_key=self.authority.entra_private,
            tenant_id=self.config.tenant_id,
            identity=self.config.identity(identity),
            **options,
        )

    def client(self, identity: str = "owner", *, credential: Any = None, **options: Any) -> ServiceBusClient:
        """A client over TLS, as in a pod."""
        return ServiceBusClient(
            self.config.namespace,
            credential or self.credential(identity),
            **{
                "custom_endpoint_address": f"sb://localhost:{self.tls_port}",
                "transport_type": TransportType.Amqp,
                "connection_verify": str(self.authority.ca_file),
                "retry_backoff_factor": 0.01,
                "socket_timeout": 0.05,
                **options,
            },
        )


def bus_config() -> Config:
    names = ("owner", "sender", "receiver", "stranger")
    people = {
        name: Identity(
            name=name,
            client_id=f"00000000-0000-4000-8000-00000000000{number}",
            object_id=f"11111111-0000-4000-8000-00000000000{number}",
            subject=f"system:serviceaccount:default:{name}",
        )
        for number, name in enumerate(names)
    }
    return Config(
        identities=tuple(people.values()),
        role_assignments=(
            RoleAssignment(
                object_id=people["owner"].object_id, role="Azure Service Bus Data Owner", scope="servicebus"
            ),
            RoleAssignment(
                object_id=people["sender"].object_id,
                role="Azure Service Bus Data Sender",
                scope="servicebus/jobs",
            ),
            RoleAssignment(
                object_id=people["sender"].object_id,
                role="Azure Service Bus Data Sender",
                scope="servicebus/chat",
            ),
            RoleAssignment(
                object_id=people["receiver"].object_id,
                role="Azure Service Bus Data Receiver",
                scope="servicebus/jobs",
            ),
            RoleAssignment(
                object_id=people["sender"].object_id,
                role="Azure Service Bus Data Sender",
                scope="servicebus/events",
            ),
            RoleAssignment(
                object_id=people["receiver"].object_id,
                role="Azure Service Bus Data Receiver",
                scope="servicebus/events/Subscriptions/all",
            ),
        ),
        topics=(
            TopicSpec(
                name="events",
                subscriptions=(
                    SubscriptionSpec(name="all"),
                    SubscriptionSpec(
                        name="big", rules=(RuleSpec(name="big", sql="n > 3 AND sys.Label = 'order'"),)
                    ),
                    SubscriptionSpec(name="chats", requires_session=True),
                ),
            ),
        ),
        queues=(
            QueueSpec(name="jobs"),
            QueueSpec(name="brief", lock_duration=0.5, max_delivery_count=3),
            QueueSpec(name="held", lock_duration=2.0),
            QueueSpec(name="chat", requires_session=True),
            QueueSpec(name="brief-chat", requires_session=True, lock_duration=0.5),
            QueueSpec(name="small", max_message_bytes=2_000),
            QueueSpec(name="narrow", max_size_bytes=3_000),
            QueueSpec(name="onward", forward_to="jobs", forward_dead_letters_to="jobs"),
            QueueSpec(name="large", max_message_bytes=3 << 20),
            QueueSpec(name="mourned", forward_dead_letters_to="jobs"),
        ),
    )
