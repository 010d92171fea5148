"""A topic: it keeps nothing but what is scheduled, and gives each message to the subscriptions whose rules match.

A subscription is a queue with rules, that nobody sends to but its topic.
"""

import time
from collections.abc import Callable
from typing import Final

from embedded_azure.config import QueueSpec, SubscriptionSpec, TopicSpec
from embedded_azure.servicebus.broker.messages import ARGUMENT_ERROR, NOT_ALLOWED, BrokerError, Message
from embedded_azure.servicebus.broker.order import Backlog
from embedded_azure.servicebus.broker.queues import Queue
from embedded_azure.servicebus.broker.rules import ALREADY_EXISTS, Rules
from embedded_azure.servicebus.broker.session_locks import Session
from embedded_azure.servicebus.broker.sessions import SessionQueue
from embedded_azure.servicebus.broker.sql_values import FilterError, Properties

SUBSCRIPTIONS: Final = "/Subscriptions/"
MOST_SUBSCRIPTIONS: Final = 2_000
Describe = Callable[[Message], Properties]


class Subscription:
    """`queue` is where its messages are; `rules` may be changed at any time, for messages still to come."""

    def __init__(self, topic: "Topic", spec: SubscriptionSpec, clock: Callable[[], float]) -> None:
        self.name = spec.name
        self.spec = spec
        self.rules = Rules(spec.rules, clock)
        kind = SessionQueue if spec.requires_session else Queue
        self.queue: Queue = kind(_queue_spec(topic.topic_spec, spec), clock, topic)
        self.queue.rules = self.rules

    def offer(self, message: Message, properties: Properties, at: float) -> None:
        """Takes a copy of the message if a rule matches, or dead-letters it if that cannot be known."""
        try:
            changes = self.rules.match(properties)
        except FilterError as error:
            if self.spec.dead_letter_on_filter_error:
                self.queue.refuse(message.copied(), "FilterEvaluationException", str(error), at)
            return
        for change in changes:
            copy = message.copied()
            copy.change(change)
            try:
                self.queue.arrive(copy, at)
            except BrokerError as refusal:
                self.queue.refuse(copy.copied(), refusal.condition, refusal.description, at)


class Topic(Queue):
    """What it is sent, scheduled or told to cancel, as a queue; nothing can be received from it."""

    def __init__(self, spec: TopicSpec, describe: Describe, clock: Callable[[], float] = time.time) -> None:
        super().__init__(_own_spec(spec), clock)
        self.topic_spec = spec
        self._describe = describe
        self._subscriptions: dict[str, Subscription] = {}
        self.passes_on = self._publish
        for subscription in spec.subscriptions:
            self.add(subscription)

    @property
    def subscriptions(self) -> tuple[Subscription, ...]:
        return tuple(self._subscriptions.values())

    def find(self, name: str) -> Subscription | None:
        return self._subscriptions.get(name.casefold())

    def add(self, spec: SubscriptionSpec) -> Subscription:
        """It gets the messages that are sent from now on. Raises BrokerError for a name or rules that cannot be."""
        if not spec.name or len(spec.name) > 50 or set(spec.name) & set("/\\?#@"):
            raise BrokerError(
                ARGUMENT_ERROR,
                f"a subscription's name has 1 to 50 characters and none of / \\ ? # @; this is {spec.name[:80]!r}",
            )
        if spec.name.casefold() in self._subscriptions:
            raise BrokerError(ALREADY_EXISTS, f"topic {self.name!r} has a subscription {spec.name!r} already")
        if len(self._subscriptions) >= MOST_SUBSCRIPTIONS:
            raise BrokerError(
                "amqp:resource-limit-exceeded", f"a topic has at most {MOST_SUBSCRIPTIONS:,} subscriptions"
            )
        added = self._subscriptions[spec.name.casefold()] = Subscription(self, spec, self._clock)
        return added

    def remove(self, name: str) -> None:
        """With its messages. Raises KeyError."""
        del self._subscriptions[name.casefold()]

    def _publish(self, message: Message, at: float) -> None:
        properties = self._describe(message)
        for subscription in self.subscriptions:
            subscription.offer(message, properties, at)

    def _add_dead_letter_queues(self) -> None:
        self.dead_letters = self.transfer_dead_letters = None

    def _backlog_for(self, session: Session | None) -> Backlog:
        raise self._no_receiving()

    def check_receivable(self) -> None:
        raise self._no_receiving()

    def accept_session(self, session_id: str | None) -> Session | None:
        raise self._no_receiving()

    def _no_receiving(self) -> BrokerError:
        names = ", ".join(subscription.name for subscription in self.subscriptions) or "none yet"
        return BrokerError(
            NOT_ALLOWED,
            f"nothing can be received from the topic {self.name!r}; receive from one of its subscriptions: {names}",
        )


def _own_spec(spec: TopicSpec) -> QueueSpec:
    return QueueSpec(
        name=spec.name,
        duplicate_detection_window=spec.duplicate_detection_window,
        default_time_to_live=spec.default_time_to_live,
        max_message_bytes=spec.max_message_bytes,
        max_size_bytes=spec.max_size_bytes,
        status=spec.status,
    )


def _queue_spec(topic: TopicSpec, spec: SubscriptionSpec) -> QueueSpec:
    return QueueSpec(
        name=f"{topic.name}{SUBSCRIPTIONS}{spec.name}",
        lock_duration=spec.lock_duration,
        max_delivery_count=spec.max_delivery_count,
        requires_session=spec.requires_session,
        duplicate_detection_window=None,
        default_time_to_live=spec.default_time_to_live,
        dead_letter_on_expiry=spec.dead_letter_on_expiry,
        max_message_bytes=topic.max_message_bytes,
        max_size_bytes=topic.max_size_bytes,
        forward_to=spec.forward_to,
        forward_dead_letters_to=spec.forward_dead_letters_to,
        status=spec.status,
    )
