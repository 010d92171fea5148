"""The bell, the interrupt and the backoff."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import HandedBack, LockLost
from worker.waits import Bell, Interrupt, backoff, loop_time

pytestmark = pytest.mark.looptime

bases = st.floats(0.01, 10.0)
caps = st.floats(0.01, 3_600.0)
factors = st.floats(1.1, 10.0)


async def test_a_bell_wakes_all_who_wait() -> None:
    bell = Bell()
    asyncio.get_running_loop().call_at(3, bell.ring)
    await asyncio.gather(bell.wait(), bell.wait(10), bell.wait())
    assert loop_time() == 3


async def test_a_wait_at_the_bell_ends_at_its_time() -> None:
    await Bell().wait(until=4)
    assert loop_time() == 4


async def test_a_ring_in_the_past_wakes_nobody() -> None:
    bell = Bell()
    bell.ring()
    await bell.wait(until=2)
    assert loop_time() == 2


async def test_an_interrupt_ends_its_block_with_its_reason() -> None:
    interrupt = Interrupt()
    asyncio.get_running_loop().call_at(2, interrupt.by, LockLost("gone"))
    with pytest.raises(LockLost):
        async with interrupt:
            await asyncio.sleep(100)
    assert loop_time() == 2


async def test_the_task_goes_on_uncancelled_after_an_interrupt() -> None:
    interrupt = Interrupt()
    asyncio.get_running_loop().call_at(2, interrupt.by, LockLost("gone"))
    with pytest.raises(LockLost):
        async with interrupt:
            await asyncio.sleep(100)
    await asyncio.sleep(1)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_the_first_reason_stands() -> None:
    interrupt = Interrupt()
    interrupt.by(HandedBack("shutdown"))
    interrupt.by(LockLost("gone"))
    with pytest.raises(HandedBack):
        async with interrupt:
            raise AssertionError("the block must not start")


async def test_an_interrupt_after_its_block_does_nothing() -> None:
    interrupt = Interrupt()
    async with interrupt:
        pass
    interrupt.by(LockLost("gone"))
    await asyncio.sleep(1)


async def test_a_cancellation_from_elsewhere_stays_a_cancellation() -> None:
    interrupt = Interrupt()

    async def work() -> None:
        async with interrupt:
            await asyncio.sleep(100)

    task = asyncio.create_task(work())
    await asyncio.sleep(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_cancellation_together_with_an_interrupt_stays_a_cancellation() -> None:
    interrupt = Interrupt()

    async def work() -> None:
        async with interrupt:
            await asyncio.sleep(100)

    task = asyncio.create_task(work())
    await asyncio.sleep(1)
    interrupt.by(LockLost("gone"))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@given(st.integers(1, 10**9), bases, caps, factors)
def test_a_backoff_is_never_above_its_cap_and_grows_by_its_factor_at_most(
    failures: int, base: float, cap: float, factor: float
) -> None:
    this = backoff(failures, base=base, cap=cap, factor=factor)
    following = backoff(failures + 1, base=base, cap=cap, factor=factor)
    assert min(base, cap) <= this <= following <= cap
    assert following <= this * factor * (1 + 1e-9)


def test_backoffs_double_from_the_base_to_the_cap() -> None:
    waits = [backoff(failures, base=0.5, cap=15.0) for failures in range(1, 9)]
    assert waits == [0.5, 1, 2, 4, 8, 15, 15, 15]
