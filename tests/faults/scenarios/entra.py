"""Entra: down for less and for more than a token lives, slow, throttling, another clock; a token file is gone."""

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from tests.faults.scenario import Scenario
from tests.faults.scenarios.disturbed import SLOTS, Fault, Sign, appears
from tests.faults.stage import Stage
from tests.support.processes import Worker

DOWN = {"kind": "answer", "status": 503}
LONG_TOKENS = {"kind": "token", "lifetime": 120, "refresh_in": 2}
"""Refreshed every 5 s, the soonest that there is, and good for 90 s: the last 30 s of a token are not used."""
SHORT_TOKENS = {"kind": "token", "lifetime": 42, "refresh_in": 2}
"""The same, good for 12 s."""
REFRESHED = "aoai_worker_token_refreshes_total"
REFRESH_FAILED = Sign(metric="aoai_worker_token_refresh_failures_total", at_least=6)
"""Twice for each of the three scopes: calls and requests were made while the last refresh had failed."""


async def no_job_noticed(one: Worker) -> None:
    for metric in ("aoai_worker_jobs_handed_back_total", "aoai_worker_gate_closed_seconds_total"):
        assert not await one.metric(metric), f"{metric} is {await one.metric(metric):g}: jobs noticed the fault"
    failed = [
        call for status in ("401", "none") if (call := await one.metric("aoai_worker_calls_total", status=status))
    ]
    assert not failed, f"calls failed for want of a token: {failed}"


async def while_tokens_last(fault: Fault, sign: Sign, stage: Stage) -> None:
    """Longer than a refresh is due, shorter than a token lives: the worker stays ready and no job sees anything."""
    await stage.fault("entra", LONG_TOKENS)
    one = await stage.start(slots=str(SLOTS))
    await stage.holds(one, SLOTS)
    await stage.add_fault("entra", dict(fault))
    await appears(stage, one, sign)
    status, text = await one.get("/readyz")
    assert status == 200, text
    await stage.fault("entra", LONG_TOKENS)
    stage.note_end_of_fault()
    await no_job_noticed(one)


async def beyond_expiry(stage: Stage) -> None:
    await stage.fault("entra", SHORT_TOKENS)
    one = await stage.start(slots=str(SLOTS))
    await stage.holds(one, SLOTS)
    await stage.add_fault("entra", DOWN)
    await appears(stage, one, Sign(metric="aoai_worker_intake_closed"))
    await asyncio.sleep(4.0)  # the calls under way end by the clock
    status, text = await one.get("/readyz")
    assert status == 503, text
    answered = await one.metric("aoai_worker_jobs_total")
    assert answered < stage.jobs, "all jobs were done before the tokens expired"
    await stage.fault("entra")
    stage.note_end_of_fault()


async def file_missing(stage: Stage) -> None:
    """The projected token is taken away, and another comes, as the kubelet would write it."""
    await stage.fault("entra", LONG_TOKENS)
    one = await stage.start(slots=str(SLOTS))
    await stage.holds(one, SLOTS)
    file = Path(stage.cloud.environment()["AZURE_FEDERATED_TOKEN_FILE"])
    kept = file.with_suffix(".kept")
    shutil.move(file, kept)
    await appears(stage, one, REFRESH_FAILED)
    refreshed = await one.metric(REFRESHED, outcome="ok")
    shutil.move(kept, file)
    stage.note_end_of_fault()
    await stage.reaches(one, REFRESHED, refreshed + 1, outcome="ok")
    await no_job_noticed(one)


def scenario(name: str, injected: str, inject: Callable[[Stage], Awaitable[None]], **options: bool) -> Scenario:
    return Scenario(
        name=f"entra {name}",
        injected=injected,
        inject=inject,
        jobs=400,
        latency=1.0,
        lock_duration=60.0,
        in_subset=options.get("in_subset", False),
    )


def unnoticed(name: str, injected: str, fault: Fault, sign: Sign = REFRESH_FAILED, **options: bool) -> Scenario:
    return scenario(name, injected, partial(while_tokens_last, fault, sign), **options)


SCENARIOS = (
    unnoticed("down while tokens last", "503 while refreshes are due", DOWN, in_subset=True),
    unnoticed("throttling", "429 while refreshes are due", {"kind": "answer", "status": 429, "retry_after": 2}),
    unnoticed(
        "slow",
        "each token takes 4 s",
        {"kind": "answer", "latency": 4.0},
        Sign(metric=REFRESHED, at_least=9, labels={"outcome": "ok"}),
    ),
    unnoticed(
        "hanging",
        "no answer while refreshes are due",
        {"kind": "connection", "how": "hang"},
        Sign(metric=REFRESH_FAILED.metric, at_least=3),
    ),
    unnoticed("clock an hour ahead", "clock skew of 3,700 s: AADSTS700024", {"kind": "clock", "skew": 3_700}),
    unnoticed("clock behind", "clock skew of -600 s: AADSTS700024", {"kind": "clock", "skew": -600}),
    scenario("down beyond expiry", "503 until the worker has no token", beyond_expiry),
    scenario("token file missing", "the projected token file is gone for a while", file_missing),
)
