"""The one list of settings. `worker/environment.py` reads them. There is no field for a key.

`make reference` writes the docstrings of the fields, their units, bounds and defaults into docs/settings.md.
"""

import os
import re
import socket
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, SettingsConfigDict

from worker.jobs.model_names import MODEL, MODEL_ALPHABET
from worker.jobs.outcomes import Usage

PREFIX = "AOAI_WORKER_"
OWN_WORDS: Literal["own_words"] = "own_words"
"""The type of a problem whose message says all of it."""

_PROJECT = re.compile(r"https://[^/]+\.azure\.com/api/projects/")
"""The endpoint of a Foundry project. It takes tokens of PROJECT_SCOPE only; accounts take these too."""

PROJECT_SCOPE = "https://ai.azure.com/.default"


@dataclass(frozen=True)
class Unit:
    """What a value counts or is, for docs/settings.md. Choices, bounds, and JSON are taken from the type."""

    name: str


def _https(url: str) -> str:
    # a bearer token over plain http would be readable on the way; what stands before @ or after ? could be a key
    if not re.fullmatch(r"https://[^\s/@?#]+(/[^\s@?#]*)?", url):
        raise ValueError("an https:// URL, such as https://my-account.openai.azure.com")
    # the portal shows the address with the path that clients append
    return url.rstrip("/").removesuffix("/openai/v1")


def _scope(scope: str) -> str:
    if not re.fullmatch(r"https://\S+/\.default", scope):
        raise ValueError("a scope, such as https://cognitiveservices.azure.com/.default")
    return scope


def _host(name: str) -> str:
    if not re.fullmatch(r"[\w-]+(\.[\w-]+)+", name):
        raise ValueError("a host name without scheme or path, such as my-namespace.servicebus.windows.net")
    return name


def _container(url: str) -> str:
    # no query: a shared access signature is a key
    if not re.fullmatch(r"https://[^\s/@?#]+(/[A-Za-z0-9$-]+){1,2}/?", url):
        raise ValueError(
            "the https:// URL of a container, such as https://my-account.blob.core.windows.net/results"
        )
    return url.rstrip("/")


def _host_and_port(address: str) -> str:
    found = re.fullmatch(r"([^\s/@:]+|\[[0-9a-fA-F:]+\]):([0-9]{1,5})", address)
    if found is None or not 0 < int(found[2]) < 65_536:
        raise ValueError("host:port, such as private-endpoint.internal:5671")
    return address


def _readable(path: Path) -> Path:
    if not os.access(path, os.R_OK) or not path.is_file():
        raise ValueError(
            "a file that this process can read (that of `aoai-worker local` exists only while it runs)"
        )
    return path


def _deployment(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _queue_name(name: str) -> str:
    if not QUEUE.fullmatch(name):
        raise ValueError(f"the name of a queue: {QUEUE_ALPHABET}")
    return name


def _only_model(value: Any) -> Any:
    """Lists of models were taken once."""
    if isinstance(value, list) and len(value) == 1:
        return value[0]
    if isinstance(value, list):
        # jobs of a throttled model would stand before the others', as a queue is first in, first out
        raise ValueError(
            'one model, such as "gpt-5.4-mini", or null to drain the queue. Jobs of several models in one queue '
            "would wait for a throttled one. Give each model its own queue"
        )
    return value


QUEUE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,259}")
QUEUE_ALPHABET = "1 to 260 letters, digits and . _ - /, and begins with a letter or digit"
IN_QUEUE_NAME = re.compile(r"[A-Za-z0-9._-]+")
"""Of a model's name, what can stand in the name of its queue."""

HttpsUrl = Annotated[str, AfterValidator(_https), Unit("https URL")]
ContainerUrl = Annotated[str, AfterValidator(_container), Unit("https URL")]
ReadableFile = Annotated[Path, AfterValidator(_readable), Unit("path, PEM")]
QueueName = Annotated[str, AfterValidator(_queue_name), Unit("name")]
Bytes = Annotated[int, Unit("bytes")]
Seconds = Annotated[float, Unit("seconds")]


