"""`submit` as a process, ended in the middle of a large file: once more, it doubles and loses nothing."""

import random
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.blob_processes import bus_of
from tests.support.processes import Azure, azure, command, config_for_tests, process, write_batch

LINES = 20_000


@pytest.mark.parametrize("sink", ["queue", "blob"])
@pytest.mark.parametrize(
    "ends",
    [(signal.SIGKILL, signal.SIGKILL), (signal.SIGINT, signal.SIGKILL)],
    ids=["killed twice", "Ctrl-C, killed"],
)
async def test_a_submission_that_was_ended_twice_sends_every_job_once(
    tmp_path: Path, ends: Sequence[signal.Signals], sink: str
) -> None:
    file = write_batch(tmp_path / "jobs.jsonl", LINES)
    async with azure(tmp_path, config_for_tests(), "--sink", sink) as cloud:
        tenths = [random.randint(0, 8) for _ in ends]
        for end, tenth in zip(ends, tenths, strict=True):
            async with process(
                "-m", "worker", "submit", str(file), environment=cloud.environment("producer")
            ) as run:
                await run.printed(f"submitted: {10 * tenth} %")
                run.child.send_signal(end)
                assert await run.ended() == (130 if end is signal.SIGINT else -end), run.output
        # and once more, with the connection cut on the way
        async with process("-m", "worker", "submit", str(file), environment=cloud.environment("producer")) as run:
            await run.printed("submitted: 40 %")
            await cloud.control("/local/faults", {"kind": "cut"}, servicebus=True)
            assert await run.ended() == 0, run.output
        assert f"{LINES:,} jobs submitted." in run.output
        assert "This batch was submitted before" in run.output
        code, batch = await command(cloud, "submit", str(file), "--dry-run")
        assert code == 0
        batch_id = batch.split()[-1].rstrip(".")
        arrived = await message_ids(cloud)
        assert sorted(arrived) == sorted(f"{batch_id}/q-{number}" for number in range(LINES)), tenths


async def message_ids(cloud: Azure) -> list[str]:
    """Of every message in the queue of jobs."""
    found: list[str] = []
    async with (
        bus_of(cloud) as client,
        client.get_queue_receiver("jobs") as receiver,
    ):
        following = 1
        while messages := await receiver.peek_messages(1_000, sequence_number=following):
            found += [str(message.message_id) for message in messages]
            following = (messages[-1].sequence_number or 0) + 1
    return found
