"""Probing what is known to be wrong: who may, when, and what is known meanwhile."""

import itertools
import math

from worker.admission.probing import Probation


def fail(probation: Probation, now: float) -> float:
    was_probe = probation.enter()
    more = probation.begin("403", was_probe=was_probe, now=now)
    if was_probe:
        probation.leave()
    return more


def test_probes_come_at_doubling_intervals_of_at_most_20_seconds() -> None:
    probation = Probation()
    times = [0.0]
    for _ in range(9):
        times.append(times[-1] + fail(probation, times[-1]))
        assert probation.ready_at == times[-1]
    waits = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert waits == [5, 10, 20, 20, 20, 20, 20, 20, 20]


def test_only_one_probes_at_a_time() -> None:
    probation = Probation()
    fail(probation, 0)
    assert probation.enter()
    assert probation.ready_at == math.inf
    assert not probation.enter()
    probation.leave()
    assert probation.ready_at == 5, "it ended without a word about the set-up, so the next may go at once"


def test_calls_that_were_under_way_put_off_no_probe() -> None:
    probation = Probation()
    assert fail(probation, 0) == 5
    assert probation.begin("403 again", was_probe=False, now=3) == 0
    assert (probation.ready_at, probation.detail) == (5, "403 again")


def test_a_fault_that_is_gone_is_forgotten() -> None:
    probation = Probation()
    fail(probation, 0)
    fail(probation, 5)
    probation.end()
    assert not probation.is_on
    assert probation.ready_at == -math.inf
    assert fail(probation, 100) == 5
