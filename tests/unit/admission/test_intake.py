"""Slots, bytes and receivers: how many messages may be received now, and from which queue."""

import asyncio
import math
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.admissions import MIB, Receiver, RunningAdmission, admission_of, at
from worker.admission.admission import Slot
from worker.admission.closures import Closure
from worker.admission.costs import Cost
from worker.admission.routes import Demand, Routes
from worker.interfaces import IntakeClosed, IntakeOpened, Target
from worker.testing import EventList
from worker.waits import loop_time

pytestmark = pytest.mark.looptime

MINI = frozenset({"mini"})


def with_gate_closed_until(opens_at: float, *, slots: int = 4) -> RunningAdmission:
    mini = Target(deployment="mini", endpoint="https://account.openai.azure.com")
    admission = RunningAdmission({"mini": [mini]}, slots=slots)
    admission.gates[0].opens_at = opens_at
    return admission


class CountingRoutes(Routes):
    def __init__(self, routes: Routes) -> None:
        vars(self).update(vars(routes))
        self.looks = 0

    def demand(self, models: Iterable[str] | None, now: float) -> Demand:
        self.looks += 1
        assert self.looks < 20, "it looks again and again"
        return super().demand(models, now)


def receiver_of(slots: int) -> Receiver:
    return Receiver(admission_of(slots), "jobs")


async def test_nothing_is_received_while_every_gate_is_closed() -> None:
    receiver = Receiver(with_gate_closed_until(5.0), "jobs", MINI)
    assert await receiver.room() == 4
    assert loop_time() == 5


@pytest.mark.parametrize(("now", "pause"), [(0.05, 0.01), (0.1, 0.2), (0.7, 0.1), (1.1, 2.2), (3.3, 0.007)])
async def test_a_timer_that_rings_a_little_early_makes_nobody_look_again_and_again(
    now: float, pause: float
) -> None:
    """0.05 + 0.01 is a little more than the 0.06 of a clock that has no finer steps."""
    admission = with_gate_closed_until(now + pause)
    admission.state.routes = routes = CountingRoutes(admission.state.routes)
    receiver = Receiver(admission, "jobs", MINI)
    await asyncio.sleep(now)
    assert await receiver.room() == 4
    assert loop_time() == pytest.approx(now + pause)
    assert routes.looks < 5


async def test_room_is_what_slots_are_free() -> None:
    receiver = receiver_of(3)
    with receiver.slot(), receiver.slot():
        assert await receiver.room() == 1


async def test_jobs_that_wait_at_a_closed_gate_leave_their_slots_to_other_queues() -> None:
    targets = {name: [Target(deployment=name, endpoint="https://a.openai.azure.com")] for name in ("mini", "large")}
    admission = RunningAdmission(targets, slots=8)
    mini = Receiver(admission, "jobs-mini", MINI)
    large = Receiver(admission, "jobs-large", frozenset({"large"}))
    admission.gates[1].opens_at = 60.0
    with large.slot(), large.slot(), large.slot(), large.slot():
        assert mini.room_now() == 4
        waiting = [asyncio.ensure_future(admission.admit("large", Cost(1, 1), until=99.0)) for _ in range(4)]
        await asyncio.sleep(1)
        assert (mini.room_now(), large.room_now()) == (8, 0)
        permits = await asyncio.gather(*waiting)
        assert loop_time() == 60
        assert mini.room_now() == 4
        for permit in permits:
            permit.__exit__(None, None, None)


async def test_a_waiter_for_room_is_woken_when_a_slot_is_freed() -> None:
    receiver = receiver_of(1)
    slot = receiver.slot()
    at(3, slot.free)
    assert await receiver.room() == 1
    assert loop_time() == 3


async def test_unsettled_deliveries_cannot_pile_up_beyond_twice_the_slots() -> None:
    receiver = receiver_of(2)
    slots = [receiver.slot() for _ in range(4)]
    for slot in slots:
        slot.free()
    at(3, slots[0].__exit__, None, None, None)
    assert await receiver.room() == 1
    assert loop_time() == 3


