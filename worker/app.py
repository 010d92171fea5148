"""Where the objects meet: the worker's process from its settings to its exit code."""

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import random
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import Any

import uvloop

from worker.admission.admission import Admission
from worker.admission.closures import Closure
from worker.azure.identity import check_environment
from worker.connections import open_connections, scopes, targets
from worker.flow.core import Conduct, Core, build_core
from worker.flow.rollouts import Rollouts
from worker.flow.startup import prove
from worker.interfaces import Event, Observer, Started, Target, TokenRefreshed
from worker.settings import WorkerSettings
from worker.telemetry.health import serve_health
from worker.telemetry.logs import EventLog, set_up_logging
from worker.telemetry.metrics import Metrics
from worker.telemetry.summary import Summary
from worker.waits import loop_time

COLLECT_EVERY = 300.0
"""Seconds between full collections of garbage; one takes 0.1 s with 1,000 jobs in flight. Jobs leave no cycles, but
SDKs and lost connections do, and Python itself waits until a quarter more objects have outlived its young
generations, whatever they hold."""

SORTED_SHARE = 0.25
"""Of `in_flight_bytes`, what the sorter may hold besides: it must not wait for jobs that are being answered."""

M_MMAP_THRESHOLD = -3
"""Of mallopt(3)."""
LARGE_BLOCK = 128 << 10
"""Bytes; glibc's own value at the start."""

SPANS_GO_TO = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


def run(settings: WorkerSettings) -> int:
    """Work until SIGTERM or SIGINT; the exit code. Raises InvalidSettings."""
    check_environment(settings)
    collect_less_garbage()
    give_large_blocks_back()
    logger = set_up_logging(settings.log_level)
    uvloop.run(serve(settings, logger))
    return 0


def collect_less_garbage() -> None:
    """Look for cycles after 10,000 new objects rather than 700, and never among the modules.

    Hundreds of jobs in flight live through the collector's young generations, and going over them again and again
    was an eighth of a job's CPU (1.68 ms with, 1.49 ms without, medians of 3 pairs); 5 MiB more are in use.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)


def give_large_blocks_back() -> None:
    """Keep the C library mapping blocks of 128 KiB and more apart from small ones, where it is glibc.

    By itself it ends that, up to 32 MiB, when the first such block is freed. But of the 256 KiB that uvloop keeps
    for each connection few are used: apart, only those are resident; among small blocks all of it comes to be, and
    answers of megabytes leave holes. With 1,000 jobs of 25 KB in flight it is 243 MiB instead of 371.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK)


async def collect_garbage(admission: Admission) -> None:
    """Until it is stopping."""
    while not await admission.stopping(loop_time() + COLLECT_EVERY):
        gc.collect()


async def serve(settings: WorkerSettings, logger: logging.Logger) -> None:
    routes = targets(settings)
    metrics = Metrics(
        queues=queues_of(settings),
        models=settings.queue_of_models if settings.sorts else (),
        deployments=[target.label for some in (routes or {}).values() for target in some],
        scopes=scopes(settings).values(),
        slots=settings.slots,
        bytes_limit=settings.in_flight_bytes,
        prices=settings.prices or {},
        batch_labels=settings.batch_labels,
    )
    with ExitStack() as listeners:
        summary = Summary(lambda fields: logger.info("progress", extra=fields))
        listening: list[Observer] = [metrics, summary, EventLog(logger), *tracing(listeners, logger)]
        await serve_and_work(settings, routes, metrics, summary, fan_out(listening), logger)
    logger.info("stopped")


def tracing(stack: ExitStack, logger: logging.Logger) -> Sequence[Observer]:
    """A listener that sends spans, where a place to send them to is named as OpenTelemetry does."""
    wanted = [name for name in SPANS_GO_TO if os.environ.get(name)]
    if not wanted:
        return []
    try:
        from worker.telemetry.traces import Traces, open_provider
    except ImportError:
        hint = "the extra is not installed: pip install 'aoai-worker[otel]'"
        logger.warning("no_traces", extra={"variable": wanted[0], "detail": hint})
        return []
    provider = open_provider()
    stack.callback(provider.shutdown)
    return [Traces(provider)]