class Deployment(BaseModel):
    """A deployment of Azure OpenAI; the settings may give only its name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    endpoint: HttpsUrl | None = None
    """Its endpoint, if not AZURE_OPENAI_ENDPOINT."""

    tokens_per_minute: int | None = Field(None, ge=1)
    requests_per_minute: int | None = Field(None, ge=1)
    """What all pods together may use of its quota, which other clients may share. If left out, the service's
    headers decide. Without headers there is no pacing, only the pauses that a 429 asks for."""


Deployments = Annotated[list[Annotated[Deployment, BeforeValidator(_deployment)]], Field(min_length=1)]


Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


MILLION = 1_000_000
"""Tokens that a price is for."""


class Price(BaseModel):
    """The price of a million tokens of a model, in any currency."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: Amount
    cached_input: Amount | None = None
    """The price of cached input tokens; by default that of `input`."""
    output: Amount

    def cost(self, usage: Usage) -> float:
        cached_input = self.input if self.cached_input is None else self.cached_input
        # the service counts cached tokens among those of the prompt
        fresh = max(0, usage.prompt - usage.cached)
        return (fresh * self.input + usage.cached * cached_input + usage.completion * self.output) / MILLION


class ServiceBusSettings(BaseSettings):
    """How to reach the queues of jobs, and as whom."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore", frozen=True, validate_by_name=True)

    servicebus_namespace: Annotated[str, AfterValidator(_host), Unit("host name")]
    """The Service Bus namespace, such as `my-namespace.servicebus.windows.net`."""

    servicebus_endpoint: Annotated[str, AfterValidator(_host_and_port), Unit("host:port")] | None = None
    """Where to connect if the name of the namespace does not resolve to the right place: a private endpoint, a
    local Azure. Tokens and links keep the real name."""

    servicebus_transport: Literal["amqp", "websockets"] = "amqp"
    """AMQP over TLS at port 5671, or AMQP over WebSockets at port 443. Only WebSockets can use the proxy of
    `HTTPS_PROXY`. Use `amqp` where both are open: it has fewer layers, and no proxy cuts long connections."""

    ca_file: ReadableFile | None = None
    """Certificate authorities that every client trusts instead of the system's: TLS inspection, a local Azure.
    The Service Bus SDK ignores `SSL_CERT_FILE`, so one setting serves all clients."""

    jobs_queue: QueueName = "jobs"
    """The entry queue, which takes jobs of any model. With one model it is that model's queue. With several, the
    worker moves each job to the queue of its model."""

    queues: (
        Annotated[
            dict[
                QueueName,
                Annotated[Annotated[str, Field(min_length=1)] | None, BeforeValidator(_only_model)],
            ],
            Field(min_length=1),
        ]
        | None
    ) = None
    """Queues and the one model of each: `{"jobs-mini": "gpt-5.4-mini", "jobs-old": null}`. `null` drains a
    queue: its jobs end with `model_not_allowed`. By default workers use `<entry queue>-<model>`, and producers
    send to the entry queue ([several models](howto/models.md))."""

    credential: Literal["auto", "workload", "managed", "cli", "default"] = "auto"
    """The identity. `auto` is the workload identity if `AZURE_FEDERATED_TOKEN_FILE` is set, else the Azure CLI's
    login, so a command works in a pod and on a laptop. `default` is azure-identity's chain without its
    environment credential, which takes secrets."""

    enable_azure_proxy: bool = False
    """AKS identity bindings: exchange tokens through the cluster's proxy. Only with the workload identity, in
    clusters that have bindings."""

    @property
    def servicebus_address(self) -> tuple[str, int]:
        """Host and port to connect to."""
        port = 443 if self.servicebus_transport == "websockets" else 5671
        host, _, named = (self.servicebus_endpoint or f"{self.servicebus_namespace}:{port}").rpartition(":")
        return host.strip("[]"), int(named)

    @property
    def named_queues(self) -> dict[str, str]:
        """Each model whose queue is named, to the first of that."""
        queues = list((self.queues or {}).items())
        return {model: queue for queue, model in reversed(queues) if model is not None}

    @model_validator(mode="after")
    def _names_each_queue_once(self) -> Self:
        seen: dict[str, str] = {}
        for queue in self.queues or {}:
            if (first := seen.setdefault(queue.casefold(), queue)) != queue:
                raise ValueError(
                    f"{PREFIX}QUEUES: {first} and {queue} are one queue, as Service Bus ignores case: "
                    "must be names that differ by more than case"
                )
        return self


class ConnectionSettings(ServiceBusSettings):
    """What producers and workers share: the queues, and where results and large jobs lie."""

    results_queue: QueueName = "results"
    """With the queue sink: the queue of results and manifests. It must require sessions."""

    sink: Literal["blob", "queue"] = "blob"
    """Where results go. `blob`: one blob for each job; batches can be listed, cancelled and retried, and a
    redelivered job is not paid for again. `queue`: messages of the results queue, for live consumers and batches
    of up to some 10,000."""

    blob_container: ContainerUrl | None = Field(None, validate_default=True)
    """The container of results, such as `https://my-account.blob.core.windows.net/results`. Required with the
    blob sink. A query is refused, because a shared access signature is a key."""

    blob_prefix: Annotated[
        str,
        Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*$", max_length=200),
        Unit("path"),
    ] = "results"
    """The folder of the results in the container."""

    claims_container: ContainerUrl | None = None
    """The container of jobs that are too large for a message ([claim checks](job-format.md#claim-checks)). The
    default is the container of results; without both, such jobs cannot be sent. A claim that names another
    container is refused."""

    largest_claim: Bytes = Field(16 << 20, ge=1, le=256 << 20)
    """The largest job that is fetched for a claim. Together, such jobs hold at most a third of
    `AOAI_WORKER_IN_FLIGHT_BYTES`, and the others wait. One that is larger is fetched alone."""

    prices: dict[str, Price] | None = None
    """Prices by model, for a million tokens in any currency: `{"gpt-5.4-mini": {"input": 1.5, "cached_input":
    0.75, "output": 6.0}}` (made-up numbers). Without `cached_input`, cached tokens cost as much as others.
    `status` shows the cost. Prices depend on region, contract and day, so none is built in."""

    @field_validator("blob_container")
    @classmethod
    def _has_a_container(cls, value: str | None, info: ValidationInfo) -> str | None:
        """Of the field, not the model, so that it is told together with what else is missing."""
        if value is None and info.data.get("sink") == "blob":
            purpose = "the container of results, such as https://my-account.blob.core.windows.net/results"
            words = (
                f"{PREFIX}BLOB_CONTAINER is missing: {purpose}. Or set {PREFIX}SINK=queue "
                f"to send results to the queue {info.data.get('results_queue', 'results')!r}"
            )
            raise PydanticCustomError(OWN_WORDS, "{words}", {"words": words})
        return value


class WorkerSettings(ConnectionSettings):
    """The knobs of `aoai-worker run`."""

    openai_endpoint: HttpsUrl = Field(validation_alias="AZURE_OPENAI_ENDPOINT")
    """The account's endpoint. Only `https`, because a bearer token over plain http could be read on the way. The
    path `/openai/v1`, which the portal shows, is cut off."""

    openai_scope: Annotated[str, AfterValidator(_scope), Unit("scope")] = (
        "https://cognitiveservices.azure.com/.default"
    )
    """The scope of tokens for Azure OpenAI. Accounts also take `https://ai.azure.com/.default`. The endpoint of
    a Foundry project (`https://...azure.com/api/projects/...`) takes only that one, so the worker refuses
    another scope there."""

    models: Annotated[dict[str, Deployments], Field(min_length=1)] | Literal["passthrough"]
    """The models that jobs may ask for, each with its deployments in order: `{"gpt-5.4-mini": ["provisioned",
    {"name": "standard", "endpoint": "https://..."}]}`. The first one whose gate is open is used. A deployment
    may have `tokens_per_minute` and `requests_per_minute`, which the whole fleet may use; without them the
    limits in the service's headers are kept to. `passthrough` uses the job's model as the deployment's name, so
    producers choose."""

    responses_store: bool = False
    """Whether Azure keeps the responses of `/v1/responses` jobs that do not say so themselves; its own default
    is yes, for 30 days. `false` sends `store: false`: the result is enough, and nobody would delete the copy.
    Jobs that use `previous_response_id` need `true`."""

    fleet_size: Annotated[int, Unit("pods")] = Field(1, ge=1, le=10_000)
    """The most pods that share the budgets of the deployments. A pod uses its part, and more if the headers show
    that the others leave some."""

    api_version: Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}(-preview)?$"), Unit("date")] | None = None
    """Calls the older API with this version, such as `2024-10-21`, for accounts without `/openai/v1/`."""

    slots: Annotated[int, Unit("jobs")] = Field(64, ge=1, le=4_096)
    """Jobs in flight at once in one pod: jobs per second wanted times seconds a call takes."""

    in_flight_bytes: Bytes = Field(64 << 20, ge=1 << 20)
    """Bytes of jobs and answers held at once; beyond it nothing is received. An answer counts from its
    call until it is written, first by an estimate, then by its size. The sorter may hold a quarter of this in
    addition. The pod needs about 100 MiB, three times this, and the largest answer: 512 MiB with the default."""

    receivers: Annotated[int, Unit("connections")] = Field(1, ge=1, le=16)
    """Connections that receive from each queue. One carries some 700 jobs/s on one core. More than one
    helps if thousands of locks are held."""

    sweep_every: Seconds = Field(60.0, ge=1, allow_inf_nan=False)
    """Time between sweeps of the dead-letter queues. A sweep writes an error result for each job that expired or
    was delivered too often, so that its batch ends."""

    attempts: Annotated[int, Unit("calls")] = Field(6, ge=1, le=50)
    """Calls that may fail before the last failure becomes the result. 429s do not count. Six, with waits that
    double from 1 s, outlast a short outage."""

    unfit_answers: Annotated[int, Unit("calls")] = Field(0, ge=0, le=5)
    """How often a job is called again if its answer is not the JSON that it asked for
    ([warnings](job-format.md#warnings)). Each call is paid for. With 0 the answer is marked and kept."""

    call_timeout: Seconds = Field(600.0, gt=0, le=3_600)
    """Time limit of one call. The default is that of the openai SDK; long answers of reasoning models need
    it."""

    max_age: Seconds = Field(86_400.0, gt=0, allow_inf_nan=False)
    """Time from enqueuing to the deadline of a job that names none. 24 h, as in the Batch API."""

    unknown_model_patience: Seconds = Field(600.0, ge=0, allow_inf_nan=False)
    """Time from when a pod first sees an unknown model until it answers such jobs with `model_not_allowed`. A
    rollout may be bringing the model. Until then the jobs are held and handed back every 30 s. 0 refuses at
    once."""

    parking: Seconds = Field(900.0, gt=0, allow_inf_nan=False)
    """The longest time that a job waits at gates in this pod before it is handed back. Longer than the longest
    pause a header can ask for, which is cut to 600."""

    grace: Seconds = Field(25.0, ge=0, allow_inf_nan=False)
    """Time from SIGTERM until unfinished jobs are handed back. 5 s below a pod's default
    `terminationGracePeriodSeconds` of 30. Raise both above the time that your calls take, or answers under way
    are paid for and lost."""

    http_host: Annotated[str, Unit("address")] = "0.0.0.0"  # noqa: S104 - the kubelet and Prometheus ask the pod's address
    """The address of probes and metrics. In a pod, the kubelet and Prometheus connect from outside."""

    http_port: Annotated[int, Unit("port")] = Field(9_090, ge=0, le=65_535)
    """The port of probes and metrics. 0 takes any free port; the log event `serving` has it."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """`debug` adds several lines for each job."""

    batch_labels: Annotated[int, Unit("batches")] = Field(0, ge=0, le=1_000)
    """How many batches have metrics of their own for tokens and cost: the first ones since the pod's start. The
    others count as `other`. Each adds time series to Prometheus, so the default is none."""

    pod: Annotated[str, Unit("text")] = Field(default_factory=socket.gethostname)
    """The name of this process in its results. In a pod the host name is the pod's name."""

    @model_validator(mode="after")
    def _knows_the_models_of_its_queues(self) -> Self:
        if self.models == "passthrough":
            return self
        for name in self.models:
            if not MODEL.fullmatch(name):
                raise ValueError(f"{PREFIX}MODELS: the model {name[:80]!r}: must have {MODEL_ALPHABET}")
        for queue, model in (self.queues or {}).items():
            if model is not None and model not in self.models:
                allowed = ", ".join(sorted(self.models))
                raise ValueError(
                    f"{PREFIX}QUEUES[{queue}]={model}: must be one of {PREFIX}MODELS: {allowed}, "
                    "or null to drain the queue"
                )
        return self

    @model_validator(mode="after")
    def _can_name_the_queues_of_its_models(self) -> Self:
        entry, queues = self.jobs_queue, self.queues or {}
        if self.models == "passthrough":
            if queues:
                raise ValueError(
                    f"{PREFIX}QUEUES is set with {PREFIX}MODELS=passthrough: must be left out, as all jobs then "
                    f"come from {entry}. Name the models to give each a queue"
                )
            return self
        given = {queue.casefold(): model for queue, model in queues.items()}
        if entry.casefold() in given and (given[entry.casefold()] is None or len(self.models) > 1):
            raise ValueError(
                f"{PREFIX}QUEUES[{entry}]: must be another queue than {PREFIX}JOBS_QUEUE, which takes the jobs of "
                f"all models. Use another name, such as {entry}-{next(iter(self.models))}"
            )
        return self._require_queue_names(set(given) | {entry.casefold()})

    def _require_queue_names(self, taken: set[str]) -> Self:
        """Of the models whose queues are not named. `taken`: the names of queues in lower case."""
        for model in self.models if len(self.models) > 1 else ():
            if model in self.named_queues:
                continue
            queue = f"{self.jobs_queue}-{model}"
            why = None
            if not IN_QUEUE_NAME.fullmatch(model):
                why = "a model's name in a queue's name must have only letters, digits and . _ -"
            elif not QUEUE.fullmatch(queue):
                why = f"must have {QUEUE_ALPHABET}"
            elif queue.casefold() in taken:
                why = "must differ from other queues by more than case"
            if why:
                raise ValueError(
                    f"{PREFIX}MODELS: {queue[:300]} as the queue of {model!r}: {why}. Name its queue, such as "
                    f'{PREFIX}QUEUES={{"{self.jobs_queue}-2": "{model}"}}'
                )
            taken.add(queue.casefold())
        return self

    @model_validator(mode="after")
    def _has_one_budget_for_each_deployment(self) -> Self:
        if self.models == "passthrough":
            return self
        known: dict[tuple[str, str], Deployment] = {}
        for deployment in chain.from_iterable(self.models.values()):
            endpoint = deployment.endpoint or self.openai_endpoint
            first = known.setdefault((deployment.name, endpoint), deployment)
            if _budget(first) != _budget(deployment):
                raise ValueError(
                    f"{PREFIX}MODELS: {deployment.name} at {endpoint} has the budgets {_budget(first)} and "
                    f"{_budget(deployment)} (tokens and requests a minute): must be the same for all its models, "
                    "as it is one quota"
                )
        return self

    @model_validator(mode="after")
    def _has_the_scope_of_its_endpoints(self) -> Self:
        deployments = [] if self.models == "passthrough" else chain.from_iterable(self.models.values())
        endpoints = [self.openai_endpoint, *(one.endpoint for one in deployments if one.endpoint)]
        project = next((one for one in endpoints if _PROJECT.match(one)), None)
        if project is not None and self.openai_scope != PROJECT_SCOPE:
            raise ValueError(
                f"{PREFIX}OPENAI_SCOPE is {self.openai_scope}: must be {PROJECT_SCOPE}, as {project} is the "
                "endpoint of a Foundry project, which accepts no other tokens. Set it, or use the account's "
                "endpoint"
            )
        return self

    @property
    def queue_of_models(self) -> dict[str, str]:
        """Each model to the queue of its jobs; empty under `passthrough`."""
        if self.models == "passthrough":
            return {}
        one = {} if len(self.models) > 1 else dict.fromkeys(self.models, self.jobs_queue)
        return {model: f"{self.jobs_queue}-{model}" for model in self.models} | one | self.named_queues

    @property
    def sorts(self) -> bool:
        """Whether jobs are moved from the entry queue to those of their models."""
        # a queue's name has no case
        queues = [queue.casefold() for queue in self.queue_of_models.values()]
        return bool(queues) and self.jobs_queue.casefold() not in queues

    @property
    def models_of_queues(self) -> dict[str, frozenset[str] | None]:
        """Each queue that jobs are answered from, to the models they ask for: None for any, empty if drained."""
        if not self.queues and not self.sorts:
            return {self.jobs_queue: None}
        models: dict[str, str | None] = {queue: model for model, queue in self.queue_of_models.items()}
        models |= self.queues or {}
        return {queue: frozenset({model} if model else ()) for queue, model in models.items()}


def _budget(deployment: Deployment) -> tuple[int | None, int | None]:
    return deployment.tokens_per_minute, deployment.requests_per_minute


def variable_of(setting: str) -> str:
    """The environment variable that sets it."""
    return str(WorkerSettings.model_fields[setting].validation_alias or f"{PREFIX}{setting.upper()}")
