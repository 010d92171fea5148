"""The embedded Entra, IMDS and the cluster's token proxy answer the real azure-identity as Azure does."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import aiohttp
import pytest
from aiohttp.test_utils import TestServer
from azure.core.credentials import AccessTokenInfo
from azure.core.exceptions import (
    ClientAuthenticationError,
    ServiceRequestError,
    ServiceResponseError,
    ServiceResponseTimeoutError,
)
from azure.identity import CredentialUnavailableError
from azure.identity import ManagedIdentityCredential as SyncManagedIdentityCredential
from azure.identity import WorkloadIdentityCredential as SyncWorkloadIdentityCredential
from azure.identity.aio import ManagedIdentityCredential, WorkloadIdentityCredential

from embedded_azure.cluster import TOKEN_FILE, LocalCluster, swap_payload
from embedded_azure.config import Identity, default_config
from embedded_azure.entra import identity_binding, imds
from embedded_azure.entra.service import Entra, build_app, load_entra
from embedded_azure.entra.tokens import AccessTokens, issuer_of
from embedded_azure.process import server_context
from embedded_azure.state import StateDirectory
from embedded_azure.supervisor import prepare_state

NO_CREDENTIAL = Identity(
    name="no-credential",
    client_id="6b0f6c1e-0000-4000-8000-000000000009",
    object_id="0d0d0d0d-0000-4000-8000-000000000009",
    subject="system:serviceaccount:default:no-credential",
    federated=False,
)
_DEMO = default_config()
CONFIG = replace(
    _DEMO,
    identities=(*_DEMO.identities, NO_CREDENTIAL),
    node_identities=("worker", "producer"),
    bound_identities=("worker",),
)
SCOPE = "https://cognitiveservices.azure.com/.default"
Client = Literal["sync", "async"]
CLIENTS: tuple[Client, ...] = ("sync", "async")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Entra and its other endpoints on loopback, in this loop, and the state directory they were made from."""

    entra: Entra
    metadata: imds.InstanceMetadata
    proxy: identity_binding.TokenProxy
    cluster: LocalCluster
    state: StateDirectory
    authority: str
    imds_port: int
    proxy_port: int

    def options(self, identity: str = "worker", token_of: str = "worker", **changes: Any) -> dict[str, Any]:
        return {
            "tenant_id": CONFIG.tenant_id,
            "client_id": CONFIG.identity(identity).client_id,
            "token_file_path": str(self.state.projected_token(token_of)),
            "authority": self.authority,
            "connection_verify": str(self.state.ca),
            "retry_backoff_factor": 0,
            **changes,
        }

    def credential(self, identity: str = "worker", token_of: str = "worker") -> WorkloadIdentityCredential:
        return WorkloadIdentityCredential(**self.options(identity, token_of))

    async def ask(self, client: Client, scope: str = SCOPE, **changes: Any) -> AccessTokenInfo:
        """A token by workload identity."""
        return await ask(
            client,
            scope,
            lambda: WorkloadIdentityCredential(**self.options(**changes)),
            lambda: SyncWorkloadIdentityCredential(**self.options(**changes)),
        )

    async def ask_imds(self, client: Client, **options: Any) -> AccessTokenInfo:
        """A token by managed identity."""
        given = {"retry_backoff_factor": 0, **options}
        return await ask(
            client,
            SCOPE,
            lambda: ManagedIdentityCredential(**given),
            lambda: SyncManagedIdentityCredential(**given),
        )

    def caller_of(self, token: AccessTokenInfo, audience: str = SCOPE.removesuffix("/.default")) -> str:
        tokens = AccessTokens(self.state.entra_public_key.read_bytes(), issuer_of(CONFIG.tenant_id))
        return tokens.verify(token.token, audience).object_id


async def ask(client: Client, scope: str, make: Callable[[], Any], make_sync: Callable[[], Any]) -> AccessTokenInfo:
    if client == "async":
        async with make() as credential:
            token: AccessTokenInfo = await credential.get_token_info(scope)
            return token

    def ask_in_thread() -> AccessTokenInfo:
        with make_sync() as credential:
            token: AccessTokenInfo = credential.get_token_info(scope)
            return token

    return await asyncio.to_thread(ask_in_thread)


