"""Gates, the intake and the set-up's probes: arithmetic and time."""

import asyncio
import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.bench import target
from worker.errors import HandedBack, RefusedByService, SetupWrong, Throttled, Unavailable
from worker.interfaces import GateClosed, IntakeClosed, IntakeOpened
from worker.limits import Gate, Gates, Intake, Setup, admit
from worker.retry import RetryPolicy
from worker.testing import EventList
from worker.waits import loop_time

pytestmark = pytest.mark.looptime


async def test_a_gate_opens_when_the_service_said_it_would() -> None:
    gate = Gate(target("mini"), EventList())
    gate.throttle(2.5)
    assert await admit([gate], until=100) is gate
    assert loop_time() == 2.5


async def test_a_later_throttle_prolongs_the_closing_and_an_earlier_end_does_not_shorten_it() -> None:
    events = EventList()
    gate = Gate(target("mini"), events)
    gate.throttle(5)
    gate.throttle(1)
    assert gate.opens_at == 5
    gate.throttle(8)
    assert gate.opens_at == 8
    assert [event.seconds for event in events.of(GateClosed)] == [5, 3], "an overlap counts once"


async def test_those_who_wait_at_a_gate_wait_on_when_it_is_closed_again() -> None:
    gate = Gate(target("mini"), EventList())
    gate.throttle(5)
    asyncio.get_running_loop().call_at(4, gate.throttle, 6)
    await admit([gate], until=100)
    assert loop_time() == 10


async def test_no_header_closes_a_gate_for_longer_than_ten_minutes() -> None:
    gate = Gate(target("mini"), EventList())
    gate.throttle(1e9)
    assert gate.opens_at == 600


async def test_whoever_would_wait_too_long_does_not_wait_at_all() -> None:
    gate = Gate(target("mini"), EventList())
    gate.throttle(50)
    with pytest.raises(HandedBack):
        await admit([gate], until=49)
    assert loop_time() == 0


async def test_two_models_on_one_deployment_share_its_gate() -> None:
    gates = Gates({"a": [target("x")], "b": [target("x")]}, endpoint="", observer=EventList())
    assert gates.of("a") == gates.of("b")
    assert len(list(gates.all())) == 1


async def test_nothing_is_received_while_every_gate_is_closed() -> None:
    gates = Gates({"a": [target("x")], "b": [target("y")]}, endpoint="", observer=EventList())
    intake = Intake(4, EventList(), gates_open_at=gates.opens_at)
    for model, seconds in (("a", 9), ("b", 5)):
        (gate,) = gates.of(model) or ()
        gate.throttle(seconds)
    assert await intake.room() == 4
    assert loop_time() == 5


async def test_room_is_what_slots_are_free() -> None:
    intake = Intake(3, EventList())
    with intake.slot(), intake.slot():
        assert await intake.room() == 1


async def test_a_waiter_for_room_is_woken_when_a_slot_is_freed() -> None:
    intake = Intake(1, EventList())
    slot = intake.slot()
    asyncio.get_running_loop().call_at(3, slot.free)
    assert await intake.room() == 1
    assert loop_time() == 3


async def test_unsettled_deliveries_cannot_pile_up_beyond_twice_the_slots() -> None:
    intake = Intake(2, EventList())
    slots = [intake.slot() for _ in range(4)]
    for slot in slots:
        slot.free()
    asyncio.get_running_loop().call_at(3, slots[0].__exit__, None, None, None)
    assert await intake.room() == 1
    assert loop_time() == 3


async def test_freeing_a_slot_twice_frees_one() -> None:
    intake = Intake(2, EventList())
    with intake.slot() as slot:
        slot.free()
        slot.free()
        assert intake.in_flight == 0
    assert (intake.in_flight, intake.held) == (0, 0)


async def test_a_closed_intake_lets_in_one_message_to_probe_when_nothing_is_in_flight() -> None:
    intake = Intake(4, EventList())
    intake.close("setup", "403", probe_at=20)
    assert await intake.room() == 1
    assert loop_time() == 20


async def test_a_closed_intake_lets_nothing_in_beside_a_job_in_flight() -> None:
    intake = Intake(4, EventList())
    intake.close("sink", "down")
    slot = intake.slot()
    loop = asyncio.get_running_loop()
    loop.call_at(5, intake.open, "sink")
    assert await intake.room() == 3
    assert loop_time() == 5
    slot.free()


async def test_closing_and_opening_are_reported_once() -> None:
    events = EventList()
    intake = Intake(1, events)
    intake.close("sink", "down")
    intake.close("sink", "still down")
    intake.open("sink")
    intake.open("sink")
    assert events.all == [IntakeClosed(reason="sink", detail="down"), IntakeOpened(reason="sink")]


async def test_room_is_none_once_it_is_stopping() -> None:
    intake = Intake(1, EventList())
    slot = intake.slot()
    asyncio.get_running_loop().call_at(2, intake.stop)
    assert await intake.room() == 0
    assert loop_time() == 2
    slot.free()


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


@given(
    failures=st.integers(1, 10_000),
    chance=st.floats(0, 1, exclude_max=True),
    base=st.floats(0.01, 10),
    cap=st.floats(0.01, 600),
)
def test_a_backoff_is_never_negative_and_never_above_its_cap(
    failures: int, chance: float, base: float, cap: float
) -> None:
    wait = RetryPolicy(base=base, cap=cap).backoff(failures, chance)
    assert 0 <= wait <= cap
