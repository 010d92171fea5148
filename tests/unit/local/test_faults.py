"""Faults on demand: counted, narrowed to a deployment, and refused when they make no sense."""

import pytest

from worker.local.faults import NO_FAULT, Faults


def test_a_fault_hits_as_many_requests_as_it_says() -> None:
    faults = Faults({"status": 503, "count": 2})
    assert [faults.take().status for _ in range(3)] == [503, 503, None]


def test_a_fault_without_a_count_lasts_until_it_is_cleared() -> None:
    faults = Faults({"status": 503})
    assert [faults.take().status for _ in range(3)] == [503] * 3
    faults.set(b"{}")
    assert faults.take() == NO_FAULT


def test_a_fault_of_one_deployment_neither_hits_nor_counts_on_another() -> None:
    faults = Faults({"status": 429, "count": 1, "deployment": "a"}, {"a", "b"})
    assert [faults.take(name).status for name in ("b", "a", "a")] == [None, 429, None]


def test_retry_headers_are_those_asked_for_and_no_others() -> None:
    faults = Faults({"status": 429, "retry_after_ms": 800})
    assert faults.take().headers() == {"retry-after-ms": "800"}


@pytest.mark.parametrize(
    ("document", "named"),
    [
        (b'{"status": 200}', "status"),
        (b'{"statsu": 503}', "statsu"),
        (b'{"count": -1}', "count"),
        (b'{"deployment": "c"}', "'c'; there are: a, b"),
        (b"[]", "Fault"),
        (b"{", "JSON"),
    ],
)
def test_a_fault_that_makes_no_sense_is_refused_by_name_and_changes_nothing(document: bytes, named: str) -> None:
    faults = Faults({"status": 503}, {"a", "b"})
    with pytest.raises(ValueError, match=named):
        faults.set(document)
    assert faults.take("a").status == 503
