"""No file names a retired model; examples, documents and charts name those of embedded_azure/models.py.

When models retire: add them to `RETIRED`, change embedded_azure/models.py, and follow what fails here. Out of
scope: binary files, such as pictures.
"""

import re
import subprocess
from pathlib import Path

import pytest

from embedded_azure.config import default_config
from embedded_azure.models import EMBEDDINGS, INSTRUCT, LARGE, SMALL
from embedded_azure.openai.models import model_of

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).relative_to(ROOT).as_posix()

RETIRED = re.compile(
    r"""(?<![\w.])(?:
        gpt-?3\.?5(?:-turbo)? | gpt-4(?:o|\.1|\.5|-turbo|-32k|-vision)? | chatgpt-4o
        | o1 | o3 | o4-mini | text-embedding-ada-002 | text-davinci-\d+ | (?:davinci|babbage)-002
    )(?![\w.]*\w)""",
    re.VERBOSE | re.IGNORECASE,
)
"""Retired by November 2026, or closed to new customers."""
NAMED = re.compile(r"(?<![\w.])gpt-\d[\w.]*(?:-(?:mini|nano|pro|chat)\b)?|\btext-embedding-[\w-]+")
EXAMPLES = ("examples/", "docs/", "charts/", "k8s/", "README.md")


def texts() -> dict[str, str]:
    """Of each tracked text file, by its path."""
    listed = subprocess.run(["git", "grep", "-lI", ""], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {name: (ROOT / name).read_text(encoding="utf-8", errors="replace") for name in listed.splitlines()}


@pytest.fixture(scope="module")
def files() -> dict[str, str]:
    if not (ROOT / ".git").exists():
        pytest.skip("the files of a checkout are listed by git")
    return texts()


@pytest.mark.parametrize(
    "name",
    [
        *("gpt-4o", "gpt-4o-mini", "gpt-4o-2024-08-06", "jobs-gpt-4o", "gpt-4", "gpt-4-0613", "gpt-4.1-nano"),
        *("gpt-35-turbo-instruct", "gpt-3.5-turbo", "o1", "o1-preview", "o3-mini", "o4-mini"),
        "text-embedding-ada-002",
    ],
)
def test_a_retired_model_is_known_by_its_name(name: str) -> None:
    assert RETIRED.search(f'"{name}"')


@pytest.mark.parametrize("name", [SMALL, LARGE, EMBEDDINGS, INSTRUCT, "gpt-5", "gpt-40", "version 0.o1", "foo1"])
def test_other_names_are_left_alone(name: str) -> None:
    assert not RETIRED.search(f'"{name}"')


def test_no_file_names_a_retired_model(files: dict[str, str]) -> None:
    found = {
        f"{name}:{number}: {match[0]}"
        for name, text in files.items()
        if name != HERE
        for number, line in enumerate(text.splitlines(), start=1)
        for match in RETIRED.finditer(line)
    }
    assert found == set()


def test_the_examples_documents_and_charts_name_the_models_of_one_place(files: dict[str, str]) -> None:
    named = {
        (name, match[0])
        for name, text in files.items()
        if name.startswith(EXAMPLES)
        for match in NAMED.finditer(text)
        if match[0].rstrip(".") not in (SMALL, LARGE, EMBEDDINGS)
    }
    # a family's name, where a document speaks of the family
    assert named == {("docs/embedded-openai-entra.md", "gpt-5...")}


def test_each_default_deployment_is_named_after_its_model_and_both_chat_models_reason() -> None:
    deployments = default_config().deployments
    assert (
        [one.name for one in deployments]
        == [one.model for one in deployments]
        == [SMALL, LARGE, INSTRUCT, EMBEDDINGS]
    )
    assert [model_of(name).reasons for name in (SMALL, LARGE, INSTRUCT)] == [True, True, False]
