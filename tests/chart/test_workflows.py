"""What actionlint and zizmor say of the workflows, offline: that a commit is its action's is not looked up."""

import shutil
from pathlib import Path

from tests.chart.helm import BIN, ROOT, run

WORKFLOWS = sorted(ROOT.glob(".github/workflows/*.yml"))


def test_actionlint_has_nothing_to_say_about_the_workflows() -> None:
    done = run(BIN / "actionlint", *WORKFLOWS)
    assert done.returncode == 0, done.stdout


def test_zizmor_has_nothing_to_say_about_the_workflows() -> None:
    done = run(BIN / "zizmor", "--offline", ROOT / ".github")
    assert done.returncode == 0, done.stdout


def test_a_job_that_is_needed_and_missing_is_found(tmp_path: Path) -> None:
    path = changed(tmp_path, "needs: [package, test]", "needs: [package, tests]")
    assert '"tests"' in run(BIN / "actionlint", path).stdout


def test_an_action_that_is_not_pinned_is_found(tmp_path: Path) -> None:
    path = changed(tmp_path, "actions/checkout@de0fac2e4500dabe0009e67214ff5f5447ce83dd", "actions/checkout@v6")
    assert "unpinned-uses" in run(BIN / "zizmor", "--offline", path).stdout


def test_every_job_says_its_rights_and_none_has_more_than_a_release_needs() -> None:
    done = run(BIN / "zizmor", "--offline", "--persona", "auditor", "--format", "json", ROOT / ".github")
    assert '"excessive-permissions"' not in done.stdout
    assert '"undocumented-permissions"' not in done.stdout


def changed(folder: Path, old: str, new: str) -> Path:
    """The release workflow with one thing wrong, where the tools take it for a workflow."""
    workflows = folder / ".github/workflows"
    workflows.mkdir(parents=True)
    shutil.copy(ROOT / ".github/workflows/ci.yml", workflows)
    text = (ROOT / ".github/workflows/release.yml").read_text(encoding="utf-8")
    assert old in text
    (workflows / "release.yml").write_text(text.replace(old, new), encoding="utf-8")
    return workflows / "release.yml"
