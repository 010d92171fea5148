"""Slots, bytes and lanes: how many messages may be received now, and from which queue."""

import asyncio
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.admission.intake import COPIES, Intake, Lane, Slot, Wanted
from worker.errors import HandedBack
from worker.interfaces import IntakeClosed, IntakeOpened
from worker.testing import EventList
from worker.waits import loop_time

pytestmark = pytest.mark.looptime

MIB = 1 << 20


def lane_of(slots: int) -> Lane:
    return Intake(slots, EventList()).lane("jobs")


def at(seconds: float, action: object, *arguments: object) -> None:
    asyncio.get_running_loop().call_at(seconds, action, *arguments)  # type: ignore[arg-type]


async def test_nothing_is_received_while_every_gate_is_closed() -> None:
    lane = Intake(4, EventList()).lane("jobs", lambda: Wanted(at=5.0))
    assert await lane.room() == 4
    assert loop_time() == 5


@pytest.mark.parametrize(("now", "pause"), [(0.05, 0.01), (0.1, 0.2), (0.7, 0.1), (1.1, 2.2), (3.3, 0.007)])
async def test_a_timer_that_rings_a_little_early_makes_nobody_look_again_and_again(
    now: float, pause: float
) -> None:
    """0.05 + 0.01 is a little more than the 0.06 of a clock that has no finer steps."""
    looks: list[float] = []

    def wanted() -> Wanted:
        looks.append(loop_time())
        assert len(looks) < 20, "it looks again and again"
        return Wanted(at=now + pause)

    lane = Intake(4, EventList()).lane("jobs", wanted)
    await asyncio.sleep(now)
    assert await lane.room() == 4
    assert loop_time() == pytest.approx(now + pause)


async def test_room_is_what_slots_are_free() -> None:
    lane = lane_of(3)
    with lane.slot(), lane.slot():
        assert await lane.room() == 1


async def test_a_waiter_for_room_is_woken_when_a_slot_is_freed() -> None:
    lane = lane_of(1)
    slot = lane.slot()
    at(3, slot.free)
    assert await lane.room() == 1
    assert loop_time() == 3


async def test_unsettled_deliveries_cannot_pile_up_beyond_twice_the_slots() -> None:
    lane = lane_of(2)
    slots = [lane.slot() for _ in range(4)]
    for slot in slots:
        slot.free()
    at(3, slots[0].__exit__, None, None, None)
    assert await lane.room() == 1
    assert loop_time() == 3


async def test_freeing_a_slot_twice_frees_one() -> None:
    intake = Intake(2, EventList())
    lane = intake.lane("jobs")
    with lane.slot(10) as slot:
        await slot.hold(5)
        slot.free()
        slot.free()
        assert (intake.in_flight, lane.in_flight, intake.in_flight_bytes) == (0, 0, 0)
    assert (intake.in_flight, intake.held, lane.in_flight) == (0, 0, 0)


async def test_a_closed_intake_lets_in_one_message_to_probe_when_nothing_is_in_flight() -> None:
    lane = lane_of(4)
    lane._intake.close("sink", "down")
    with lane.slot():
        assert lane._intake.room_for(lane, 0.0) == (0, math.inf)
    assert await lane.room() == 1


async def test_only_one_lane_probes_a_closed_intake() -> None:
    intake = Intake(4, EventList())
    first, second = intake.lane("a"), intake.lane("b")
    intake.close("sink", "down")
    assert await first.room() == 1
    at(30, first.received, 0)
    assert await second.room() == 1
    assert loop_time() == 30


async def test_a_closed_intake_lets_nothing_in_beside_a_job_in_flight() -> None:
    lane = lane_of(4)
    lane._intake.close("sink", "down")
    with lane.slot():
        at(5, lane._intake.open, "sink")
        assert await lane.room() == 3
        assert loop_time() == 5


