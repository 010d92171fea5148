"""How much of a deployment's quota the gates use and how many 429s that costs, in virtual time.

The real `Admission` of one or several pods before the embedded Azure's `Quota`; the calls between them are waits
drawn from a seed. `docs/benchmarks.md` has the numbers and says what other clients make of the same load.
"""

import argparse
import asyncio
import math
import random
import selectors
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from embedded_azure.openai.quota import Estimate, Quota
from worker.admission.admission import Admission
from worker.admission.costs import ASSUMED_ANSWER, ASSUMED_REASONING, Cost
from worker.errors import Throttled
from worker.interfaces import Target
from worker.jobs.outcomes import Response
from worker.rate_limits import RateLimits

MODEL = "plain"
WARM_UP, MEASURED = 600.0, 600.0
SLOTS = 256
CHARGED_WITHOUT_LIMIT = 16
"""Tokens; Azure's figure is not published. This is the embedded Azure's, far below what the gates assume."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """`bias`: how far the service's estimate is off ours, as a factor; `noise`: and how far that of each request.
    `latency` is the median of an answer. `configured`: whether the pods are told the quota. `reasons`: jobs have no
    limit and three efforts for a model that reasons; the service charges `CHARGED_WITHOUT_LIMIT` for each."""

    tokens_per_minute: int | None = 300_000
    requests_per_minute: int | None = None
    pods: int = 1
    fleet_size: int = 1
    bias: float = 1.0
    noise: float = 0.0
    headers: bool = True
    configured: bool = True
    latency: float = 2.0
    reasons: bool = False
    seed: int = 1


@dataclass(slots=True)
class Count:
    """What the service saw since it was last reset."""

    requests: int = 0
    refused: int = 0
    tokens: int = 0
    admitted: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    scenario: Scenario
    used: float
    refused: float


class VirtualClock(selectors.SelectSelector):
    """A selector for which waiting is free: it moves the clock instead."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.now += max(0.0, timeout or 0.0)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop whose seconds cost nothing."""

    def __init__(self) -> None:
        self._clock = VirtualClock()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now


@dataclass(slots=True)
class Service:
    """A deployment: the quota at the moment a request arrives, and a wait for the answer."""

    scenario: Scenario
    quota: Quota
    chance: random.Random
    count: Count = field(default_factory=Count)

    async def call(self, cost: Cost) -> Response:
        await asyncio.sleep(self._draw(0.015))
        tokens = self._estimate(cost)
        self.count.requests += 1
        exceeded = self.quota.admit(tokens)
        rate_limits = self._headroom()
        if exceeded is not None:
            self.count.refused += 1
            await asyncio.sleep(self._draw(0.015))
            raise Throttled("429", status=429, retry_after=exceeded.retry_after, rate_limits=rate_limits)
        self.count.admitted += 1
        self.count.tokens += tokens.tokens
        await asyncio.sleep(self._draw(self.scenario.latency))
        return Response(status=200, request_id=None, body=b"", rate_limits=rate_limits)

    def _estimate(self, cost: Cost) -> Estimate:
        noise = 1.0 + self.scenario.noise * self.chance.uniform(-1.0, 1.0)
        return Estimate(
            prompt=math.ceil(cost.prompt * noise * self.scenario.bias),
            answer=CHARGED_WITHOUT_LIMIT if self.scenario.reasons else math.ceil(cost.answer * self.scenario.bias),
        )

    def _headroom(self) -> RateLimits | None:
        """As the adapter reads it: 0 is unknown."""
        if not self.scenario.headers:
            return None
        said = self.quota.headers()

        def number(name: str) -> int | None:
            return int(said.get(f"x-ratelimit-{name}", 0)) or None

        return RateLimits(
            limit_tokens=number("limit-tokens"),
            remaining_tokens=number("remaining-tokens"),
            limit_requests=number("limit-requests"),
            remaining_requests=number("remaining-requests"),
        )

    def _draw(self, median: float) -> float:
        return median * math.exp(0.4 * self.chance.gauss(0.0, 1.0))


Client = Callable[[Service, random.Random], Coroutine[Any, Any, None]]
"""Does jobs one after the other, for ever."""


def draw_cost(chance: random.Random, *, reasons: bool) -> Cost:
    """A prompt of about 2 KB, and an answer of up to 100 to 400 tokens, or one without a limit after reasoning."""
    prompt = int(500 * math.exp(0.5 * chance.gauss(0.0, 1.0))) + 1
    if reasons:
        return Cost(prompt, ASSUMED_ANSWER, ASSUMED_REASONING[chance.choice(("low", "medium", "high"))])
    return Cost(prompt, chance.choice((100, 200, 400)))


def worker_pod(scenario: Scenario) -> Client:
    """A pod of the worker: a throttled job goes back to its gate, as the processor has it."""
    target = Target(
        deployment=MODEL,
        endpoint="https://account.openai.azure.com",
        tokens_per_minute=scenario.tokens_per_minute if scenario.configured else None,
        requests_per_minute=scenario.requests_per_minute if scenario.configured else None,
    )
    admission = Admission({MODEL: [target]}, slots=SLOTS, observer=lambda _: None, fleet_size=scenario.fleet_size)
    running = asyncio.get_running_loop().create_task(admission.run())

    async def attempt(service: Service, cost: Cost) -> None:
        assert not running.done(), "nobody would get a permit"
        with await admission.admit(MODEL, cost) as permit:
            try:
                permit.observe(await service.call(cost))
            except Throttled as error:
                permit.observe(error)
                raise

    async def work(service: Service, chance: random.Random) -> None:
        while True:
            cost = draw_cost(chance, reasons=scenario.reasons)
            while True:
                try:
                    await attempt(service, cost)
                    break
                except Throttled:
                    pass

    return work


