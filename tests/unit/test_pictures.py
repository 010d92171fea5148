"""The drawings of docs/ are what their script draws, and are whole."""

import pytest
from defusedxml.ElementTree import fromstring

from scripts.pictures import DOCS, PICTURES


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_up_to_date(name: str) -> None:
    drawn = PICTURES[name]()
    assert (DOCS / name).read_text(encoding="utf-8") == drawn, "run `make pictures`"
    assert fromstring(drawn).tag.endswith("svg")
    assert "http" not in drawn.replace("http://www.w3.org/", ""), "nothing is fetched from elsewhere"
