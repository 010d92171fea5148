"""The embedded Azure OpenAI as an app in this loop, and a client that speaks to it as the worker would."""

import json
from dataclasses import replace
from typing import Any

from aiohttp import ClientSession
from aiohttp.test_utils import TestServer

from embedded_azure.certificates import make_signing_key, private_pem, public_pem
from embedded_azure.config import Config, Deployment, Identity, default_config
from embedded_azure.entra.tokens import AccessTokens, TokenIssuer
from embedded_azure.openai.account import Account
from embedded_azure.openai.app import build_app

KEY = make_signing_key()
DEPLOYMENTS = (
    Deployment(name="plain", model="plain-2026-03-17", latency=0.001),
    Deployment(name="small", model="plain-large", latency=0.001, requests_per_minute=60, tokens_per_minute=1_000),
    Deployment(name="instruct", model="instruct", kind="completions", latency=0.001),
    Deployment(
        name="vectors",
        model="text-embedding-3-small",
        kind="embeddings",
        latency=0.001,
        requests_per_minute=60,
        tokens_per_minute=1_000,
    ),
)
CONFIG = replace(default_config(), deployments=DEPLOYMENTS)
WORKER, STRANGER = CONFIG.identity("worker"), CONFIG.identity("stranger")
OPENAI = "https://cognitiveservices.azure.com"
V1 = "/openai/v1/chat/completions"


def token(
    identity: Identity = WORKER, audience: str = OPENAI, lifetime: float = 60.0, tenant: str = CONFIG.tenant_id
) -> str:
    issuer = TokenIssuer(private_pem(KEY), tenant, lifetime)
    return issuer.issue(audience=audience, client_id=identity.client_id, object_id=identity.object_id)


def bearer(value: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {value}"}


def body(question: str = "Who are you?", **fields: object) -> dict[str, Any]:
    return {"model": "plain", "messages": [{"role": "user", "content": question}], **fields}


class Client:
    """Speaks to the app as the worker would."""

    def __init__(self, session: ClientSession, endpoint: str) -> None:
        self.session = session
        self.endpoint = endpoint

    async def post(
        self, path: str = V1, document: object = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any, dict[str, str]]:
        headers = bearer(token()) if headers is None else headers
        document = body() if document is None else document
        async with self.session.post(path, json=document, headers=headers) as response:
            received = {name.lower(): value for name, value in response.headers.items()}
            return response.status, json.loads(await response.read()), received

    async def ask(self, question: str, **fields: object) -> tuple[int, Any, dict[str, str]]:
        return await self.post(document=body(question, **fields))

    async def stats(self) -> dict[str, Any]:
        async with self.session.get("/local/stats") as response:
            document: dict[str, Any] = await response.json()
            return document

    async def set_fault(self, **fault: object) -> int:
        async with self.session.put("/local/faults", json=fault) as response:
            return response.status


class open_client:
    """A client of an account made from `config`."""

    def __init__(self, config: Config) -> None:
        issuer = TokenIssuer(private_pem(KEY), CONFIG.tenant_id, 60.0).issuer
        # The quota's windows stand still: what a test sends falls into one.
        account = Account(config, AccessTokens(public_pem(KEY), issuer), monotonic=lambda: 1_000.0)
        self._server = TestServer(build_app(account))

    async def __aenter__(self) -> Client:
        await self._server.start_server()
        self._session = ClientSession(self._server.make_url("/"))
        return Client(self._session, str(self._server.make_url("")).rstrip("/"))

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()
        await self._server.close()
