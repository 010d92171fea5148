"""The model adapter's other side: the embedded Azure OpenAI, or a server that does as it is told, over TLS."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import orjson
from aiohttp import web
from aiohttp.test_utils import TestServer

from embedded_azure.config import default_config
from embedded_azure.entra.tokens import TokenIssuer
from embedded_azure.openai.__main__ import load_account
from embedded_azure.openai.account import Account
from embedded_azure.openai.app import build_app
from embedded_azure.process import server_context
from embedded_azure.state import StateDirectory
from embedded_azure.supervisor import prepare_state
from worker.azure.openai.model import AzureOpenAI
from worker.azure.openai.transport import MAX_ANSWER
from worker.errors import TokenUnavailable
from worker.interfaces import Target
from worker.jobs.job import Envelope, Job, decode

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

CONFIG = default_config()
SCOPE = "https://cognitiveservices.azure.com/.default"
AUDIENCE = "https://cognitiveservices.azure.com"


@dataclass
class ScriptedTokens:
    """`Tokens` that hands out what it is given, and remembers what was rejected."""

    tokens: list[str]
    rejected: list[str] = field(default_factory=list)

    async def bearer(self, scope: str) -> str:
        if not self.tokens:
            raise TokenUnavailable(scope, "none left", code="none")
        return self.tokens[0]

    async def replace(self, scope: str, rejected: str) -> str:
        self.rejected.append(rejected)
        del self.tokens[:1]
        return await self.bearer(scope)


@dataclass
class Service:
    state: StateDirectory
    account: Account
    endpoint: str

    def token(self, identity: str = "worker", *, lifetime: float = 3_600.0) -> str:
        person = CONFIG.identity(identity)
        issuer = TokenIssuer(self.state.entra_private_key.read_bytes(), CONFIG.tenant_id, lifetime)
        return issuer.issue(audience=AUDIENCE, client_id=person.client_id, object_id=person.object_id)

    def target(self, deployment: str = "gpt-5.4-mini") -> Target:
        return Target(deployment=deployment, endpoint=self.endpoint)

    @asynccontextmanager
    async def model(
        self,
        *tokens: str,
        timeout: float = 10.0,
        api_version: str | None = None,
        passthrough: bool = False,
        responses_store: bool = False,
        max_answer: int = MAX_ANSWER,
        connections: int = 64,
    ) -> AsyncIterator[AzureOpenAI]:
        given = ScriptedTokens(list(tokens) or [self.token()])
        async with AzureOpenAI(
            given,
            scope=SCOPE,
            ca_file=self.state.ca,
            timeout=timeout,
            api_version=api_version,
            passthrough=passthrough,
            responses_store=responses_store,
            max_answer=max_answer,
            connections=connections,
        ) as model:
            yield model


@asynccontextmanager
async def embedded_service(directory: Path) -> AsyncIterator[Service]:
    """The embedded Azure OpenAI in this event loop."""
    state = StateDirectory(directory)
    prepare_state(state, CONFIG)
    account = load_account(state)
    async with serve(state, build_app(account)) as endpoint:
        yield Service(state, account, endpoint)


@asynccontextmanager
async def serve(state: StateDirectory, app: web.Application) -> AsyncIterator[str]:
    """Any server under the certificate that the model's client trusts; gives its endpoint."""
    server = TestServer(app, scheme="https")
    await server.start_server(ssl=server_context(state))
    try:
        yield f"https://localhost:{server.port}"
    finally:
        await server.close()


@asynccontextmanager
async def scripted(state: StateDirectory, handle: Handler) -> AsyncIterator[Target]:
    """A service that does whatever `handle` does."""
    app = web.Application()
    app.router.add_post("/{path:.*}", handle)
    async with serve(state, app) as endpoint:
        yield Target(deployment="gpt-5.4-mini", endpoint=endpoint)


def job(content: str, **body: object) -> Job:
    messages = [{"role": "user", "content": content}]
    return job_of("/v1/chat/completions", "gpt-5.4-mini", messages=messages, **body)


def job_of(url: str, model: str, **body: object) -> Job:
    line = {"custom_id": "a", "method": "POST", "url": url, "body": {"model": model, **body}}
    envelope = Envelope(
        body=orjson.dumps(line), queue="jobs", sequence_number=1, enqueued_at=time.time(), properties={}
    )
    return decode(envelope, max_age=60)
