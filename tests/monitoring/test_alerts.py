"""The alerts: sound by promtool's word, tested one by one, and each with a section in the runbooks."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.monitoring.expressions import alerts, rules
from tests.monitoring.prometheus import promtool, write_rules

ROOT = Path(__file__).resolve().parents[2]
UNIT_TESTS = Path(__file__).parent / "alerts_test.yaml"
RUNBOOKS = ROOT / "docs" / "runbooks.md"
NAMES = sorted(alert["alert"] for alert in alerts())


def cases() -> list[dict[str, Any]]:
    return list(yaml.safe_load(UNIT_TESTS.read_text())["tests"])


def outcomes_tested(alert: str) -> set[bool]:
    """Whether there are cases in which it fires, and in which it does not."""
    tests = [test for case in cases() for test in case["alert_rule_test"] if test["alertname"] == alert]
    return {bool(test["exp_alerts"]) for test in tests}


def test_promtool_finds_nothing_wrong_with_the_rules(tmp_path: Path) -> None:
    code, output = promtool("check", "rules", "--lint=all", "--lint-fatal", str(write_rules(tmp_path, "nightly")))
    assert code == 0, output


def test_every_alert_fires_when_it_must_and_only_then(tmp_path: Path) -> None:
    for fullname in ("aoai-worker", "nightly"):
        write_rules(tmp_path, fullname)
    code, output = promtool("test", "rules", str(shutil.copyfile(UNIT_TESTS, tmp_path / UNIT_TESTS.name)))
    assert code == 0, output


def test_nothing_is_left_to_fill_in() -> None:
    assert re.findall(r"<\w+>", yaml.safe_dump(rules())) == []


@pytest.mark.parametrize("alert", NAMES)
def test_an_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not(alert: str) -> None:
    assert outcomes_tested(alert) == {True, False}


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])
def test_an_alert_says_how_bad_it_is_what_it_is_and_where_to_read_on(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in ("critical", "warning")
    assert set(alert["annotations"]) == {"summary", "description", "runbook_url"}
    assert alert["annotations"]["runbook_url"] == f"docs/runbooks.md#{alert['alert'].lower()}"
    assert "for" in alert


def test_every_alert_has_one_section_in_the_runbooks_and_no_section_is_for_none() -> None:
    sections = re.findall(r"^## (AoaiWorker\w+)$", RUNBOOKS.read_text(), flags=re.MULTILINE)
    assert sorted(sections) == NAMES


@pytest.mark.parametrize("alert", NAMES)
def test_a_runbook_says_what_it_means_what_to_look_at_and_how_to_fix_it(alert: str) -> None:
    section = RUNBOOKS.read_text().split(f"## {alert}\n")[1].split("\n## ")[0]
    assert re.findall(r"^\*\*(\w+)[^*]*\*\*", section, flags=re.MULTILINE) == ["Means", "Look", "Fix"]


def commands() -> list[str]:
    """The lines and the words in code that are for a shell: all but queries."""
    text = RUNBOOKS.read_text()
    code = re.findall(r"^    .*$", text, re.MULTILINE) + re.findall(r"`([^`]+)`", text)
    return [line.strip() for line in code if re.search(r"\b(kubectl|az|helm|curl|aoai-worker) \w", line)]


def test_variables_of_commands_are_quoted_and_defined() -> None:
    """zsh does not split what is not quoted, and bash does."""
    text = RUNBOOKS.read_text()
    for line in commands():
        bare = re.sub(r"'[^']*'", "", line)
        assert re.findall(r'(?<!")\$\w+(?=[ )]|$)', bare) == [], line
        for name in re.findall(r"\$(\w+)", bare):
            assert re.search(rf"\b{name}=", text), f"{name} of {line}"


def test_logs_are_read_whole_and_of_the_workers_alone() -> None:
    """kubectl shows the last ten lines of each pod where pods are selected by a label."""
    selected = [line for line in commands() if "kubectl logs" in line and " -l " in line]
    assert len(selected) >= 4
    assert all("--tail=-1 --prefix" in line for line in selected)
    assert "component=worker" in RUNBOOKS.read_text()


def test_an_upgrade_takes_its_values_from_a_file() -> None:
    assert "--reuse-values" not in RUNBOOKS.read_text()


def test_names_are_unique() -> None:
    names = [rule.get("alert") or rule["record"] for rule in rules()]
    assert len(names) == len(set(names))