@asynccontextmanager
async def served(app: aiohttp.web.Application, tls: ssl.SSLContext | None) -> AsyncIterator[int]:
    server = TestServer(app, scheme="https" if tls else "http")
    await server.start_server(ssl=tls)
    assert server.port is not None
    try:
        yield server.port
    finally:
        # the error of a sync client keeps its connection open, and TLS would wait for its goodbye
        for connection in server.handler.connections:
            if connection.transport is not None:
                connection.transport.abort()
        await server.close()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[StateDirectory, LocalCluster]:
    """Making keys takes longer than most tests."""
    state = StateDirectory(tmp_path_factory.mktemp("state"))
    return state, prepare_state(state, CONFIG)


@pytest.fixture
async def bench(prepared: tuple[StateDirectory, LocalCluster]) -> AsyncIterator[Bench]:
    state, cluster = prepared
    entra = load_entra(state)
    metadata = imds.InstanceMetadata(CONFIG, entra)
    proxy = identity_binding.load_token_proxy(state)
    proxy_app, proxy_tls = identity_binding.build_proxy_app(proxy), identity_binding.proxy_context(state)
    async with AsyncExitStack() as stack:
        port = await stack.enter_async_context(served(build_app(entra), server_context(state)))
        yield Bench(
            entra=entra,
            metadata=metadata,
            proxy=proxy,
            cluster=cluster,
            state=state,
            authority=f"https://localhost:{port}/",
            imds_port=await stack.enter_async_context(served(imds.build_app(metadata), None)),
            proxy_port=await stack.enter_async_context(served(proxy_app, proxy_tls)),
        )


# Workload identity


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize(
    ("scope", "audience"),
    [
        (SCOPE, "https://cognitiveservices.azure.com"),
        ("https://ai.azure.com/.default", "https://ai.azure.com"),
        ("https://servicebus.azure.net//.default", "https://servicebus.azure.net"),
        ("https://storage.azure.com/.default", "https://storage.azure.com"),
    ],
)
async def test_workload_identity_gets_a_token_for_each_service(
    bench: Bench, client: Client, scope: str, audience: str
) -> None:
    token = await bench.ask(client, scope)
    assert bench.caller_of(token, audience) == CONFIG.identity("worker").object_id
    assert token.refresh_on is not None
    assert token.refresh_on < token.expires_on


async def test_a_rotated_token_file_is_as_good_as_the_first(bench: Bench) -> None:
    identity = CONFIG.identity("worker")
    bench.cluster.project_token(identity, bench.state.projected_volume("worker"))
    assert (await bench.ask("async")).token


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize(
    ("changes", "code", "status"),
    [
        ({"token_of": "stranger"}, 700213, 401),
        ({"identity": NO_CREDENTIAL.name}, 70025, 401),
        ({"client_id": "6b0f6c1e-0000-4000-8000-00000000000a"}, 700016, 400),
        ({"tenant_id": "72f988bf-0000-4000-8000-000000000000"}, 90002, 400),
        ({"tenant_id": "nonsense"}, 900023, 400),
    ],
)
async def test_a_refusal_is_an_authentication_error_with_its_code(
    bench: Bench, client: Client, changes: dict[str, str], code: int, status: int
) -> None:
    with pytest.raises(ClientAuthenticationError, match=f"AADSTS{code}:") as refused:
        await bench.ask(client, **changes)
    assert refused.value.status_code == status
    assert bench.entra.outcomes == {f"AADSTS{code}": 1}, "a refusal is not asked for again"


@pytest.mark.parametrize("code", [50196, 53003, 70021, 700024, 700211, 700212, 7000112, 7000229])
async def test_any_refusal_comes_on_demand_and_goes_again(bench: Bench, code: int) -> None:
    bench.entra.faults.set(b'{"kind": "refusal", "code": %d, "count": 1}' % code)
    with pytest.raises(ClientAuthenticationError, match=f"AADSTS{code}:"):
        await bench.ask("async")
    assert (await bench.ask("async")).token


async def test_a_stale_projected_token_is_refused_by_its_times(bench: Bench) -> None:
    bench.entra.faults.set(b'{"kind": "clock", "skew": 3700}')
    with pytest.raises(ClientAuthenticationError, match=r"AADSTS700024: .* not within its valid time range"):
        await bench.ask("async")


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_passing_failure_is_retried_by_the_sdk(bench: Bench, client: Client, status: int) -> None:
    bench.entra.faults.set(b'{"status": %d, "count": 2, "retry_after": 0}' % status)
    assert (await bench.ask(client)).token
    assert bench.entra.outcomes == {f"fault {status}": 2, "granted": 1}


