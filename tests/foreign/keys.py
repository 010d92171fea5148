"""The keys of a run of foreign tests: a state directory as the embedded Service Bus reads it, and a token.

Delivery-ids are not looked at: some tests use one receiver from several threads, and then the SDK numbers two
deliveries alike. They pass in Azure.
"""

import dataclasses
from pathlib import Path

from embedded_azure.certificates import make_server_identity, make_signing_key, private_pem, public_pem
from embedded_azure.entra.tokens import TokenIssuer
from embedded_azure.servicebus.access import AUDIENCE
from embedded_azure.state import StateDirectory, write_atomically
from tests.support.local_azure import bus_config

_LIFETIME = 86_400.0


def write_keys(folder: Path) -> None:
    """The config in it has a namespace without entities, and `owner.jwt` is a token of the namespace's owner."""
    state = StateDirectory(folder)
    config = dataclasses.replace(bus_config(), queues=(), topics=(), strict_delivery_ids=False)
    signing, server = make_signing_key(), make_server_identity()
    write_atomically(state.entra_public_key, public_pem(signing))
    write_atomically(state.ca, server.ca_pem)
    write_atomically(state.server_certificate, server.certificate_pem)
    write_atomically(state.server_key, server.key_pem)
    config.save(state.config)
    owner = config.identity("owner")
    token = TokenIssuer(private_pem(signing), config.tenant_id, _LIFETIME).issue(
        audience=AUDIENCE, client_id=owner.client_id, object_id=owner.object_id
    )
    write_atomically(folder / "owner.jwt", token.encode())
