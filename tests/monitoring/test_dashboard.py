"""The dashboard that is committed: what the code makes, well laid out, and for any data source."""

from itertools import combinations
from typing import Any

import pytest

from scripts.dashboard import render
from tests.monitoring.expressions import DASHBOARD, dashboard, panels


def titles(panel: dict[str, Any]) -> str:
    return str(panel["title"])


def test_the_committed_dashboard_is_what_the_code_makes() -> None:
    assert DASHBOARD.read_text() == render(), "next: make dashboard"


def test_one_can_choose_data_source_release_and_what_of_it() -> None:
    names = [variable["name"] for variable in dashboard()["templating"]["list"]]
    assert names == ["datasource", "release", "cluster", "namespace", "queue", "deployment", "pod"]


@pytest.mark.parametrize("panel", panels(), ids=titles)
def test_a_panel_asks_the_chosen_data_source(panel: dict[str, Any]) -> None:
    for asked in (panel, *panel["targets"]):
        assert asked["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


@pytest.mark.parametrize("panel", panels(), ids=titles)
def test_a_panel_explains_itself_and_has_a_unit(panel: dict[str, Any]) -> None:
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]


@pytest.mark.parametrize("panel", panels(), ids=titles)
def test_a_panel_looks_only_at_what_was_chosen(panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        for variable in ("$cluster", "$namespace", "$release"):
            assert target["expr"].count(variable) >= target["expr"].count("{"), variable


def test_no_title_is_there_twice() -> None:
    names = [panel["title"] for panel in dashboard()["panels"]]
    assert len(names) == len(set(names))


def test_a_legend_tells_the_last_and_the_greatest_value() -> None:
    graphs = [panel for panel in panels() if panel["type"] == "timeseries"]
    assert {tuple(panel["options"]["legend"]["calcs"]) for panel in graphs} == {("lastNotNull", "max")}


def test_no_panel_lies_upon_another_and_none_sticks_out() -> None:
    places = [panel["gridPos"] for panel in dashboard()["panels"]]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or above
