"""`python -m embedded_azure.servicebus` as the supervisor runs it: ready line, real TLS, an end in every case."""

import asyncio
import json
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from azure.servicebus import ServiceBusMessage

from tests.support.local_azure import Authority, Bus, bus_config
from tests.support.patience import PATIENCE


@asynccontextmanager
async def process(state: Path, authority: Authority) -> AsyncIterator[tuple[Process, dict[str, Any]]]:
    (state / "tls").mkdir()
    (state / "tls/server.pem").write_bytes(authority.certificate_file.read_bytes())
    (state / "tls/server.key").write_bytes(authority.key_file.read_bytes())
    (state / "entra.pub.pem").write_bytes(authority.entra_public)
    bus_config().save(state / "config.json")
    running = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "embedded_azure.servicebus", "--state", str(state), stdin=PIPE, stdout=PIPE
    )
    try:
        assert running.stdout is not None
        yield running, json.loads(await running.stdout.readline())
    finally:
        if running.returncode is None:
            running.kill()
        await running.communicate()


async def test_a_message_goes_through_the_process_and_it_ends_with_its_parent(
    tmp_path: Path, authority: Authority
) -> None:
    async with process(tmp_path, authority) as (running, ready):
        assert ready["service"] == "servicebus"
        bus = Bus(
            tls_port=ready["tls_port"], plain_port=ready["plain_port"], config=bus_config(), authority=authority
        )
        async with bus.client() as client, client.get_queue_sender("jobs") as sender:
            await sender.send_messages(ServiceBusMessage(b"x"))
            async with client.get_queue_receiver("jobs") as receiver:
                (message,) = await receiver.receive_messages(1, max_wait_time=PATIENCE)
                await receiver.complete_message(message)
        assert running.stdin is not None
        running.stdin.close()
        assert await asyncio.wait_for(running.wait(), 5) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_cleanly(tmp_path: Path, authority: Authority, number: signal.Signals) -> None:
    async with process(tmp_path, authority) as (running, _):
        running.send_signal(number)
        assert await asyncio.wait_for(running.wait(), 5) == 0