def sdk_client(scenario: Scenario) -> Client:
    """The openai SDK's own retries around each call, as its version 3 makes them: two at most, after what the
    service asks for up to 120 s, else after 0.5 s and 1 s less a quarter at random. A job that fails for good is
    begun again as another."""

    async def work(service: Service, chance: random.Random) -> None:
        while True:
            cost = draw_cost(chance, reasons=scenario.reasons)
            for attempt in range(3):
                try:
                    await service.call(cost)
                    break
                except Throttled as error:
                    asked = error.retry_after or 0.0
                    wait = 0.5 * 2**attempt * (1.0 - 0.25 * chance.random())
                    await asyncio.sleep(asked if 0 < asked <= 120 else wait)

    return work


async def simulate(
    scenario: Scenario, client: Callable[[Scenario], Client], warm_up: float, measured: float
) -> Outcome:
    loop = asyncio.get_running_loop()
    quota = Quota(scenario.requests_per_minute, scenario.tokens_per_minute, loop.time)
    service = Service(scenario, quota, random.Random(scenario.seed))
    await asyncio.sleep(17.3)  # nobody starts when a minute does
    pods = [client(scenario) for _ in range(scenario.pods)]
    tasks = [
        loop.create_task(pod(service, random.Random(1_000 * number + slot + scenario.seed)))
        for number, pod in enumerate(pods)
        for slot in range(SLOTS)
    ]
    await asyncio.sleep(math.ceil((loop.time() + warm_up) / 60) * 60 - loop.time())
    service.count = Count()
    await asyncio.sleep(measured)
    count = service.count
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return Outcome(
        scenario=scenario, used=share_used(scenario, count, measured), refused=count.refused / count.requests
    )


def share_used(scenario: Scenario, count: Count, seconds: float) -> float:
    """Of the budget that binds."""
    budgets = ((count.tokens, scenario.tokens_per_minute), (count.admitted, scenario.requests_per_minute))
    return max(used / (limit * seconds / 60) for used, limit in budgets if limit is not None)


def run(scenario: Scenario, client: Callable[[Scenario], Client], warm_up: float, measured: float) -> Outcome:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(simulate(scenario, client, warm_up, measured))


def scenarios() -> Sequence[Scenario]:
    """One, three and twenty pods, and one where three are expected; the estimate exact, a fifth over and under."""
    grid = [
        Scenario(pods=pods, fleet_size=fleet_size, bias=bias, noise=0.2, headers=headers)
        for headers in (True, False)
        for pods, fleet_size in ((1, 1), (3, 3), (1, 3))
        for bias in (0.8, 1.0, 1.2)
    ]
    plain = Scenario(pods=3, fleet_size=3, bias=1.2, noise=0.2)
    return [
        *grid,
        replace(plain, tokens_per_minute=60_000),
        replace(plain, tokens_per_minute=60_000, headers=False),
        replace(plain, tokens_per_minute=3_000_000, latency=1.0),
        replace(plain, latency=20.0),
        replace(plain, configured=False),
        replace(plain, configured=False, headers=False),
        Scenario(pods=3, fleet_size=3, noise=0.2, reasons=True),
        *[replace(plain, tokens_per_minute=tpm, pods=20, fleet_size=20) for tpm in (300_000, 6_000_000)],
        *[
            replace(plain, tokens_per_minute=None, requests_per_minute=600, pods=pods, headers=headers)
            for pods in (1, 3)
            for headers in (True, False)
        ],
    ]


HEADINGS = (
    "client",
    "tokens/min",
    "requests/min",
    "pods (expected)",
    "estimate charged",
    "latency s",
    "told the quota",
    "headers",
    "quota used",
    "429s",
)


def cells(name: str, outcome: Outcome) -> tuple[str, ...]:
    scenario = outcome.scenario
    return (
        name,
        f"{scenario.tokens_per_minute or 0:,}",
        f"{scenario.requests_per_minute or 0:,}",
        f"{scenario.pods} ({scenario.fleet_size})",
        "reasoning" if scenario.reasons else f"{scenario.bias:g}",
        f"{scenario.latency:g}",
        "yes" if scenario.configured else "no",
        "yes" if scenario.headers else "no",
        f"{outcome.used:.1%}",
        f"{outcome.refused:.2%}",
    )


def print_row(row: Sequence[str]) -> None:
    print(f"| {' | '.join(row)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quota", description=__doc__)
    parser.add_argument("--warm-up", type=float, default=WARM_UP, help="seconds, virtual (default: %(default)s)")
    parser.add_argument("--measured", type=float, default=MEASURED, help="seconds, virtual (default: %(default)s)")
    arguments = parser.parse_args()
    print_row(HEADINGS)
    print("|" + "---|" * len(HEADINGS))
    for scenario in scenarios():
        print_row(cells("worker", run(scenario, worker_pod, arguments.warm_up, arguments.measured)))
    for pods in (1, 3):
        scenario = Scenario(pods=pods, noise=0.2)
        print_row(cells("openai SDK", run(scenario, sdk_client, arguments.warm_up, arguments.measured)))


if __name__ == "__main__":
    main()
