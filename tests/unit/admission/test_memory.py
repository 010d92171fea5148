"""Memory for answers and for bodies from Blob: in turn, within the limit, and nobody waits for ever."""

import asyncio
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.admissions import MIB, Receiver, admission_of, at
from worker.admission.memory import COPIES
from worker.errors import HandedBack
from worker.waits import loop_time

pytestmark = pytest.mark.looptime


async def test_an_answer_is_asked_for_once_it_fits_or_is_alone() -> None:
    admission = admission_of(100, bytes_limit=10 * MIB)
    receiver = Receiver(admission, "jobs")
    large, small, next_one = receiver.slot(1_000), receiver.slot(2_000), receiver.slot(3_000)
    await large.memory.reserve(30 * MIB, until=math.inf)  # alone
    at(3, large.free)
    await small.memory.reserve(1, until=math.inf)
    assert loop_time() == 3
    await next_one.memory.reserve(9 * MIB, until=math.inf)
    assert loop_time() == 3
    small.free()
    next_one.free()
    assert admission.state.memory.used == 0


async def test_who_finds_no_memory_for_an_answer_is_handed_back_in_time() -> None:
    admission = admission_of(100, bytes_limit=MIB)
    receiver = Receiver(admission, "jobs")
    first, second = receiver.slot(), receiver.slot()
    await first.memory.reserve(MIB, until=math.inf)
    with pytest.raises(HandedBack, match="parked"):
        await second.memory.reserve(1, until=7)
    assert loop_time() == 7
    second.free()
    assert admission.state.memory.used == MIB


async def test_an_attempt_without_an_answer_frees_its_room() -> None:
    admission = admission_of(100, bytes_limit=MIB)
    slot, other = Receiver(admission, "jobs").slot(10), Receiver(admission, "more").slot(20)
    await slot.memory.reserve(MIB, until=math.inf)
    at(2, slot.memory.unreserve)
    await other.memory.reserve(MIB, until=math.inf)
    assert loop_time() == 2
    assert admission.state.memory.used == 10 + (1 + COPIES) * 20 + MIB
    other.memory.keep(300)
    assert admission.state.memory.used == 10 + 20 + 300


async def test_a_large_answer_is_not_kept_waiting_by_small_ones_that_come_later() -> None:
    admission = admission_of(300, bytes_limit=10 * MIB)
    receiver, order = Receiver(admission, "jobs"), list[str]()

    async def answer(name: str, size: int, comes_at: float) -> None:
        await asyncio.sleep(comes_at)
        with receiver.slot() as slot:
            await slot.memory.reserve(size, until=math.inf)
            order.append(name)
            await asyncio.sleep(1.1)

    small = [answer("small", MIB, number * 0.1) for number in range(97)]
    await asyncio.gather(*small, answer("large", 9 * MIB, 1.05))
    assert order.index("large") == 11, "those that came before it, and none that came later"


async def test_what_is_freed_wakes_only_the_first_in_line() -> None:
    """However many wait, else each job would cost as much as there are that wait."""
    admission = admission_of(1_000, bytes_limit=MIB)
    receiver = Receiver(admission, "jobs")
    holder = receiver.slot()
    await holder.memory.reserve(MIB, until=math.inf)
    waiting = [asyncio.create_task(receiver.slot().memory.reserve(MIB, until=1_000.0)) for _ in range(237)]
    await asyncio.sleep(1)
    assert len(admission.state.memory._freed._waiting) == 1
    holder.free()
    await asyncio.sleep(1)
    assert sum(task.done() for task in waiting) == 1
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)


