"""Keyless, from an attacker's side: what leaks from a pod's configuration opens nothing.

A client ID, a tenant and the endpoints stand in manifests, logs and dashboards. Here they are known to the
attacker, who talks to the same Entra, Azure OpenAI and Service Bus that the worker talks to, over the wire. How
expired assertions and tokens are refused is tested with a clock in `tests/embedded`.
"""

import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jwt
import pytest
import pytest_asyncio
from aiohttp import ClientSession, TCPConnector
from azure.core.credentials import AccessToken
from azure.servicebus import TransportType
from azure.servicebus.aio import ServiceBusClient
from azure.servicebus.exceptions import ServiceBusError
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.support.processes import Azure, azure, command, config_for_tests, worker, write_batch

pytestmark = pytest.mark.asyncio(loop_scope="module")

OPENAI_SCOPE = "https://cognitiveservices.azure.com/.default"
SERVICEBUS_SCOPE = "https://servicebus.azure.net/.default"
JWT_BEARER = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
ACCOUNT = "/subscriptions/s/resourceGroups/g/providers/Microsoft.CognitiveServices/accounts/a"


@dataclass(frozen=True)
class Leak:
    """What an attacker has read in a manifest: no token, and no file of the pod."""

    client_id: str
    tenant_id: str
    authority: str
    endpoint: str
    session: ClientSession

    async def ask_entra(self, scope: str = OPENAI_SCOPE, **form: str) -> tuple[int, dict[str, Any]]:
        url = f"{self.authority}{self.tenant_id}/oauth2/v2.0/token"
        data = {"grant_type": "client_credentials", "client_id": self.client_id, "scope": scope, **form}
        async with self.session.post(url, data=data) as answer:
            return answer.status, await answer.json()

    async def exchange(self, assertion: str, scope: str = OPENAI_SCOPE) -> tuple[int, dict[str, Any]]:
        return await self.ask_entra(scope, client_assertion_type=JWT_BEARER, client_assertion=assertion)

    async def ask_model(self, **headers: str) -> tuple[int, dict[str, Any]]:
        body = {"model": "gpt-5.4-mini", "messages": [{"role": "user", "content": "Who is it?"}]}
        url = f"{self.endpoint}/openai/v1/chat/completions"
        async with self.session.post(url, json=body, headers=headers) as answer:
            return answer.status, await answer.json()


@asynccontextmanager
async def leaked(cloud: Azure) -> AsyncIterator[Leak]:
    environment = cloud.environment("worker")
    context = ssl.create_default_context(cafile=environment["AOAI_WORKER_CA_FILE"])
    async with ClientSession(connector=TCPConnector(ssl=context)) as session:
        yield Leak(
            client_id=environment["AZURE_CLIENT_ID"],
            tenant_id=environment["AZURE_TENANT_ID"],
            authority=environment["AZURE_AUTHORITY_HOST"].rstrip("/") + "/",
            endpoint=environment["AZURE_OPENAI_ENDPOINT"],
            session=session,
        )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cloud(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Azure]:
    async with azure(tmp_path_factory.mktemp("keyless"), config_for_tests()) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def leak(cloud: Azure) -> AsyncIterator[Leak]:
    async with leaked(cloud) as found:
        yield found


def projected_token(cloud: Azure, identity: str) -> str:
    return Path(cloud.environment(identity)["AZURE_FEDERATED_TOKEN_FILE"]).read_text()


def forged_assertion(cloud: Azure) -> str:
    """Every claim as the cluster would write it, signed by somebody else."""
    claims = jwt.decode(projected_token(cloud, "worker"), options={"verify_signature": False})
    return jwt.encode(claims, rsa.generate_private_key(65537, 2048), algorithm="RS256")


async def test_the_pods_own_projected_token_is_exchanged_and_answered(cloud: Azure, leak: Leak) -> None:
    """The control: the same requests, with the one thing that does not leak."""
    status, document = await leak.exchange(projected_token(cloud, "worker"))
    assert status == 200
    status, _ = await leak.ask_model(Authorization=f"Bearer {document['access_token']}")
    assert status == 200


async def test_client_id_and_tenant_alone_get_no_token(leak: Leak) -> None:
    status, document = await leak.ask_entra()
    assert status == 401
    assert "access_token" not in document


@pytest.mark.parametrize("secret", ["", "guessed", "0" * 40])
async def test_no_client_secret_is_ever_right_because_there_is_none(leak: Leak, secret: str) -> None:
    status, document = await leak.ask_entra(client_secret=secret)
    assert status == 401
    assert "access_token" not in document


async def test_an_assertion_signed_by_anybody_but_the_cluster_gets_no_token(cloud: Azure, leak: Leak) -> None:
    status, document = await leak.exchange(forged_assertion(cloud))
    assert status == 401
    assert "access_token" not in document


async def test_an_unsigned_assertion_gets_no_token(cloud: Azure, leak: Leak) -> None:
    claims = jwt.decode(projected_token(cloud, "worker"), options={"verify_signature": False})
    status, document = await leak.exchange(jwt.encode(claims, "", algorithm="none"))
    assert status in (400, 401)
    assert "access_token" not in document


async def test_the_projected_token_of_another_service_account_gets_no_token(cloud: Azure, leak: Leak) -> None:
    status, document = await leak.exchange(projected_token(cloud, "stranger"))
    assert status == 401
    assert document["error_codes"] == [700213]


async def test_the_token_of_an_identity_without_the_role_gets_no_answer(cloud: Azure, leak: Leak) -> None:
    stranger = cloud.config.identity("stranger").client_id
    status, document = await leak.ask_entra(
        client_id=stranger,
        client_assertion_type=JWT_BEARER,
        client_assertion=projected_token(cloud, "stranger"),
    )
    assert status == 200, "it is somebody, after all"
    status, refusal = await leak.ask_model(Authorization=f"Bearer {document['access_token']}")
    assert status == 401
    assert refusal["error"]["code"] == "PermissionDenied"


