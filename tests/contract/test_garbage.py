"""What calls leave behind: nothing of a job that only the garbage collector could free."""

import asyncio
import gc
from collections import Counter
from pathlib import Path

import httpx2
import openai

from tests.support.model_service import embedded_service, job
from worker.azure.openai.model import Call
from worker.errors import CallFailed
from worker.jobs.job import Job
from worker.jobs.outcomes import Response

CALLS = 100
OF_A_CALL = (Job, Call, Response, httpx2.Request, httpx2.Response, openai.APIError, CallFailed)
FAULTS = (
    b"[]",
    b'{"kind":"throttle","count":1}',
    b'{"kind":"connection","how":"reset","count":1}',
    b'{"kind":"answer","status":503,"count":1}',
    b'{"kind":"answer","status":400,"count":1}',
    b'{"kind":"answer","status":401,"count":1}',
    b'{"kind":"body","how":"cut","count":1}',
    b'{"kind":"stream","how":"error","count":1}',
)


async def test_calls_however_they_end_leave_no_cycle_that_holds_a_job(tmp_path: Path) -> None:
    ended: Counter[str] = Counter()
    async with embedded_service(tmp_path) as service, service.model(*[service.token()] * CALLS) as model:

        async def call(number: int) -> None:
            try:
                asked = job(f"How much is {number}?", stream=number % 2 == 0)
                await model.complete(asked, service.target())
            except CallFailed as error:
                ended[error.detail[:60]] += 1
            else:
                ended["answered"] += 1

        await call(0)  # opens what stays open
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            for number in range(CALLS):
                service.account.faults.set(FAULTS[number // 2 % len(FAULTS)] if number % 3 else b"[]")
                await call(number)
            cancelled = asyncio.create_task(call(1))
            await asyncio.sleep(0.05)
            cancelled.cancel()
            await asyncio.wait({cancelled})
            del cancelled
            gc.collect()
            left = Counter(type(one).__name__ for one in gc.garbage if isinstance(one, OF_A_CALL))
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
    assert left == {}
    assert ended["answered"] > CALLS / 2
    assert len(ended) >= len(FAULTS) - 1  # a rejected token is replaced