@pytest.mark.parametrize("client", CLIENTS)
async def test_a_flood_that_does_not_pass_is_an_authentication_error_of_status_429(
    bench: Bench, client: Client
) -> None:
    bench.entra.faults.set(b'{"status": 429, "retry_after": 0}')
    with pytest.raises(ClientAuthenticationError, match="AADSTS90055") as refused:
        await bench.ask(client, retry_total=1)
    assert refused.value.status_code == 429


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (b'{"kind": "connection", "how": "reset"}', (ServiceRequestError, ServiceResponseError)),
        (b'{"kind": "connection", "how": "close"}', (ServiceRequestError, ServiceResponseError)),
        (b'{"kind": "connection", "how": "hang"}', ServiceResponseTimeoutError),
        (b'{"latency": 60}', ServiceResponseTimeoutError),
    ],
)
async def test_an_entra_that_is_down_or_slow_is_a_transport_error(
    bench: Bench, client: Client, fault: bytes, error: type[Exception] | tuple[type[Exception], ...]
) -> None:
    bench.entra.faults.set(fault)
    with pytest.raises(error):
        await bench.ask(client, retry_total=0, read_timeout=0.2)


async def test_a_malformed_token_response_is_no_token(bench: Bench) -> None:
    bench.entra.faults.set(b'{"kind": "body", "how": "malformed", "after": 20, "count": 1}')
    with pytest.raises(Exception, match=r"JSON|DecodeError"):
        await bench.ask("async", retry_total=0)
    assert (await bench.ask("async")).token


async def test_a_token_may_be_short_lived_with_a_refresh_of_its_own(bench: Bench) -> None:
    bench.entra.faults.set(b'{"kind": "token", "lifetime": 600, "refresh_in": 300}')
    token = await bench.ask("async")
    assert token.refresh_on is not None
    assert token.expires_on - token.refresh_on == 300


async def test_a_client_that_does_not_trust_the_local_ca_gets_nowhere(bench: Bench) -> None:
    assert ssl.create_default_context().verify_mode is ssl.CERT_REQUIRED
    with pytest.raises(Exception, match="certificate verify failed"):
        await bench.ask("async", connection_verify=True, retry_total=0)
    assert bench.entra.outcomes.total() == 0


# Managed identity, by IMDS


@pytest.fixture
def on_the_node(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in imds.environment(bench.imds_port).items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("on_the_node")
@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("name", ["worker", "producer"])
async def test_an_identity_of_the_node_gets_a_token_by_its_client_id(
    bench: Bench, client: Client, name: str
) -> None:
    identity = CONFIG.identity(name)
    token = await bench.ask_imds(client, client_id=identity.client_id)
    assert bench.caller_of(token) == identity.object_id
    assert token.refresh_on is not None
    assert bench.metadata.outcomes == {"granted": 1}


@pytest.mark.usefixtures("on_the_node")
@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"client_id": CONFIG.identity("stranger").client_id}, "Identity not found"),
        ({}, "Multiple user assigned identities exist"),
    ],
)
async def test_another_identity_is_unavailable(
    bench: Bench, client: Client, options: dict[str, str], words: str
) -> None:
    with pytest.raises(CredentialUnavailableError, match=words):
        await bench.ask_imds(client, **options)


@pytest.mark.usefixtures("on_the_node")
@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("status", [404, 410, 429, 500])
async def test_an_imds_that_is_not_there_yet_is_asked_again(bench: Bench, client: Client, status: int) -> None:
    bench.metadata.faults.set(b'{"status": %d, "count": 1, "retry_after": 0}' % status)
    assert (await bench.ask_imds(client, client_id=CONFIG.identity("worker").client_id)).token
    assert bench.metadata.outcomes == {f"fault {status}": 1, "granted": 1}


