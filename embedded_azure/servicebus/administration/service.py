"""The administration API: entities listed, read, created, changed and deleted, as ATOM. Nothing here knows sockets.

Whoever asks needs the claim Manage on what is asked for (the role "Azure Service Bus Data Owner"). An entity that
is not there is told, as Azure does, by an empty feed when it is read and by 404 when it is deleted.
"""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import quote, urlencode
from weakref import WeakKeyDictionary
from xml.etree.ElementTree import Element

from embedded_azure.config import RuleSpec
from embedded_azure.servicebus.access import Access, AccessRefused, Address, Claim
from embedded_azure.servicebus.administration.atom import (
    CONTENT_TYPE,
    ERROR_TYPE,
    FEED_TYPE,
    SERVICE_BUS,
    AtomError,
    child_text,
    make_entry,
    make_error,
    make_feed,
    read_description,
    write,
)
from embedded_azure.servicebus.administration.descriptions import (
    Record,
    describe_namespace,
    describe_queue,
    describe_subscription,
    describe_topic,
    read_queue,
    read_subscription,
    read_topic,
)
from embedded_azure.servicebus.administration.rules import describe_rule, read_rule
from embedded_azure.servicebus.administration.values import read_int, write_time
from embedded_azure.servicebus.broker.broker import Broker, BrokerError, Queue, Subscription, Topic
from embedded_azure.servicebus.broker.messages import ARGUMENT_ERROR, NOT_ALLOWED, NOT_FOUND, QUEUE_FULL
from embedded_azure.servicebus.broker.rules import ALREADY_EXISTS, Rule