async def test_closing_and_opening_are_reported_once() -> None:
    events = EventList()
    intake = Intake(1, events)
    intake.close("sink", "down")
    intake.close("sink", "still down")
    intake.open("sink")
    intake.open("sink")
    assert events.all == [IntakeClosed(reason="sink", detail="down"), IntakeOpened(reason="sink")]


async def test_a_queue_that_cannot_be_received_is_told_until_every_queue_can_be() -> None:
    events = EventList()
    intake = Intake(4, events)
    first, second = intake.lane("a"), intake.lane("b")
    first.fail("a: gone")
    second.fail("b: gone")
    assert intake.closures == {"source": "a: gone; b: gone"}
    first.received(1)
    assert intake.closures == {"source": "b: gone"}
    second.received(0)
    assert intake.closures == {}
    assert events.all == [IntakeClosed(reason="source", detail="a: gone"), IntakeOpened(reason="source")]


async def test_room_is_none_once_it_is_stopping() -> None:
    lane = lane_of(1)
    with lane.slot():
        at(2, lane._intake.stop)
        assert await lane.room() == 0
        assert loop_time() == 2


async def test_a_paused_intake_receives_nothing_until_it_is_resumed() -> None:
    lane = lane_of(2)
    lane._intake.pause("suspects", "they run apart")
    assert lane._intake.closures == {"suspects": "they run apart"}
    at(4, lane._intake.resume, "suspects")
    assert await lane.room() == 2
    assert lane._intake.closures == {}
    assert loop_time() == 4


async def test_bytes_in_flight_bound_how_much_is_asked_for() -> None:
    intake = Intake(100, EventList(), bytes_limit=10 * MIB)
    lane = intake.lane("jobs")
    with lane.slot(MIB):
        assert await lane.room() == 9, "as many messages of that size as still fit"


async def test_nothing_is_received_while_the_bytes_are_used_up() -> None:
    intake = Intake(100, EventList(), bytes_limit=2 * MIB)
    lane = intake.lane("jobs")
    lane.slot(MIB)
    large = lane.slot(MIB)
    at(3, large.free)
    assert await lane.room() == 1
    assert loop_time() == 3


async def test_an_answer_that_waits_to_be_written_counts_too() -> None:
    intake = Intake(100, EventList(), bytes_limit=2 * MIB)
    lane = intake.lane("jobs")
    slot = lane.slot(100)
    await slot.hold(2 * MIB)
    at(3, slot.free)
    assert await lane.room() > 1
    assert loop_time() == 3


async def test_messages_become_small_again_slowly() -> None:
    intake = Intake(1_000, EventList(), bytes_limit=10 * MIB)
    lane = intake.lane("jobs")
    lane.slot(MIB).free()
    rooms = []
    for _ in range(3):
        lane.slot(1_000).free()
        rooms.append(await lane.room())
        lane.received(1)
    assert rooms == sorted(rooms)
    assert 10 <= rooms[0] < rooms[-1] < 20


async def test_a_queue_that_was_found_empty_is_asked_for_one_message_and_holds_no_more_slots() -> None:
    intake = Intake(10, EventList())
    empty, busy = intake.lane("empty"), intake.lane("busy")
    empty.received(0)
    assert await empty.room() == 1
    assert await busy.room() == 10


async def test_empty_queues_starve_no_full_one_however_few_slots_there_are() -> None:
    intake = Intake(1, EventList())
    empty = [intake.lane(f"empty-{number}") for number in range(4)]
    busy = intake.lane("busy")
    for lane in empty:
        lane.received(0)
        lane.reserved = intake.room_for(lane, 0.0)[0]
    assert await busy.room() == 1


async def test_an_empty_queue_does_not_take_the_probe_of_a_full_one() -> None:
    intake = Intake(1, EventList())
    empty, busy = intake.lane("empty"), intake.lane("busy")
    empty.received(0)
    intake.close("sink", "down")
    assert intake.room_for(empty, 0.0) == (0, math.inf)
    assert await busy.room() == 1


