"""`aoai-worker check`: everything that must be true, looked at from where the worker will run, and what fixes it.

The same proofs as at start-up, plus who we are and how the queues are set. Nothing is paid for, sent, received or
locked. First the settings, then identity and tokens, then, under each token that there is, what it opens.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypeVar

from worker.azure.identity import check_environment, chosen_credential
from worker.azure.network import has_proxy, proxy_to
from worker.connections import Connections, open_connections, scopes, targets
from worker.environment import load
from worker.errors import Cause, InvalidSettings, TokenUnavailable, WorkerError
from worker.flow.startup import Check, Container, Queue, TokenScope
from worker.interfaces import Event, Target
from worker.operations.check.findings import Finding, Report, State
from worker.operations.check.queue_settings import (
    OpenAdministration,
    QueueReader,
    look,
    open_administration,
    unseen,
)
from worker.operations.check.suggestions import Principal, Refusing, shorten, suggest, suggest_token
from worker.operations.check.token_identity import (
    TokenClaims,
    describe_access,
    describe_projected,
    read_claims,
    read_projected,
)
from worker.settings import WorkerSettings

PATIENCE = 20.0
"""Seconds for each thing that is looked at."""

T = TypeVar("T")


def run() -> Report:
    """From this process's environment."""
    try:
        settings = load(WorkerSettings)
        check_environment(settings)
        return Report(findings=asyncio.run(examine(settings)))
    except InvalidSettings as error:
        return Report(findings=list(describe_refusal(error)), refused=True)


def describe_refusal(error: InvalidSettings) -> Iterator[Finding]:
    for problem in error.problems:
        yield Finding(state=State.WRONG, name="settings", detail=problem)


async def examine(
    settings: WorkerSettings,
    *,
    administration: OpenAdministration = open_administration,
    patience: float = PATIENCE,
) -> Sequence[Finding]:
    """`patience`: seconds for each thing. They are looked at together."""
    one_of_each = settings.model_copy(update={"receivers": 1})
    projected = list(look_at_identity(settings, time.time()))
    async with open_connections(one_of_each, deployments_of(settings), _ignore) as azure:
        examination = Examination(one_of_each, azure, patience)
        tokens = await examination.tokens()
        opened = await examination.what_they_open(administration)
    return [describe_settings(settings), *projected, *tokens, *opened, *describe_passthrough(settings)]


def deployments_of(settings: WorkerSettings) -> Sequence[Target]:
    """Each once, though several models may share it."""
    return list(dict.fromkeys(target for some in (targets(settings) or {}).values() for target in some))


def describe_settings(settings: WorkerSettings) -> Finding:
    entry = f"{settings.jobs_queue} (entry queue), " if settings.sorts else ""
    queues = entry + ", ".join(settings.models_of_queues)
    results = settings.results_queue if settings.sink == "queue" else settings.blob_container
    namespace = f"{settings.servicebus_namespace} {describe_way(settings)}"
    detail = f"no key; namespace {namespace}, jobs from: {queues}, results to: {results}"
    return Finding(state=State.OK, name="settings", detail=detail)


def describe_way(settings: WorkerSettings) -> str:
    """How Service Bus is reached. Raises InvalidSettings where the environment names no usable proxy."""
    host, port = settings.servicebus_address
    if settings.servicebus_transport == "amqp":
        return f"by AMQP at {host}:{port}{', past the proxy' if has_proxy() else ''}"
    proxy = proxy_to(host, port)
    by = f"through the proxy {proxy.address}:{proxy.port}" if proxy else "through no proxy"
    return f"by WebSockets at {host}:{port} {by}"


def describe_passthrough(settings: WorkerSettings) -> Iterator[Finding]:
    if settings.models == "passthrough":
        detail = "not checked: jobs name any deployment (AOAI_WORKER_MODELS=passthrough)"
        yield Finding(state=State.UNSEEN, name="deployments", detail=detail)


def look_at_identity(settings: WorkerSettings, now: float) -> Iterator[Finding]:
    credential = chosen_credential(settings)
    client_id, tenant = os.environ.get("AZURE_CLIENT_ID"), os.environ.get("AZURE_TENANT_ID")
    who = ", ".join(f"{name} {value}" for name, value in (("client id", client_id), ("tenant", tenant)) if value)
    chosen = f"{credential}, chosen by auto" if settings.credential == "auto" else credential
    if credential == "cli" and "KUBERNETES_SERVICE_HOST" in os.environ:
        yield Finding(
            state=State.WRONG,
            name="identity",
            detail="the Azure CLI's login, in a pod: the workload identity webhook did not change this pod",
            suggestion='label the pod azure.workload.identity/use: "true", annotate its service account with the '
            "client id, and restart the pod",
        )
        return
    yield Finding(state=State.OK, name="identity", detail=f"{chosen}{f': {who}' if who else ''}")
    if credential == "workload":
        path = os.environ["AZURE_FEDERATED_TOKEN_FILE"]
        yield describe_projected(path, now, through_proxy=settings.enable_azure_proxy)