_PAGE: Final = 100
_API_VERSION: Final = "2021-05"
_SUBSCRIPTION: Final = re.compile(r"(.+)/subscriptions/([^/]+)", re.IGNORECASE)
_SUBSCRIPTIONS: Final = re.compile(r"(.+)/subscriptions", re.IGNORECASE)
_RULE: Final = re.compile(r"(.+)/subscriptions/([^/]+)/rules/([^/]+)", re.IGNORECASE)
_RULES: Final = re.compile(r"(.+)/subscriptions/([^/]+)/rules", re.IGNORECASE)
_REFUSALS: Final[Mapping[str, tuple[int, str]]] = {
    ARGUMENT_ERROR: (400, "SubCode=40000. Bad Request."),
    NOT_ALLOWED: (400, "SubCode=40000. Bad Request."),
    NOT_FOUND: (404, "SubCode=40400. Not Found."),
    ALREADY_EXISTS: (
        409,
        "SubCode=40900. Conflict. You're requesting an operation that isn't allowed in the resource's current "
        "state.",
    ),
    QUEUE_FULL: (403, "SubCode=40300. Forbidden."),
}
_CLAIMS: Final[Mapping[str, str]] = {
    "GET": "Manage,EntityRead",
    "PUT": "Manage,EntityWrite",
    "DELETE": "Manage,EntityDelete",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """`path` is decoded and without slashes around it; `url` is how the client addressed it, without the query."""

    method: str
    path: str
    url: str
    query: Mapping[str, str]
    body: bytes
    token: str
    is_update: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    status: int
    body: bytes = b""
    content_type: str = CONTENT_TYPE


class Administration:
    """`broker` gives the one of the moment, `access` the rights to check one request by.

    `accessed` gives when an entity was last attached to, in unix seconds; `on_deleted` is told its path.
    """

    def __init__(
        self,
        namespace: str,
        broker: Callable[[], Broker],
        access: Callable[[], Access],
        accessed: Callable[[str], float | None],
        on_deleted: Callable[[str], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._namespace = namespace
        self._broker = broker
        self._access = access
        self._accessed = accessed
        self._on_deleted = on_deleted
        self._clock = clock
        self._started = clock()
        self._records: WeakKeyDictionary[Queue, Record] = WeakKeyDictionary()

    def answer(self, request: Request) -> Reply:
        try:
            self._authorize(request)
            return self._perform(request)
        except AccessRefused as refusal:
            return self._refuse(request, 401, refusal.description)
        except AtomError as error:
            return self._refuse(request, 400, f"SubCode=40000. Bad Request. {error}")
        except BrokerError as refusal:
            status, words = _REFUSALS.get(refusal.condition, (500, "SubCode=50000. Internal Server Error."))
            return self._refuse(request, status, f"{words} {refusal.description}")

    def _authorize(self, request: Request) -> None:
        scheme, _, credential = request.token.partition(" ")
        if not credential or scheme not in {"Bearer", "SharedAccessSignature"}:
            raise AccessRefused("SubCode=40100: Unauthorized : claim is empty or token is invalid.")
        address = Address(None, _RULE.sub(r"\1/Subscriptions/\2", request.path).partition("$")[0].strip("/"))
        access = self._access()
        token = credential if scheme == "Bearer" else request.token
        access.put_token(f"sb://{self._namespace}/{address.path}", token)
        try:
            access.check(address, Claim.MANAGE)
        except AccessRefused:
            claims = _CLAIMS.get(request.method, "Manage")
            raise AccessRefused(f"{claims} claims required for this operation.") from None

    def _refuse(self, request: Request, status: int, detail: str) -> Reply:
        tracker = f"SystemTracker:{self._namespace}:{request.path}, Timestamp:{write_time(self._clock())[:19]}"
        return Reply(status=status, body=make_error(status, f"{detail} {tracker}"), content_type=ERROR_TYPE)

    # Finding what is asked for

    def _perform(self, request: Request) -> Reply:
        """Raises BrokerError or AtomError."""
        if request.method == "GET" and (listed := self._list(request)) is not None:
            return listed
        if found := _RULE.fullmatch(request.path):
            return self._on_rule(request, self._subscription(found[1], found[2]), found[3])
        if found := _SUBSCRIPTION.fullmatch(request.path):
            return self._on_subscription(request, found[1], found[2])
        if not request.path or "$" in request.path:
            raise BrokerError(NOT_FOUND, f"there is nothing to administer at {request.path[:200]!r}")
        return self._on_top(request)

    def _list(self, request: Request) -> Reply | None:
        broker = self._broker()
        match request.path.lower():
            case "$namespaceinfo":
                name = self._namespace.partition(".")[0]
                description = describe_namespace(name, self._started)
                return Reply(status=200, body=write(self._enter("$namespaceinfo", name, None, description)))
            case "$resources/queues":
                return self._feed(request, "Queues", [self._top_entry(queue) for queue in broker.queues])
            case "$resources/topics":
                return self._feed(request, "Topics", [self._top_entry(topic) for topic in broker.topics])
        if found := _RULES.fullmatch(request.path):
            owner = self._subscription(found[1], found[2])
            return self._feed(request, "Rules", [self._rule_entry(owner, rule) for rule in owner.rules.list()])
        if found := _SUBSCRIPTIONS.fullmatch(request.path):
            subscriptions = broker.topic(found[1]).subscriptions
            entries = [self._subscription_entry(each) for each in subscriptions]
            return self._feed(request, "Subscriptions", entries)
        return None

    def _subscription(self, topic: str, name: str) -> Subscription:
        found = self._broker().topic(topic).find(name)
        if found is None:
            raise BrokerError(NOT_FOUND, f"there is no subscription {name!r} of topic {topic!r}")
        return found

    # Queues and topics

    def _on_top(self, request: Request) -> Reply:
        broker, path = self._broker(), request.path
        if request.method == "DELETE":
            return self._delete(path)
        if request.method == "GET":
            if not broker.has(path):
                return self._feed(request, "Publicly Listed Services", [])
            return Reply(status=200, body=write(self._top_entry(broker.entity(path))))
        description = read_description(request.body, "QueueDescription", "TopicDescription")
        is_queue = description.tag.endswith("}QueueDescription")
        return (self._put_queue if is_queue else self._put_topic)(request, description)

    def _put_queue(self, request: Request, description: Element) -> Reply:
        broker = self._broker()
        spec, kept = read_queue(request.path, description)
        if request.is_update:
            known = broker.entity(request.path)
            queue = broker.configure(replace(spec, name=known.name))
        else:
            queue = broker.create_queue(spec)
        return self._stored(request, queue, kept, lambda: self._top_entry(queue))

    def _put_topic(self, request: Request, description: Element) -> Reply:
        broker = self._broker()
        spec, kept = read_topic(request.path, description)
        if not request.is_update:
            topic = broker.create_topic(spec)
        else:
            topic = broker.topic(request.path)
            broker.configure(
                replace(
                    topic.spec,
                    default_time_to_live=spec.default_time_to_live,
                    duplicate_detection_window=spec.duplicate_detection_window,
                    max_message_bytes=spec.max_message_bytes,
                    max_size_bytes=spec.max_size_bytes,
                    status=spec.status,
                )
            )
        return self._stored(request, topic, kept, lambda: self._top_entry(topic))

    # Subscriptions and rules

    def _on_subscription(self, request: Request, topic: str, name: str) -> Reply:
        if request.method == "PUT":
            description = read_description(request.body, "SubscriptionDescription")
            return self._put_subscription(request, topic, name, description)
        known = self._subscription(topic, name)
        if request.method == "DELETE":
            return self._delete(known.queue.name)
        return Reply(status=200, body=write(self._subscription_entry(known)))

    def _put_subscription(self, request: Request, topic: str, name: str, description: Element) -> Reply:
        spec, kept = read_subscription(name, description)
        default = description.find(f"{{{SERVICE_BUS}}}DefaultRuleDescription")
        if not request.is_update:
            rules = (RuleSpec(),) if default is None else (read_rule(_rule_name(default), default),)
            known = self._broker().create_subscription(topic, replace(spec, rules=rules))
        else:
            known = self._subscription(topic, name)
            self._broker().configure(
                replace(
                    known.queue.spec,
                    lock_duration=spec.lock_duration,
                    max_delivery_count=spec.max_delivery_count,
                    requires_session=spec.requires_session,
                    default_time_to_live=spec.default_time_to_live,
                    dead_letter_on_expiry=spec.dead_letter_on_expiry,
                    forward_to=spec.forward_to,
                    forward_dead_letters_to=spec.forward_dead_letters_to,
                    status=spec.status,
                )
            )
            known.spec = replace(spec, name=known.name, rules=known.spec.rules)
        return self._stored(request, known.queue, kept, lambda: self._subscription_entry(known))

    def _on_rule(self, request: Request, subscription: Subscription, name: str) -> Reply:
        rules = subscription.rules
        if request.method == "DELETE":
            rules.remove(name)
            return Reply(status=200)
        if request.method == "GET":
            return Reply(status=200, body=write(self._rule_entry(subscription, rules.get(name))))
        spec = read_rule(name, read_description(request.body, "RuleDescription"))
        rule = rules.replace(spec) if request.is_update else rules.add(spec)
        status = 200 if request.is_update else 201
        return Reply(status=status, body=write(self._rule_entry(subscription, rule)))

    def _delete(self, path: str) -> Reply:
        self._broker().delete(path)
        self._on_deleted(path)
        return Reply(status=200)

    # Writing what there is

    def _stored(
        self, request: Request, queue: Queue, kept: Mapping[str, str], entry: Callable[[], Element]
    ) -> Reply:
        now = self._clock()
        before = self._records.get(queue)
        created = before.created if before else now if not request.is_update else self._started
        self._records[queue] = Record(created=created, updated=now, accessed=created, kept=kept)
        return Reply(status=200 if request.is_update else 201, body=write(entry()))

    def _record(self, queue: Queue) -> Record:
        started = self._started
        known = self._records.setdefault(queue, Record(created=started, updated=started, accessed=started, kept={}))
        return replace(known, accessed=self._accessed(queue.name.lower()) or known.accessed)

    def _top_entry(self, queue: Queue) -> Element:
        record = self._record(queue)
        describe = describe_topic(queue, record) if isinstance(queue, Topic) else describe_queue(queue, record)
        return self._enter(queue.name, queue.name, record, describe)

    def _subscription_entry(self, subscription: Subscription) -> Element:
        record = self._record(subscription.queue)
        description = describe_subscription(subscription, record)
        return self._enter(subscription.queue.name, subscription.name, record, description)

    def _rule_entry(self, subscription: Subscription, rule: Rule) -> Element:
        return self._enter(f"{subscription.queue.name}/Rules/{rule.name}", rule.name, None, describe_rule(rule))

    def _enter(self, path: str, title: str, record: Record | None, description: Element) -> Element:
        return make_entry(
            url=f"https://{self._namespace}/{quote(path)}?api-version={_API_VERSION}",
            title=title,
            author=self._namespace.partition(".")[0],
            created=write_time(record.created if record else self._started),
            updated=write_time(record.updated if record else self._started),
            description=description,
        )

    def _feed(self, request: Request, title: str, entries: Sequence[Element]) -> Reply:
        skip = read_int("$skip", request.query.get("$skip", "0"), 0, 1 << 31)
        top = read_int("$top", request.query.get("$top", str(_PAGE)), 1, 1 << 31)
        shown = entries[skip : skip + min(top, _PAGE)]
        following = None
        if skip + len(shown) < len(entries) and shown:
            rest = {**request.query, "$skip": skip + len(shown), "$top": min(top, _PAGE)}
            following = f"{request.url}?{urlencode(rest)}"
        feed = make_feed(
            url=request.url, title=title, updated=write_time(self._clock()), entries=shown, following=following
        )
        return Reply(status=200, body=write(feed), content_type=FEED_TYPE)


def _rule_name(description: Element) -> str:
    """Of a subscription's first rule: as it was given, or Azure's."""
    return child_text(description, "Name") or "$Default"
