"""Probing a set-up that is wrong: who may, when, and what shows that it works again."""

import asyncio
import itertools
import math

import pytest

from worker.errors import RefusedByService, SetupWrong, Throttled, Unavailable
from worker.intake import Intake
from worker.probing import Setup
from worker.testing import EventList
from worker.waits import loop_time

pytestmark = pytest.mark.looptime


async def fails(setup: Setup, error: Exception, until: float = math.inf) -> None:
    with pytest.raises(type(error)):
        async with setup.trial(until):
            raise error


async def test_probes_of_a_wrong_setup_come_at_doubling_intervals_of_at_most_five_minutes() -> None:
    setup = Setup(Intake(1, EventList()))
    times = []
    for _ in range(9):
        await fails(setup, SetupWrong("403"))
        times.append(loop_time())
    waits = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert waits == [5, 10, 20, 40, 80, 160, 300, 300]


async def test_only_one_probes_at_a_time() -> None:
    setup = Setup(Intake(1, EventList()))
    await fails(setup, SetupWrong("403"))
    at_once = peak = 0

    async def probe() -> None:
        nonlocal at_once, peak
        async with setup.trial(1_000):
            at_once += 1
            peak = max(peak, at_once)
            await asyncio.sleep(1)
            at_once -= 1
            raise SetupWrong("403")

    outcomes = await asyncio.gather(*[probe() for _ in range(4)], return_exceptions=True)
    assert peak == 1
    assert all(isinstance(outcome, SetupWrong) for outcome in outcomes)


@pytest.mark.parametrize("error", [Throttled("429", status=429), RefusedByService("400", status=400)])
async def test_a_word_from_the_service_about_the_job_shows_that_the_setup_works(error: Exception) -> None:
    setup = Setup(Intake(1, EventList()))
    await fails(setup, SetupWrong("403"))
    await fails(setup, error)
    assert not setup.is_wrong


async def test_a_failure_on_the_way_says_nothing_about_the_setup() -> None:
    setup = Setup(Intake(1, EventList()))
    await fails(setup, SetupWrong("403"))
    await fails(setup, Unavailable("gone"))
    assert setup.is_wrong


async def test_a_cancelled_probe_passes_its_turn_on() -> None:
    setup = Setup(Intake(1, EventList()))
    await fails(setup, SetupWrong("403"))

    async def probe() -> None:
        async with setup.trial(1_000):
            await asyncio.sleep(10)

    first = asyncio.create_task(probe())
    second = asyncio.create_task(probe())
    await asyncio.sleep(6)
    first.cancel()
    await second
    assert first.cancelled()
    assert loop_time() == 16
    assert not setup.is_wrong