async def test_each_of_two_full_queues_has_half_of_the_slots() -> None:
    intake = Intake(10, EventList())
    slow, quick = intake.lane("slow"), intake.lane("quick")
    assert await slow.room() == 5
    assert await quick.room() == 5


async def test_a_queue_whose_gates_are_closed_is_owed_nothing() -> None:
    intake = Intake(10, EventList())
    intake.lane("closed", lambda: Wanted(at=100.0))
    assert await intake.lane("open").room() == 10


async def test_a_queue_of_which_a_probe_is_wanted_is_asked_for_one_message_and_owed_no_more() -> None:
    intake = Intake(10, EventList())
    broken = intake.lane("broken", lambda: Wanted(is_probe=True))
    mate = intake.lane("broken", lambda: Wanted(is_probe=True))
    assert await broken.room() == 1
    assert intake.room_for(mate, loop_time()) == (0, math.inf), "two receivers of one queue"
    assert await intake.lane("open").room() == 9
    broken.received(1)
    with broken.slot():
        assert intake.room_for(mate, loop_time()) == (0, math.inf), "it is not known yet how the probe ends"


async def test_several_receivers_do_not_ask_for_the_same_free_bytes() -> None:
    intake = Intake(100, EventList(), bytes_limit=10 * MIB)
    first, second = intake.lane("a"), intake.lane("b")
    with first.slot(MIB):
        rooms = [await first.room(), intake.room_for(second, loop_time())[0]]
    assert rooms == [9, 0]


async def test_a_queue_of_slow_jobs_cannot_keep_the_slots_that_another_is_owed() -> None:
    intake = Intake(4, EventList())
    slow, quick = intake.lane("slow"), intake.lane("quick")
    held = [slow.slot() for _ in range(4)]
    quick.received(1)
    held[0].free()
    assert await quick.room() == 1
    assert intake.room_for(slow, loop_time()) == (0, math.inf)
    for slot in held[1:]:
        slot.free()


async def test_jobs_that_cannot_be_kept_are_not_received_at_once_again() -> None:
    lane = lane_of(4)
    waits = []
    for _ in range(7):
        began = loop_time()
        lane.shy_away()
        lane.shy_away()
        assert await lane.room() == 4
        waits.append(loop_time() - began)
        lane.received(1)
    assert waits == [1, 2, 4, 8, 16, 30, 30]
    lane.take_heart()
    lane.shy_away()
    began = loop_time()
    await lane.room()
    assert loop_time() - began == 1


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["take", "free", "empty", "full"])), max_size=60))
def test_lanes_never_promise_more_than_the_slots(steps: list[tuple[str, str]]) -> None:
    async def follow() -> None:
        intake = Intake(7, EventList())
        lanes = {name: intake.lane(name) for name in "abc"}
        slots: dict[str, list[Slot]] = {name: [] for name in "abc"}
        for name, step in steps:
            lane = lanes[name]
            room, _ = intake.room_for(lane, 0.0)
            match step:
                case "take" if room and not lane.reserved:
                    lane.reserved = room
                case "full" if lane.reserved:
                    slots[name] += [lane.slot() for _ in range(lane.reserved)]
                    lane.received(lane.reserved)
                case "empty" if lane.reserved:
                    lane.received(0)
                case "free" if slots[name]:
                    slots[name].pop().__exit__(None, None, None)
            reserved = sum(lane.reserved for lane in lanes.values() if lane.is_hungry)
            assert 0 <= intake.in_flight + reserved <= 7 + len(lanes), "one more for each that was empty"
        for held in slots.values():
            for slot in held:
                slot.__exit__(None, None, None)
        assert (intake.in_flight, intake.held) == (0, 0)
        for lane in lanes.values():
            lane.received(1)
        rooms = [intake.room_for(lane, 0.0)[0] for lane in lanes.values()]
        assert all(room >= 2 for room in rooms), "no lane is starved once all is free"

    asyncio.run(follow())


# Room for answers


