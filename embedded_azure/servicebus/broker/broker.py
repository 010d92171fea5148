"""The broker of the embedded Service Bus: queues, topics and subscriptions with their dead-letter queues, by path.

Read messages.py, then entities.py, lives.py and queues.py, then sessions.py and topics.py; order.py, timetable.py
and duplicates.py are the structures below them. Nothing here knows AMQP, sockets or tasks.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import replace

from embedded_azure.config import QueueSpec, SubscriptionSpec, TopicSpec
from embedded_azure.servicebus.broker.messages import (
    ARGUMENT_ERROR,
    NOT_ALLOWED,
    NOT_FOUND,
    BrokerError,
    Counts,
    Locked,
    Message,
    MessageState,
)
from embedded_azure.servicebus.broker.queues import Queue
from embedded_azure.servicebus.broker.rules import ALREADY_EXISTS
from embedded_azure.servicebus.broker.session_locks import Session
from embedded_azure.servicebus.broker.sessions import SessionQueue
from embedded_azure.servicebus.broker.sql_values import Properties
from embedded_azure.servicebus.broker.timetable import Subscribers
from embedded_azure.servicebus.broker.topics import SUBSCRIPTIONS, Subscription, Topic
from embedded_azure.servicebus.broker.transfers import route

__all__ = [
    "Broker",
    "BrokerError",
    "Counts",
    "Locked",
    "Message",
    "MessageState",
    "Queue",
    "Session",
    "SessionQueue",
    "Subscription",
    "Topic",
]

LONGEST_PATH = 260


def _undescribed(message: Message) -> Properties:
    raise BrokerError(NOT_ALLOWED, "this broker was not told how to read the properties of messages")


class Broker:
    """All entities of one namespace. `clock` gives unix seconds; `describe` reads what rules ask of a message."""

    def __init__(
        self,
        queues: Iterable[QueueSpec],
        clock: Callable[[], float] = time.time,
        *,
        topics: Iterable[TopicSpec] = (),
        describe: Callable[[Message], Properties] = _undescribed,
    ) -> None:
        """Raises BrokerError when two entities have one name, or one passes on to an entity that is not there."""
        self._clock = clock
        self._describe = describe
        self._deadline = Subscribers()
        self._tops: dict[str, Queue] = {}
        self._unwatch: dict[Queue, Callable[[], None]] = {}
        described = [(queue, replace(queue, forward_to=None, forward_dead_letters_to=None)) for queue in queues]
        for _, bare in described:
            self.create_queue(bare)
        for topic in topics:
            self._open_topic(topic)
        for queue, _ in described:
            self.configure(queue)
        for created in self.topics:
            for subscription in created.subscriptions:
                self._connect(subscription.queue)

    # -- finding ----------------------------------------------------------------------------------------------

    @property
    def queues(self) -> tuple[Queue, ...]:
        return tuple(queue for queue in self._tops.values() if not isinstance(queue, Topic))

    @property
    def topics(self) -> tuple[Topic, ...]:
        return tuple(topic for topic in self._tops.values() if isinstance(topic, Topic))

    def entity(self, path: str) -> Queue:
        """`jobs`, `events`, `events/Subscriptions/audit`, or one of these with `/$DeadLetterQueue` or
        `/$Transfer/$DeadLetterQueue`; case and slashes around it aside. Raises not-found."""
        top, _, rest = path.strip("/").casefold().partition("/$")
        found = self._top_or_subscription(top)
        match rest, found:
            case "", Queue():
                return found
            case "deadletterqueue", Queue(dead_letters=Queue() as dead_letters):
                return dead_letters
            case "transfer/$deadletterqueue", Queue(transfer_dead_letters=Queue() as dead_letters):
                return dead_letters
        names = ", ".join(each.name for each in self._all())
        raise BrokerError(
            NOT_FOUND,
            f"The messaging entity {path!r} could not be found; there are {names or 'none'}, those to receive from "
            "each with /$DeadLetterQueue"[:1_000],
        )

    def has(self, path: str) -> bool:
        """Whether `entity` finds something there."""
        try:
            return self.entity(path) is not None
        except BrokerError:
            return False

    def topic(self, name: str) -> Topic:
        """Raises not-found."""
        found = self._tops.get(name.casefold())
        if not isinstance(found, Topic):
            names = ", ".join(topic.name for topic in self.topics) or "none"
            raise BrokerError(NOT_FOUND, f"there is no topic {name!r}; there are: {names}"[:1_000])
        return found

    def _top_or_subscription(self, path: str) -> Queue | None:
        topic, separator, subscription = path.partition("/subscriptions/")
        found = self._tops.get(topic) if separator else None
        if isinstance(found, Topic):
            known = found.find(subscription)
            return None if known is None else known.queue
        return self._tops.get(path)

    def _all(self) -> Iterable[Queue]:
        """Topics before their subscriptions: what falls due in a topic is then found there."""
        for top in self._tops.values():
            yield top
            if isinstance(top, Topic):
                yield from (subscription.queue for subscription in top.subscriptions)

    # -- creating and deleting --------------------------------------------------------------------------------

    def create_queue(self, spec: QueueSpec) -> Queue:
        """Raises entity-already-exists, argument-error, or not-found for an entity to pass on to."""
        self._check_new(spec.name)
        queue = SessionQueue(spec, self._clock) if spec.requires_session else Queue(spec, self._clock)
        self._connect(queue)
        self._add_top(queue)
        return queue

    def create_topic(self, spec: TopicSpec) -> Topic:
        """With its subscriptions. Raises as `create_queue`, also for rules that cannot be."""
        topic = self._open_topic(spec)
        try:
            for subscription in topic.subscriptions:
                self._connect(subscription.queue)
        except BrokerError:
            self.delete(topic.name)
            raise
        return topic

    def create_subscription(self, topic: str, spec: SubscriptionSpec) -> Subscription:
        """Raises as `create_topic`."""
        owner = self.topic(topic)
        subscription = owner.add(spec)
        try:
            self._connect(subscription.queue)
        except BrokerError:
            owner.remove(spec.name)
            raise
        self._watch(subscription.queue)
        return subscription

    def configure(self, spec: QueueSpec) -> Queue:
        """Gives the queue of that name other terms, except for sessions and duplicate detection; these raise
        argument-error. The queue may be a subscription's."""
        queue = self.entity(spec.name)
        old = queue.spec
        for name in ("requires_session", "duplicate_detection_window"):
            if getattr(old, name) != getattr(spec, name):
                raise BrokerError(ARGUMENT_ERROR, f"{name} of {spec.name!r} is fixed when it is created")
        queue.set_terms(spec)
        try:
            self._connect(queue)
        except BrokerError:
            queue.spec = old
            raise
        return queue

    def delete(self, path: str) -> None:
        """A queue, a topic with its subscriptions, or a subscription, with all messages. Raises not-found."""
        queue = self.entity(path)
        gone = [queue]
        if isinstance(queue, Topic):
            gone += [subscription.queue for subscription in queue.subscriptions]
        if queue.rules is not None:
            topic, _, name = queue.name.rpartition(SUBSCRIPTIONS)
            self.topic(topic).remove(name)
        elif self._tops.pop(queue.name.casefold(), None) is None:
            raise BrokerError(NOT_ALLOWED, f"{queue.name!r} goes with the entity it belongs to")
        for each in gone:
            self._unwatch.pop(each)()

    def _open_topic(self, spec: TopicSpec) -> Topic:
        self._check_new(spec.name)
        topic = Topic(spec, self._describe, self._clock)
        self._add_top(topic)
        for subscription in topic.subscriptions:
            self._watch(subscription.queue)
        return topic

    def _add_top(self, queue: Queue) -> None:
        self._tops[queue.name.casefold()] = queue
        self._watch(queue)

    def _check_new(self, name: str) -> None:
        if not 0 < len(name) <= LONGEST_PATH or "$" in name or name != name.strip("/"):
            raise BrokerError(
                ARGUMENT_ERROR,
                f"an entity's name has 1 to {LONGEST_PATH} characters, no $ and no slash around it; this is "
                f"{name[:80]!r}",
            )
        if name.casefold() in self._tops:
            raise BrokerError(ALREADY_EXISTS, f"there is an entity {name!r} already")

    def _connect(self, queue: Queue) -> None:
        """Lets it pass messages on as its terms say."""
        onward, dead_letters = queue.spec.forward_to, queue.spec.forward_dead_letters_to
        for target in (onward, dead_letters):
            if target is not None and self._target(target) is queue:
                raise BrokerError(ARGUMENT_ERROR, f"{queue.name!r} cannot pass messages on to itself")
        if not isinstance(queue, Topic):
            queue.passes_on = None if onward is None else route(queue, onward, self._target)
        queue.passes_dead_letters_on = None if dead_letters is None else route(queue, dead_letters, self._target)

    def _target(self, path: str) -> Queue:
        found = self._tops.get(path.strip("/").casefold())
        if found is None:
            names = ", ".join(queue.name for queue in self._tops.values())
            raise BrokerError(
                NOT_FOUND, f"there is no queue or topic {path!r} to pass on to; there are: {names}"[:1_000]
            )
        return found

    # -- time -------------------------------------------------------------------------------------------------

    def next_event_at(self) -> float | None:
        """The earliest `next_deadline` of all entities."""
        times = (queue.next_deadline() for queue in self._all())
        return min((at for at in times if at is not None), default=None)

    def watch_deadline(self, callback: Callable[[], None]) -> Callable[[], None]:
        """As `Queue.watch_deadline`, for `next_event_at`; of entities still to be created too."""
        return self._deadline.add(callback)

    def expire(self, now: float | None = None) -> None:
        """Catches up with the clock (or `now`) everywhere, and tells the subscribers of what that freed."""
        for queue in self._all():
            queue.expire(now)

    def _watch(self, queue: Queue) -> None:
        self._unwatch[queue] = queue.watch_deadline(self._deadline.tell)
