"""Whether a call ever waits for a token: short-lived tokens under load, with a quick and with a slow Entra."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from typing import Any

from benchmarks.contenders import make_config, started, until_done
from benchmarks.processes import embedded_azure
from benchmarks.report import at_most, table
from benchmarks.traffic import collect, connect, submit

SLOTS, JOBS, LATENCY = 64, 5_000, 0.5
"""40 s, in which each token is refreshed two or three times."""
TOKEN = {"kind": "token", "lifetime": 60, "refresh_in": 10}
SLOWNESS = 5.0
WAITED = LATENCY + 1.0
"""Seconds of a call, whose model always takes LATENCY, from which on it must have waited for something."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    call_seconds: Sequence[float]
    requests: float
    request_seconds: float
    restarts: float

    @property
    def delayed(self) -> int:
        return sum(seconds > WAITED for seconds in self.call_seconds)


async def measure_refreshes(folder: Path, share: float) -> str:
    jobs = round(JOBS * share)
    slow = {"kind": "answer", "latency": SLOWNESS}
    outcomes = {
        "at once": await _run(folder / "quick", jobs, [TOKEN]),
        f"{SLOWNESS:g} s later": await _run(folder / "slow", jobs, [TOKEN, slow]),
    }
    return describe(outcomes, jobs)


async def _run(folder: Path, jobs: int, faults: list[Mapping[str, Any]]) -> Outcome:
    """Raises BenchmarkFailed unless every job is answered, once."""
    config = make_config(latency=LATENCY, sigma=0.0, faults={"entra": faults})
    async with embedded_azure(folder, config) as azure, connect(azure.environment("producer")) as client:
        await submit(client, jobs)
        async with started("worker", azure, SLOTS) as worker:
            await until_done(worker.process, azure, jobs)
            metrics = await worker.metrics()
        results = await collect(client, jobs)
    requests = metrics["token_refresh_seconds_count"]
    return Outcome(
        call_seconds=results.call_seconds,
        requests=requests,
        request_seconds=metrics["token_refresh_seconds_sum"] / requests,
        restarts=metrics["receiver_restarts_total"],
    )


def describe(outcomes: Mapping[str, Outcome], jobs: int) -> str:
    headings = (
        "Entra answers",
        "token requests",
        "seconds of one, mean",
        "call s, p50",
        "p99",
        "longest",
        f"calls over {WAITED:g} s",
        "receivers opened anew",
    )
    tokens = f"Tokens live {TOKEN['lifetime']} s and are to be refreshed after {TOKEN['refresh_in']} s."
    delayed = outcomes[f"{SLOWNESS:g} s later"].delayed
    return "\n\n".join(
        (
            f"{jobs:,} jobs in each run, {SLOTS} in flight, calls of {LATENCY:g} s each. {tokens}",
            table(headings, [_cells(name, outcome) for name, outcome in outcomes.items()]),
            at_most("calls delayed by a token refresh", delayed, 0, "calls"),
        )
    )


def _cells(name: str, outcome: Outcome) -> Sequence[str]:
    percentiles = quantiles(outcome.call_seconds, n=100)
    return (
        name,
        f"{outcome.requests:,.0f}",
        f"{outcome.request_seconds:.2f}",
        f"{percentiles[49]:.3f}",
        f"{percentiles[98]:.3f}",
        f"{max(outcome.call_seconds):.3f}",
        f"{outcome.delayed:,}",
        f"{outcome.restarts:,.0f}",
    )
