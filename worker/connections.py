"""Everything that talks to Azure, opened from the settings, and the checks that prove it."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from urllib.parse import urlsplit

from azure.servicebus.aio import ServiceBusClient

from worker.azure.blob.claims import BlobClaims, ClaimedResults
from worker.azure.blob.container import STORAGE_SCOPE
from worker.azure.blob.fleet import BlobFleet
from worker.azure.blob.results import BlobResults
from worker.azure.blob.storage import Storage, open_storage
from worker.azure.identity import TokenBroker, open_broker
from worker.azure.openai.model import AzureOpenAI
from worker.azure.servicebus.forwarding import ForwardingSender
from worker.azure.servicebus.jobs_queue import SERVICEBUS_SCOPE, JobsQueue, connect
from worker.azure.servicebus.results_queue import ResultsQueue
from worker.flow.startup import Check, Container, Queue, TokenScope
from worker.interfaces import Observer, Sink, Target
from worker.settings import Deployment, WorkerSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Connections:
    """Nothing is proved yet; `checks` do that. A queue has as many sources as the settings say receivers."""

    tokens: TokenBroker
    client: ServiceBusClient
    sources: Sequence[JobsQueue]
    entry: JobsQueue | None
    senders: Mapping[str, ForwardingSender]
    sink: Sink
    fleet: BlobFleet | None
    claims: BlobClaims | None
    model: AzureOpenAI
    checks: Sequence[Check]

    def dead_letters(self, queue: str, observer: Observer) -> JobsQueue:
        """To be used as a context manager."""
        return JobsQueue(self.client, queue, observer=observer, dead_letters=True)


def scopes(settings: WorkerSettings) -> dict[str, str]:
    """What tokens are needed for, and their scopes."""
    wanted = {"Azure OpenAI": settings.openai_scope, "Service Bus": SERVICEBUS_SCOPE}
    return (
        wanted | {"Blob storage": STORAGE_SCOPE} if settings.blob_container or settings.claims_container else wanted
    )


def targets(settings: WorkerSettings) -> dict[str, list[Target]] | None:
    """The deployments of each model in their order; None under `passthrough`."""
    if settings.models == "passthrough":
        return None
    named = [deployment for deployments in settings.models.values() for deployment in deployments]
    places = {(deployment.name, _endpoint(deployment, settings)) for deployment in named}
    uses = Counter(name for name, _ in places)
    return {
        model: [_target(deployment, settings, is_shared=uses[deployment.name] > 1) for deployment in deployments]
        for model, deployments in settings.models.items()
    }


def _target(deployment: Deployment, settings: WorkerSettings, *, is_shared: bool) -> Target:
    """`is_shared`: whether another endpoint has a deployment of this name."""
    endpoint = _endpoint(deployment, settings)
    return Target(
        deployment=deployment.name,
        endpoint=endpoint,
        tokens_per_minute=deployment.tokens_per_minute,
        requests_per_minute=deployment.requests_per_minute,
        alias=f"{deployment.name}@{urlsplit(endpoint).netloc}" if is_shared else None,
    )


def _endpoint(deployment: Deployment, settings: WorkerSettings) -> str:
    return deployment.endpoint or settings.openai_endpoint


@asynccontextmanager
async def open_connections(
    settings: WorkerSettings, targets: Sequence[Target], observer: Observer
) -> AsyncIterator[Connections]:
    async with open_broker(settings, observer) as tokens, AsyncExitStack() as stack:
        enter = stack.enter_async_context
        client: ServiceBusClient = await enter(connect(settings, tokens, retries=0))
        sources: list[JobsQueue] = [
            await enter(JobsQueue(client, queue, observer=observer))
            for queue in settings.models_of_queues
            for _ in range(settings.receivers)
        ]
        entry, senders = await _open_sorting(settings, client, observer, stack)
        storage: Storage = await enter(open_storage(settings, tokens))
        sink, sink_check = await _open_sink(settings, client, storage, stack)
        model: AzureOpenAI = await enter(_model(settings, tokens))
        yield Connections(
            tokens=tokens,
            client=client,
            sources=sources,
            entry=entry,
            senders=senders,
            sink=sink,
            fleet=_fleet(settings, storage),
            claims=storage.claims,
            model=model,
            checks=[
                *[
                    Check(
                        what=f"token for {service}",
                        place=TokenScope(service=service, scope=scope),
                        prove=partial(tokens.bearer, scope),
                    )
                    for service, scope in scopes(settings).items()
                ],
                *_queue_checks(settings.servicebus_namespace, [*sources, *([entry] if entry else [])]),
                *_sender_checks(settings.servicebus_namespace, senders.values()),
                sink_check,
                *_claim_checks(settings, storage.claims),
                *[
                    Check(what=f"deployment {target.label}", place=target, prove=partial(model.prove, target))
                    for target in targets
                ],
            ],
        )


def _fleet(settings: WorkerSettings, storage: Storage) -> BlobFleet | None:
    if storage.results is None:
        return None
    return BlobFleet(storage.results, prefix=settings.blob_prefix, pod=settings.pod)


def _model(settings: WorkerSettings, tokens: TokenBroker) -> AzureOpenAI:
    return AzureOpenAI(
        tokens,
        scope=settings.openai_scope,
        ca_file=settings.ca_file,
        timeout=settings.call_timeout,
        connections=settings.slots,
        api_version=settings.api_version,
        passthrough=settings.models == "passthrough",
        responses_store=settings.responses_store,
    )


def _queue_checks(namespace: str, sources: Sequence[JobsQueue]) -> Sequence[Check]:
    """One for each queue, however many receivers it has."""
    by_queue: dict[str, list[JobsQueue]] = {}
    for source in sources:
        by_queue.setdefault(source.queue, []).append(source)
    return [
        Check(
            what=f"queue {queue}",
            place=Queue(namespace=namespace, name=queue, with_sessions=False),
            prove=partial(_open_all, some),
        )
        for queue, some in by_queue.items()
    ]


def _sender_checks(namespace: str, senders: Iterable[ForwardingSender]) -> Sequence[Check]:
    return [
        Check(
            what=f"queue {sender.queue}, to send",
            place=Queue(namespace=namespace, name=sender.queue, with_sessions=False, is_sent_to=True),
            prove=sender.open,
        )
        for sender in senders
    ]


async def _open_sorting(
    settings: WorkerSettings, client: ServiceBusClient, observer: Observer, stack: AsyncExitStack
) -> tuple[JobsQueue | None, Mapping[str, ForwardingSender]]:
    """The entry queue, and senders to the queues of the models; nothing where nothing is sorted."""
    if not settings.sorts:
        return None, {}
    entry = await stack.enter_async_context(JobsQueue(client, settings.jobs_queue, observer=observer))
    return entry, {
        model: await stack.enter_async_context(ForwardingSender(client, queue))
        for model, queue in settings.queue_of_models.items()
    }


async def _open_all(sources: Sequence[JobsQueue]) -> None:
    """Together. Raises the SourceUnavailable of the first that failed, once all have been tried."""
    for error in await asyncio.gather(*[source.open() for source in sources], return_exceptions=True):
        if error is not None:
            raise error


def _claim_checks(settings: WorkerSettings, claims: BlobClaims | None) -> Sequence[Check]:
    if claims is None:
        return []
    url = settings.claims_container or settings.blob_container or ""
    return [Check(what=f"claims in {url}", place=Container(url=url), prove=claims.open)]


async def _open_sink(
    settings: WorkerSettings, client: ServiceBusClient, storage: Storage, stack: AsyncExitStack
) -> tuple[Sink, Check]:
    if storage.results is not None:
        blobs = BlobResults(storage.results, prefix=settings.blob_prefix)
        url = settings.blob_container or ""
        return blobs, Check(what=f"results in {url}", place=Container(url=url), prove=blobs.open)
    name = settings.results_queue
    queue = await stack.enter_async_context(ResultsQueue(client, name))
    place = Queue(namespace=settings.servicebus_namespace, name=name, with_sessions=True, is_sent_to=True)
    check = Check(what=f"queue {name}", place=place, prove=queue.open)
    return ClaimedResults(queue, storage.claims) if storage.claims else queue, check
