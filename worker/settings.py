"""The one list of knobs, read once: environment variables `AOAI_WORKER_*`, one YAML file, Azure's own names.

There is no field for a key, and an environment that would smuggle one in is refused. Every problem is listed
at once, each with the variable's name, the value seen and what is allowed.
"""

import difflib
import json
import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from worker.errors import InvalidSettings
from worker.jobs.model_names import MODEL, MODEL_ALPHABET
from worker.jobs.outcomes import Usage

PREFIX = "AOAI_WORKER_"
OWN_WORDS: Literal["own_words"] = "own_words"
"""The type of a problem whose message says all of it."""

SMUGGLED_KEYS = (
    "AZURE_OPENAI_API_KEY",
    "AZURE_OPENAI_KEY",
    "AZURE_OPENAI_AD_TOKEN",
    "OPENAI_API_KEY",
    "OPENAI_ADMIN_KEY",
    "OPENAI_CUSTOM_HEADERS",
    "AZURE_CLIENT_SECRET",
    "AZURE_CLIENT_CERTIFICATE_PATH",
    "AZURE_CLIENT_CERTIFICATE_PASSWORD",
    "AZURE_PASSWORD",
    "AZURE_STORAGE_KEY",
    "AZURE_STORAGE_SAS_TOKEN",
    "AZURE_STORAGE_CONNECTION_STRING",
)
"""Variables that carry a secret, or a header that could. Their values are never shown."""

CONNECTION_STRINGS = (
    "AZURE_SERVICEBUS_CONNECTION_STRING",
    "SERVICEBUS_CONNECTION_STRING",
    "SERVICE_BUS_CONNECTION_STRING",
    "SERVICEBUS_CONNECTION_STR",
    "AOAI_WORKER_SERVICEBUS_CONNECTION_STRING",
)
"""Refused unless they are the development emulator's, whose key is public."""

_SERVICE_LINK = re.compile(
    rf"{PREFIX}(\w+_)?(SERVICE_HOST=.*|SERVICE_PORT(_\w+)?=\d+|PORT=\w+://.*|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?=.*)"
)
"""Set by Kubernetes in every pod of a namespace that has a Service named `aoai-worker`, or so in the beginning."""

_PROJECT = re.compile(r"https://[^/]+\.azure\.com/api/projects/")
"""The endpoint of a Foundry project. It takes tokens of PROJECT_SCOPE only; accounts take these too."""

PROJECT_SCOPE = "https://ai.azure.com/.default"

_KEY = re.compile(r"(?i)key|secret|password|sig=|://\S*@")
"""A value that speaks of a key may be one, put into the wrong setting."""


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

HttpsUrl = Annotated[str, AfterValidator(_https)]
ContainerUrl = Annotated[str, AfterValidator(_container)]
ReadableFile = Annotated[Path, AfterValidator(_readable)]


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


