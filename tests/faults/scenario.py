"""A scenario: what is injected into a batch under work, and the ledger that is checked in the end."""

import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from embedded_azure.config import Config, Deployment, QueueSpec, default_config
from tests.faults.stage import Sink, Stage
from tests.support.administration import with_owner
from tests.support.processes import azure, is_right, results_in, write_batch
from worker.azure.blob.names import parse_result_name

MODEL, OTHER_MODEL = "gpt-5.4-mini", "gpt-5.4"


QUESTION = "What is {0} + {0}?"


def unchanged(config: Config) -> Config:
    return config


async def submit(stage: Stage) -> None:
    await stage.submit()


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """The batch lies in the queue when `inject` is called. What it leaves undone is finished by the workers that it
    leaves alive, or by a new one."""

    name: str
    injected: str
    """For the report."""
    inject: Callable[[Stage], Awaitable[None]]
    sink: Sink = "blob"
    jobs: int = 200
    seed: int = 1
    in_subset: bool = True
    """Whether `make test` runs it too."""
    models: tuple[str, ...] = (MODEL,)
    """With several, jobs are sent to the entry queue and sorted."""
    lock_duration: float = 5.0
    max_delivery_count: int = 20
    latency: float = 0.05
    paid_twice: int = 0
    """Answers that may be paid for again, as nothing can tell that they were given: the process that had them is
    dead or cut off."""
    errors: Mapping[str, str] = field(default_factory=dict)
    """Jobs that must end with an error, and its code."""
    statuses: Mapping[str, int] = field(default_factory=dict)
    """Jobs that must end with a refusal of the service, and its status."""
    may_fail: str | None = None
    """The code that any job may end with instead of its answer."""
    submit: Callable[[Stage], Awaitable[None]] = submit
    ask: str | Callable[[int], str] = QUESTION
    """Of each job, by its number. Its sum must stand in it."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What else is in the body of each job."""
    configure: Callable[[Config], Config] = unchanged
    """What else is different in the Azure of this scenario."""

    def __str__(self) -> str:
        return f"{self.name} {self.sink}".replace(",", "").replace(" ", "-")

    @property
    def config(self) -> Config:
        names = ["jobs", *[f"jobs-{model}" for model in self.models if len(self.models) > 1]]
        queues = [
            QueueSpec(name=name, lock_duration=self.lock_duration, max_delivery_count=self.max_delivery_count)
            for name in names
        ]
        config = replace(
            with_owner(default_config()),
            queues=(*queues, QueueSpec(name="results", requires_session=True)),
            deployments=tuple(
                Deployment(name=model, model=model, latency=self.latency, latency_sigma=0.0)
                for model in self.models
            ),
        )
        return self.configure(config)


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """What a batch came to. `left`: messages still in the queues of jobs. `recovery`: seconds from the end of the
    fault until the next result; None where all results were there by then."""

    jobs: int
    lost: int
    doubled: int
    wrong: int
    paid_twice: int
    left: int
    recovery: float | None

    def problems(self, scenario: Scenario) -> list[str]:
        limits = {"lost": 0, "doubled": 0, "wrong": 0, "left": 0, "paid_twice": scenario.paid_twice}
        figures = {name: getattr(self, name) for name in limits}
        return [
            f"{scenario}: {name.replace('_', ' ')} is {figures[name]}; at most {limit} is allowed"
            for name, limit in limits.items()
            if figures[name] > limit
        ]


async def run(scenario: Scenario, folder: Path) -> Ledger:
    """Raises AssertionError where the scenario did not happen as it is described."""
    async with azure(folder, scenario.config, "--sink", scenario.sink) as cloud, AsyncExitStack() as stack:
        stage = Stage(
            cloud=cloud,
            folder=folder,
            sink=scenario.sink,
            jobs=scenario.jobs,
            models=scenario.models,
            chance=random.Random(scenario.seed),
            stack=stack,
        )
        write_batch(stage.batch_file, scenario.jobs, ask=scenario.ask, models=scenario.models, extra=scenario.extra)
        await scenario.submit(stage)
        await scenario.inject(stage)
        if stage.fault_ended is None:
            stage.note_end_of_fault()
        if not stage.alive:
            await stage.start()
        return await take_stock(scenario, stage)


async def take_stock(scenario: Scenario, stage: Stage) -> Ledger:
    left = await stage.queues_are_empty()
    return reckon(
        scenario,
        results=results_in(await stage.collect()),
        blobs=await stage.result_blobs() if stage.sink == "blob" else [],
        answers=await stage.answers(),
        left=left,
        fault_ended=stage.fault_ended or 0.0,
    )


def reckon(
    scenario: Scenario,
    *,
    results: Sequence[Mapping[str, Any]],
    blobs: Sequence[str],
    answers: Mapping[str, int],
    left: int,
    fault_ended: float,
) -> Ledger:
    """`answers`: how often each prompt was answered; no two jobs have the same."""
    times = Counter(result["custom_id"] for result in results)
    wanted = {f"q-{number}" for number in range(scenario.jobs)}
    return Ledger(
        jobs=scenario.jobs,
        lost=len(wanted - set(times)),
        doubled=times.total() - len(times) + doubled_blobs(blobs),
        wrong=sum(not is_expected(result, scenario) for result in results),
        paid_twice=sum(answers.values()) - len(answers),
        left=left,
        recovery=recovery(results, fault_ended),
    )


def doubled_blobs(blobs: Sequence[str]) -> int:
    """Jobs that have an answer and an error of the same replay."""
    names = filter(None, map(parse_result_name, blobs))
    each = Counter((name.key, name.replay) for name in names)
    return each.total() - len(each)


def is_expected(result: Mapping[str, Any], scenario: Scenario) -> bool:
    code = (result["error"] or {}).get("code")
    if (wanted := scenario.errors.get(result["custom_id"])) is not None:
        return bool(code == wanted)
    if (status := scenario.statuses.get(result["custom_id"])) is not None:
        return code is None and bool(result["response"]["status_code"] == status)
    return is_right(result) or (code is not None and code == scenario.may_fail)


def recovery(results: Sequence[Mapping[str, Any]], fault_ended: float) -> float | None:
    finished = [datetime.fromisoformat(result["worker"]["finished"]).timestamp() for result in results]
    return min((seconds - fault_ended for seconds in finished if seconds > fault_ended), default=None)
