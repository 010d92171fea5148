"""Workers that are killed: at each step of a job's life, at random, and by a job that kills whoever calls it."""

from dataclasses import replace
from functools import partial
from typing import Any

from tests.faults.scenario import MODEL, OTHER_MODEL, Scenario
from tests.faults.stage import Sink, Stage
from tests.support.processes import Service

SINKS: tuple[Sink, ...] = ("blob", "queue")
KILLS_AT_A_STEP = 3
SLOTS = 16


async def kill_at_step(step: str, stage: Stage) -> None:
    """With one slot, so that what is paid twice is exactly known."""
    for _ in range(KILLS_AT_A_STEP):
        await stage.has_died(await stage.start(kill_at=f"{step}:{stage.chance.randint(2, 9)}", slots="1"))


def paid_twice_after(step: str, sink: Sink) -> int:
    """A kill: the answer that was not written yet; on a queue, which nobody can look into, one that was; and the
    next job's call once the slot is free."""
    if step in ("answered", "settled"):
        return 1
    return int(step in ("written", "concluded") and sink == "queue")


def killed_at(step: str, where: str, sink: Sink) -> Scenario:
    return Scenario(
        name=f"killed once {step}",
        injected=f"kill -9 {where}, {KILLS_AT_A_STEP} times",
        inject=partial(kill_at_step, step),
        sink=sink,
        jobs=60,
        paid_twice=KILLS_AT_A_STEP * paid_twice_after(step, sink),
        in_subset=(step, sink) in {("answered", "blob"), ("concluded", "blob"), ("concluded", "queue")},
    )


STEPS = {
    "received": "after receiving, before decoding",
    "decoded": "after decoding, before admission",
    "called": "after admission, before the call",
    "answered": "after the call, before writing",
    "written": "after writing, before the slot is free",
    "concluded": "after writing, before settling",
    "settled": "after settling",
}


async def kill_while_sorting(step: str, stage: Stage) -> None:
    """The sorter moves jobs by the hundred and calls go on beside it, one at a time."""
    for _ in range(KILLS_AT_A_STEP):
        await stage.has_died(await stage.start(kill_at=f"{step}:1", slots="1"))


SORTING_STEPS = {
    "sent-on": "after sending a job on to its model's queue, before completing",
    "sorted": "after completing what was sent on",
}


