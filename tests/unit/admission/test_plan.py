"""What holds of every decision, whatever has happened before it."""

import asyncio
import math
import pickle
import random
from dataclasses import dataclass, field

import looptime
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.admissions import RunningAdmission
from worker.admission.admission import Permit
from worker.admission.closures import Closure
from worker.admission.costs import Cost
from worker.admission.plan import DecideSuspect, GrantPermit, HandBack, Receive, Step, Wait, plan
from worker.errors import HandedBack, NoToken, SetupWrong, Throttled, TokenUnavailable, Unavailable
from worker.interfaces import Target
from worker.jobs.outcomes import Response
from worker.waits import loop_time

ENDPOINT = "https://account.openai.azure.com"
SLOTS = 7
QUEUES = {"jobs": None, "of-a": frozenset({"a"}), "of-b": frozenset({"b"})}


class Checked(RunningAdmission):
    """It checks each decision before it is carried out."""

    def __init__(self, tokens: int | None, slots: int) -> None:
        one = Target(deployment="one", endpoint=ENDPOINT, tokens_per_minute=tokens)
        two = Target(deployment="two", endpoint=ENDPOINT)
        self.permitted: dict[str, list[int]] = {"a": [], "b": []}
        self.steps = 0
        super().__init__({"a": [one, two], "b": [two]}, slots=slots)

    def _do(self, step: Step, now: float) -> None:
        self.steps += 1
        before = self.picture(now)
        assert plan(self.state, now) == step, "the same state, the same decision"
        assert self.picture(now) == before, "deciding changes nothing"
        match step:
            case GrantPermit(route, waiter, gate):
                assert gate.ready_at(now) <= now
                assert gate in route.gates
                others = [other.line.first.ticket for other in self.state.routes.all if other.line]
                older = [ticket for ticket in others if ticket < waiter.ticket]
                assert len(older) < len(others), "those that came before it could not go"
                if not waiter.decided.done():
                    assert waiter.ticket > max(self.permitted[route.model], default=-1), "first come, first served"
                    self.permitted[route.model].append(waiter.ticket)
            case HandBack(route, waiter, _):
                assert route.ready_gate(now) is None or not self.state.may_call, "it could go"
            case DecideSuspect():
                assert not self.state.suspects.together
        super()._do(step, now)
        assert sum(gate.in_flight for gate in self.gates) <= self.state.slots
        if isinstance(step, Receive) and step.count:
            reserved = sum(intake.reserved for intake in self.state.intakes if intake.has_backlog)
            empty = sum(not intake.has_backlog for intake in self.state.intakes)
            assert self.state.busy(now) + reserved <= self.state.slots + empty
            assert self.state.held + reserved <= 2 * self.state.slots + empty
        if isinstance(plan(self.state, now), Wait):
            self.check_nobody_waits_in_vain(now)

    def picture(self, now: float) -> bytes:
        """All that can be seen of the state."""
        lines = [(route.model, len(route.line)) for route in self.state.routes.all]
        return pickle.dumps((self.describe(), lines, [vars(intake) | {"asks": 0} for intake in self.state.intakes]))

    def check_nobody_waits_in_vain(self, now: float) -> None:
        state = self.state
        for route in state.routes.all:
            is_ready = any(gate.ready_at(now) <= now for gate in route.gates)
            assert not (route.line and is_ready and sum(gate.in_flight for gate in self.gates) < state.slots)
        for intake in state.intakes:
            is_free = not (
                state.in_flight
                or state.held
                or any(other.reserved for other in state.intakes)
                or state.closures.stops_receiving
                or any(gate.ready_at(now) > now for gate in self.gates)
            )
            assert intake.asks is None or not is_free, "with every slot free and every gate open"


