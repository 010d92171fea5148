"""The embedded Service Bus, seen through Microsoft's client for JavaScript: tests/service_bus_js/run.mjs."""

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from embedded_azure.entra.tokens import AccessTokens, issuer_of
from embedded_azure.servicebus.server import serve
from tests.support.local_azure import Authority, SignedCredential, bus_config

FOLDER = Path(__file__).parents[1] / "service_bus_js"
CHECKS = [
    "send, receive, complete",
    "abandon counts, and the last delivery is a dead letter",
    "defer and dead-letter keep the properties given",
    "peek, schedule and cancel with a client that did nothing else",
    "subscribe",
    "sessions",
    "administration of queues",
    "entity status",
    "administration of topics, subscriptions and rules",
]
LONGEST = 60.0
"""Seconds; it takes about five."""


async def test_the_client_for_javascript_finds_what_azure_offers(authority: Authority) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("NOT CHECKED WITH THE SDK FOR JAVASCRIPT: Node.js 20 or newer is missing on this machine")
    if not (FOLDER / "node_modules" / "@azure" / "service-bus").is_dir():
        pytest.fail(f"@azure/service-bus is not installed in {FOLDER}. Next: run scripts/azurite")
    config = bus_config()
    credential = SignedCredential(authority.entra_private, config.tenant_id, config.identity("owner"))
    token = (await credential.get_token("https://servicebus.azure.net/.default")).token
    tokens = AccessTokens(authority.entra_public, issuer_of(config.tenant_id))
    async with serve(config, tokens, tls=authority.tls(), https_port=0) as served:
        child = await asyncio.create_subprocess_exec(
            node,
            str(FOLDER / "run.mjs"),
            env={
                **os.environ,
                "NODE_EXTRA_CA_CERTS": str(authority.ca_file),
                "NAMESPACE": config.namespace,
                "AMQP_PORT": str(served.tls_port),
                "HTTPS_PORT": str(served.https_port),
                "TOKEN": token,
            },
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(LONGEST):
                said, _ = await child.communicate()
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
    lines = said.decode().splitlines()
    assert [line.removeprefix("passed: ") for line in lines] == CHECKS, said.decode()