async def serve_and_work(
    settings: WorkerSettings,
    routes: Mapping[str, Sequence[Target]] | None,
    metrics: Metrics,
    summary: Summary,
    observer: Observer,
    logger: logging.Logger,
) -> None:
    admission = Admission(
        routes,
        endpoint=settings.openai_endpoint,
        observer=observer,
        fleet_size=settings.fleet_size,
        slots=settings.slots,
        bytes_limit=settings.in_flight_bytes,
    )
    admission.close(Closure.START_UP, "tokens, queues and deployments are not checked yet")
    rollouts = Rollouts(settings.unknown_model_patience)
    metrics.watch(admission)

    def state() -> dict[str, Any]:
        return admission.describe() | {"unknown_models": rollouts.describe(loop_time())}

    with stopping_on_signals(admission.stop):
        async with serve_health(
            host=settings.http_host,
            port=settings.http_port,
            registry=metrics.registry,
            not_ready=lambda: reasons_not_ready(admission),
            state=state,
        ) as port:
            logger.info("serving", extra={"port": port})
            async with set_up(settings, admission, rollouts, observer) as core, asyncio.TaskGroup() as tasks:
                tasks.create_task(core.run(), name="core")
                tasks.create_task(collect_garbage(admission), name="garbage")
                tasks.create_task(summary.run(admission, lambda: waits(admission, rollouts)), name="summary")
            summary.tell()


@asynccontextmanager
async def set_up(
    settings: WorkerSettings, admission: Admission, rollouts: Rollouts, observer: Observer
) -> AsyncIterator[Core]:
    """Everything that talks to Azure, proved: yielded once a job could be done, or once it is stopping."""
    models = settings.models_of_queues
    places = [gate.target for gate in admission.state.routes.gates]
    async with open_connections(settings, places, noting_tokens(admission, observer)) as azure:
        await prove(azure.checks, admission, observer, random.random, routes=targets(settings))
        observer(Started(queues=queues_of(settings), slots=settings.slots))
        conduct = Conduct(
            models=models,
            attempts=settings.attempts,
            unfit_answers=settings.unfit_answers,
            parking=settings.parking,
            max_age=settings.max_age,
            grace=settings.grace,
            sweep_every=settings.sweep_every,
            pod=settings.pod,
            sorted_bytes=settings.in_flight_bytes * SORTED_SHARE,
        )
        yield build_core(azure, admission, rollouts, observer, conduct)


def queues_of(settings: WorkerSettings) -> tuple[str, ...]:
    """All that are received, that which is sorted first."""
    return (*([settings.jobs_queue] if settings.sorts else []), *settings.models_of_queues)


def reasons_not_ready(admission: Admission) -> dict[str, str]:
    """For /readyz: what keeps it from taking jobs, a drain included."""
    is_draining = admission.state.is_stopping
    draining = {"draining": "no more is received; jobs under way are ended"} if is_draining else {}
    return {**admission.closures, **draining}


def waits(admission: Admission, rollouts: Rollouts) -> dict[str, str]:
    """For the summary: what keeps jobs from being received or called, by what it concerns."""
    aside = admission.state.aside
    awaited = [model for model, left in rollouts.describe(loop_time()).items() if left > 0]
    held = f"{aside:,} jobs are held for models that this pod does not know: {', '.join(awaited)}"
    return admission.waits() | ({"rollout": held} if aside else {})


def noting_tokens(admission: Admission, observer: Observer) -> Observer:
    """The observer; a token that arrives opens the gates that wait for it, too."""

    def tell(event: Event) -> None:
        observer(event)
        if isinstance(event, TokenRefreshed):
            admission.note_token(event.scope)

    return tell


def fan_out(listeners: Sequence[Observer]) -> Observer:
    def tell(event: Event) -> None:
        for listener in listeners:
            listener(event)

    return tell


@contextmanager
def stopping_on_signals(stop: Callable[[], None]) -> Iterator[None]:
    """SIGTERM, which Kubernetes sends, and SIGINT call `stop`, as often as they come; after the block they are
    ignored, as the process is about to end and its exit code should tell how the work went.

    Python's own handlers, not the loop's: to remove one of these sets the default first, and a signal that came in
    that moment would end the process.
    """
    loop = asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGINT)
    for number in signals:
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop))
    try:
        yield
    finally:
        for number in signals:
            signal.signal(number, signal.SIG_IGN)