async def test_who_is_cancelled_in_line_or_waited_too_long_holds_up_nobody() -> None:
    admission = admission_of(100, bytes_limit=MIB)
    receiver = Receiver(admission, "jobs")
    holder, first, second, third = (receiver.slot() for _ in range(4))
    await holder.memory.reserve(MIB, until=math.inf)
    cancelled = asyncio.create_task(first.memory.reserve(MIB, until=math.inf))
    impatient = asyncio.create_task(second.memory.reserve(MIB, until=5.0))
    patient = asyncio.create_task(third.memory.reserve(MIB, until=math.inf))
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
    admission = admission_of(100, bytes_limit=limit)
    receiver, peaks = Receiver(admission, "jobs"), list[int]()

    async def answer(size: int) -> None:
        with receiver.slot(size // 1_000) as slot:
            await slot.memory.reserve(MIB // 2, until=math.inf)
            for read in range(0, size, 400_001):
                if read > slot.memory.reserved:
                    await slot.memory.grow(read)
                peaks.append(admission.state.memory.used)
                await asyncio.sleep(0.01)
            slot.memory.keep(size)
            await asyncio.sleep(0.5)  # it is written

    async with asyncio.timeout(1_000):
        await asyncio.gather(*[answer(size) for size in sizes * 3])
    assert admission.state.memory.used == 0
    assert max(peaks) <= limit + 2 * max(sizes) // 1_000 + max(sizes)


async def test_bodies_are_fetched_in_turn_while_they_leave_room_for_their_copies_or_alone() -> None:
    admission = admission_of(100, bytes_limit=9_000)
    receiver, fetched, peaks = Receiver(admission, "jobs"), list[int](), list[int]()
    sizes = [700, 1_100, 20_000, 300, 2_999, 1, 3_001, 950] * 4

    async def job(number: int, size: int) -> None:
        with receiver.slot(7) as slot:
            await slot.memory.hold(size)
            fetched.append(number)
            peaks.append(admission.state.memory._fetched)
            await slot.memory.reserve(500, until=math.inf)
            await asyncio.sleep(1 + number % 3)

    async with asyncio.timeout(1_000):
        await asyncio.gather(*[job(number, size) for number, size in enumerate(sizes)])
    assert fetched == list(range(len(sizes))), "first come, first served"
    assert all(peak <= 9_000 / (1 + COPIES) or peak in sizes for peak in peaks)
    assert max(peaks) == 20_000, "alone, though it is larger than all that may be held"
    assert (admission.state.memory.used, admission.state.memory._fetched) == (0, 0)


async def test_who_is_cancelled_before_its_body_is_fetched_holds_nothing() -> None:
    admission = admission_of(100, bytes_limit=9_000)
    receiver = Receiver(admission, "jobs")
    holder, cancelled, patient = (receiver.slot() for _ in range(3))
    await holder.memory.hold(3_000)
    waiting = asyncio.create_task(cancelled.memory.hold(1_000))
    at(3, waiting.cancel)
    at(7, holder.free)
    await patient.memory.hold(2_900)
    assert loop_time() == 7
    cancelled.free()
    assert (admission.state.memory.used, admission.state.memory._fetched) == (2_900, 2_900)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5_000), st.integers(0, 5_000), st.floats(0, 3)), max_size=40))
async def test_whatever_answers_turn_out_to_be_they_come_in_turn_none_waits_for_ever_and_all_is_freed(
    answers: list[tuple[int, int, float]],
) -> None:
    admission = admission_of(100, bytes_limit=4_000)
    receiver, order = Receiver(admission, "jobs"), list[int]()

    async def answer(number: int, estimate: int, size: int, seconds: float) -> None:
        with receiver.slot(7) as slot:
            await slot.memory.reserve(estimate, until=math.inf)
            order.append(number)
            await asyncio.sleep(round(seconds, 3))
            if size > slot.memory.reserved:
                await slot.memory.grow(size)
            assert admission.state.memory.used <= 4_000 + 7 * (len(answers) + COPIES) + 5_000
            await asyncio.sleep(round(seconds / 2, 3))
            if size % 3:
                slot.memory.unreserve()
            else:
                slot.memory.keep(size)

    async with asyncio.timeout(1_000):
        await asyncio.gather(*[answer(number, *one) for number, one in enumerate(answers)])
    assert order == sorted(order), "first come, first served"
    assert (admission.state.memory.used, admission.state.held) == (0, 0)
