"""What the image is, and that it works: run by `make image` against the embedded Azure on the host."""

from pathlib import Path
from typing import Any

import pytest

from tests.image.containers import configuration, run_once, worker_container
from tests.support.processes import (
    Azure,
    assert_one_result_each,
    azure,
    command,
    config_for_tests,
    results_in,
    write_batch,
)

PYTHON = "/usr/bin/python3.13"


def test_the_command_is_aoai_worker(image: str) -> None:
    code, output = run_once(image, "--help")
    assert code == 0
    assert "Usage: aoai-worker" in output


def test_without_settings_it_says_which_are_missing(image: str) -> None:
    code, output = run_once(image)
    assert code == 2
    assert "AOAI_WORKER_SERVICEBUS_NAMESPACE is missing" in output


def test_the_embedded_azure_is_left_out_and_the_command_says_so(image: str) -> None:
    code, output = run_once(image, "local")
    assert code == 1
    assert "is not installed" in output


@pytest.mark.parametrize("module", ["embedded_azure", "pip", "ensurepip._bundled", "hatchling"])
def test_what_production_does_not_need_cannot_be_imported(image: str, module: str) -> None:
    code, output = run_once(image, "-c", f"import {module}", entrypoint=PYTHON)
    assert code == 1
    assert "ModuleNotFoundError" in output


@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash", "/bin/busybox"])
def test_there_is_no_shell(image: str, shell: str) -> None:
    code, output = run_once(image, entrypoint=shell)
    assert code == 127
    assert "no such file" in output


def test_it_runs_as_a_user_without_rights(image: str) -> None:
    assert configuration(image)["User"] == "65532:65532"


def test_nothing_below_the_root_can_be_written(image: str) -> None:
    code, output = run_once(image, "-c", "open('/opt/aoai-worker/x', 'w')", entrypoint=PYTHON)
    assert code == 1
    assert "Read-only file system" in output


def test_everything_is_compiled_beforehand(image: str) -> None:
    look = (
        "import pathlib, worker.app, openai;"
        "assert pathlib.Path(worker.app.__cached__).exists();"
        "assert openai.__file__.endswith('.pyc'), openai.__file__"
    )
    code, output = run_once(image, "-c", look, entrypoint=PYTHON)
    assert code == 0, output


def test_a_traceback_shows_our_own_source(image: str) -> None:
    code, output = run_once(image, "-c", "import worker.jobs.job; worker.jobs.job.decode()", entrypoint=PYTHON)
    assert code == 1
    assert "TypeError" in output or "AttributeError" in output


def test_the_labels_say_what_it_is_and_which_version(image: str) -> None:
    labels: Any = configuration(image)["Labels"]
    assert labels["org.opencontainers.image.title"] == "aoai-worker"
    assert labels["org.opencontainers.image.licenses"] == "MIT"
    assert labels["org.opencontainers.image.version"][0].isdigit()
    assert labels["org.opencontainers.image.revision"] != ""


async def test_it_works_a_batch_and_a_sigterm_in_the_midst_loses_nothing(image: str, tmp_path: Path) -> None:
    jobs = 120
    async with azure(tmp_path, config_for_tests(latency=0.3)) as cloud:
        batch = write_batch(tmp_path / "batch.jsonl", jobs)
        code, output = await command(cloud, "submit", str(batch), "--batch", "in-containers")
        assert code == 0, output
        await _work_some_and_drain(image, cloud, tmp_path / "first")
        out = tmp_path / "out.jsonl"
        async with worker_container(image, cloud, tmp_path / "second", slots="32", grace="10") as second:
            code, output = await command(cloud, "collect", "in-containers", "-o", str(out), "--follow")
            assert code == 0, output
            second.terminate()
            assert await second.process.ended() == 0, second.process.output
        assert_one_result_each(results_in(out), jobs)


async def _work_some_and_drain(image: str, cloud: Azure, folder: Path) -> None:
    settings = {"slots": "8", "grace": "10", "log_level": "debug"}
    async with worker_container(image, cloud, folder, **settings) as first:
        await first.process.printed('"event":"result_written"')
        first.terminate()
        await first.process.printed('"event":"drained"')
        assert await first.process.ended() == 0, first.process.output
        written = first.process.events("result_written")
    assert 0 < len(written) < 120
