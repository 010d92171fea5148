"""What jobs leave behind: nothing that only the garbage collector could free."""

import asyncio
import gc
import subprocess
import sys
import weakref
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.bench import Bench
from worker.admission.admission import Admission
from worker.app import COLLECT_EVERY, collect_garbage
from worker.errors import LockLost, RefusedByService, SetupWrong, Throttled, Unavailable
from worker.flow.retry import JobProgress
from worker.interfaces import JobEnded, Target
from worker.jobs.claims import make_claim
from worker.jobs.job import CLAIM_TYPE, Claim, Envelope, Job, JobLine
from worker.jobs.outcomes import Answered, Response, label_of
from worker.testing import EventList, FakeClaims, FakeDelivery, FakeSink, answer, job_line
from worker.waits import Interrupt

pytestmark = pytest.mark.looptime

JOBS = 1_000
OF_A_JOB = (Job, JobLine, Envelope, FakeDelivery, JobProgress, Claim, Answered, Response, Interrupt)


@pytest.fixture
def kept_garbage() -> Iterator[None]:
    """What the collector finds is kept in `gc.garbage` and not freed."""
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    yield
    gc.set_debug(0)
    gc.garbage.clear()
    gc.enable()


class Service:
    """What becomes of a job is the first word of its custom id."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()

    async def __call__(self, job: Job, target: Target) -> Response:
        name = job.line.custom_id
        self.asked[name] += 1
        await asyncio.sleep(0.05)
        match name.split("-")[0], self.asked[name]:
            case "refused", _:
                raise RefusedByService("400", status=400, body=b"{}")
            case "failing", _:
                raise Unavailable("503", status=503)
            case "retried", 1 | 2:
                raise Unavailable("no answer")
            case "throttled", 1:
                raise Throttled("429", retry_after=1.0)
            case "stuck", _:
                await asyncio.Event().wait()
            case "faulted", _:
                raise ValueError("ours")
            case "outage", 1:
                raise SetupWrong("403")
        return answer(name)


async def test_a_thousand_jobs_however_they_end_leave_no_cycle_that_holds_one(kept_garbage: None) -> None:
    rare = {0: "failing", 17: "outage", 29: "throttled", 43: "retried"}  # or the gate would be closed all the time
    usual = ("answered", "refused", "faulted", "claimed", "unreadable")
    claims = FakeClaims()
    bench = Bench(Service(), slots=64, attempts=3, sink=FakeSink(knows=True), claims=claims)
    bench.queue.max_delivery_count = 1
    for number in range(JOBS):
        kind = rare.get(number % 53, usual[number % len(usual)])
        name, line = f"{kind}-{number}", job_line(f"{kind}-{number}", content="x" * (number % 77))
        if kind == "claimed":
            claims.bodies[name] = line
            claim = make_claim(name, line, etag=None)
            body = b'{"claim":{"url":"%b","length":%d,"sha256":"%b"}}' % (
                name.encode(),
                claim.length,
                claim.sha256.encode(),
            )
            bench.queue.send(body, message_id=name, content_type=CLAIM_TYPE)
        else:
            bench.queue.send(line if kind != "unreadable" else b"[" * 9, message_id=name)
    asyncio.get_running_loop().call_later(3.0, setattr, bench.sink, "down", True)
    asyncio.get_running_loop().call_later(9.0, setattr, bench.sink, "down", False)
    await bench.work()
    ended = Counter(label_of(event.outcome) for event in bench.events.of(JobEnded))
    assert set(ended) == {"answered", "refused", "dead_lettered", "faulted"}
    assert ended.total() == JOBS
    assert _garbage(bench) == {}


async def test_jobs_that_are_ended_from_outside_leave_no_cycle_either(kept_garbage: None) -> None:
    bench = Bench(Service(), slots=JOBS, grace=1.0, parking=0.5)
    [gate] = bench.admission.state.routes.gates
    gate.concurrency.limit = 400.0  # the others wait at the gate
    for number in range(JOBS):
        bench.queue.send(job_line(f"stuck-{number}"), message_id=f"stuck-{number}")

    def lapse() -> None:
        for delivery in bench.queue.locked[::3]:
            bench.queue.lapse(delivery)

    asyncio.get_running_loop().call_later(0.3, lapse)
    await bench.run_for(3.0)
    ended = Counter(label_of(event.outcome) for event in bench.events.of(JobEnded))
    assert set(ended) == {"handed_back", "lock_lost"}
    assert _garbage(bench) == {}


async def test_an_interrupted_block_leaves_no_cycle(kept_garbage: None) -> None:
    async def run(interrupt: Interrupt) -> None:
        async with interrupt:
            await asyncio.Event().wait()

    interrupt = Interrupt()
    task = asyncio.create_task(run(interrupt))
    await asyncio.sleep(0.1)
    interrupt.by(LockLost("lapsed"))
    await asyncio.wait({task})
    assert isinstance(task.exception(), LockLost)
    del task, interrupt
    assert _garbage(None) == {}


def _garbage(bench: Bench | None) -> Counter[str]:
    """What of jobs only the collector finds; the bench itself is in use until then."""
    if bench is not None:
        bench.events.all.clear()
        bench.queue.dead.clear()
    gc.collect()
    return Counter(type(one).__name__ for one in gc.garbage if isinstance(one, OF_A_JOB))


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="THE C LIBRARY'S BLOCKS ARE NOT TESTED: no /proc"
)
def test_large_blocks_that_are_freed_leave_no_holes_between_small_ones() -> None:
    """Connections come and go, each with a reserve of 256 KiB, and what is small is allocated between them."""
    code = """
from pathlib import Path
from worker.app import give_large_blocks_back

def resident_mib():
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1024

give_large_blocks_back()
before, small, large = resident_mib(), [], []
del bytearray(256 << 10)[:]
for _ in range(401):
    large.append(bytearray(b"x" * (256 << 10)))
    small.append(bytearray(b"x" * 5_000))
large.clear()
print(resident_mib() - before)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert float(ran.stdout) < 20, "of 100 MiB that were freed"


async def test_what_others_leave_in_cycles_is_freed_from_time_to_time() -> None:
    class Left:
        def __init__(self) -> None:
            self.me = self

    admission = Admission({}, slots=4, observer=EventList())
    collecting = asyncio.create_task(collect_garbage(admission))
    gc.collect()
    left = weakref.ref(Left())
    gc.disable()
    try:
        await asyncio.sleep(COLLECT_EVERY - 1)
        assert left() is not None
        await asyncio.sleep(2)
        assert left() is None
    finally:
        gc.enable()
    admission.stop()
    await collecting
