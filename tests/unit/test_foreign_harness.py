"""The harness of the foreign tests: which version it takes, and what its report says."""

import argparse

import pytest

from tests.foreign.python_tests import pinned_version
from tests.foreign.report import Result, Section, explained, put_section
from tests.foreign.run import REPORT, Suite, run_suite


def result(name: str, outcome: str, reason: str = "") -> Result:
    return Result(file="test_queues", name=name, outcome=outcome, reason=reason, seconds=1.0)


def section(title: str, results: list[Result]) -> Section:
    return Section(title=title, about="What it is.", ran="azure-servicebus 7.15.0", results=results, seconds=12.3)


def test_the_version_is_the_one_that_is_pinned() -> None:
    assert pinned_version("azure-core==1.41.0 \\\nazure-servicebus==7.15.0 \\\n    --hash=x\n") == "7.15.0"
    with pytest.raises(LookupError, match="make lock"):
        pinned_version("azure-core==1.41.0\n")


def test_the_report_counts_and_gives_every_test_that_did_not_pass_its_reason() -> None:
    results = [
        result("test_a", "passed"),
        result("test_b[pyamqp]", "failed", "assert 1 | 2\nmore"),
        result("test_queue_operation_negative[pyamqp]", "failed", "TypeError"),
        result("test_c", "skipped", "sleeps for 60 s"),
    ]
    text = put_section("", section("Python", results), ["Python"])
    assert "azure-servicebus 7.15.0: 1 passed, 2 failed, 1 skipped, in 12 s." in text
    assert "| `test_queues` | 1 | 2 | 1 |" in text
    assert "| `test_b[pyamqp]` | `test_queues` | assert 1 \\| 2 |" in text
    assert "`await_outcome`" in text
    assert "| `test_c` | `test_queues` | sleeps for 60 s |" in text
    assert text.endswith("|\n")


def test_a_section_takes_the_place_of_its_former_self_and_leaves_the_others_alone() -> None:
    titles = ["JavaScript", "Python"]
    page = put_section("", section("Python", [result("test_a", "failed", "worse")]), titles)
    page = put_section(page, section("JavaScript", [result("test_b", "failed", "bad")]), titles)
    again = put_section(page, section("JavaScript", [result("test_b", "passed")]), titles)
    assert page.index("## JavaScript") < page.index("| bad |") < page.index("## Python") < page.index("| worse |")
    assert "bad" not in again
    assert again[again.index("## Python") :] == page[page.index("## Python") :]


def test_only_a_failure_that_is_known_is_explained() -> None:
    assert explained(result("test_queue_operation_negative[pyamqp]", "failed"))
    assert not explained(result("test_queue_operation_negative[pyamqp]", "passed"))
    assert not explained(result("test_other[pyamqp]", "failed"))


def test_a_suite_that_cannot_run_fails_and_leaves_the_page_alone(capsys: pytest.CaptureFixture[str]) -> None:
    def no_node(_arguments: argparse.Namespace) -> tuple[str, list[Result]]:
        raise RuntimeError("Node.js is missing")

    before = REPORT.read_text()
    (failed,) = run_suite(Suite(title="JavaScript", about="", run=no_node), argparse.Namespace())
    assert (failed.outcome, failed.reason) == ("failed", "Node.js is missing")
    assert REPORT.read_text() == before
    assert "JavaScript was not run: Node.js is missing" in capsys.readouterr().out