async def test_freeing_a_slot_twice_frees_one() -> None:
    admission = admission_of(2)
    receiver = Receiver(admission, "jobs")
    with receiver.slot(10) as slot:
        await slot.memory.hold(5)
        slot.free()
        slot.free()
        assert (admission.state.in_flight, receiver.intake.in_flight, admission.state.memory.used) == (0, 0, 0)
    assert (admission.state.in_flight, admission.state.held, receiver.intake.in_flight) == (0, 0, 0)


async def test_a_closed_intake_lets_in_one_message_to_probe_when_nothing_is_in_flight() -> None:
    receiver = receiver_of(4)
    receiver.admission.close(Closure.SINK, "down")
    with receiver.slot():
        assert receiver.room_now() == 0
    assert await receiver.room() == 1


async def test_only_one_receiver_probes_a_closed_intake() -> None:
    admission = admission_of(4)
    first, second = Receiver(admission, "a"), Receiver(admission, "b")
    admission.close(Closure.SINK, "down")
    assert await first.room() == 1
    at(30, first.received, 0)
    assert await second.room() == 1
    assert loop_time() == 30


async def test_a_closed_intake_lets_nothing_in_beside_a_job_in_flight() -> None:
    receiver = receiver_of(4)
    receiver.admission.close(Closure.SINK, "down")
    with receiver.slot():
        at(5, receiver.admission.open, Closure.SINK)
        assert await receiver.room() == 3
        assert loop_time() == 5


async def test_closing_and_opening_are_reported_once() -> None:
    events = EventList()
    admission = admission_of(1, events=events)
    admission.close(Closure.SINK, "down")
    admission.close(Closure.SINK, "still down")
    admission.open(Closure.SINK)
    admission.open(Closure.SINK)
    assert events.all == [IntakeClosed(reason="sink", detail="down"), IntakeOpened(reason="sink")]


async def test_a_queue_that_cannot_be_received_is_told_until_every_queue_can_be() -> None:
    events = EventList()
    admission = admission_of(4, events=events)
    first, second = Receiver(admission, "a"), Receiver(admission, "b")
    first.fail("a: gone")
    second.fail("b: gone")
    assert admission.closures == {"source": "a: gone; b: gone"}
    first.received(1)
    assert admission.closures == {"source": "b: gone"}
    second.received(0)
    assert admission.closures == {}
    assert events.all == [IntakeClosed(reason="source", detail="a: gone"), IntakeOpened(reason="source")]


async def test_room_is_none_once_it_is_stopping() -> None:
    receiver = receiver_of(1)
    with receiver.slot():
        at(2, receiver.admission.stop)
        assert await receiver.room() == 0
        assert loop_time() == 2


async def test_nothing_is_received_while_suspects_run_apart() -> None:
    receiver = receiver_of(2)
    async with receiver.admission.place(3):
        detail = "suspects that run apart: 1; jobs that must end before them: 0"
        assert receiver.admission.closures == {"suspects": detail}
        room = asyncio.ensure_future(receiver.room())
        await asyncio.sleep(4)
        assert not room.done()
    assert await room == 2
    assert receiver.admission.closures == {}
    assert loop_time() == 4


async def test_bytes_in_flight_bound_how_much_is_asked_for() -> None:
    admission = admission_of(100, bytes_limit=10 * MIB)
    receiver = Receiver(admission, "jobs")
    with receiver.slot(MIB):
        assert await receiver.room() == 9, "as many messages of that size as still fit"


async def test_nothing_is_received_while_the_bytes_are_used_up() -> None:
    admission = admission_of(100, bytes_limit=2 * MIB)
    receiver = Receiver(admission, "jobs")
    receiver.slot(MIB)
    large = receiver.slot(MIB)
    at(3, large.free)
    assert await receiver.room() == 1
    assert loop_time() == 3


async def test_an_answer_that_waits_to_be_written_counts_too() -> None:
    admission = admission_of(100, bytes_limit=2 * MIB)
    receiver = Receiver(admission, "jobs")
    slot = receiver.slot(100)
    await slot.memory.hold(2 * MIB)
    at(3, slot.free)
    assert await receiver.room() > 1
    assert loop_time() == 3


