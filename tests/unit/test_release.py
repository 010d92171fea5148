"""What keeps a tag from being released."""

from scripts.release import release_notes, stated_versions, version_problems, with_links

CHANGELOG = """# Changelog

## [Unreleased]

## [1.2.0] - 2026-11-30

### Added

- Something.

## [1.1.0] - 2026-11-01

- Something else.
"""
AGREED = {"pyproject.toml": "1.2.0", "Chart.yaml's version": "1.2.0"}


def test_a_tag_that_every_place_and_the_changelog_know_can_be_released() -> None:
    assert version_problems("v1.2.0", AGREED, CHANGELOG) == []


def test_each_place_with_another_version_is_named_with_what_to_do() -> None:
    stated = {"pyproject.toml": "1.2.0", "Chart.yaml's version": "1.1.0", "embedded_azure/pyproject.toml": "1.3.0"}
    assert version_problems("v1.2.0", stated, CHANGELOG) == [
        "Chart.yaml's version states 1.1.0, the tag 1.2.0. Next: write 1.2.0 there, or make the tag v1.1.0.",
        "embedded_azure/pyproject.toml states 1.3.0, the tag 1.2.0. "
        "Next: write 1.2.0 there, or make the tag v1.3.0.",
    ]


def test_a_version_without_entries_in_the_changelog_is_refused() -> None:
    (problem,) = version_problems("v1.3.0", {"pyproject.toml": "1.3.0"}, CHANGELOG)
    assert problem.startswith("CHANGELOG.md has nothing under a heading '## [1.3.0] - YYYY-MM-DD'")
    empty = CHANGELOG.replace("## [Unreleased]", "## [1.3.0] - 2026-12-01")
    assert version_problems("v1.3.0", {"pyproject.toml": "1.3.0"}, empty) == [problem]


def test_a_tag_that_is_no_version_is_refused() -> None:
    for tag in ("1.2.0", "v1.2", "v1.2.0 ", "vnext", "v1.2.0;ls", ""):
        (problem,) = version_problems(tag, AGREED, CHANGELOG)
        assert problem.startswith(f"The tag is {tag!r}")


def test_the_notes_of_a_release_are_its_section_and_no_other() -> None:
    assert release_notes(CHANGELOG, "1.2.0") == "### Added\n\n- Something."
    assert release_notes(CHANGELOG, "1.1.0") == "- Something else."
    assert release_notes(CHANGELOG, "1x2.0") == ""


def test_every_place_that_states_a_version_is_looked_at() -> None:
    packages = ["pyproject.toml", "embedded_azure/pyproject.toml"]
    chart = ["Chart.yaml's version", "Chart.yaml's appVersion"]
    overlays = [f"k8s/overlays/{name}/kustomization.yaml" for name in ("dev", "prod")]
    assert list(stated_versions()) == packages + chart + overlays


def test_a_released_chart_links_to_its_version_and_one_of_a_checkout_to_nothing() -> None:
    chart = {"name": "aoai-worker", "version": "1.2.0"}
    assert with_links(chart, "") == chart
    linked = with_links(chart, "https://git.example/us/aoai-worker/")
    assert linked["home"] == "https://git.example/us/aoai-worker"
    assert linked["sources"] == ["https://git.example/us/aoai-worker/tree/v1.2.0/charts/aoai-worker"]
    assert linked["icon"] == "https://git.example/us/aoai-worker/raw/v1.2.0/docs/icon.svg"