class Examination:
    """One look at everything behind open connections."""

    def __init__(self, settings: WorkerSettings, azure: Connections, patience: float) -> None:
        self._settings = settings
        self._azure = azure
        self._patience = patience
        self._claims: dict[str, TokenClaims] = {}

    async def tokens(self) -> Sequence[Finding]:
        wanted = scopes(self._settings).items()
        return await asyncio.gather(*[self._token(service, scope) for service, scope in wanted])

    async def what_they_open(self, administration: OpenAdministration) -> Sequence[Finding]:
        places = [check.place for check in self._azure.checks]
        # one look at each, whether it is received, sent to, or both
        queues = {place.name: place for place in places if isinstance(place, Queue)}.values()
        async with self._open(administration) as reader:
            return await asyncio.gather(
                *[
                    self._prove(check, check.place)
                    for check in self._azure.checks
                    if not isinstance(check.place, TokenScope)
                ],
                *[self._queue_settings(queue, reader) for queue in queues],
            )

    async def _token(self, service: str, scope: str) -> Finding:
        name = f"token for {service}"
        try:
            token = await self._in_time(self._azure.tokens.bearer(scope))
        except TokenUnavailable as error:
            return self._no_token(name, error.detail, error.code)
        except TimeoutError:
            return self._no_token(name, self._too_late, "timeout")
        claims = self._claims[service] = read_claims(token)
        return Finding(state=State.OK, name=name, detail=describe_access(claims, time.time()))

    def _no_token(self, name: str, detail: str, code: str) -> Finding:
        projected = read_projected(os.environ.get("AZURE_FEDERATED_TOKEN_FILE"))
        suggestion = suggest_token(
            code,
            credential=chosen_credential(self._settings),
            client_id=os.environ.get("AZURE_CLIENT_ID", "<client-id>"),
            issuer=projected.issuer or "<issuer>",
            subject=projected.subject or "<subject>",
        )
        cause = Cause.NO_TOKEN
        return Finding(state=State.WRONG, name=name, detail=shorten(detail), suggestion=suggestion, cause=cause)

    async def _prove(self, check: Check, place: Refusing) -> Finding:
        name = name_of(check, self._settings)
        service, proved = what_is_proved(place)
        if service not in self._claims:
            return Finding(state=State.UNSEEN, name=name, detail=f"cannot be checked without a token for {service}")
        try:
            await self._in_time(check.prove())
        except WorkerError as error:
            detail, cause = error.detail, error.cause
        except TimeoutError:
            detail, cause = self._too_late, Cause.UNREACHABLE
        else:
            return Finding(state=State.OK, name=name, detail=proved)
        claims = self._claims[service]
        principal = Principal(object_id=claims.object_id, is_user=claims.is_user)
        suggestion = suggest(cause, place, principal)
        return Finding(state=State.WRONG, name=name, detail=shorten(detail), suggestion=suggestion, cause=cause)

    async def _queue_settings(self, queue: Queue, reader: QueueReader | None) -> Finding:
        if reader is None:
            return unseen(queue, "not checked while AOAI_WORKER_SERVICEBUS_ENDPOINT is set")
        if "Service Bus" not in self._claims:
            return unseen(queue, "cannot be checked without a token for Service Bus")
        try:
            return await self._in_time(look(reader, queue))
        except TimeoutError:
            return unseen(queue, self._too_late)

    @asynccontextmanager
    async def _open(self, administration: OpenAdministration) -> AsyncIterator[QueueReader | None]:
        async with AsyncExitStack() as stack:
            opened = administration(self._settings, self._azure.tokens)
            yield None if opened is None else await stack.enter_async_context(opened)

    async def _in_time(self, looking: Awaitable[T]) -> T:
        async with asyncio.timeout(self._patience):
            return await looking

    @property
    def _too_late(self) -> str:
        return f"no answer within {self._patience:g} s"


def what_is_proved(place: Refusing) -> tuple[str, str]:
    """The name of the token that opens the place, and what is so where nothing fails."""
    match place:
        case Queue(is_sent_to=True):
            return "Service Bus", "exists; this identity may send"
        case Queue():
            return "Service Bus", "exists without sessions; this identity may receive"
        case Container():
            return "Blob storage", "exists; this identity may list and write"
        case Target():
            return "Azure OpenAI", "exists; this identity may call it"


def name_of(check: Check, settings: WorkerSettings) -> str:
    """Deployments of one name can be at several endpoints."""
    match check.place:
        case Target(endpoint=endpoint, alias=None) if endpoint != settings.openai_endpoint:
            return f"{check.what} at {endpoint}"
        case _:
            return check.what


def _ignore(event: Event) -> None:
    """What happens on the way is told by the findings."""
