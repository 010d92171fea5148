"""docs/embedded-azure.md: its examples run, and its entities file is one."""

import asyncio
import re
import subprocess
import sys
from pathlib import Path

from embedded_azure.config import default_config
from embedded_azure.entities_file import put_entities
from tests.support.patience import PATIENCE
from tests.support.processes import azure, config_for_tests

PAGE = Path(__file__).parents[2] / "docs" / "embedded-azure.md"


def block(language: str) -> str:
    (first, *_) = blocks(language)
    return first


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)


def test_the_example_sends_and_receives() -> None:
    run = subprocess.run([sys.executable, "-c", block("python")], capture_output=True, text=True, timeout=PATIENCE)
    assert (run.stdout, run.returncode) == ("hello\n", 0), run.stderr


def test_the_entities_file_can_be_used(tmp_path: Path) -> None:
    path = tmp_path / "entities.yaml"
    path.write_text(block("yaml"))
    config = put_entities(default_config(), path)
    assert [queue.name for queue in config.queues] == ["orders", "morgue"]
    assert [subscription.name for subscription in config.topics[0].subscriptions] == ["all", "urgent"]


async def test_clients_of_another_project_get_to_the_process_as_the_page_says(tmp_path: Path) -> None:
    async with azure(tmp_path, config_for_tests()) as cloud:
        for program, expected in zip(blocks("py"), ["sent\n", "['greetings/hello']\n"], strict=True):
            client = await asyncio.create_subprocess_exec(
                sys.executable, "-c", program, env=cloud.environment("producer"), stdout=subprocess.PIPE
            )
            said, _ = await client.communicate()
            assert (said.decode(), client.returncode) == (expected, 0)