async def test_messages_become_small_again_slowly() -> None:
    admission = admission_of(1_000, bytes_limit=10 * MIB)
    receiver = Receiver(admission, "jobs")
    receiver.slot(MIB).free()
    rooms = []
    for _ in range(3):
        receiver.slot(1_000).free()
        rooms.append(await receiver.room())
        receiver.received(1)
    assert rooms == sorted(rooms)
    assert 10 <= rooms[0] < rooms[-1] < 20


async def test_a_queue_that_was_found_empty_is_asked_for_one_message_and_holds_no_more_slots() -> None:
    admission = admission_of(10)
    empty, busy = Receiver(admission, "empty"), Receiver(admission, "busy")
    empty.received(0)
    assert await empty.room() == 1
    assert await busy.room() == 10


async def test_empty_queues_starve_no_full_one_however_few_slots_there_are() -> None:
    admission = admission_of(1)
    empty = [Receiver(admission, f"empty-{number}") for number in range(4)]
    busy = Receiver(admission, "busy")
    for receiver in empty:
        receiver.received(0)
        receiver.intake.reserved = receiver.room_now()
    assert await busy.room() == 1


async def test_an_empty_queue_does_not_take_the_probe_of_a_full_one() -> None:
    admission = admission_of(1)
    empty, busy = Receiver(admission, "empty"), Receiver(admission, "busy")
    empty.received(0)
    admission.close(Closure.SINK, "down")
    assert empty.room_now() == 0
    assert await busy.room() == 1


async def test_each_of_two_full_queues_has_half_of_the_slots() -> None:
    admission = admission_of(10)
    slow, quick = Receiver(admission, "slow"), Receiver(admission, "quick")
    assert await slow.room() == 5
    assert await quick.room() == 5


async def test_a_queue_whose_gates_are_closed_is_owed_nothing() -> None:
    admission = with_gate_closed_until(100.0, slots=10)
    Receiver(admission, "closed", MINI)
    assert await Receiver(admission, "open", frozenset({"another"})).room() == 10


async def test_a_queue_of_which_a_probe_is_wanted_is_asked_for_one_message_and_owed_no_more() -> None:
    admission = with_gate_closed_until(-math.inf, slots=10)
    admission.gates[0].setup.begin("403", was_probe=False, now=-100.0)
    broken, mate = Receiver(admission, "broken", MINI), Receiver(admission, "broken", MINI)
    assert await broken.room() == 1
    assert mate.room_now() == 0, "two receivers of one queue"
    assert await Receiver(admission, "open", frozenset({"another"})).room() == 9
    broken.received(1)
    with broken.slot():
        assert mate.room_now() == 0, "it is not known yet how the probe ends"


async def test_several_receivers_do_not_ask_for_the_same_free_bytes() -> None:
    admission = admission_of(100, bytes_limit=10 * MIB)
    first, second = Receiver(admission, "a"), Receiver(admission, "b")
    with first.slot(MIB):
        rooms = [await first.room(), second.room_now()]
    assert rooms == [9, 0]


async def test_a_queue_of_slow_jobs_cannot_keep_the_slots_that_another_is_owed() -> None:
    admission = admission_of(4)
    slow, quick = Receiver(admission, "slow"), Receiver(admission, "quick")
    held = [slow.slot() for _ in range(4)]
    quick.received(1)
    held[0].free()
    assert await quick.room() == 1
    assert slow.room_now() == 0
    for slot in held[1:]:
        slot.free()


