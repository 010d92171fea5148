"""The documents say what the code does: settings, metrics, events, codes, links and versions.

Out of scope: whether a sentence is true. What can be checked by a machine is checked here, in both directions where
a list in the documents is meant to be complete.
"""

import ast
import importlib
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from scripts.reference import metrics, settings
from scripts.reference.pages import PAGES
from worker.admission.closures import Closure
from worker.cli import app, terminal
from worker.environment import CONNECTION_STRINGS
from worker.errors import Cause, DeadLetterReason
from worker.jobs.batch_records import Manifest
from worker.jobs.outcomes import FailureCode
from worker.settings import WorkerSettings, variable_of
from worker.telemetry.logs import LEVELS, event_name
from worker.telemetry.metrics import OUTCOMES

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*.md")])
CURRENT = [document for document in DOCUMENTS if document.name != "CHANGELOG.md"]
"""The changelog has names that are gone."""
OURS = ("worker", "embedded_azure")
WRITTEN_BY_PROGRAMS = {"azure-assumptions.md", "foreign-tests.md", "reliability.md"}
DECISIONS = sorted(ROOT.glob("docs/decisions/*.md"))
UNBREAKABLE = re.compile(r"`[^`]*`|\[[^\]]*\]\([^)]*\)\S*|^[-*] ")
READMES = [ROOT / folder / "README.md" for folder in ("charts/aoai-worker", "k8s/azure", "embedded_azure")]
WRAPPED = [*(document for document in CURRENT if document.name not in WRITTEN_BY_PROGRAMS), *READMES]

FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?:\]\(|src=\"|srcset=\")([^)\s\"]+)")
METRIC = re.compile(r"\baoai_worker_\w+")
TEST = re.compile(r"\[`(test_\w+)`\]\(([^)\s]+)\)")
SETTING = re.compile(r"\bAOAI_WORKER_[A-Z_]*[A-Z]\b")
PYTHON = re.compile(r"^```py(?:thon)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
YAML = re.compile(r"^```yaml\n(.*?)^```$", re.MULTILINE | re.DOTALL)
JSON = re.compile(r"^```json\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
SHELL = re.compile(r"^```sh\n(.*?)^```$|^((?:    .*\n)+)", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(?:^|\$ |&& |\$\(|\w -- |\| )\s*aoai-worker((?: [a-z]+)+)([^|;&#`)\n]*)", re.MULTILINE)
PATH = re.compile(r"`([\w./-]+/[\w.-]+\.(?:py|md|yaml|toml|bicep|sh))`")
OPTION = re.compile(r"(?<=\s)(--[a-z-]+)")
NO_SETTINGS = {"AOAI_WORKER_CONFIG", "AOAI_WORKER_PROJECT_URL"}
"""The settings' file, and what only the build of a release reads."""


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def first_cells(document: str) -> set[str]:
    """Everything in code style in the first column of the document's tables."""
    rows = re.findall(r"^\| (`.*?) \|", document, re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


def real_settings() -> set[str]:
    return {variable_of(name) for name in WorkerSettings.model_fields}


def real_metrics() -> set[str]:
    return {row.name for row in metrics.metrics()}


def links() -> Iterator[tuple[Path, str]]:
    for document in DOCUMENTS:
        for target in LINK.findall(FENCE.sub("", document.read_text(encoding="utf-8"))):
            if not target.startswith(("https://", "http://", "mailto:")):
                yield document, target


def anchors(document: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", document.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_cause_of_a_refusal_is_documented_and_no_other() -> None:
    section = read("docs/operations.md").split("### Causes")[1].split("\n## ")[0]
    assert first_cells(section) == set(Cause)


@pytest.mark.parametrize("document", CURRENT, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_setting_that_a_document_names_exists(document: Path) -> None:
    named = set(SETTING.findall(document.read_text(encoding="utf-8")))
    assert named - real_settings() - set(CONNECTION_STRINGS) - NO_SETTINGS == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_what_is_written_from_the_code_is_of_this_code(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text == PAGES[page](text), "Next: make reference"


def test_every_setting_and_every_metric_has_a_text() -> None:
    assert [name for name in WorkerSettings.model_fields if not settings.texts().get(name)] == []
    assert [row.name for row in metrics.metrics() if not row.meaning] == []


def test_every_exit_code_is_documented_and_no_other() -> None:
    rows = re.findall(r"^\| (\d+) \|", read("docs/cli.md"), re.MULTILINE)
    codes = {
        0,
        terminal.FAILED,
        terminal.WRONG_INPUT,
        terminal.INCOMPLETE,
        terminal.FAILED_JOBS,
        terminal.INTERRUPTED,
    }
    assert {int(code) for code in rows} == codes


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_metric_that_a_document_names_exists(document: Path) -> None:
    named = set(METRIC.findall(document.read_text(encoding="utf-8")))
    assert named - real_metrics() == set()


def test_every_log_event_outcome_and_reason_is_documented() -> None:
    told = first_cells(read("docs/operations.md"))
    expected = {event_name(kind) for kind in LEVELS} | set(OUTCOMES) | set(Closure)
    assert expected - told == set()


def test_the_closed_lists_on_the_wire_are_documented() -> None:
    told = first_cells(read("docs/job-format.md"))
    expected = {*FailureCode, *DeadLetterReason, *Manifest.__dataclass_fields__}
    assert {str(word) for word in expected} - told == set()


def test_no_relative_link_is_broken() -> None:
    broken = []
    for document, target in links():
        path, _, anchor = target.partition("#")
        file = document.parent / path if path else document
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(f"{document.relative_to(ROOT)}: {target}")
    assert broken == []


def test_a_test_that_a_document_names_is_in_the_file_that_it_links() -> None:
    missing = [
        f"{document.relative_to(ROOT)}: {name}"
        for document in DOCUMENTS
        for name, file in TEST.findall(document.read_text(encoding="utf-8"))
        if f"def {name}(" not in (document.parent / file).read_text(encoding="utf-8")
    ]
    assert missing == []


def test_each_attempt_that_the_page_on_security_names_has_its_test() -> None:
    attempts = read("docs/security.md").split("## What can be tried")[1].split("\n## ")[0]
    rows = [row for row in attempts.splitlines() if row.startswith("| ")][1:]
    assert [row for row in rows if not TEST.search(row)] == []
    assert len(rows) > 30


def test_the_changelogs_newest_version_is_the_projects() -> None:
    versions = re.findall(r"^## \[(\d[^\]]*)\] - \d{4}-\d\d-\d\d$", read("CHANGELOG.md"), re.MULTILINE)
    assert tomllib.loads(read("pyproject.toml"))["project"]["version"] == versions[0]


def pages(pattern: re.Pattern[str]) -> Iterator[tuple[str, str]]:
    for document in CURRENT:
        for found in pattern.finditer(document.read_text(encoding="utf-8")):
            yield str(document.relative_to(ROOT)), next(text for text in found.groups() if text is not None)


def commands_of(command: Any, path: str = "") -> dict[str, set[str]]:
    """The options of each command, by its words."""
    found = {path: {option for parameter in command.params for option in parameter.opts} | {"--help"}}
    for name, child in getattr(command, "commands", {}).items():
        found |= commands_of(child, f"{path} {name}")
    return found


def test_a_python_program_in_a_document_compiles_and_its_imports_exist() -> None:
    programs = list(pages(PYTHON))
    assert programs
    for document, program in programs:
        tree = ast.parse(program, document)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in OURS:
                module = importlib.import_module(node.module)
                assert [name.name for name in node.names if not hasattr(module, name.name)] == [], document


def test_a_yaml_or_json_document_in_a_page_can_be_read() -> None:
    for _, text in pages(YAML):
        yaml.safe_load(text)
    for document, text in pages(JSON):
        for line in [text] if text.startswith("{\n") else text.splitlines():
            if "..." not in line and line.startswith("{"):
                assert isinstance(json.loads(line), dict), document


def test_a_command_in_a_document_exists_and_has_the_options_shown() -> None:
    commands = commands_of(typer.main.get_command(app))
    groups = {path for path in commands if any(other.startswith(f"{path} ") for other in commands)}
    wrong = []
    for document, text in [*pages(SHELL), *pages(SPAN)]:
        for words, rest in COMMAND.findall(text.replace("\\\n", " ")):
            named = words.split()
            path = f" {named[0]}"
            if path in groups and len(named) > 1:
                path = f"{path} {named[1]}"
            options = set(OPTION.findall(f" {rest}"))
            if path not in commands or not options <= commands[path]:
                wrong.append(f"{document}: aoai-worker{words}{rest}")
    assert wrong == []


def test_a_file_of_code_that_a_document_names_exists() -> None:
    roots = (ROOT, ROOT / "worker", ROOT / "docs")
    missing = [
        f"{document}: {name}"
        for document, name in pages(PATH)
        if not any((root / name).exists() for root in (*roots, (ROOT / document).parent))
    ]
    assert missing == []


def test_a_document_that_the_code_names_exists() -> None:
    missing = [
        f"{source.relative_to(ROOT)}: {name}"
        for folder in ("worker", "embedded_azure", "scripts", "examples", "charts", "k8s")
        for source in (ROOT / folder).rglob("*")
        if source.suffix in {".py", ".yaml", ".tpl", ".txt", ".sh", ".bicep"}
        for name in re.findall(r"(?<![\w/.-])docs/[\w/-]+\.md", source.read_text(encoding="utf-8"))
        if not (ROOT / name).exists()
    ]
    assert missing == []


@pytest.mark.parametrize("decision", DECISIONS, ids=lambda path: path.name[:3])
def test_a_decision_has_its_date_and_status_second(decision: Path) -> None:
    status = decision.read_text(encoding="utf-8").split("\n\n")[1]
    assert re.match(r"Date: 20\d\d-\d\d-\d\d\. Status: (in force|superseded by \[)", status)


def test_the_readme_is_short_enough_to_read() -> None:
    assert len(read("README.md").splitlines()) <= 150


def test_the_figures_of_the_readme_are_those_of_the_benchmarks() -> None:
    readme = " ".join(read("README.md").split())
    section = read("docs/benchmarks.md").split("<!-- pairs -->")[1].split("<!-- /pairs -->")[0]
    measured = dict(re.findall(r"^\| 256 \| (\w+) \| ([\d.]+ \| [\d,]+) \|", section, re.MULTILINE))
    (cpu, speed), (textbook_cpu, textbook_speed) = (measured[one].split(" | ") for one in ("worker", "textbook"))
    assert (
        f"{speed} jobs/s instead of {textbook_speed}, with {cpu} ms of CPU a job instead of {textbook_cpu}"
        in readme
    )
    quota = re.findall(
        r"^\| worker \| 300,000 \| 0 \| [^|]+ \| [\d.]+ \| 2 \| yes \| \w+ \| ([\d.]+)% \| ([\d.]+)% \|$",
        read("docs/benchmarks.md"),
        re.MULTILINE,
    )
    used, refused = min(float(one) for one, _ in quota), max(float(one) for _, one in quota)
    assert f"at least {used:.0f} % of a quota of 300,000" in readme
    assert f"at most {refused:.1f} % of requests refused" in readme
    section = read("docs/benchmarks.md").split("<!-- quota-live -->")[1]
    live = dict(re.findall(r"^\| ([\w-]+)[^|]*\| [^|]+ \| ([\d.]+% \| [\d.]+%) \|$", section, re.MULTILINE))
    (live_used, live_refused), (_, router) = (
        live[one].replace("%", "").split(" | ") for one in ("aoai-worker", "litellm")
    )
    assert f"{live_used} % of 120,000 with {live_refused} % refused" in readme
    assert f"had {router} % of its requests refused" in readme


@pytest.mark.parametrize("document", WRAPPED, ids=lambda path: str(path.relative_to(ROOT)))
def test_prose_is_wrapped_at_100_columns(document: Path) -> None:
    """Not tables, code, headings, and lines that are one link or one code span."""
    text = FENCE.sub("", document.read_text(encoding="utf-8"))
    prose = [line for line in text.splitlines() if not line.startswith(("|", "#", "    ", "![", "<"))]
    assert [line for line in prose if len(line) > 100 and " " in UNBREAKABLE.sub("", line.strip())] == []


@pytest.mark.parametrize("document", CURRENT, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_table_is_a_table(document: Path) -> None:
    """One whose rows were wrapped like prose is shown as a line of bars."""
    text = FENCE.sub("", document.read_text(encoding="utf-8"))
    rules = [line.strip() for line in text.splitlines() if "|---" in line]
    assert [rule for rule in rules if not re.fullmatch(r"\|(:?---+:?\|)+", rule)] == []
