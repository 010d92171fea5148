"""The sorter between fakes, under virtual time, in the whole core: what moves, what stays, and nothing is lost."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime

import pytest

from tests.support.bench import EPOCH, Behaviour, Bench, answers, target, wall_clock
from worker.flow.sorter import HELD_AT_MOST
from worker.interfaces import IntakeClosed, IntakeOpened, JobsSorted, Settled, SortingFailed, Target
from worker.jobs.claims import encode_claim, make_claim
from worker.jobs.job import CLAIM_TYPE, Job, rfc3339
from worker.jobs.outcomes import Complete, DeadLetter, Release, Response
from worker.testing import FakeClaims, FakeQueue, FakeSender, FakeSink, job_line

pytestmark = pytest.mark.looptime

MODELS = ("a", "b")


class Sorting:
    """The core of a pod with an entry queue and the queues of the models a and b, which are only looked at."""

    def __init__(
        self,
        *,
        claims: FakeClaims | None = None,
        sink: FakeSink | None = None,
        unknown_model_patience: float = 0.0,
        largest: int | None = None,
        behaviour: Behaviour | None = None,
        sorted_bytes: float = 1 << 24,
        seconds: float = 0.02,
    ) -> None:
        self.entry = FakeQueue("entry", clock=wall_clock)
        self.queues = {model: FakeQueue(f"entry-{model}", clock=wall_clock) for model in MODELS}
        self.senders = {
            model: FakeSender(queue, largest=largest, seconds=seconds) for model, queue in self.queues.items()
        }
        self.bench = Bench(
            behaviour,
            routes={model: [target(f"of-{model}")] for model in MODELS},
            queue=FakeQueue("unused", clock=wall_clock),
            sink=sink,
            claims=claims,
            unknown_model_patience=unknown_model_patience,
            entry=self.entry,
            senders=self.senders,
            sorted_bytes=sorted_bytes,
        )
        self.events = self.bench.events

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.bench.core.run())
            try:
                yield
            finally:
                self.bench.admission.stop()

    async def sort_all(self) -> None:
        async with self.running():
            await self.until(lambda: not self.entry and not self.entry.locked)

    async def until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            await self.events.next()

    def ids(self, model: str) -> list[str | None]:
        return [envelope.message_id for envelope in self.queues[model]._waiting]


def send_mixed(queue: FakeQueue, count: int) -> None:
    for number in range(count):
        content = "x" * (7 * number % 311)
        queue.send(job_line(f"{number}", model=MODELS[number % 2], content=content), message_id=f"{number}")


async def test_each_job_is_moved_to_the_queue_of_its_model_in_batches() -> None:
    sorting = Sorting()
    send_mixed(sorting.entry, 1_003)
    await sorting.sort_all()
    assert sorting.ids("a") == [f"{number}" for number in range(0, 1_003, 2)]
    assert sorting.ids("b") == [f"{number}" for number in range(1, 1_003, 2)]
    assert Counter(settlement for _, settlement in sorting.entry.settled) == {Complete(): 1_003}
    assert len(sorting.senders["a"].sendings) <= 20
    assert sum(event.count for event in sorting.events.of(JobsSorted) if event.model == "a") == 502
    assert sorting.bench.model.calls == []


async def test_a_copy_is_the_message_with_the_moment_it_was_first_enqueued() -> None:
    sorting = Sorting()
    sorting.entry.send(
        job_line("j", model="a"),
        message_id="batch/j",
        properties={"traceparent": "00-1", "deadline": "2026-11-30T00:00:00Z"},
        time_to_live=3_600.0,
    )
    await asyncio.sleep(600)
    await sorting.sort_all()
    (copy,) = sorting.queues["a"]._waiting
    assert (copy.body, copy.message_id, copy.correlation_id) == (job_line("j", model="a"), "batch/j", "batch")
    assert copy.content_type == "application/json"
    assert copy.properties == {
        "traceparent": "00-1",
        "deadline": "2026-11-30T00:00:00Z",
        "enqueued-at": rfc3339(EPOCH),
    }
    assert copy.waiting_since == EPOCH
    assert copy.enqueued_at == pytest.approx(EPOCH + 600, abs=1)
    assert copy.expires_at == pytest.approx(EPOCH + 3_600, abs=1)


async def test_a_message_without_an_id_is_named_after_its_place() -> None:
    sorting = Sorting()
    sorting.entry.send(job_line("j", model="a"))
    await sorting.sort_all()
    (copy,) = sorting.queues["a"]._waiting
    assert copy.message_id == copy.properties["job-id"] == "entry/1"


async def test_a_message_that_was_delivered_before_asks_for_its_result_to_be_looked_for() -> None:
    sorting = Sorting()
    sorting.entry.send(job_line("j", model="a"), message_id="j", delivery_count=1)
    await sorting.sort_all()
    (copy,) = sorting.queues["a"]._waiting
    assert (copy.properties["check-result"], copy.delivery_count) == (True, 0)


async def test_a_crash_between_sending_and_completing_moves_a_job_once() -> None:
    sorting = Sorting()
    sorting.senders["a"].unconfirmed = 1
    send_mixed(sorting.entry, 21)
    await sorting.sort_all()
    assert sorting.ids("a") == [f"{number}" for number in range(0, 21, 2)]
    assert sorting.senders["a"].duplicates == 11


async def test_a_lost_lock_leaves_the_message_to_the_one_who_has_it_now() -> None:
    sorting = Sorting()
    sorting.senders["a"].trouble = "is full"
    sorting.entry.send(job_line("j", model="a"), message_id="j")
    async with sorting.running():
        await sorting.until(lambda: bool(sorting.events.of(SortingFailed)))
        (delivery,) = sorting.entry.locked
        sorting.entry.lapse(delivery)
        sorting.senders["a"].trouble = None
        await sorting.until(lambda: not sorting.entry and not sorting.entry.locked)
    assert sorting.ids("a") == ["j"]
    assert sorting.queues["a"]._waiting[0].properties["check-result"] is True


async def test_what_was_sent_on_and_could_not_be_completed_is_held_no_longer() -> None:
    sorting, count = Sorting(), 3 * HELD_AT_MOST + 7
    sorting.entry.mute = True
    for number in range(count):
        sorting.entry.send(job_line(f"{number}", model="a"), message_id=f"{number}")
    async with sorting.running():
        await sorting.until(lambda: sum(event.count for event in sorting.events.of(JobsSorted)) == count)
    assert len(sorting.queues["a"]) == count
    assert Counter(event.confirmed for event in sorting.events.of(Settled)) == {False: count}


async def test_a_queue_that_cannot_be_used_holds_up_no_other_model() -> None:
    sorting = Sorting()
    sorting.senders["a"].trouble = "is full"
    send_mixed(sorting.entry, 2 * HELD_AT_MOST - 2)
    async with sorting.running():
        await sorting.until(lambda: len(sorting.entry.locked) == HELD_AT_MOST - 1 == len(sorting.queues["b"]))
        assert sorting.bench.admission.closures == {}
        sorting.senders["a"].trouble = None
        await sorting.until(lambda: not sorting.entry.locked)
    assert len(sorting.queues["a"]) == HELD_AT_MOST - 1
    assert {event.queue for event in sorting.events.of(SortingFailed)} == {"entry-a"}


async def test_beyond_a_thousand_held_jobs_of_a_model_the_entry_queue_closes_with_the_reason() -> None:
    sorting = Sorting()
    sorting.senders["a"].trouble = "is full"
    for number in range(HELD_AT_MOST + 500):
        sorting.entry.send(job_line(f"{number}", model="a"), message_id=f"{number}")
    sorting.entry.send(job_line("b", model="b"), message_id="b")
    async with sorting.running():
        await sorting.until(lambda: bool(sorting.bench.admission.closures))
        assert "1,000 jobs wait for queue 'entry-a': is full" in sorting.bench.admission.closures["sorting"]
        assert len(sorting.entry.locked) == HELD_AT_MOST
        fixed = asyncio.get_running_loop().time()
        sorting.senders["a"].trouble = None
        await sorting.until(lambda: not sorting.entry and not sorting.entry.locked)
        assert asyncio.get_running_loop().time() - fixed < 30
    assert (len(sorting.queues["a"]), len(sorting.queues["b"])) == (HELD_AT_MOST + 500, 1)
    assert [event.reason for event in sorting.events.of(IntakeClosed)] == ["sorting"]
    assert [event.reason for event in sorting.events.of(IntakeOpened)] == ["sorting"]


async def test_what_is_held_is_bounded_by_bytes_too() -> None:
    sorting = Sorting(sorted_bytes=100_000)
    sorting.senders["a"].trouble = "is full"
    for number in range(100):
        sorting.entry.send(job_line(f"{number}", model="a", content="x" * 9_900), message_id=f"{number}")
    async with sorting.running():
        await sorting.until(lambda: bool(sorting.bench.admission.closures))
        held = len(sorting.entry.locked)
        sorting.senders["a"].trouble = None
        await sorting.until(lambda: not sorting.entry and not sorting.entry.locked)
    assert 9 <= held <= 11
    assert len(sorting.queues["a"]) == 100


async def test_what_is_not_sent_at_a_stop_is_given_back() -> None:
    sorting = Sorting()
    sorting.senders["a"].trouble = "does not exist"
    send_mixed(sorting.entry, 30)
    async with sorting.running():
        await sorting.until(lambda: len(sorting.queues["b"]) == 15)
    assert not sorting.entry.locked
    assert len(sorting.entry) == 15
    assert Counter(settlement for _, settlement in sorting.entry.settled) == {Complete(): 15, Release(): 15}
    assert {envelope.delivery_count for envelope in sorting.entry._waiting} == {0}


async def test_the_entry_queue_is_sorted_while_the_sink_is_down() -> None:
    sorting = Sorting()
    sorting.bench.sink.down = True
    send_mixed(sorting.entry, 40)
    await sorting.sort_all()
    assert len(sorting.ids("a")) == len(sorting.ids("b")) == 20


async def test_what_is_no_job_is_dead_lettered_right_there() -> None:
    sorting = Sorting()
    sorting.entry.send(b"no json", message_id="bad")
    await sorting.sort_all()
    ((_, settlement),) = sorting.entry.dead
    assert isinstance(settlement, DeadLetter)
    assert settlement.reason == "InvalidJson"


async def test_a_job_whose_time_to_live_is_over_ends_as_expired() -> None:
    sorting = Sorting()
    sorting.senders["a"].trouble = "is full"
    sorting.entry.send(job_line("j", model="a"), message_id="batch/j", time_to_live=50.0)
    async with sorting.running():
        await sorting.until(lambda: bool(sorting.entry.settled))
    (result,) = sorting.bench.sink.results.values()
    assert result["error"] == {
        "code": "expired",
        "message": "the message's time to live passed before the job was sorted",
    }
    assert sorting.entry.settled == [("batch/j", Complete())]
    assert sorting.bench.model.calls == []


async def test_a_job_of_an_unknown_model_is_held_and_given_back_until_the_name_has_been_known_for_a_while() -> None:
    sorting = Sorting(unknown_model_patience=600.0)
    sorting.entry.send(job_line("j", model="new"), message_id="batch/j")
    sorting.entry.send(job_line("k", model="a"), message_id="batch/k")
    await sorting.sort_all()
    assert sorting.ids("a") == ["batch/k"]
    (result,) = sorting.bench.sink.results.values()
    assert result["error"]["code"] == "model_not_allowed"  # type: ignore[index]
    assert 600 <= asyncio.get_running_loop().time() < 660
    releases = Counter(settlement for _, settlement in sorting.entry.settled)
    assert 20 <= releases[Release()] <= 41


async def test_a_thousand_jobs_of_an_unknown_model_are_not_lost() -> None:
    sorting = Sorting(unknown_model_patience=60.0)
    for number in range(HELD_AT_MOST + 700):
        sorting.entry.send(job_line(f"{number}", model="new"), message_id=f"batch/{number}")
    sorting.entry.send(job_line("k", model="a"), message_id="batch/k")
    await sorting.sort_all()
    assert sorting.ids("a") == ["batch/k"]
    assert len(sorting.bench.sink.lines) == HELD_AT_MOST + 700


async def test_a_claim_that_names_its_model_is_moved_unread_and_another_is_fetched_first() -> None:
    claims = FakeClaims()
    line = job_line("j", model="b", content="x" * 5_000)
    claims.bodies["https://s/claims/1"] = line
    claim = encode_claim(make_claim("https://s/claims/1", line, etag=None))
    sorting = Sorting(claims=claims)
    claims.down = True
    sorting.entry.send(claim, message_id="named", content_type=CLAIM_TYPE, properties={"model": "b"})
    sorting.entry.send(claim, message_id="unnamed", content_type=CLAIM_TYPE)
    async with sorting.running():
        await sorting.until(lambda: sorting.ids("b") == ["named"] and bool(sorting.events.of(SortingFailed)))
        claims.down = False
        await sorting.until(lambda: not sorting.entry.locked)
    assert sorting.ids("b") == ["named", "unnamed"]
    assert {envelope.properties["model"] for envelope in sorting.queues["b"]._waiting} == {"b"}
    assert {envelope.body for envelope in sorting.queues["b"]._waiting} == {claim}


async def test_a_claim_of_nothing_is_dead_lettered() -> None:
    sorting = Sorting(claims=FakeClaims())
    claim = encode_claim(make_claim("https://s/claims/none", b"{}", etag=None))
    sorting.entry.send(claim, message_id="bad", content_type=CLAIM_TYPE)
    await sorting.sort_all()
    ((_, settlement),) = sorting.entry.dead
    assert isinstance(settlement, DeadLetter)
    assert settlement.reason == "InvalidClaim"


async def test_a_job_that_no_message_can_carry_on_is_answered_from_the_entry_queue() -> None:
    sorting = Sorting(largest=500)
    sorting.entry.send(job_line("j", model="a", content="x" * 600), message_id="batch/j")
    await sorting.sort_all()
    assert sorting.bench.model.calls == [("j", "of-a")]
    assert sorting.entry.settled == [("batch/j", Complete())]


async def test_an_entry_queue_that_is_out_of_reach_is_told_and_tried_again() -> None:
    sorting = Sorting()
    sorting.entry.down = True
    sorting.entry.send(job_line("j", model="a"), message_id="j")
    async with sorting.running():
        await sorting.until(lambda: bool(sorting.bench.admission.closures))
        assert sorting.bench.admission.closures == {"sorting": "queue 'entry': down"}
        sorting.entry.down = False
        await sorting.until(lambda: bool(sorting.ids("a")))
    assert sorting.bench.admission.closures == {}


async def test_nothing_is_held_while_suspects_run_apart() -> None:
    sorting = Sorting()
    async with sorting.running():
        async with sorting.bench.admission.place(2):
            await asyncio.sleep(5)
            sorting.entry.send(job_line("j", model="a"), message_id="j")
            await asyncio.sleep(60)
            assert len(sorting.entry) == 1
        await sorting.until(lambda: sorting.ids("a") == ["j"])


class WithSuspect(Sorting):
    """It sees how many messages of the entry queue are held at each call."""

    def __init__(self, *, claims: FakeClaims | None = None, seconds: float = 0.02) -> None:
        self.held: list[int] = []
        super().__init__(claims=claims, seconds=seconds, behaviour=self._look)

    async def _look(self, job: Job, target: Target) -> Response:
        self.held.append(len(self.entry.locked))
        return await answers(job, target)

    async def meet(self, fix: Callable[[], None]) -> None:
        """A suspect comes while 300 messages are held; what holds them is fixed when it is done."""
        async with self.running():
            await self.until(lambda: len(self.entry.locked) == 300)
            self.bench.queue.send(job_line("poison", model="b"), message_id="poison", delivery_count=2)
            await self.until(lambda: bool(self.bench.sink.lines))
            fix()
            await self.until(lambda: not self.entry and not self.entry.locked)

    @property
    def delivered_before(self) -> int:
        return sum("check-result" in copy.properties for copy in self.queues["a"]._waiting)


@pytest.mark.parametrize("seconds", [0.02, 3.0], ids=["while they wait", "while they are sent"])
async def test_jobs_that_wait_for_a_full_queue_are_handed_back_before_a_suspect_is_called(seconds: float) -> None:
    sorting = WithSuspect(seconds=seconds)
    full = sorting.senders["a"]
    full.trouble = "is full"
    send_mixed(sorting.entry, 600)
    await sorting.meet(lambda: setattr(full, "trouble", None))
    assert sorting.held == [0]
    assert (len(sorting.queues["a"]), len(sorting.queues["b"])) == (300, 300)
    assert sorting.delivered_before == 0, "handing back costs no delivery"


async def test_claims_that_cannot_be_read_are_handed_back_before_a_suspect_is_called() -> None:
    claims, line = FakeClaims(), job_line("j", model="a")
    claims.bodies["https://s/claims/1"] = line
    claims.down = True
    sorting = WithSuspect(claims=claims)
    for number in range(300):
        claim = encode_claim(make_claim("https://s/claims/1", line, etag=None))
        sorting.entry.send(claim, message_id=f"{number}", content_type=CLAIM_TYPE)
    await sorting.meet(lambda: setattr(claims, "down", False))
    assert sorting.held == [0]
    assert len(sorting.queues["a"]) == 300
    assert sorting.delivered_before == 0, "handing back costs no delivery"


async def test_a_sorted_job_is_answered_with_the_times_of_the_entry_queue_and_looked_for_before_it_is_paid() -> (
    None
):
    bench = Bench(sink=FakeSink(knows=True), max_age=3_600.0)
    properties = {"enqueued-at": rfc3339(EPOCH - 1_800), "check-result": True}
    for _ in range(2):
        bench.queue.send(job_line("j"), message_id="batch/j", properties=properties)
    await bench.work()
    (result,) = bench.sink.results.values()
    worker = result["worker"]
    assert isinstance(worker, dict)
    assert datetime.fromisoformat(worker["queued"]).timestamp() == EPOCH - 1_800
    assert worker["wait_seconds"] == 1_800
    late = Bench(max_age=1_800.0)
    late.queue.send(job_line("j"), message_id="batch/j", properties=properties)
    await asyncio.sleep(1)
    await late.work()
    (result,) = late.sink.results.values()
    assert result["error"]["code"] == "expired"  # type: ignore[index]


async def test_a_result_that_is_there_is_not_paid_for_again_though_its_copy_is_delivered_first() -> None:
    bench = Bench(sink=FakeSink(knows=True))
    bench.queue.send(job_line("j"), message_id="batch/j")
    await bench.work()
    again = Bench(sink=bench.sink)
    again.queue.send(job_line("j"), message_id="batch/j", properties={"check-result": True})
    await again.work()
    assert again.model.calls == []


async def test_a_drained_queue_ends_its_jobs_at_once_and_a_stray_job_is_answered_where_it_is() -> None:
    routes = {"a": [target("of-a")], "b": [target("of-b")]}
    drained = Bench(routes=routes, models=frozenset(), unknown_model_patience=600.0)
    drained.queue.send(job_line("j", model="a"), message_id="batch/j")
    await drained.work()
    (result,) = drained.sink.results.values()
    assert result["error"]["code"] == "model_not_allowed"  # type: ignore[index]
    assert "AOAI_WORKER_QUEUES maps it to null" in result["error"]["message"]  # type: ignore[index]
    stray = Bench(routes=routes, models=frozenset({"a"}))
    stray.queue.send(job_line("j", model="b"), message_id="batch/j")
    await stray.work()
    assert stray.model.calls == [("j", "of-b")]
