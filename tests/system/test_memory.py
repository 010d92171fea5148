"""What the settings promise of memory, held to the real worker with the defaults of `docs/settings.md`."""

import asyncio
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from embedded_azure.config import Config, Deployment
from tests.support.blob_processes import result_names
from tests.support.processes import Worker, azure, command, config_for_tests, worker

BATCH = "a-batch"
JOBS, INPUTS = 64, 300
"""As many jobs as there are slots; an answer of so many inputs has 10 MB, so all together would be 640 MB."""
MOST_MIB = 400
"""Of the 512 MiB that the chart allows a pod; the rest is for what the kernel counts besides."""
LONGEST = 240.0
"""Seconds, in a failing test; under a load of ten on two cores it takes 90, most of them in the stand-ins."""

pytestmark = [
    pytest.mark.skipif(shutil.which("node") is None, reason="MEMORY IS NOT TESTED: Node.js 20 or newer is missing"),
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="MEMORY IS NOT TESTED: there is no /proc"),
]


def config_of_embeddings() -> Config:
    small = Deployment(name="vectors", model="text-embedding-3-small", kind="embeddings", latency=0.2)
    return replace(config_for_tests(lock_duration=300.0), deployments=(small,))


def write_embeddings(path: Path) -> Path:
    with path.open("w") as file:
        for number in range(JOBS):
            body = {"model": "vectors", "input": [f"text {place} of {number}" for place in range(INPUTS)]}
            line = {"custom_id": f"q-{number}", "method": "POST", "url": "/v1/embeddings", "body": body}
            file.write(json.dumps(line) + "\n")
    return path


def peak_mib(pid: int) -> float:
    """The most that was resident at once, shared libraries included."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    [kib] = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(kib) / 1024


async def done(one: Worker) -> None:
    """Until every job is settled; the worker tells it by its metrics only."""
    async with asyncio.timeout(LONGEST):
        while await one.metric("aoai_worker_jobs_total") < JOBS:
            assert one.process.child.returncode is None, one.process.output
            await asyncio.sleep(0.2)


@pytest.mark.timeout(LONGEST + 60)
async def test_answers_of_ten_megabytes_stay_within_the_memory_of_a_pod_and_are_paid_once(tmp_path: Path) -> None:
    async with azure(tmp_path, config_of_embeddings()) as cloud:
        path = write_embeddings(tmp_path / "in.jsonl")
        code, output = await command(cloud, "submit", str(path), "--batch", BATCH)
        assert code == 0, output
        async with worker(cloud, models=json.dumps({"vectors": ["vectors"]})) as one:
            await done(one)
            peak = peak_mib(one.process.child.pid)
        names = await result_names(cloud, BATCH)
        stats = await cloud.control("/local/stats")
    assert len(names) == len(set(names)) == JOBS
    assert all(name.endswith(".ok.json") for name in names)
    assert stats["answered_more_than_once"] == 0, "an answer was paid for twice"
    assert peak <= MOST_MIB, f"{peak:.0f} MiB at its peak"
