"""Where only port 443 is let out: producer and worker over WebSockets, as processes, and through a proxy."""

import signal
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.connect_proxy import connect_proxy
from tests.support.processes import (
    Azure,
    assert_one_result_each,
    azure,
    command,
    config_for_tests,
    has_answered,
    results_in,
    until,
    worker,
    write_batch,
)

BATCH = "a-batch"


def over_websockets(cloud: Azure) -> dict[str, str]:
    """The settings of it, without their prefix."""
    return {"servicebus_transport": "websockets", "servicebus_endpoint": address_of(cloud)}


def address_of(cloud: Azure) -> str:
    return cloud.servicebus.removeprefix("https://")


async def order(cloud: Azure, *arguments: str, **variables: str) -> str:
    """The producer's command over WebSockets; what it printed."""
    settings = {f"AOAI_WORKER_{name.upper()}": value for name, value in over_websockets(cloud).items()}
    code, output = await command(cloud, *arguments, **settings | variables)
    assert code == 0, output
    return output


async def test_a_batch_goes_from_submit_to_collect_with_a_stop_on_the_way(tmp_path: Path) -> None:
    batch, out = write_batch(tmp_path / "in.jsonl", 400), tmp_path / "out.jsonl"
    async with azure(tmp_path, config_for_tests()) as cloud:
        await order(cloud, "submit", str(batch), "--batch", BATCH)
        async with worker(cloud, **over_websockets(cloud), slots="32") as leaving:
            await until(has_answered(leaving, 50))
            leaving.process.child.send_signal(signal.SIGTERM)
            assert await leaving.process.ended() == 0
        [drained] = leaving.process.events("drained")
        assert drained["handed_back"] == 0
        async with worker(cloud, **over_websockets(cloud)) as following:
            await order(cloud, "collect", BATCH, "-o", str(out), "--follow")
            assert await following.metric("aoai_worker_jobs_redelivered_total") == 0
        stats = await cloud.control("/local/stats")
    assert_one_result_each(results_in(out), 400)
    assert stats["answered_more_than_once"] == 0, "an answer was paid for twice"


async def test_everything_goes_through_the_proxy_where_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, out = write_batch(tmp_path / "in.jsonl", 20), tmp_path / "out.jsonl"
    async with azure(tmp_path, config_for_tests()) as cloud, connect_proxy() as proxy:
        for name in ("NO_PROXY", "no_proxy", "https_proxy"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        await order(cloud, "submit", str(batch), "--batch", BATCH)
        producers = proxy.asked.count(address_of(cloud))
        async with worker(cloud, **over_websockets(cloud)) as one:
            await order(cloud, "collect", BATCH, "-o", str(out), "--follow")
            assert await one.metric("aoai_worker_jobs_total") == 20
    assert_one_result_each(results_in(out), 20)
    assert producers > 0
    assert proxy.asked.count(address_of(cloud)) > producers, "the worker too"
    assert proxy.asked.count(urlsplit(cloud.environment()["AOAI_WORKER_BLOB_CONTAINER"]).netloc) > 0


async def test_a_person_is_told_what_to_open_and_nothing_else(tmp_path: Path) -> None:
    async with azure(tmp_path, config_for_tests()) as cloud:
        code, output = await command(
            cloud,
            "status",
            BATCH,
            AOAI_WORKER_SINK="queue",
            AOAI_WORKER_SERVICEBUS_TRANSPORT="websockets",
            AOAI_WORKER_SERVICEBUS_ENDPOINT="localhost:1",
        )
    assert code == 1
    first, following = output.splitlines()
    assert first.startswith("Service Bus cannot be reached: cannot connect by WebSockets to localhost:1: ")
    assert following.startswith("Next: let this network reach it")
