"""The embedded Azure as real processes: ready, found, stopped, and gone however its parent ends."""

import asyncio
import json
import os
import signal
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import ClientSession

from embedded_azure.config import default_config
from embedded_azure.state import StateDirectory
from embedded_azure.supervisor import SERVICES, prepare_state
from tests.support.patience import PATIENCE
from tests.support.processes import mentions, process_end, process_ids

VARIABLES = {
    "AZURE_CLIENT_ID",
    "AZURE_TENANT_ID",
    "AZURE_FEDERATED_TOKEN_FILE",
    "AZURE_AUTHORITY_HOST",
    "AZURE_OPENAI_ENDPOINT",
    "AOAI_WORKER_CA_FILE",
    "AOAI_WORKER_BLOB_CONTAINER",
    "AOAI_WORKER_SERVICEBUS_NAMESPACE",
    "AOAI_WORKER_SERVICEBUS_ENDPOINT",
    "AOAI_WORKER_UNKNOWN_MODEL_PATIENCE",
}


class Azure:
    """A supervisor that has said it is ready."""

    def __init__(self, process: asyncio.subprocess.Process, state: Path, summary: str) -> None:
        self.process = process
        self.state = state
        self.summary = summary

    def children(self) -> list[int]:
        """Process ids of the services: those that were told of this state directory."""
        return [pid for pid in process_ids() if self.process.pid != pid and mentions(pid, self.state)]

    async def stop(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        async with asyncio.timeout(PATIENCE):
            return await self.process.wait()

    async def children_gone(self) -> None:
        """A process that is no child of ours ends unannounced: its pidfd becomes readable."""
        async with asyncio.timeout(PATIENCE):
            for pid in self.children():
                await process_end(pid)


def projected_token(pod: dict[str, str]) -> str:
    return Path(pod["AZURE_FEDERATED_TOKEN_FILE"]).read_text()


async def spawn(*arguments: object) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "embedded_azure",
        *map(str, arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


@asynccontextmanager
async def running(tmp_path: Path, *arguments: object) -> AsyncIterator[Azure]:
    process = await spawn("--state", tmp_path / "state", *arguments)
    try:
        assert process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            summary = (await process.stdout.readuntil(b"Ctrl-C stops it.\n")).decode()
        yield Azure(process, tmp_path / "state", summary)
    finally:
        if process.returncode is None:
            process.kill()
        # Reads what is left, so that neither pipe outlives the test.
        await process.communicate()


async def sourced(path: Path) -> dict[str, str]:
    """What a POSIX shell has in its environment after sourcing the file, and had not before."""
    program = "import json, os; print(json.dumps(dict(os.environ)))"
    shell = await asyncio.create_subprocess_exec(
        "sh",
        "-c",
        '. "$0" && exec "$1" -c "$2"',
        str(path),
        sys.executable,
        program,
        env={},
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await shell.communicate()
    environment: dict[str, str] = json.loads(output)
    return {
        name: value
        for name, value in environment.items()
        if name not in {"PWD", "LC_CTYPE", "SHLVL", "_", "OLDPWD"}
    }


async def test_it_gets_ready_writes_the_environments_and_stops_cleanly(tmp_path: Path) -> None:
    env = tmp_path / "my azure.env"
    async with running(tmp_path, "--write-env", env) as azure:
        worker = await sourced(env)
        producer = await sourced(tmp_path / "my azure.env.producer")
        assert set(worker) == set(producer) == VARIABLES
        assert worker["AZURE_CLIENT_ID"] == default_config().identity("worker").client_id
        assert producer["AZURE_CLIENT_ID"] == default_config().identity("producer").client_id
        assert projected_token(worker).count(".") == 2
        stranger = await sourced(azure.state / "env" / "stranger.env")
        assert set(stranger) == VARIABLES
        assert len(azure.children()) == 4
        assert (azure.state.stat().st_mode & 0o777) == 0o700
        assert await azure.stop(signal.SIGTERM) == 0
        assert azure.children() == []
    assert not env.exists()


async def test_the_projected_token_buys_an_answer_end_to_end(tmp_path: Path) -> None:
    env = tmp_path / "azure.env"
    async with running(tmp_path, "--write-env", env):
        pod = await sourced(env)
        trust = ssl.create_default_context(cafile=pod["AOAI_WORKER_CA_FILE"])
        form = {
            "client_id": pod["AZURE_CLIENT_ID"],
            "scope": "https://cognitiveservices.azure.com/.default",
            "grant_type": "client_credentials",
            "client_assertion": projected_token(pod),
            "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
        }
        question = {"model": "gpt-5.4-mini", "messages": [{"role": "user", "content": "What is 17 + 25?"}]}
        async with ClientSession() as session:
            tokens = f"{pod['AZURE_AUTHORITY_HOST']}{pod['AZURE_TENANT_ID']}/oauth2/v2.0/token"
            async with session.post(tokens, data=form, ssl=trust) as response:
                token = (await response.json())["access_token"]
            chat = f"{pod['AZURE_OPENAI_ENDPOINT']}/openai/v1/chat/completions"
            headers = {"Authorization": f"Bearer {token}"}
            async with session.post(chat, json=question, headers=headers, ssl=trust) as response:
                answer = await response.json()
    assert answer["choices"][0]["message"]["content"].startswith("17 + 25 = 42")


async def test_ctrl_c_stops_it_cleanly(tmp_path: Path) -> None:
    async with running(tmp_path) as azure:
        assert f". {azure.state}/env/worker.env && AOAI_WORKER_MODELS=passthrough aoai-worker run" in azure.summary
        assert await azure.stop(signal.SIGINT) == 0
        assert azure.children() == []


async def test_its_processes_end_when_it_is_killed(tmp_path: Path) -> None:
    async with running(tmp_path) as azure:
        assert len(azure.children()) == 4
        await azure.stop(signal.SIGKILL)
        await azure.children_gone()
        assert azure.children() == []


@pytest.mark.parametrize("module", SERVICES.values())
async def test_a_dying_process_ends_it_all_with_a_message(tmp_path: Path, module: str) -> None:
    async with running(tmp_path) as azure:
        (victim,) = [pid for pid in azure.children() if mentions(pid, module)]
        os.kill(victim, signal.SIGKILL)
        async with asyncio.timeout(PATIENCE):
            _, errors = await azure.process.communicate()
        assert azure.process.returncode == 1
        assert "ended with signal SIGKILL" in errors.decode()
        assert azure.children() == []


async def test_a_process_stopped_from_elsewhere_says_by_which_signal(tmp_path: Path) -> None:
    async with running(tmp_path) as azure:
        (entra,) = [pid for pid in azure.children() if mentions(pid, "embedded_azure.entra")]
        os.kill(entra, signal.SIGTERM)
        async with asyncio.timeout(PATIENCE):
            _, errors = await azure.process.communicate()
    assert azure.process.returncode == 1
    assert f"process {entra} stops: it received SIGTERM" in errors.decode()
    assert "entra (process" in errors.decode()


async def test_a_process_whose_messages_nobody_reads_still_stops_at_a_signal(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path)
    prepare_state(state, default_config())
    reader, writer = os.pipe()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "embedded_azure.entra", "--state", str(tmp_path)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=writer,
    )
    os.close(writer)
    os.close(reader)
    assert process.stdout is not None
    try:
        async with asyncio.timeout(PATIENCE):
            assert b'"entra"' in await process.stdout.readline()
            process.terminate()
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_projected_tokens_are_rotated_while_it_runs(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    replace(default_config(), projected_token_lifetime=1.0).save(config)
    async with running(tmp_path, "--config", config) as azure:
        file = azure.state / "tokens" / "worker" / "azure-identity-token"
        first = file.read_text()
        async with asyncio.timeout(PATIENCE):
            # The one thing polled: a plain file announces no change, and the kubelet's do not either.
            while file.read_text() == first:
                await asyncio.sleep(0.02)


async def refusal(*arguments: object) -> tuple[int | None, str]:
    process = await spawn(*arguments)
    async with asyncio.timeout(PATIENCE):
        _, errors = await process.communicate()
    return process.returncode, errors.decode()


async def test_it_overwrites_no_file_of_the_users(tmp_path: Path) -> None:
    precious = tmp_path / "notes.txt"
    precious.write_text("mine\n")
    code, errors = await refusal("--write-env", precious)
    assert code == 2
    assert f"{precious}: the file exists and was not written by the embedded Azure" in errors
    assert precious.read_text() == "mine\n"


async def test_it_takes_no_directory_of_the_users_for_its_state(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine\n")
    code, errors = await refusal("--state", tmp_path)
    assert code == 2
    assert "Name an empty or a new directory" in errors


async def test_a_config_that_does_not_fit_is_refused_by_field(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text('{"token_lifetime": "long"}')
    code, errors = await refusal("--config", config)
    assert code == 2
    assert "token_lifetime" in errors