@dataclass
class Scene:
    """Receivers, jobs and a service that act at random."""

    admission: Checked
    chance: random.Random
    received: int = 0
    ended: int = 0
    jobs: list[asyncio.Task[None]] = field(default_factory=list)

    async def receive(self, queue: str) -> None:
        intake = self.admission.intake(queue, QUEUES[queue])
        while count := await self.admission.room(intake):
            await asyncio.sleep(self.chance.choice((0, 0.02, 1)))
            if self.chance.random() < 0.1:
                self.admission.not_received(intake, "gone")
                continue
            came = self.chance.choice((0, 1, count))
            self.admission.received(intake, came)
            for _ in range(came):
                job = asyncio.ensure_future(
                    self.work(queue, self.admission.slot(intake, self.chance.randrange(99)))
                )
                self.jobs.append(job)
            self.received += came

    async def work(self, queue: str, slot: object) -> None:
        model = self.chance.choice(sorted(QUEUES[queue] or "ab"))
        count = self.chance.choice((0, 0, 0, 0, 0, 0, 1, 1, 2, 3))
        try:
            with slot:  # type: ignore[attr-defined]
                async with self.admission.place(count):
                    for _ in range(3):
                        await self.call(model)
        except HandedBack:
            pass
        finally:
            self.ended += 1

    async def call(self, model: str) -> None:
        until = loop_time() + self.chance.choice((1, 30, 10_000))
        with await self.admission.admit(model, Cost(100, 100), until=until) as permit:
            await asyncio.sleep(self.chance.choice((0, 0.3, 2, 9)))
            self.end(permit)

    def end(self, permit: Permit) -> None:
        ending = self.chance.random()
        if ending < 0.75:
            permit.observe(Response(status=200, request_id=None, body=b""))
        elif ending < 0.85:
            permit.observe(Throttled("429", status=429, retry_after=self.chance.choice((None, 0.5, 7, 45))))
        elif ending < 0.95:
            permit.observe(Unavailable("gone"))
        elif ending < 0.98:
            permit.observe(SetupWrong("403"))
        else:
            permit.observe(NoToken(TokenUnavailable("openai", "Entra is down", code="timeout")))

    async def disturb(self) -> None:
        """Stores that fail and come back, tokens that arrive, jobs that are cancelled."""
        while True:
            await asyncio.sleep(self.chance.uniform(0, 20))
            match self.chance.randrange(4):
                case 0:
                    self.admission.close(Closure.SINK, "down")
                    await asyncio.sleep(self.chance.uniform(0, 5))
                    self.admission.open(Closure.SINK)
                case 1:
                    self.admission.note_token("openai")
                case _:
                    for job in self.chance.sample(self.jobs, len(self.jobs) // 10):
                        job.cancel()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    slots=st.integers(1, 2 * SLOTS),
    tokens=st.none() | st.integers(1_000, 100_000),
    queues=st.sets(st.sampled_from(sorted(QUEUES)), min_size=1),
)
def test_whatever_happens_every_decision_is_right_and_every_job_ends(
    seed: int, slots: int, tokens: int | None, queues: set[str]
) -> None:
    async def main() -> None:
        admission = Checked(tokens, slots)
        scene = Scene(admission, random.Random(seed))
        receivers = [asyncio.ensure_future(scene.receive(queue)) for queue in sorted(queues)]
        disturbing = asyncio.ensure_future(scene.disturb())
        await asyncio.sleep(600)
        if admission.running.done():
            await admission.running  # which raises
        admission.stop()
        disturbing.cancel()
        async with asyncio.timeout(60_000):  # virtual
            await asyncio.gather(*receivers)
            await asyncio.gather(*scene.jobs, return_exceptions=True)
            await admission.running
        for job in scene.jobs:
            assert job.cancelled() or job.exception() is None
        assert scene.received == len(scene.jobs) == scene.ended
        assert admission.steps > 50
        state = admission.state
        assert (state.in_flight, state.held, state.memory.used) == (0, 0, 0)
        assert (state.suspects.count, state.suspects.together, state.suspects.since) == (0, 0, math.inf)
        assert [gate.in_flight for gate in admission.gates] == [0, 0]

    with asyncio.Runner(loop_factory=looptime.new_event_loop) as runner:
        runner.run(main())
