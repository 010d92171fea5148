"""The process of the embedded Entra: one line says where its three endpoints are, and they are open."""

import asyncio
import json
import ssl
import sys
from dataclasses import replace
from pathlib import Path

import aiohttp

from embedded_azure.config import default_config
from embedded_azure.state import StateDirectory
from embedded_azure.supervisor import prepare_state

TOKEN = "11111111-1111-4111-8111-111111111111/oauth2/v2.0/token"


async def test_entra_imds_and_the_token_proxy_answer_at_the_announced_ports(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path)
    prepare_state(state, replace(default_config(), node_identities=("worker",), bound_identities=("worker",)))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "embedded_azure.entra", "--state", str(tmp_path)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        ports = json.loads(await process.stdout.readline())
        trust = ssl.create_default_context(cafile=str(state.ca))
        async with aiohttp.ClientSession() as session:
            async with session.post(f"https://localhost:{ports['port']}/{TOKEN}", ssl=trust) as response:
                assert (await response.json())["error_codes"] == [90002]
            proxy = f"https://localhost:{ports['token_proxy_port']}/token-proxy/{TOKEN}"
            async with session.post(proxy, ssl=trust, server_hostname="local.ests.aks") as response:
                assert (await response.json())["error_codes"] == [90002]
            imds = f"http://localhost:{ports['imds_port']}/metadata/identity/oauth2/token"
            query = {"api-version": "2018-02-01", "resource": "https://ai.azure.com"}
            async with session.get(imds, params=query, headers={"Metadata": "true"}) as response:
                assert (await response.json())["token_type"] == "Bearer"
    finally:
        process.stdin.close()
        assert await process.wait() == 0
