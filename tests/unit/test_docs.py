"""The documents say what the code does: settings, metrics, events, codes, links and versions.

Out of scope: whether a sentence is true. What can be checked by a machine is checked here, in both directions where
a list in the documents is meant to be complete.
"""

import asyncio
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import Metric
from pydantic_core import PydanticUndefined

from worker.admission.admission import Admission
from worker.admission.closures import Closure
from worker.errors import Cause, DeadLetterReason
from worker.jobs.batch_records import Manifest
from worker.jobs.outcomes import FailureCode
from worker.settings import CONNECTION_STRINGS, PREFIX, SMUGGLED_KEYS, ConnectionSettings, WorkerSettings
from worker.telemetry.logs import LEVELS, event_name
from worker.telemetry.metrics import OUTCOMES, Metrics

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*.md")])

FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
METRIC = re.compile(r"\baoai_worker_\w+")
TEST = re.compile(r"\[`(test_\w+)`\]\(([^)\s]+)\)")
MADE_AT_START = {"AOAI_WORKER_POD": "host name"}
"""Settings whose default is made by a function, as the documents name it."""


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def first_cells(document: str) -> set[str]:
    """Everything in code style in the first column of the document's tables."""
    rows = re.findall(r"^\| (`.*?) \|", document, re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


def documented_settings() -> dict[str, str]:
    """Name to default, out of the tables of docs/settings.md."""
    rows = re.findall(r"^\| `([A-Z_]+)` \| .+? \| (.+?) \|", read("docs/settings.md"), re.MULTILINE)
    return {name: default.strip("`") for name, default in rows}


def real_settings() -> dict[str, str]:
    """The same out of the code."""
    return {
        str(field.validation_alias or f"{PREFIX}{name.upper()}"): default_of(name)
        for name, field in WorkerSettings.model_fields.items()
    }


def default_of(name: str) -> str:
    field = WorkerSettings.model_fields[name]
    match field.default:
        case _ if field.default_factory is not None:
            return MADE_AT_START[f"{PREFIX}{name.upper()}"]
        case value if value is PydanticUndefined:
            return "required"
        case None:
            return "none"
        case bool() as value:
            return str(value).lower()
        case float() as value:
            return f"{value:g}"
        case value:
            return str(value)


def real_metrics(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Every name that /metrics can show, as Prometheus stores it, without what a library adds by itself."""
    monkeypatch.setenv("AZURE_FEDERATED_TOKEN_FILE", "/var/run/secrets/azure/tokens/azure-identity-token")
    scopes = ["https://servicebus.azure.net//.default"]
    metrics = Metrics(queues=["jobs"], deployments=["d"], scopes=scopes, slots=1, bytes_limit=1)
    metrics.watch(Admission({}, slots=1, observer=metrics))
    suffixes = {"counter": "_total", "info": "_info"}

    async def collect() -> list[Metric]:  # where there is a clock for the gates
        return list(metrics.registry.collect())

    return {family.name + suffixes.get(family.type, "") for family in asyncio.run(collect())}


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


def test_every_setting_is_documented_with_its_default() -> None:
    assert documented_settings() == real_settings()


def test_the_settings_of_worker_and_producer_stand_apart() -> None:
    shared, _, worker_only = read("docs/settings.md").partition("## Worker only")
    for name in ConnectionSettings.model_fields:
        row = f"| `{PREFIX}{name.upper()}` |"
        assert row in shared
        assert row not in worker_only


def test_every_refused_variable_is_documented() -> None:
    refused = read("docs/settings.md").partition("## Refused")[2]
    assert {name for name in (*SMUGGLED_KEYS, *CONNECTION_STRINGS) if f"`{name}`" not in refused} == set()


def test_every_metric_is_documented_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    real = real_metrics(monkeypatch)
    assert {name for name in first_cells(read("docs/operations.md")) if METRIC.fullmatch(name)} == real


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_metric_that_a_document_names_exists(document: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = set(METRIC.findall(document.read_text(encoding="utf-8")))
    assert named - real_metrics(monkeypatch) == set()


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