async def test_a_token_for_another_service_gets_no_answer(cloud: Azure, leak: Leak) -> None:
    _, document = await leak.exchange(projected_token(cloud, "worker"), SERVICEBUS_SCOPE)
    status, _ = await leak.ask_model(Authorization=f"Bearer {document['access_token']}")
    assert status == 401


async def test_the_projected_token_itself_is_no_bearer_token(cloud: Azure, leak: Leak) -> None:
    status, _ = await leak.ask_model(Authorization=f"Bearer {projected_token(cloud, 'worker')}")
    assert status == 401


async def test_without_a_token_there_is_no_answer(leak: Leak) -> None:
    assert (await leak.ask_model())[0] == 401


async def test_no_api_key_opens_the_account(leak: Leak) -> None:
    status, refusal = await leak.ask_model(**{"api-key": "0" * 32})
    assert status == 403
    assert refusal["error"]["code"] == "AuthenticationTypeDisabled"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", f"{ACCOUNT}/listKeys"),
        ("POST", f"{ACCOUNT}/regenerateKey"),
        ("PUT", f"{ACCOUNT}/deployments/gpt-5.4"),
        ("DELETE", "/openai/deployments/gpt-5.4-mini"),
    ],
)
async def test_even_the_workers_own_token_lists_no_keys_and_changes_no_deployment(
    cloud: Azure, leak: Leak, method: str, path: str
) -> None:
    _, document = await leak.exchange(projected_token(cloud, "worker"))
    headers = {"Authorization": f"Bearer {document['access_token']}"}
    async with leak.session.request(method, leak.endpoint + path, headers=headers) as answer:
        assert answer.status == 403


class FixedToken:
    """A credential that hands out one token, whatever it is asked for."""

    def __init__(self, token: str) -> None:
        self._token = token

    async def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        return AccessToken(self._token, int(time.time()) + 3_600)

    async def close(self) -> None: ...

    async def __aenter__(self) -> "FixedToken":
        return self

    async def __aexit__(self, *error: object) -> None: ...


@pytest.mark.parametrize("token", ["wrong audience", "forged", "no role"])
async def test_service_bus_opens_no_queue_to_it_either(cloud: Azure, leak: Leak, token: str) -> None:
    environment = cloud.environment("worker")
    if token == "wrong audience":
        _, document = await leak.exchange(projected_token(cloud, "worker"), OPENAI_SCOPE)
        bearer = document["access_token"]
    elif token == "forged":
        bearer = forged_assertion(cloud)
    else:
        _, document = await leak.ask_entra(
            SERVICEBUS_SCOPE,
            client_id=cloud.config.identity("stranger").client_id,
            client_assertion_type=JWT_BEARER,
            client_assertion=projected_token(cloud, "stranger"),
        )
        bearer = document["access_token"]
    client = ServiceBusClient(
        environment["AOAI_WORKER_SERVICEBUS_NAMESPACE"],
        FixedToken(bearer),
        custom_endpoint_address=f"sb://{environment['AOAI_WORKER_SERVICEBUS_ENDPOINT']}",
        transport_type=TransportType.Amqp,
        connection_verify=environment["AOAI_WORKER_CA_FILE"],
        retry_total=0,
    )
    async with client:
        with pytest.raises(ServiceBusError):
            async with client.get_queue_receiver("jobs") as receiver:
                await receiver.receive_messages(max_wait_time=1)


async def test_a_worker_given_only_what_leaks_becomes_never_ready_and_takes_no_job(
    cloud: Azure, tmp_path: Path
) -> None:
    """The very process, with a forged token where the projected one would be."""
    stolen = tmp_path / "azure-identity-token"
    stolen.write_text(forged_assertion(cloud))
    impostor = ImpostorsAzure(cloud.state, cloud.config, cloud.servicebus, stolen)
    async with worker(impostor) as one:
        await one.process.printed("setup_check_failed")
        status, body = await one.get("/readyz")
        assert status == 503
        assert "AADSTS" in body
        assert (await command(cloud, "submit", str(write_batch(tmp_path / "in.jsonl", 2))))[0] == 0
        assert await one.metric("aoai_worker_jobs_received_total") == 0
        assert await one.metric("aoai_worker_token_refresh_failures_total") > 0


@dataclass(frozen=True)
class ImpostorsAzure(Azure):
    """The same Azure; the pod's token file is another."""

    token_file: Path

    def environment(self, identity: str = "worker") -> dict[str, str]:
        return super().environment(identity) | {"AZURE_FEDERATED_TOKEN_FILE": str(self.token_file)}


@pytest.mark.parametrize("way", ["node_identities", "bound_identities"])
async def test_a_worker_works_as_the_nodes_identity_and_by_an_identity_binding(way: str, tmp_path: Path) -> None:
    """Without the pod's own exchange with Entra: over IMDS, and over the cluster's token proxy."""
    config = replace(config_for_tests(), **{way: ("worker",)})  # type: ignore[arg-type]
    async with azure(tmp_path, config) as cloud, worker(cloud) as one:
        assert (await command(cloud, "submit", str(write_batch(tmp_path / "in.jsonl", 5)), "--batch", "b"))[0] == 0
        code, output = await command(cloud, "collect", "b", "-o", str(tmp_path / "out.jsonl"), "--follow")
        assert code == 0, output
        assert await one.metric("aoai_worker_jobs_total") == 5
        # one for each of Azure OpenAI, Service Bus and Blob storage
        assert await one.metric("aoai_worker_token_refreshes_total") == 3
