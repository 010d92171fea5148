"""Probing a set-up that is wrong: who may, when, and what is known meanwhile."""

import itertools
import math

from worker.probing import Setup


def fail(setup: Setup, now: float) -> float:
    was_probe = setup.enter()
    more = setup.note_wrong("403", was_probe=was_probe, now=now)
    if was_probe:
        setup.leave()
    return more


def test_probes_of_a_wrong_setup_come_at_doubling_intervals_of_at_most_five_minutes() -> None:
    setup = Setup()
    times = [0.0]
    for _ in range(9):
        times.append(times[-1] + fail(setup, times[-1]))
        assert setup.ready_at == times[-1]
    waits = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert waits == [5, 10, 20, 40, 80, 160, 300, 300, 300]


def test_only_one_probes_at_a_time() -> None:
    setup = Setup()
    fail(setup, 0)
    assert setup.enter()
    assert setup.ready_at == math.inf
    assert not setup.enter()
    setup.leave()
    assert setup.ready_at == 5, "it ended without a word about the set-up, so the next may go at once"


def test_calls_that_were_under_way_put_off_no_probe() -> None:
    setup = Setup()
    assert fail(setup, 0) == 5
    assert setup.note_wrong("403 again", was_probe=False, now=3) == 0
    assert (setup.ready_at, setup.detail) == (5, "403 again")


def test_a_setup_that_works_again_is_forgotten_to_have_been_wrong() -> None:
    setup = Setup()
    fail(setup, 0)
    fail(setup, 5)
    setup.note_works()
    assert not setup.is_wrong
    assert setup.ready_at == -math.inf
    assert fail(setup, 100) == 5
