"""Where the objects meet: the worker's process from its settings to its exit code."""

import asyncio
import contextlib
import logging
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import uvloop

from worker.azure_openai import AzureOpenAI
from worker.consumer import Consumer
from worker.errors import WorkerError
from worker.health import serve_health
from worker.identity import TokenBroker, check_environment, open_broker
from worker.interfaces import Event, Observer, SetupCheckFailed, Started, Target
from worker.limits import Gates, Intake, Setup
from worker.logs import EventLog, set_up_logging
from worker.metrics import Metrics
from worker.processor import Patience, Processor
from worker.results_queue import ResultsQueue
from worker.retry import RetryPolicy
from worker.servicebus import SERVICEBUS_SCOPE, JobsQueue, connect
from worker.settings import WorkerSettings
from worker.waits import loop_time

CHECK_AGAIN = RetryPolicy(base=2.0, cap=60.0)
"""Between start-up's checks: a new role assignment takes minutes to count."""


def run(settings: WorkerSettings) -> int:
    """Work until SIGTERM or SIGINT; the exit code. Raises InvalidSettings."""
    check_environment(settings)
    logger = set_up_logging(settings.log_level)
    uvloop.run(serve(settings, logger))
    return 0


async def serve(settings: WorkerSettings, logger: logging.Logger) -> None:
    routes = targets(settings)
    metrics = Metrics(
        queue=settings.jobs_queue,
        deployments=[target.deployment for some in (routes or {}).values() for target in some],
        scopes=[settings.openai_scope, SERVICEBUS_SCOPE],
        slots=settings.slots,
    )
    observer = fan_out([metrics, EventLog(logger)])
    gates = Gates(routes, endpoint=settings.openai_endpoint, observer=observer)
    intake = Intake(settings.slots, observer, gates_open_at=gates.opens_at)
    intake.close("start-up", "tokens, queues and deployments are not proved yet")
    metrics.watch(in_flight=lambda: intake.in_flight, held=lambda: intake.held)

    def state() -> dict[str, Any]:
        return describe(intake, gates)

    with stopping_on_signals(intake.stop):
        async with serve_health(
            host=settings.http_host,
            port=settings.http_port,
            registry=metrics.registry,
            not_ready=lambda: reasons_not_ready(intake),
            state=state,
        ) as port:
            logger.info("serving", extra={"port": port})
            async with consumer_of(settings, gates, intake, observer) as consumer:
                await consumer.run()
    logger.info("stopped")


@asynccontextmanager
async def consumer_of(
    settings: WorkerSettings, gates: Gates, intake: Intake, observer: Observer
) -> AsyncIterator[Consumer]:
    """Everything that talks to Azure, proved: yielded once a job could be done, or once it is stopping."""
    async with (
        open_broker(settings, observer) as tokens,
        connect(settings, tokens, retries=0) as client,
        JobsQueue(client, settings.jobs_queue, observer=observer) as source,
        ResultsQueue(client, settings.results_queue) as sink,
        AzureOpenAI(
            tokens,
            scope=settings.openai_scope,
            ca_file=settings.ca_file,
            timeout=settings.call_timeout,
            connections=settings.slots,
            passthrough=settings.models == "passthrough",
            responses_store=settings.responses_store,
        ) as model,
    ):
        await prove(checks(settings, tokens, source, sink, model, gates), intake, observer)
        observer(Started(queue=settings.jobs_queue, slots=settings.slots))
        processor = Processor(
            source=source,
            model=model,
            sink=sink,
            gates=gates,
            setup=Setup(intake),
            intake=intake,
            policy=RetryPolicy(attempts=settings.attempts),
            patience=Patience(max_age=settings.max_age, parking=settings.parking),
            observer=observer,
            pod=settings.pod,
        )
        yield Consumer(
            source=source,
            processor=processor,
            intake=intake,
            observer=observer,
            chance=random.random,
            grace=settings.grace,
        )


Check = tuple[str, Callable[[], Awaitable[object]]]


def checks(
    settings: WorkerSettings,
    tokens: TokenBroker,
    source: JobsQueue,
    sink: ResultsQueue,
    model: AzureOpenAI,
    gates: Gates,
) -> Sequence[Check]:
    """What must be true before anything is received, each with the name under which it is reported."""

    def deployment(target: Target) -> Check:
        return f"deployment {target.deployment}", lambda: model.prove(target)

    return [
        ("token for Azure OpenAI", lambda: tokens.bearer(settings.openai_scope)),
        ("token for Service Bus", lambda: tokens.bearer(SERVICEBUS_SCOPE)),
        (f"queue {settings.jobs_queue}", source.open),
        (f"queue {settings.results_queue}", sink.open),
        *[deployment(gate.target) for gate in gates.all()],
    ]


async def prove(pending: Sequence[Check], intake: Intake, observer: Observer) -> None:
    """Run the checks together, and those that failed again, until all have passed or it is stopping."""
    failures = 0
    while pending and not intake.is_stopping:
        details = await asyncio.gather(*[failure_of(check) for _, check in pending])
        wrong = {check: detail for check, detail in zip(pending, details, strict=True) if detail}
        pending = list(wrong)
        if not wrong:
            break
        failures += 1
        for (what, _), detail in wrong.items():
            observer(SetupCheckFailed(what=what, detail=detail))
        intake.close("start-up", "; ".join(f"{what}: {detail}" for (what, _), detail in wrong.items()))
        await intake.stopping(loop_time() + CHECK_AGAIN.backoff(failures, random.random()))
    if not pending:
        intake.open("start-up")


async def failure_of(check: Callable[[], Awaitable[object]]) -> str | None:
    """What is wrong, or None."""
    try:
        await check()
    except WorkerError as error:
        return str(error)
    return None


def targets(settings: WorkerSettings) -> dict[str, list[Target]] | None:
    """The deployments of each model in their order; None under `passthrough`."""
    if settings.models == "passthrough":
        return None
    return {
        model: [
            Target(deployment=deployment.name, endpoint=deployment.endpoint or settings.openai_endpoint)
            for deployment in deployments
        ]
        for model, deployments in settings.models.items()
    }


def reasons_not_ready(intake: Intake) -> dict[str, str]:
    """For /readyz: what keeps it from taking jobs, a drain included."""
    draining = {"draining": "no more is received; jobs under way are ended"} if intake.is_stopping else {}
    return {**intake.closures, **draining}


def describe(intake: Intake, gates: Gates) -> dict[str, Any]:
    """For /statez: what is under way, and what waits for what and for how long."""
    now = loop_time()
    return {
        "slots": intake.slots,
        "in_flight": intake.in_flight,
        "held": intake.held,
        "stopping": intake.is_stopping,
        "receiving_stopped_by": dict(intake.closures),
        "gates": [
            {
                "deployment": gate.target.deployment,
                "endpoint": gate.target.endpoint,
                "open": gate.opens_at <= now,
                "reason": gate.reason if gate.opens_at > now else None,
                "opens_in_seconds": round(max(0.0, gate.opens_at - now), 3),
            }
            for gate in gates.all()
        ],
    }


def fan_out(listeners: Sequence[Observer]) -> Observer:
    def tell(event: Event) -> None:
        for listener in listeners:
            listener(event)

    return tell


@contextmanager
def stopping_on_signals(stop: Callable[[], None]) -> Iterator[None]:
    """SIGTERM, which Kubernetes sends, and SIGINT call `stop`, as often as they come."""
    loop = asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGINT)
    for number in signals:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in signals:
            with contextlib.suppress(RuntimeError):
                loop.remove_signal_handler(number)
