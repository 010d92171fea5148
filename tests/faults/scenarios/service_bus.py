"""Service Bus: connections that break or fall silent, links that are detached, a busy broker, and full queues."""

import asyncio
from dataclasses import replace

from embedded_azure.config import Config
from tests.faults.scenario import MODEL, OTHER_MODEL, QUESTION, Scenario
from tests.faults.scenarios.disturbed import RESTARTED, SLOTS, Sign, appears, closed, disturbed
from tests.faults.scenarios.processes import SINKS
from tests.faults.stage import BATCH, Stage

TOKENS_LIVE = 40.0
FULL = 12_000
"""Bytes of a results queue that is full after some ten results."""
FULL_OF_JOBS = 300_000
"""Bytes of a model's queue: more than the largest batch of messages, which would never fit otherwise."""


async def nothing(stage: Stage) -> None: ...


async def idle_beyond_token_life(stage: Stage) -> None:
    """Nothing is there to do while the tokens with which the links were opened expire."""
    one = await stage.start(slots=str(SLOTS))
    await stage.reaches(one, "aoai_worker_token_refreshes_total", 1)
    await asyncio.sleep(TOKENS_LIVE + 5)  # a clock's time is what is tried
    stage.note_end_of_fault()
    await stage.submit()


async def dropped_while_idle(stage: Stage) -> None:
    """A NAT forgets the flows of an idle worker and tells nobody; then there is work."""
    one = await stage.start(slots=str(SLOTS))
    await one.process.printed('"event":"started"')
    await stage.fault("servicebus", {"kind": "drop"})
    await asyncio.sleep(3.0)  # in which each connection carries something
    await stage.fault("servicebus")
    stage.note_end_of_fault()
    await stage.submit()


async def full_results_queue(stage: Stage) -> None:
    one = await stage.start(slots=str(SLOTS))
    await appears(stage, one, closed("sink"))
    stage.note_end_of_fault()
    code, output = await stage.command("collect", BATCH, "-o", str(stage.results_file), "--follow")
    assert code == 0, output


async def full_model_queue(stage: Stage) -> None:
    """One model is throttled, so that its queue fills up and the sorter is refused."""
    await stage.fault(
        "openai", {"kind": "answer", "status": 429, "retry_after": 2, "deployment": OTHER_MODEL, "seconds": 60}
    )
    one = await stage.start(slots=str(SLOTS))
    await appears(stage, one, Sign(metric="aoai_worker_sort_failures_total"))
    await stage.fault("openai")
    stage.note_end_of_fault()


def short_tokens(config: Config) -> Config:
    return replace(config, token_lifetime=TOKENS_LIVE)


def small(queue: str, size: int, config: Config) -> Config:
    return replace(
        config,
        queues=tuple(replace(one, max_size_bytes=size) if one.name == queue else one for one in config.queues),
    )


def small_results(config: Config) -> Config:
    return small("results", FULL, config)


def small_model_queue(config: Config) -> Config:
    return small(f"jobs-{OTHER_MODEL}", FULL_OF_JOBS, config)


BUSY = [{"kind": "refuse", "on": on, "entity": "jobs"} for on in ("receive", "settle", "management")]

SCENARIOS = (
    *[
        disturbed(
            "service bus cut mid frame",
            "servicebus",
            {"kind": "cut", "after_bytes": 40, "count": 1},
            times=3,
            seconds=0.5,
            sink=sink,
            paid_twice=SLOTS,
        )
        for sink in SINKS
    ],
    *[
        disturbed(
            "service bus cut mid settlement",
            "servicebus",
            {"kind": "cut", "after_bytes": 10, "direction": "in", "count": 1},
            times=3,
            seconds=0.5,
            sink=sink,
            paid_twice=SLOTS,
            in_subset=sink == "queue",
        )
        for sink in SINKS
    ],
    disturbed(
        "service bus links detached",
        "servicebus",
        {"kind": "detach", "entity": "jobs"},
        times=3,
        seconds=1.0,
        sign=RESTARTED,
        paid_twice=SLOTS,
    ),
    *[
        disturbed("service bus busy", "servicebus", *BUSY, seconds=4.0, sign=RESTARTED, sink=sink, paid_twice=SLOTS)
        for sink in SINKS
    ],
    *[
        disturbed(
            "service bus settlements not answered",
            "servicebus",
            {"kind": "lose_answer", "on": "settle", "entity": "jobs", "count": 32},
            sink=sink,
            paid_twice=SLOTS,
        )
        for sink in SINKS
    ],
    *[
        disturbed(
            "service bus restarted",
            "servicebus",
            {"kind": "restart", "seconds": 3},
            seconds=3.0,
            sign=RESTARTED,
            sink=sink,
            paid_twice=SLOTS,
        )
        for sink in SINKS
    ],
    disturbed(
        "service bus far away",
        "servicebus",
        {"kind": "slow", "latency": 0.1},
        injected="200 ms for each round trip, 8 s long",
        seconds=8.0,
        paid_twice=0,
    ),
    disturbed(
        "service bus connections dropped silently",
        "servicebus",
        {"kind": "drop"},
        seconds=1.0,
        sign=RESTARTED,
        lock_duration=30.0,
        paid_twice=2 * SLOTS,
    ),
    Scenario(
        name="service bus connections dropped while idle",
        injected="servicebus fault `drop` before the jobs come",
        submit=nothing,
        inject=dropped_while_idle,
        in_subset=False,
    ),
    Scenario(
        name="service bus idle beyond token life",
        injected=f"tokens of {TOKENS_LIVE:g} s, nothing to do for {TOKENS_LIVE + 5:g} s",
        submit=nothing,
        inject=idle_beyond_token_life,
        configure=short_tokens,
        in_subset=False,
    ),
    disturbed(
        "service bus role missing for a while",
        "servicebus",
        *[
            {"kind": "refuse", "on": on, "entity": "jobs", "condition": "amqp:unauthorized-access"}
            for on in ("receive", "attach")
        ],
        seconds=5.0,
        sign=RESTARTED,
        paid_twice=SLOTS,
    ),
    Scenario(
        name="results queue full",
        injected=f"a results queue of {FULL:,} bytes, not collected until the worker has stopped receiving",
        inject=full_results_queue,
        configure=small_results,
        sink="queue",
        paid_twice=SLOTS,
        in_subset=False,
    ),
    Scenario(
        name="model queue full",
        injected=f"a model's queue of {FULL_OF_JOBS:,} bytes, its deployment throttled",
        inject=full_model_queue,
        configure=small_model_queue,
        models=(MODEL, OTHER_MODEL),
        jobs=1_000,
        ask=f"{QUESTION} {'x' * 600}",
        in_subset=False,
    ),
)