async def kill_at_random(kills: int, stage: Stage) -> None:
    """Of two workers one that holds jobs dies whenever so many answers have been given; another takes its place."""
    marks = sorted(stage.chance.sample(range(20, stage.jobs * 3 // 4), kills))
    for _ in range(2):
        await stage.start(slots=str(SLOTS))
    for mark in marks:
        await stage.answers_reach(mark)
        await stage.kill(stage.chance.choice(await stage.holding()))
        stage.note_end_of_fault()
        await stage.start(slots=str(SLOTS))


def killed_at_random(sink: Sink, *, jobs: int, kills: int, in_subset: bool) -> Scenario:
    return Scenario(
        name="killed at random" if in_subset else "killed at random, long",
        injected=f"kill -9 of one of two workers, {kills} times",
        inject=partial(kill_at_random, kills),
        sink=sink,
        jobs=jobs,
        # so long that a worker leaves jobs for the kills to come while another starts, on a busy machine too
        latency=2.0 if in_subset else 1.0,
        in_subset=in_subset,
        # each has as many answers that are not written as slots; on a queue as many again that are not settled
        paid_twice=kills * SLOTS * (1 if sink == "blob" else 2),
    )


async def poison(job: str, deaths: int, stage: Stage) -> None:
    """Workers start one after the other, as under Kubernetes, and die of the job until it is dead-lettered."""
    for _ in range(deaths):
        await stage.has_died(await stage.start(poison=job))
    await stage.start(poison=job)
    stage.note_end_of_fault()


async def poison_while_jobs_are_held(job: str, deaths: int, stage: Stage) -> None:
    """The queue of the other model is full, so that the sorter holds its jobs at each death."""
    full = "amqp:resource-limit-exceeded"
    await stage.fault(
        "servicebus", {"kind": "refuse", "on": "send", "entity": f"jobs-{OTHER_MODEL}", "condition": full}
    )
    await poison(job, deaths, stage)
    await stage.fault("servicebus")
    stage.note_end_of_fault()


def poisoned(sink: Sink, *, jobs: int, deliveries: int, is_long: bool) -> Scenario:
    job = f"q-{jobs // 2}"
    return Scenario(
        name="poison, long" if is_long else "poison",
        injected=f"one job kills every worker that calls it, {deliveries} deliveries allowed",
        inject=partial(poison, job, deliveries),
        sink=sink,
        jobs=jobs,
        max_delivery_count=deliveries,
        lock_duration=5.0,
        errors={job: "max_deliveries"},
        in_subset=not is_long,
        # all that is under way in the first three deaths: 64 jobs, and then 16 and 4 suspects
        paid_twice=(64 + 64 + 16 + 4) * (1 if sink == "blob" else 2),
    )


async def kill_while_held(
    service: Service, fault: dict[str, Any], metric: str, at_least: float, strikes: int, stage: Stage
) -> None:
    """A fault holds all jobs of the worker at one place; it is killed there."""
    if service != "blob":  # which must work for a worker to start
        await stage.fault(service, fault)
    one = await stage.start(slots=str(SLOTS))
    await stage.holds(one, SLOTS)
    if service == "blob":
        await stage.fault(service, fault)
    await stage.reaches(one, metric, at_least)
    await stage.have_struck(service, strikes)  # nobody else would make it strike later
    await stage.kill(one)
    await stage.fault(service)


IN_FLIGHT, CALLS = "aoai_worker_jobs_in_flight", "aoai_worker_calls_total"
GATE_CLOSED, WRITES = "aoai_worker_gate_closed_seconds_total", "aoai_worker_result_write_seconds_count"


def killed_while(
    what: str,
    service: Service,
    fault: dict[str, Any],
    metric: str,
    *,
    sink: Sink = "queue",
    at_least: float = SLOTS,
    strikes: int = 1,
    paid_twice: int = 0,
) -> Scenario:
    return Scenario(
        name=f"killed while {what}",
        injected=f"{service} fault `{fault['kind']}`, then kill -9",
        inject=partial(kill_while_held, service, fault, metric, at_least, strikes),
        sink=sink,
        jobs=60,
        latency=0.5,
        paid_twice=paid_twice,
        in_subset=False,
    )


HELD = (
    killed_while("calls have no answer", "openai", {"kind": "connection", "how": "hang"}, IN_FLIGHT),
    killed_while(
        "answers are half read",
        "openai",
        {"kind": "body", "how": "hang", "after": 50},
        IN_FLIGHT,
        paid_twice=SLOTS,
    ),
    killed_while("failed calls back off", "openai", {"kind": "answer", "status": 503, "retry_after": 30}, CALLS),
    killed_while(
        "jobs wait at a closed gate",
        "openai",
        {"kind": "answer", "status": 429, "retry_after": 30},
        GATE_CLOSED,
        at_least=1,
    ),
    killed_while(
        "results cannot be written",
        "servicebus",
        {"kind": "refuse", "on": "send", "entity": "results"},
        CALLS,
        paid_twice=SLOTS,
    ),
    killed_while(
        "results cannot be written",
        "blob",
        {"kind": "answer", "code": "ServerBusy", "operation": "put_blob"},
        CALLS,
        sink="blob",
        paid_twice=SLOTS,
    ),
    killed_while(
        "writing is not confirmed",
        "servicebus",
        {"kind": "lose_answer", "on": "send", "entity": "results"},
        CALLS,
        paid_twice=SLOTS,
    ),
    killed_while(
        "writing is not confirmed",
        "blob",
        {"kind": "lose_answer", "operation": "put_blob"},
        CALLS,
        sink="blob",
        strikes=SLOTS + 1,  # the result of each job is there; one may be the pod's own report
    ),
    *[
        killed_while(
            what,
            "servicebus",
            {"kind": "lose_answer", "on": "settle", "entity": "jobs", **extra},
            WRITES,
            sink=sink,
            # slots are free once the result is written: calls are under way
            paid_twice=SLOTS * (1 if sink == "blob" else 2),
        )
        for what, extra in (("messages are not settled", {"applied": False}), ("settling is not confirmed", {}))
        for sink in SINKS
    ],
)

SCENARIOS = (
    *[killed_at(step, where, sink) for step, where in STEPS.items() for sink in SINKS],
    *[
        replace(
            killed_at(step, where, "blob"),
            inject=partial(kill_while_sorting, step),
            models=(MODEL, OTHER_MODEL),
            jobs=1_001,
            paid_twice=KILLS_AT_A_STEP,
            in_subset=step == "sent-on",
        )
        for step, where in SORTING_STEPS.items()
    ],
    *HELD,
    *[killed_at_random(sink, jobs=400, kills=4, in_subset=True) for sink in SINKS],
    *[killed_at_random(sink, jobs=5_000, kills=20, in_subset=False) for sink in SINKS],
    poisoned("blob", jobs=200, deliveries=7, is_long=False),
    *[poisoned(sink, jobs=500, deliveries=20, is_long=True) for sink in SINKS],
    replace(
        poisoned("blob", jobs=300, deliveries=7, is_long=False),
        name="poison while jobs are held",
        injected="one job kills every worker that calls it, 7 deliveries allowed; another model's queue is full",
        inject=partial(poison_while_jobs_are_held, "q-150", 7),
        models=(MODEL, OTHER_MODEL),
        in_subset=False,
    ),
)
