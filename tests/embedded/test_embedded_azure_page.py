"""docs/embedded-azure.md: its blocks run in their order, as a reader runs them, and its entities file is one."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from embedded_azure.config import default_config
from embedded_azure.entities_file import put_entities
from tests.support.pages import ROOT, blocks
from tests.support.patience import PATIENCE
from tests.support.processes import clean_environment, terminal


@dataclass(frozen=True, slots=True)
class Page:
    from_a_test: str
    as_a_process: str
    to_servicebus: str
    entities: str
    to_blob: str


@pytest.fixture
def page() -> Page:
    """A block more needs a test more."""
    return Page(*(block.text for block in blocks("docs/embedded-azure.md")))


def test_the_example_sends_and_receives(page: Page) -> None:
    run = subprocess.run([sys.executable, "-c", page.from_a_test], capture_output=True, text=True, timeout=PATIENCE)
    assert (run.stdout, run.returncode) == ("hello\n", 0), run.stderr


def test_the_entities_file_can_be_used(page: Page, tmp_path: Path) -> None:
    path = tmp_path / "entities.yaml"
    path.write_text(page.entities)
    config = put_entities(default_config(), path)
    assert [queue.name for queue in config.queues] == ["orders", "morgue"]
    assert [subscription.name for subscription in config.topics[0].subscriptions] == ["all", "urgent"]


async def test_clients_of_another_project_get_to_the_process_as_the_page_says(page: Page, tmp_path: Path) -> None:
    """Each program in a terminal in which the environment was sourced that the page names for it."""
    (tmp_path / "entities.yaml").write_text(page.entities)
    environment = clean_environment() | {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "PYTHONPATH": str(ROOT),
    }
    async with terminal(f"exec {page.as_a_process}", tmp_path, environment) as azure:
        await azure.printed("is ready")
        for program, file, said in (
            (page.to_servicebus, "azure.env.producer", "sent\n"),
            (page.to_blob, "azure.env", "['greetings/hello']\n"),
        ):
            (tmp_path / "client.py").write_text(program)
            async with terminal(f". ./{file} && python client.py", tmp_path, environment) as client:
                assert (await client.ended(), client.output) == (0, said)