async def test_an_answer_is_asked_for_once_it_fits_or_is_alone() -> None:
    intake = Intake(100, EventList(), bytes_limit=10 * MIB)
    lane = intake.lane("jobs")
    large, small, next_one = lane.slot(1_000), lane.slot(2_000), lane.slot(3_000)
    await large.reserve(30 * MIB, until=math.inf)  # alone
    at(3, large.free)
    await small.reserve(1, until=math.inf)
    assert loop_time() == 3
    await next_one.reserve(9 * MIB, until=math.inf)
    assert loop_time() == 3
    small.free()
    next_one.free()
    assert intake.in_flight_bytes == 0


async def test_who_finds_no_memory_for_an_answer_is_handed_back_in_time() -> None:
    intake = Intake(100, EventList(), bytes_limit=MIB)
    lane = intake.lane("jobs")
    first, second = lane.slot(), lane.slot()
    await first.reserve(MIB, until=math.inf)
    with pytest.raises(HandedBack, match="parked"):
        await second.reserve(1, until=7)
    assert loop_time() == 7
    second.free()
    assert intake.in_flight_bytes == MIB


async def test_an_attempt_without_an_answer_frees_its_room() -> None:
    intake = Intake(100, EventList(), bytes_limit=MIB)
    slot, other = intake.lane("jobs").slot(10), intake.lanes[0].slot(20)
    await slot.reserve(MIB, until=math.inf)
    at(2, slot.unreserve)
    await other.reserve(MIB, until=math.inf)
    assert loop_time() == 2
    assert intake.in_flight_bytes == 10 + (1 + COPIES) * 20 + MIB
    other.keep(300)
    assert intake.in_flight_bytes == 10 + 20 + 300


async def test_a_large_answer_is_not_kept_waiting_by_small_ones_that_come_later() -> None:
    intake = Intake(300, EventList(), bytes_limit=10 * MIB)
    lane, order = intake.lane("jobs"), list[str]()

    async def answer(name: str, size: int, comes_at: float) -> None:
        await asyncio.sleep(comes_at)
        with lane.slot() as slot:
            await slot.reserve(size, until=math.inf)
            order.append(name)
            await asyncio.sleep(1.1)

    small = [answer("small", MIB, number * 0.1) for number in range(97)]
    await asyncio.gather(*small, answer("large", 9 * MIB, 1.05))
    assert order.index("large") == 11, "those that came before it, and none that came later"


async def test_what_is_freed_wakes_only_the_first_in_line() -> None:
    """However many wait, else each job would cost as much as there are that wait."""
    intake = Intake(1_000, EventList(), bytes_limit=MIB)
    lane = intake.lane("jobs")
    holder = lane.slot()
    await holder.reserve(MIB, until=math.inf)
    waiting = [asyncio.create_task(lane.slot().reserve(MIB, until=1_000.0)) for _ in range(237)]
    await asyncio.sleep(1)
    assert len(intake._room_bell._waiting) == 1
    holder.free()
    await asyncio.sleep(1)
    assert sum(task.done() for task in waiting) == 1
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)


async def test_who_is_cancelled_in_line_or_waited_too_long_holds_up_nobody() -> None:
    intake = Intake(100, EventList(), bytes_limit=MIB)
    lane = intake.lane("jobs")
    holder, first, second, third = (lane.slot() for _ in range(4))
    await holder.reserve(MIB, until=math.inf)
    cancelled = asyncio.create_task(first.reserve(MIB, until=math.inf))
    impatient = asyncio.create_task(second.reserve(MIB, until=5.0))
    patient = asyncio.create_task(third.reserve(MIB, until=math.inf))
    at(3, cancelled.cancel)
    at(7, holder.free)
    with pytest.raises(HandedBack):
        await impatient
    assert loop_time() == 5
    await patient
    assert loop_time() == 7
    assert cancelled.cancelled()


