"""Stands in for the SDK's module of the same name, whose decorators create resources in Azure.

Each decorator notes what its test needs; the outermost starts one embedded Azure with all of it. Nothing is cached:
every test has entities of its own.
"""

import functools
import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from itertools import count
from types import SimpleNamespace
from typing import Any, ClassVar

from tests.foreign.adapter.process import HOST, KEY, KEY_NAME, NAMESPACE, SUFFIX, running

SERVICEBUS_ENDPOINT_SUFFIX = SUFFIX
_numbers = count(1)


class AccessRights(Enum):
    manage = "Manage"
    send = "Send"
    listen = "Listen"


@dataclass
class Wanted:
    """What one test needs: fields of the embedded Azure's config, and the arguments the test is called with."""

    queues: list[dict[str, Any]] = field(default_factory=list)
    topics: list[dict[str, Any]] = field(default_factory=list)
    shared_access_rules: list[dict[str, Any]] = field(default_factory=list)
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def entities(self) -> dict[str, Any]:
        return {
            "queues": self.queues,
            "topics": self.topics,
            "shared_access_rules": self.shared_access_rules,
        }


class Preparer(ABC):
    """A decorator of tests. Keywords that mean nothing here (caching, locations) are accepted and forgotten."""

    parameter: ClassVar[str]

    def __init__(self, name_prefix: str = "", *, parameter_name: str | None = None, **options: Any) -> None:
        self.prefix = name_prefix or "foreign"
        self.parameter_name = parameter_name or self.parameter
        self.options = options

    def __call__(self, test: Callable[..., Any]) -> Callable[..., Any]:
        return _prepared(getattr(test, "undecorated", test), [self, *getattr(test, "preparers", [])])

    @abstractmethod
    def ask(self, wanted: Wanted) -> None:
        """Adds to `wanted` what this decorator stands for."""

    def option(self, name: str, default: Any) -> Any:
        return self.options.get(name, default)

    def provide(self, wanted: Wanted, name: str) -> None:
        wanted.arguments[self.parameter_name] = SimpleNamespace(name=name, id=name)

    def new_name(self) -> str:
        return f"{self.prefix}{next(_numbers)}"


def _prepared(test: Callable[..., Any], preparers: list[Preparer]) -> Callable[..., Any]:
    """`test` within an embedded Azure; pytest sees its marks and parameters, and whether it is a coroutine."""

    @functools.wraps(test)
    async def in_a_loop(*given: Any, **more: Any) -> None:
        wanted = _ask_all(preparers)
        with running(wanted.entities):
            await test(*given, **wanted.arguments, **more)

    @functools.wraps(test)
    def at_once(*given: Any, **more: Any) -> None:
        wanted = _ask_all(preparers)
        with running(wanted.entities):
            test(*given, **wanted.arguments, **more)

    wrapper: Any = in_a_loop if inspect.iscoroutinefunction(test) else at_once
    wrapper.undecorated, wrapper.preparers = test, preparers
    return wrapper  # type: ignore[no-any-return]  # functools.wraps forgets no more than pytest looks at


def _ask_all(preparers: list[Preparer]) -> Wanted:
    wanted = Wanted()
    for preparer in preparers:
        preparer.ask(wanted)
    return wanted


def _seconds(duration: str) -> float:
    """ISO 8601, as far as the tests use it: `PT30S`, `PT1M`."""
    match = re.fullmatch(r"PT(\d+)([SM])", duration)
    assert match, f"the duration {duration!r} is not of the form PT30S or PT1M"
    return float(match[1]) * (60 if match[2] == "M" else 1)


def _connection_string(name: str, key: str, path: str = "") -> str:
    text = f"Endpoint=sb://{HOST}/;SharedAccessKeyName={name};SharedAccessKey={key}"
    return f"{text};EntityPath={path}" if path else text


class ServiceBusResourceGroupPreparer(Preparer):
    parameter = "resource_group"

    def ask(self, wanted: Wanted) -> None:
        self.provide(wanted, "local")
        wanted.arguments["location"] = "local"


class ServiceBusNamespacePreparer(Preparer):
    parameter = "servicebus_namespace"

    def ask(self, wanted: Wanted) -> None:
        wanted.shared_access_rules.append({"name": KEY_NAME, "key": KEY})
        self.provide(wanted, NAMESPACE)
        wanted.arguments |= {
            f"{self.parameter_name}_connection_string": _connection_string(KEY_NAME, KEY),
            f"{self.parameter_name}_key_name": KEY_NAME,
            f"{self.parameter_name}_primary_key": KEY,
        }


class ServiceBusQueuePreparer(Preparer):
    parameter = "servicebus_queue"

    def ask(self, wanted: Wanted) -> None:
        name = self.new_name()
        wanted.queues.append(
            {
                "name": name,
                "lock_duration": _seconds(self.option("lock_duration", "PT30S")),
                "max_delivery_count": 10,
                "requires_session": self.option("requires_session", False),
                "duplicate_detection_window": (
                    600.0 if self.option("requires_duplicate_detection", False) else None
                ),
                "dead_letter_on_expiry": self.option("dead_lettering_on_message_expiration", False),
            }
        )
        self.provide(wanted, name)


class ServiceBusTopicPreparer(Preparer):
    parameter = "servicebus_topic"

    def ask(self, wanted: Wanted) -> None:
        name = self.new_name()
        wanted.topics.append({"name": name, "subscriptions": []})
        self.provide(wanted, name)


class ServiceBusSubscriptionPreparer(Preparer):
    parameter = "servicebus_subscription"

    def ask(self, wanted: Wanted) -> None:
        topic = wanted.arguments[self.option("servicebus_topic_parameter_name", "servicebus_topic")].name
        (described,) = (each for each in wanted.topics if each["name"] == topic)
        name = self.new_name()
        described["subscriptions"].append(
            {
                "name": name,
                "lock_duration": _seconds(self.option("lock_duration", "PT60S")),
                "max_delivery_count": 10,
                "requires_session": self.option("requires_session", False),
                "dead_letter_on_expiry": False,
            }
        )
        self.provide(wanted, name)


class _RulePreparer(Preparer):
    def add_rule(self, wanted: Wanted, path: str = "") -> None:
        name = self.new_name()
        rights = [right.value for right in self.option("access_rights", list(AccessRights))]
        wanted.shared_access_rules.append({"name": name, "key": KEY, "rights": rights, "path": path})
        self.provide(wanted, name)
        wanted.arguments[f"{self.parameter_name}_connection_string"] = _connection_string(name, KEY, path)


class ServiceBusNamespaceAuthorizationRulePreparer(_RulePreparer):
    parameter = "servicebus_authorization_rule"

    def ask(self, wanted: Wanted) -> None:
        self.add_rule(wanted)


class ServiceBusQueueAuthorizationRulePreparer(_RulePreparer):
    parameter = "servicebus_queue_authorization_rule"

    def ask(self, wanted: Wanted) -> None:
        queue = wanted.arguments[self.option("servicebus_queue_parameter_name", "servicebus_queue")]
        self.add_rule(wanted, queue.name)


CachedServiceBusResourceGroupPreparer = ServiceBusResourceGroupPreparer
CachedServiceBusNamespacePreparer = ServiceBusNamespacePreparer
CachedServiceBusQueuePreparer = ServiceBusQueuePreparer
CachedServiceBusTopicPreparer = ServiceBusTopicPreparer
CachedServiceBusSubscriptionPreparer = ServiceBusSubscriptionPreparer
