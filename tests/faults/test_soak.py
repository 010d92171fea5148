"""The verdict of a long run, and its picture."""

from xml.etree import ElementTree

from tests.faults.curves import Curve, draw
from tests.faults.soak import Sample, verdict

STEADY = {"files": 30, "threads": 4, "tasks": 90, "held": 64}


def samples_with(rss: list[float]) -> list[Sample]:
    return [Sample(done=number, rss=value, **STEADY) for number, value in enumerate(rss)]


def test_a_process_that_grows_in_its_first_fifth_only_is_flat() -> None:
    assert verdict(samples_with([50, 80, 100, 100, 100, 100, 100, 100, 104, 104])) == []


def test_a_process_whose_last_fifth_is_more_than_a_twentieth_above_the_second_is_not_flat() -> None:
    [problem] = verdict(samples_with([50, 80, 100, 100, 100, 100, 100, 100, 106, 106]))
    assert problem.startswith("memory (RSS), MiB: the last fifth is 1.060 times the second")


def test_a_leak_of_open_files_is_not_flat() -> None:
    samples = [Sample(done=number, rss=100, **{**STEADY, "files": 30 + number}) for number in range(10)]
    [problem] = verdict(samples)
    assert problem.startswith("open files")


def test_the_picture_is_xml_with_a_line_for_each_curve_and_colours_for_dark_pages() -> None:
    picture = draw("a < b", "jobs", [Curve(name=name, x=list(range(1_000)), y=[5.0] * 1_000) for name in "ab"])
    lines = ElementTree.fromstring(picture).findall(".//{*}polyline")
    assert [len(line.attrib["points"].split()) for line in lines] == [200, 200]
    assert "prefers-color-scheme: dark" in picture