async def test_jobs_that_cannot_be_kept_are_not_received_at_once_again() -> None:
    receiver = receiver_of(4)
    waits = []
    for _ in range(7):
        began = loop_time()
        receiver.intake.back_off(loop_time())
        receiver.intake.back_off(loop_time())
        assert await receiver.room() == 4
        waits.append(loop_time() - began)
        receiver.received(1)
    assert waits == [1, 2, 4, 8, 16, 30, 30]
    receiver.intake.reset_backoff()
    receiver.intake.back_off(loop_time())
    began = loop_time()
    await receiver.room()
    assert loop_time() - began == 1


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["take", "free", "empty", "full"])), max_size=60))
def test_receivers_never_promise_more_than_the_slots(steps: list[tuple[str, str]]) -> None:
    async def follow() -> None:
        admission = admission_of(7)
        receivers = {name: Receiver(admission, name) for name in "abc"}
        slots: dict[str, list[Slot]] = {name: [] for name in "abc"}
        for name, step in steps:
            receiver = receivers[name]
            room = receiver.room_now()
            match step:
                case "take" if room and not receiver.intake.reserved:
                    receiver.intake.reserved = room
                case "full" if receiver.intake.reserved:
                    slots[name] += [receiver.slot() for _ in range(receiver.intake.reserved)]
                    receiver.received(receiver.intake.reserved)
                case "empty" if receiver.intake.reserved:
                    receiver.received(0)
                case "free" if slots[name]:
                    slots[name].pop().__exit__(None, None, None)
            reserved = sum(
                receiver.intake.reserved for receiver in receivers.values() if receiver.intake.has_backlog
            )
            assert 0 <= admission.state.in_flight + reserved <= 7 + len(receivers), (
                "one more for each that was empty"
            )
        for held in slots.values():
            for slot in held:
                slot.__exit__(None, None, None)
        assert (admission.state.in_flight, admission.state.held) == (0, 0)
        for receiver in receivers.values():
            receiver.received(1)
        rooms = [receiver.room_now() for receiver in receivers.values()]
        assert all(room >= 2 for room in rooms), "no queue is starved once all is free"

    asyncio.run(follow())


async def test_queues_take_turns_where_there_are_fewer_slots_than_receivers() -> None:
    admission = admission_of(1)
    receivers = [Receiver(admission, name) for name in ("a", "b", "c")]
    served: list[str] = []

    async def receive(receiver: Receiver) -> None:
        while await receiver.room():
            served.append(receiver.intake.queue)
            receiver.received(1)
            with receiver.slot():
                await asyncio.sleep(1)

    tasks = [asyncio.ensure_future(receive(receiver)) for receiver in receivers]
    at(29.5, admission.stop)
    await asyncio.gather(*tasks)
    assert [served.count(name) for name in "abc"] == [10, 10, 10]


async def test_a_queue_has_its_share_however_many_receivers_another_has() -> None:
    admission = admission_of(12)
    for _ in range(4):
        Receiver(admission, "many")
    assert await Receiver(admission, "one").room() == 6


async def test_a_queue_that_cannot_be_received_is_owed_nothing() -> None:
    admission = admission_of(8)
    down, up = Receiver(admission, "down"), Receiver(admission, "up")
    assert await up.room() == 4
    up.received(0)
    assert await down.room() == 8
    down.fail("gone")
    up.received(1)
    assert await up.room() == 8


async def test_a_queue_that_cannot_be_received_keeps_no_other_from_probing() -> None:
    admission = admission_of(8)
    down, empty = Receiver(admission, "down"), Receiver(admission, "empty")
    down.fail("gone")
    empty.received(0)
    admission.close(Closure.SINK, "down")
    assert empty.room_now() == 1


async def test_a_receiver_that_gives_up_leaves_its_room_to_the_next() -> None:
    admission = admission_of(1)
    first, second = Receiver(admission, "a"), Receiver(admission, "a")
    held = first.slot()
    quitter = asyncio.ensure_future(first.room())
    await asyncio.sleep(1)
    patient = asyncio.ensure_future(second.room())
    at(2, held.free)
    at(2, quitter.cancel)
    assert await patient == 1
    assert loop_time() == 2


async def test_nothing_is_received_that_was_granted_in_the_moment_of_the_stop() -> None:
    receiver = receiver_of(4)
    room = asyncio.ensure_future(receiver.room())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    receiver.admission.stop()
    assert await room == 0
    assert receiver.intake.reserved == 0