class ConnectionSettings(BaseSettings):
    """What producers and workers share: how to be somebody, and where the queues are."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore", frozen=True, validate_by_name=True)

    servicebus_namespace: Annotated[str, AfterValidator(_host)]
    """The namespace's host name. Access is by role assignments, not by keys."""

    servicebus_endpoint: Annotated[str, AfterValidator(_host_and_port)] | None = None
    """host:port to connect to instead of the namespace's own, such as a private endpoint or a local Azure."""

    servicebus_transport: Literal["amqp", "websockets"] = "amqp"
    """AMQP on port 5671, or AMQP over WebSockets on port 443, through the environment's HTTP proxy if it has
    one."""

    ca_file: ReadableFile | None = None
    """PEM file of the authorities that all clients trust instead of the public ones, for TLS inspection or a
    local Azure."""

    jobs_queue: str = Field("jobs", min_length=1, max_length=260)
    """The entry queue: jobs of any model can be sent here. With one model it is that model's queue."""

    queues: (
        Annotated[
            dict[
                Annotated[str, AfterValidator(_queue_name)],
                Annotated[Annotated[str, Field(min_length=1)] | None, BeforeValidator(_only_model)],
            ],
            Field(min_length=1),
        ]
        | None
    ) = None
    """Queues by name, each with the one model whose jobs it carries, such as `{"jobs-mini": "gpt-5.4-mini"}`. Null
    instead of a model drains the queue: its jobs get `model_not_allowed`. If a model has several queues, its jobs
    are sent to the first, and all are received. A worker with several models uses `<jobs_queue>-<model>` for models
    that are not listed; a producer sends their jobs to `jobs_queue`."""

    results_queue: str = Field("results", min_length=1, max_length=260)

    sink: Literal["blob", "queue"] = "blob"
    """Where results go: one blob each in `blob_container`, or messages in `results_queue` for live consumers."""

    blob_container: ContainerUrl | None = Field(None, validate_default=True)
    """The container for results with the blob sink, such as https://my-account.blob.core.windows.net/results."""

    blob_prefix: Annotated[
        str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*$", max_length=200)
    ] = "results"
    """The folder for results in `blob_container`."""

    claims_container: ContainerUrl | None = None
    """The container for jobs that are too large for a message; by default `blob_container`. Without both, such
    jobs cannot be sent. Claims that point to another place are refused."""

    largest_claim: int = Field(16 << 20, ge=1, le=256 << 20)
    """Maximum bytes of a job that is fetched for a claim. It is held in memory while it is in flight."""

    prices: dict[str, Price] | None = None
    """Prices by model for `status` and `list`, such as
    `{"gpt-5.4-mini": {"input": 1.5, "cached_input": 0.75, "output": 6.0}}` for a million tokens, in any currency.
    No prices are built in."""

    credential: Literal["auto", "workload", "managed", "cli", "default"] = "auto"
    """How to authenticate. `auto`: the workload identity if AZURE_FEDERATED_TOKEN_FILE is set, else the Azure CLI's
    login. `default`: azure-identity's chain without its environment credential, which accepts secrets."""

    enable_azure_proxy: bool = False
    """For AKS identity bindings: exchange tokens through the cluster's proxy. Only with the workload identity."""

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

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment wins over the file, so one pod can be tried with another value."""
        # without this, mappings such as `models` would be merged rather than replaced
        given = env_settings()
        values = {name: value for name, value in values_of_file().items() if name not in given}
        return init_settings, env_settings, InitSettingsSource(settings_cls, values)


class WorkerSettings(ConnectionSettings):
    """The knobs of `aoai-worker run`."""

    openai_endpoint: HttpsUrl = Field(validation_alias="AZURE_OPENAI_ENDPOINT")
    """The account's endpoint, such as https://my-account.openai.azure.com."""

    openai_scope: Annotated[str, AfterValidator(_scope)] = "https://cognitiveservices.azure.com/.default"
    """The scope of the tokens for Azure OpenAI. Accounts also accept
    https://ai.azure.com/.default; the endpoint of a Foundry project accepts only that."""

    models: Annotated[dict[str, Deployments], Field(min_length=1)] | Literal["passthrough"]
    """The models that jobs may ask for, each with its deployments in order: a call uses the first whose gate is
    open. `passthrough` uses the job's model as the name of the deployment, so producers may choose any."""

    responses_store: bool = False
    """Let Azure store responses (`/v1/responses`), 30 days by default. False sends `store: false` with each job
    that does not set `store`: the worker writes the result, and no one would delete Azure's copy."""

    fleet_size: int = Field(1, ge=1, le=10_000)
    """Maximum number of pods that share the deployments' budgets. Each pod uses its share, and more if the
    service's headers show unused quota."""

    api_version: Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}(-preview)?$")] | None = None
    """Use the older API with this version, such as 2024-10-21, instead of /openai/v1/."""

    slots: int = Field(64, ge=1, le=4_096)
    """Jobs in flight at once in this pod."""

    in_flight_bytes: int = Field(64 << 20, ge=1 << 20)
    """Maximum bytes of jobs and their answers, including expected answers, held at once."""

    receivers: int = Field(1, ge=1, le=16)
    """Connections that receive from a queue. One carries 700 jobs/s. Use more for faster answers or many
    locks."""

    sweep_every: float = Field(60.0, ge=1, allow_inf_nan=False)
    """Seconds between sweeps of the dead-letter queues. Jobs that the broker dead-lettered, because they expired or
    were delivered too often, get an error line, so that their batches end."""

    attempts: int = Field(6, ge=1, le=50)
    """Calls that may fail before a job's last failure becomes its result. 429s do not count."""

    unfit_answers: int = Field(0, ge=0, le=5)
    """How often a job is called again if its answer is not the JSON that it asked for. Each call is paid for."""

    call_timeout: float = Field(600.0, gt=0, le=3_600)
    """Time-out of one call in seconds. 600 is the openai SDK's default, which long answers of reasoning models
    need."""

    max_age: float = Field(86_400.0, gt=0, allow_inf_nan=False)
    """Seconds from enqueuing to the deadline of a job without its own deadline; 24 h, as in the Batch API."""

    unknown_model_patience: float = Field(600.0, ge=0, allow_inf_nan=False)
    """Seconds from when a pod first sees an unknown model name until it answers such jobs with
    `model_not_allowed`, because a rollout may be adding the model. 0 refuses at once."""

    parking: float = Field(900.0, gt=0, allow_inf_nan=False)
    """Total seconds that a job may wait at closed gates in this pod before it is handed back to the queue."""

    grace: float = Field(25.0, ge=0, allow_inf_nan=False)
    """Seconds from SIGTERM until unfinished jobs are handed back. Keep it at least 5 s below the pod's
    terminationGracePeriodSeconds, which is 30 by default."""

    http_host: str = "0.0.0.0"  # noqa: S104 - the kubelet and Prometheus ask the pod's address
    http_port: int = Field(9_090, ge=0, le=65_535)
    """The port of /metrics, /livez, /readyz and /statez; 0 uses any free port."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"

    batch_labels: int = Field(0, ge=0, le=1_000)
    """How many batches have their own metrics of tokens and cost: the first ones since the start of the pod. Later
    ones count as `other`. The default is 0, because each batch adds time series to Prometheus."""

    pod: str = Field(default_factory=socket.gethostname)
    """The name of this process in its results; by default the host name, which in Kubernetes is the pod's name."""

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


