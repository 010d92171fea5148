"""How much of a deployment's quota three pods use in real time, and what that costs in 429s, beside other clients.

Each contender is three processes and an embedded Azure of its own with the quota. All run at the same time, since
each makes a few calls a second. `benchmarks/quota.py` has the gates alone, in virtual time and in many more cases.
"""

import asyncio
import math
import os
import re
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.contenders import make_config, require_paid_once, started
from benchmarks.jobs import MAX_TOKENS
from benchmarks.processes import Azure, BenchmarkFailed, Child, child, embedded_azure, foreign_cpu_ms
from benchmarks.quota_clients import CALLS, FIRST_NUMBER
from benchmarks.report import at_least, at_most, describe_disturbance, table
from benchmarks.traffic import connect, submit
from embedded_azure.config import Config

PODS = 3
TOKENS_PER_MINUTE, LATENCY = 120_000, 1.0
WARM_UP, MINUTES = 90.0, 5
EARLY = 0.25
"""Seconds before the end of a minute at which we look: clients that were refused come back when it has ended."""
JOBS = 4_000
"""For the worker: more than the quota answers in 20 minutes."""
REFUSED_TARGET, USED_TARGET = 1.0, 97.0
PEERS = Path(__file__).parent.parent / ".venv-peers" / "bin" / "python"
TUNED = "`cooldown_seconds=10`, `slow_start_items=0`, `quota_burst_seconds=5`"
WORKER = "worker"
SETUPS = {
    WORKER: "`tokens_per_minute`, `fleet_size` 3",
    "openai": "default retries",
    "litellm": "`Router` with `tpm` and `usage-based-routing-v2`",
    "async-batch-llm": "defaults and `max_tokens_per_minute`",
    "async-batch-llm-tuned": f"the same with {TUNED}",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What a deployment has been asked so far: calls that it admitted, and calls that it refused with a 429."""

    admitted: int
    refused: int
    prompt_tokens: float
    """Of one call, on average."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """Per cent: of the calls that the quota allows, and of the calls that were made."""

    used: float
    refused: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """A contender's pods at work, and the Azure that they share."""

    client: str
    """With its version."""
    azure: Azure
    pods: Sequence[Child]

    @property
    def pids(self) -> Sequence[int]:
        return [self.azure.process.pid, *(pod.pid for pod in self.pods)]

    async def look(self) -> Look:
        """Raises BenchmarkFailed where a pod has ended, or where an answer was paid for twice."""
        for pod in self.pods:
            pod.require_alive()
        stats = await self.azure.model_stats()
        require_paid_once(stats)
        return look_at(stats)


async def measure_quota_live(folder: Path, share: float) -> str:
    """Raises BenchmarkFailed."""
    require_peers()
    minutes = max(1, round(MINUTES * share))
    async with AsyncExitStack() as stack:
        fleets = {name: await stack.enter_async_context(started_fleet(name, folder / name)) for name in SETUPS}
        pids = [pid for fleet in fleets.values() for pid in fleet.pids]
        begin = first_minute(time.monotonic(), WARM_UP * share)
        await _sleep_until(begin - EARLY)
        foreign, first = foreign_cpu_ms(*pids), await look_at_all(fleets)
        await _sleep_until(begin + 60 * minutes - EARLY)
        foreign, last = foreign_cpu_ms(*pids) - foreign, await look_at_all(fleets)
    uses = {name: use_of(first[name], last[name], minutes) for name in fleets}
    clients = {name: fleet.client for name, fleet in fleets.items()}
    return describe(uses, clients, minutes, others=foreign / minutes / 600)


def require_peers() -> None:
    if not PEERS.exists():
        raise BenchmarkFailed(f"{PEERS} is missing; `scripts/tool-environment peers` makes it")


@asynccontextmanager
async def started_fleet(name: str, folder: Path) -> AsyncIterator[Fleet]:
    async with embedded_azure(folder, quota_config()) as azure, AsyncExitStack() as stack:
        if name == WORKER:
            async with connect(azure.environment("producer")) as producer:
                await submit(producer, JOBS, number_from=FIRST_NUMBER, answer_tokens=MAX_TOKENS)
            pods = [await stack.enter_async_context(_worker_pod(azure)) for _ in range(PODS)]
        else:
            pods = [await stack.enter_async_context(_client_pod(name, azure, pod)) for pod in range(PODS)]
        yield Fleet(client=client_of(pods[0].last_words), azure=azure, pods=pods)


def quota_config() -> Config:
    config = make_config(latency=LATENCY)
    [deployment] = config.deployments
    return replace(config, deployments=(replace(deployment, tokens_per_minute=TOKENS_PER_MINUTE),))


@asynccontextmanager
async def _worker_pod(azure: Azure) -> AsyncIterator[Child]:
    settings = {"fleet_size": str(PODS), "grace": "1"}
    async with started("worker", azure, CALLS, tokens_per_minute=TOKENS_PER_MINUTE, **settings) as worker:
        yield worker.process


@asynccontextmanager
async def _client_pod(name: str, azure: Azure, pod: int) -> AsyncIterator[Child]:
    """These know nothing of each other, so each is told its part of the quota."""
    python = sys.executable if name == "openai" else str(PEERS)
    command = (python, "-m", "benchmarks.quota_clients", name, str(pod), str(TOKENS_PER_MINUTE // PODS))
    environment = azure.environment("worker") | {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}  # else it is fetched
    async with child(*command, environment=environment, says="ready") as process:
        yield process


def client_of(words: str) -> str:
    """As a client says when it is ready. The worker says no version: it is of this commit."""
    found = re.search(r"^ready (.+)$", words, re.MULTILINE)
    return found[1] if found else "aoai-worker"


def first_minute(now: float, warm_up: float) -> float:
    """When the first whole minute begins after the warm-up, by the clock that turns the quota's windows."""
    return math.ceil((now + warm_up + EARLY) / 60) * 60.0


async def _sleep_until(moment: float) -> None:
    await asyncio.sleep(moment - time.monotonic())


async def look_at_all(fleets: Mapping[str, Fleet]) -> Mapping[str, Look]:
    looks = await asyncio.gather(*(fleet.look() for fleet in fleets.values()))
    return dict(zip(fleets, looks, strict=True))


def look_at(stats: Mapping[str, Any]) -> Look:
    """A call in flight counts as admitted: a refused one is over at once."""
    answered = stats["by_status"].get("200", 0)
    paid = sum(stats["answers"].values())
    return Look(
        admitted=answered + stats["in_flight"],
        refused=stats["by_status"].get("429", 0),
        prompt_tokens=stats["tokens"]["prompt"] / max(1, paid),
    )


def use_of(first: Look, last: Look, minutes: int) -> Use:
    """The service charges the prompt and `max_tokens`, and a call only fits as a whole."""
    admitted, refused = last.admitted - first.admitted, last.refused - first.refused
    allowed = minutes * (TOKENS_PER_MINUTE // round(last.prompt_tokens + MAX_TOKENS))
    return Use(used=100 * admitted / allowed, refused=100 * refused / max(1, admitted + refused))


def describe(uses: Mapping[str, Use], clients: Mapping[str, str], minutes: int, others: float) -> str:
    rows = [(clients[name], SETUPS[name], f"{use.used:.1f}%", f"{use.refused:.2f}%") for name, use in uses.items()]
    targets = (
        at_least("quota used by the worker", uses[WORKER].used, USED_TARGET, "%"),
        at_most("429s of the worker", uses[WORKER].refused, REFUSED_TARGET, "%"),
    )
    circumstances = (
        f"{minutes} whole minutes of the quota. {describe_disturbance([others])} The load was "
        f"{os.getloadavg()[0]:.1f} at the end."
    )
    return "\n\n".join((circumstances, table(("client", "set-up", "quota used", "429s"), rows), "\n".join(targets)))