async def test_answers_that_outgrow_their_estimates_are_read_on_one_at_a_time() -> None:
    """None would ever end if each waited for the others."""
    limit, sizes = 10 * MIB, [size * MIB + 77 * size for size in (9, 3, 30, 8, 17, 5, 11, 2, 23)]
    intake = Intake(100, EventList(), bytes_limit=limit)
    lane, peaks = intake.lane("jobs"), list[int]()

    async def answer(size: int) -> None:
        with lane.slot(size // 1_000) as slot:
            await slot.reserve(MIB // 2, until=math.inf)
            for read in range(0, size, 400_001):
                if read > slot.reserved:
                    await slot.grow(read)
                peaks.append(intake.in_flight_bytes)
                await asyncio.sleep(0.01)
            slot.keep(size)
            await asyncio.sleep(0.5)  # it is written

    async with asyncio.timeout(1_000):
        await asyncio.gather(*[answer(size) for size in sizes * 3])
    assert intake.in_flight_bytes == 0
    assert max(peaks) <= limit + 2 * max(sizes) // 1_000 + max(sizes)


async def test_bodies_are_fetched_in_turn_while_they_leave_room_for_their_copies_or_alone() -> None:
    intake = Intake(100, EventList(), bytes_limit=9_000)
    lane, fetched, peaks = intake.lane("jobs"), list[int](), list[int]()
    sizes = [700, 1_100, 20_000, 300, 2_999, 1, 3_001, 950] * 4

    async def job(number: int, size: int) -> None:
        with lane.slot(7) as slot:
            await slot.hold(size)
            fetched.append(number)
            peaks.append(intake._fetched_bytes)
            await slot.reserve(500, until=math.inf)
            await asyncio.sleep(1 + number % 3)

    async with asyncio.timeout(1_000):
        await asyncio.gather(*[job(number, size) for number, size in enumerate(sizes)])
    assert fetched == list(range(len(sizes))), "first come, first served"
    assert all(peak <= 9_000 / (1 + COPIES) or peak in sizes for peak in peaks)
    assert max(peaks) == 20_000, "alone, though it is larger than all that may be held"
    assert (intake.in_flight_bytes, intake._fetched_bytes) == (0, 0)


async def test_who_is_cancelled_before_its_body_is_fetched_holds_nothing() -> None:
    intake = Intake(100, EventList(), bytes_limit=9_000)
    lane = intake.lane("jobs")
    holder, cancelled, patient = (lane.slot() for _ in range(3))
    await holder.hold(3_000)
    waiting = asyncio.create_task(cancelled.hold(1_000))
    at(3, waiting.cancel)
    at(7, holder.free)
    await patient.hold(2_900)
    assert loop_time() == 7
    cancelled.free()
    assert (intake.in_flight_bytes, intake._fetched_bytes) == (2_900, 2_900)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5_000), st.integers(0, 5_000), st.floats(0, 3)), max_size=40))
async def test_whatever_answers_turn_out_to_be_they_come_in_turn_none_waits_for_ever_and_all_is_freed(
    answers: list[tuple[int, int, float]],
) -> None:
    intake = Intake(100, EventList(), bytes_limit=4_000)
    lane, order = intake.lane("jobs"), list[int]()

    async def answer(number: int, estimate: int, size: int, seconds: float) -> None:
        with lane.slot(7) as slot:
            await slot.reserve(estimate, until=math.inf)
            order.append(number)
            await asyncio.sleep(round(seconds, 3))
            if size > slot.reserved:
                await slot.grow(size)
            assert intake.in_flight_bytes <= 4_000 + 7 * (len(answers) + COPIES) + 5_000
            await asyncio.sleep(round(seconds / 2, 3))
            if size % 3:
                slot.unreserve()
            else:
                slot.keep(size)

    async with asyncio.timeout(1_000):
        await asyncio.gather(*[answer(number, *one) for number, one in enumerate(answers)])
    assert order == sorted(order), "first come, first served"
    assert (intake.in_flight_bytes, intake.held) == (0, 0)
