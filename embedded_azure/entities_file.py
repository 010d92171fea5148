"""The entities file: what there is in the embedded Service Bus, written as YAML by people.

`python -m embedded_azure --entities FILE` reads it instead of the demo's two queues. What is not said is as in
Azure: a lock lasts a minute, the tenth delivery is the last, there is no duplicate detection and nothing expires.
docs/embedded-azure.md has an example.
"""

import dataclasses
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from embedded_azure.config import (
    PREMIUM_BYTES,
    STANDARD_BYTES,
    Config,
    CorrelationSpec,
    QueueSpec,
    Role,
    RoleAssignment,
    RuleSpec,
    SubscriptionSpec,
    TopicSpec,
)
from embedded_azure.servicebus.broker.broker import Broker, BrokerError
from embedded_azure.servicebus.broker.topics import SUBSCRIPTIONS

OWNER: Role = "Azure Service Bus Data Owner"
_MOST_LARGE_BYTES = 100 << 20


class EntitiesError(Exception):
    """The file cannot be used. The message names the file, the place in it and what is allowed there."""


class _Described(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


Duration = Annotated[timedelta, Field(gt=timedelta(0))]
"""Seconds, or ISO 8601 as in Azure's templates: `PT30S`."""


class Correlation(_Described):
    correlation_id: str | None = None
    message_id: str | None = None
    to: str | None = None
    reply_to: str | None = None
    label: str | None = None
    session_id: str | None = None
    reply_to_session_id: str | None = None
    content_type: str | None = None
    properties: dict[str, str | int | float | bool] = {}


class Rule(_Described):
    name: str
    sql: str | None = None
    correlation: Correlation | None = None

    def spec(self) -> RuleSpec:
        correlation = None if self.correlation is None else CorrelationSpec(**self.correlation.model_dump())
        return RuleSpec(name=self.name, sql=self.sql, correlation=correlation)


class _Receivable(_Described):
    """What queues and subscriptions have in common."""

    name: str
    lock_duration: Annotated[timedelta, Field(gt=timedelta(0), le=timedelta(minutes=5))] = timedelta(minutes=1)
    max_delivery_count: Annotated[int, Field(ge=1, le=2_000)] = 10
    requires_session: bool = False
    default_time_to_live: Duration | None = None
    dead_letter_on_expiry: bool = False
    forward_to: str | None = None
    forward_dead_letters_to: str | None = None

    def terms(self) -> dict[str, Any]:
        """As the specs of the config name and count them."""
        named = {name: getattr(self, name) for name in _Receivable.model_fields}
        return {name: _seconds(value) for name, value in named.items()}


class Queue(_Receivable):
    duplicate_detection_window: Duration | None = None
    max_message_bytes: Annotated[int, Field(ge=1, le=_MOST_LARGE_BYTES)] | None = None
    max_size_bytes: Annotated[int, Field(ge=1)] = 1 << 30

    def spec(self, tier_bytes: int) -> QueueSpec:
        return QueueSpec(
            **self.terms(),
            duplicate_detection_window=_seconds(self.duplicate_detection_window),
            max_message_bytes=self.max_message_bytes or tier_bytes,
            max_size_bytes=self.max_size_bytes,
        )


class Subscription(_Receivable):
    dead_letter_on_filter_error: bool = True
    rules: tuple[Rule, ...] | None = None
    """None is the rule `$Default`, which takes all."""

    def spec(self) -> SubscriptionSpec:
        rules = (RuleSpec(),) if self.rules is None else tuple(rule.spec() for rule in self.rules)
        return SubscriptionSpec(
            **self.terms(), dead_letter_on_filter_error=self.dead_letter_on_filter_error, rules=rules
        )


class Topic(_Described):
    name: str
    default_time_to_live: Duration | None = None
    duplicate_detection_window: Duration | None = None
    max_message_bytes: Annotated[int, Field(ge=1, le=_MOST_LARGE_BYTES)] | None = None
    max_size_bytes: Annotated[int, Field(ge=1)] = 1 << 30
    subscriptions: tuple[Subscription, ...] = ()

    def spec(self, tier_bytes: int) -> TopicSpec:
        return TopicSpec(
            name=self.name,
            default_time_to_live=_seconds(self.default_time_to_live),
            duplicate_detection_window=_seconds(self.duplicate_detection_window),
            max_message_bytes=self.max_message_bytes or tier_bytes,
            max_size_bytes=self.max_size_bytes,
            subscriptions=tuple(subscription.spec() for subscription in self.subscriptions),
        )


class Assignment(_Described):
    """`entity` is a queue, a topic or `<topic>/Subscriptions/<name>`; without it the role is on the namespace."""

    identity: str
    role: Literal[
        "Azure Service Bus Data Sender", "Azure Service Bus Data Receiver", "Azure Service Bus Data Owner"
    ]
    entity: str | None = None


class Entities(_Described):
    """The whole file. Without `roles` the identities `worker` and `producer` own the namespace."""

    tier: Literal["standard", "premium"] = "standard"
    queues: tuple[Queue, ...] = ()
    topics: tuple[Topic, ...] = ()
    roles: tuple[Assignment, ...] | None = None

    @model_validator(mode="after")
    def _not_empty(self) -> "Entities":
        if not self.queues and not self.topics:
            raise ValueError("there are neither queues nor topics; name at least one")
        return self


def read_entities(path: Path) -> Entities:
    """Raises EntitiesError."""
    try:
        document = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise EntitiesError(f"the entities file {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise EntitiesError(f"the entities file {path} is not YAML: {error}") from error
    try:
        return Entities.model_validate(document)
    except ValidationError as error:
        raise EntitiesError(f"the entities file {path} cannot be used:\n" + "\n".join(_problems(error))) from error


def put_entities(config: Config, path: Path) -> Config:
    """The config with the file's entities and roles in place of its own. Raises EntitiesError."""
    entities = read_entities(path)
    tier_bytes = PREMIUM_BYTES if entities.tier == "premium" else STANDARD_BYTES
    queues = tuple(queue.spec(tier_bytes) for queue in entities.queues)
    topics = tuple(topic.spec(tier_bytes) for topic in entities.topics)
    try:
        Broker(queues, topics=topics)
        roles = _roles(config, entities)
    except BrokerError as refusal:
        raise EntitiesError(f"the entities file {path} cannot be used: {refusal.description}") from refusal
    except KeyError as error:
        raise EntitiesError(f"the entities file {path} cannot be used: roles: {error.args[0]}") from error
    return dataclasses.replace(config, queues=queues, topics=topics, role_assignments=roles)


def _roles(config: Config, entities: Entities) -> tuple[RoleAssignment, ...]:
    """Raises KeyError naming what there is."""
    others = tuple(each for each in config.role_assignments if not each.scope.startswith("servicebus"))
    asked = entities.roles
    if asked is None:
        owners = [identity.name for identity in config.identities if identity.name in ("worker", "producer")]
        asked = tuple(Assignment(identity=name, role=OWNER) for name in owners)
    return (*others, *(_assignment(config, entities, each) for each in asked))


def _assignment(config: Config, entities: Entities, asked: Assignment) -> RoleAssignment:
    known = {queue.name for queue in entities.queues} | {topic.name for topic in entities.topics}
    known |= {
        f"{topic.name}{SUBSCRIPTIONS}{each.name}" for topic in entities.topics for each in topic.subscriptions
    }
    if asked.entity is not None and asked.entity not in known:
        raise KeyError(f"there is no entity {asked.entity!r}; there are {', '.join(sorted(known))}")
    scope = "servicebus" if asked.entity is None else f"servicebus/{asked.entity}"
    return RoleAssignment(object_id=config.identity(asked.identity).object_id, role=asked.role, scope=scope)


def _seconds(value: Any) -> Any:
    return value.total_seconds() if isinstance(value, timedelta) else value


def _problems(error: ValidationError) -> list[str]:
    return [
        f"  {'.'.join(map(str, problem['loc'])) or 'the file'}: {problem['msg']} (found {problem['input']!r:.60})"
        for problem in error.errors(include_url=False, include_context=False)
    ]