def prices() -> Mapping[str, Price]:
    """AOAI_WORKER_PRICES alone, for what asks no Azure. Raises InvalidSettings."""
    given = os.environ.get(f"{PREFIX}PRICES")
    try:
        return TypeAdapter(dict[str, Price]).validate_python(
            json.loads(given) if given else values_of_file().get("prices") or {}
        )
    except ValidationError as error:
        details = [{**detail, "loc": ("prices", *detail["loc"])} for detail in error.errors()]
        raise InvalidSettings([_explain(ConnectionSettings, detail) for detail in details]) from error
    except ValueError as error:
        seen = _shown({"input": given, "loc": ("prices",)})
        raise InvalidSettings([f"{PREFIX}PRICES={seen}: must be JSON such as {_PRICES} ({error})"]) from error


def values_of_file() -> Mapping[str, Any]:
    """What the YAML file says, if one is named. Raises InvalidSettings."""
    file = os.environ.get(f"{PREFIX}CONFIG")
    return _read_yaml(Path(file)) if file else {}


def _budget(deployment: Deployment) -> tuple[int | None, int | None]:
    return deployment.tokens_per_minute, deployment.requests_per_minute


MOST_VALUES = 20_000
"""Of a file of settings: a thousand models have some thousands. A few lines of aliases can stand for millions."""

S = TypeVar("S", bound=ConnectionSettings)


def load(kind: type[S]) -> S:
    """Read the settings from this process's environment.

    Raises InvalidSettings with every problem at once.
    """
    problems = [*smuggled_keys(os.environ), *_unknown_settings(os.environ)]
    try:
        settings = kind()
    except ValidationError as error:
        problems += [_explain(kind, detail) for detail in _without_alternatives(error.errors())]
    except SettingsError as error:
        problems.append(f"{error}: the value is not JSON ({error.__cause__})")
    except InvalidSettings as error:
        problems += error.problems
    else:
        if not problems:
            return settings
    raise InvalidSettings(problems)


def smuggled_keys(environment: Mapping[str, str]) -> Iterator[str]:
    """One line for each variable that would bring a key into a keyless worker; values are not shown."""
    for name in SMUGGLED_KEYS:
        if environment.get(name):
            yield f"{name} is set; this worker is keyless and refuses to run with a key. Unset it."
    for name in CONNECTION_STRINGS:
        value = environment.get(name)
        if value and "usedevelopmentemulator=true" not in value.lower():
            yield (
                f"{name} is set to a connection string, which contains a key; only the development emulator's "
                f"is allowed. Unset it and set {PREFIX}SERVICEBUS_NAMESPACE."
            )


def _unknown_settings(environment: Mapping[str, str]) -> Iterator[str]:
    known = {field.upper() for field in WorkerSettings.model_fields} | {"CONFIG"}
    for name in sorted(environment.keys() - set(CONNECTION_STRINGS)):
        # pydantic takes the names in any case
        setting = name.upper().removeprefix(PREFIX)
        if not name.upper().startswith(PREFIX) or setting in known:
            continue
        if not _SERVICE_LINK.fullmatch(f"{name}={environment[name]}"):
            nearest = difflib.get_close_matches(setting, known, n=1)
            hint = f"did you mean {PREFIX}{nearest[0]}?" if nearest else "docs/settings.md lists the settings."
            yield f"{name} is not a setting; {hint}"