@pytest.mark.parametrize(
    ("headers", "query", "words"),
    [
        ({}, "api-version=2018-02-01&resource=https://ai.azure.com", "Required metadata header not specified"),
        ({"Metadata": "true"}, "resource=https://ai.azure.com", "api-version is invalid"),
        ({"Metadata": "true"}, "api-version=1&resource=https://ai.azure.com", "api-version is invalid"),
        ({"Metadata": "true"}, f"api-version=2018-02-01&client_id={NO_CREDENTIAL.client_id}", "Identity not found"),
        (
            {"Metadata": "true"},
            f"api-version=2018-02-01&client_id={CONFIG.identities[0].client_id}",
            "'resource' is missing",
        ),
        (
            {"Metadata": "true"},
            f"api-version=2018-02-01&client_id={CONFIG.identities[0].client_id}&resource=https://x.y",
            "AADSTS500011",
        ),
    ],
)
async def test_a_wrong_request_to_imds_is_400(
    bench: Bench, headers: dict[str, str], query: str, words: str
) -> None:
    url = f"http://localhost:{bench.imds_port}/metadata/identity/oauth2/token?{query}"
    async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as response:
        assert response.status == 400
        assert words in await response.text()


# Identity bindings, by the cluster's token proxy


@pytest.fixture
def bound(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in identity_binding.environment(bench.proxy_port, bench.state.ca).items():
        monkeypatch.setenv(name, value)


def bind(bench: Bench, name: str = "worker", audience: str = identity_binding.BINDING_AUDIENCE) -> dict[str, Any]:
    """The options of a credential in a pod of the binding of `name`."""
    volume = bench.state.root / "bound" / name
    swap_payload(volume, {TOKEN_FILE: bench.cluster.sign_token(CONFIG.identity(name), audience).encode()})
    options = {"identity": name, "token_file_path": str(volume / TOKEN_FILE), "enable_azure_proxy": True}
    return {**options, "authority": "https://login.microsoftonline.com/"}


@pytest.mark.usefixtures("bound")
@pytest.mark.parametrize("client", CLIENTS)
async def test_a_bound_service_account_gets_a_token_through_the_proxy(bench: Bench, client: Client) -> None:
    token = await bench.ask(client, **bind(bench))
    assert bench.caller_of(token) == CONFIG.identity("worker").object_id
    assert bench.proxy.outcomes == {"granted": 1}
    assert bench.entra.outcomes.total() == 0


@pytest.mark.usefixtures("bound")
@pytest.mark.parametrize("client", CLIENTS)
async def test_the_ca_may_be_in_the_environment_itself(
    bench: Bench, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AZURE_KUBERNETES_CA_FILE")
    monkeypatch.setenv("AZURE_KUBERNETES_CA_DATA", bench.state.ca.read_text())
    assert (await bench.ask(client, **bind(bench))).token


@pytest.mark.usefixtures("bound")
@pytest.mark.parametrize("client", CLIENTS)
async def test_a_service_account_without_a_binding_is_forbidden(bench: Bench, client: Client) -> None:
    with pytest.raises(ClientAuthenticationError, match="use-managed-identity"):
        await bench.ask(client, **bind(bench, "producer"))


@pytest.mark.usefixtures("bound")
async def test_the_token_of_the_plain_federation_opens_nothing_at_the_proxy(bench: Bench) -> None:
    with pytest.raises(ClientAuthenticationError, match="AADSTS700212"):
        await bench.ask("async", **bind(bench, audience="api://AzureADTokenExchange"))


async def test_the_token_of_a_binding_opens_nothing_at_entra(bench: Bench) -> None:
    with pytest.raises(ClientAuthenticationError, match="AADSTS700212"):
        await bench.ask("async", **{**bind(bench), "authority": bench.authority})


@pytest.mark.usefixtures("bound")
@pytest.mark.parametrize("client", CLIENTS)
async def test_a_client_that_names_no_server_is_turned_away_in_the_handshake(
    bench: Bench, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AZURE_KUBERNETES_SNI_NAME")
    with pytest.raises(ServiceRequestError):
        await bench.ask(client, **bind(bench), retry_total=0)


@pytest.mark.usefixtures("bound")
@pytest.mark.parametrize("client", CLIENTS)
async def test_a_failing_proxy_is_asked_again_at_its_own_address(bench: Bench, client: Client) -> None:
    bench.proxy.faults.set(b'{"status": 503, "count": 1, "retry_after": 0}')
    assert (await bench.ask(client, **bind(bench))).token
    assert bench.proxy.outcomes == {"fault 503": 1, "granted": 1}
