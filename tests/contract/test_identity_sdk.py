"""The embedded Entra answers the real azure-identity as Entra does."""

import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from aiohttp.test_utils import TestServer
from azure.core.exceptions import ClientAuthenticationError
from azure.identity.aio import WorkloadIdentityCredential

from worker.local.cluster import LocalCluster
from worker.local.entra import Entra, build_app, load_entra
from worker.local.process import server_context
from worker.local.state import StateDirectory
from worker.local.supervisor import prepare_state
from worker.local.tokens import AccessTokens, issuer_of
from worker.local.world import default_world

WORLD = default_world()
SCOPE = "https://cognitiveservices.azure.com/.default"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """An Entra on loopback, in this loop, and the state directory it was made from."""

    entra: Entra
    cluster: LocalCluster
    state: StateDirectory
    authority: str

    def credential(self, identity: str = "worker", token_of: str = "worker") -> WorkloadIdentityCredential:
        return WorkloadIdentityCredential(
            tenant_id=WORLD.tenant_id,
            client_id=WORLD.identity(identity).client_id,
            token_file_path=str(self.state.projected_token(token_of)),
            authority=self.authority,
            connection_verify=str(self.state.ca),
            retry_backoff_factor=0,
        )


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    state = StateDirectory(tmp_path)
    cluster = prepare_state(state, WORLD)
    entra = load_entra(state)
    server = TestServer(build_app(entra), scheme="https")
    await server.start_server(ssl=server_context(state))
    try:
        yield Bench(entra=entra, cluster=cluster, state=state, authority=f"https://localhost:{server.port}/")
    finally:
        await server.close()


@pytest.mark.parametrize(
    ("scope", "audience"),
    [
        (SCOPE, "https://cognitiveservices.azure.com"),
        ("https://ai.azure.com/.default", "https://ai.azure.com"),
        ("https://servicebus.azure.net//.default", "https://servicebus.azure.net"),
        ("https://storage.azure.com/.default", "https://storage.azure.com"),
    ],
)
async def test_workload_identity_gets_a_token_for_each_service(bench: Bench, scope: str, audience: str) -> None:
    async with bench.credential() as credential:
        token = await credential.get_token_info(scope)
    tokens = AccessTokens(bench.state.entra_public_key.read_bytes(), issuer_of(WORLD.tenant_id))
    assert tokens.verify(token.token, audience).object_id == WORLD.identity("worker").object_id
    assert token.refresh_on is not None
    assert token.refresh_on < token.expires_on


async def test_a_rotated_token_file_is_as_good_as_the_first(bench: Bench) -> None:
    identity = WORLD.identity("worker")
    bench.cluster.project_token(identity, bench.state.projected_volume("worker"))
    async with bench.credential() as credential:
        assert (await credential.get_token(SCOPE)).token


async def test_the_projected_token_of_another_opens_nothing(bench: Bench) -> None:
    async with bench.credential("worker", token_of="stranger") as credential:
        with pytest.raises(ClientAuthenticationError, match="AADSTS700213") as refused:
            await credential.get_token(SCOPE)
    assert refused.value.response is not None
    assert refused.value.response.status_code == 401


async def test_a_passing_failure_is_retried_by_the_sdk(bench: Bench) -> None:
    bench.entra.faults.set(b'{"status": 503, "count": 2, "retry_after": 0}')
    async with bench.credential() as credential:
        assert (await credential.get_token(SCOPE)).token
    assert bench.entra.outcomes == {"fault 503": 2, "granted": 1}


async def test_a_client_that_does_not_trust_the_local_ca_gets_nowhere(bench: Bench) -> None:
    assert ssl.create_default_context().verify_mode is ssl.CERT_REQUIRED
    async with WorkloadIdentityCredential(
        tenant_id=WORLD.tenant_id,
        client_id=WORLD.identity("worker").client_id,
        token_file_path=str(bench.state.projected_token("worker")),
        authority=bench.authority,
        retry_total=0,
    ) as credential:
        with pytest.raises(Exception, match="certificate verify failed"):
            await credential.get_token(SCOPE)
    assert bench.entra.outcomes.total() == 0