def _read_yaml(path: Path) -> dict[str, Any]:
    name = f"{PREFIX}CONFIG={path}"
    try:
        document = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise InvalidSettings([f"{name}: the file cannot be read: {error.strerror}"]) from error
    except yaml.YAMLError as error:
        raise InvalidSettings([f"{name}: the file is not YAML: {' '.join(str(error).split())}"]) from error
    except (ValueError, RecursionError) as error:  # a day that is none, a number of too many digits, deep nesting
        raise InvalidSettings([f"{name}: the file holds a value that cannot be read: {error}"]) from error
    if _count_values(document) > MOST_VALUES:
        raise InvalidSettings(
            [f"{name}: the file holds more than {MOST_VALUES:,} values, with its aliases expanded"]
        )
    if not isinstance(document, dict):
        raise InvalidSettings([f"{name}: the file must hold a mapping of settings, such as `slots: 64`"])
    unknown = [str(key) for key in document if key not in WorkerSettings.model_fields]
    if unknown:
        allowed = ", ".join(sorted(WorkerSettings.model_fields))
        raise InvalidSettings([f"{name}: no such setting: {', '.join(unknown)}; allowed are {allowed}"])
    return {str(key): value for key, value in document.items()}


def _count_values(document: object) -> int:
    """With what aliases repeat, and one more than MOST_VALUES at most."""
    left, count = [document], 0
    while left and count <= MOST_VALUES:
        value = left.pop()
        count += 1
        if isinstance(value, dict):
            left += value.values()
        elif isinstance(value, list):
            left += value
    return count


def _without_alternatives(details: Sequence[Any]) -> list[Any]:
    """One alternative of a setting is enough to explain it: not also that it is not `passthrough`."""
    seen: set[str] = set()
    kept = []
    for detail in details:
        first, *rest = [str(part) for part in detail["loc"]] or [""]
        if first not in seen or not any(part.startswith("literal[") for part in rest):
            kept.append(detail)
        seen.add(first)
    return kept


def _explain(kind: type[ConnectionSettings], detail: Any) -> str:
    """`NAME=value: what is allowed`, from one of pydantic's errors."""
    if (
        not detail["loc"] or detail["type"] == OWN_WORDS
    ):  # settings that do not fit together; the message names them
        return str(detail["msg"]).removeprefix("Value error, ")
    first, *rest = detail["loc"]
    name = str(first) if str(first).startswith("AZURE_") else f"{PREFIX}{str(first).upper()}"
    where = "".join(f"[{part}]" for part in rest if not str(part).startswith(("list[", "dict[", "literal")))
    if detail["type"] == "missing":
        field = kind.model_fields.get(str(first))
        purpose = _PURPOSES.get(str(first)) or (field.description if field else None)
        return f"{name}{where} is missing: {purpose or 'it has no default'}"
    return f"{name}{where}={_shown(detail)}: must be {_allowed(detail)}"


def _shown(detail: Any) -> str:
    text = repr(detail["input"])
    return "(not shown)" if _KEY.search(text) or _KEY.search(str(detail["loc"])) else text[:200]


def _allowed(detail: Any) -> str:
    """What would be accepted, in words that follow "must be"."""
    if detail["loc"][0] == "prices" and detail["type"] in ("extra_forbidden", "dict_type", "model_type"):
        return f"JSON such as {_PRICES}, prices of a million tokens"
    if detail["type"] in _TYPES:
        return _TYPES[detail["type"]]
    message = str(detail["msg"])
    for beginning in ("Value error, ", "Input should be ", "List should have ", "String should have "):
        message = message.removeprefix(beginning)
    return message


_PRICES = '{"gpt-5.4-mini": {"input": 1.5, "cached_input": 0.75, "output": 6.0}}'

_TYPES = {
    "bool_parsing": "true or false",
    "int_parsing": "a whole number",
    "float_parsing": "a number",
    "extra_forbidden": "left out; a deployment has a name and an endpoint",
    "list_type": 'a list of deployments, such as ["my-deployment"]',
    "dict_type": 'passthrough, or JSON such as {"gpt-5.4-mini": ["my-deployment"]}',
    "model_type": "the name of a deployment, or a name and an endpoint",
    "too_short": "at least one model, each with at least one deployment",
}

_PURPOSES = {
    "servicebus_namespace": "the Service Bus namespace, such as my-namespace.servicebus.windows.net",
    "AZURE_OPENAI_ENDPOINT": "the account's endpoint, such as https://my-account.openai.azure.com",
    "prices": "the price of a million tokens, 0 if nothing is charged",
    "models": 'the models and their deployments, such as {"gpt-5.4-mini": ["my-deployment"]}, or passthrough',
}
