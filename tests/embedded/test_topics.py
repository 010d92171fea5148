"""Topics, subscriptions and their rules; forwarding from entity to entity; creating and deleting."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import count, pairwise
from typing import Any

import pytest

from embedded_azure.config import CorrelationSpec, QueueSpec, RuleSpec, SubscriptionSpec, TopicSpec
from embedded_azure.servicebus.broker.broker import Broker, BrokerError, Message, Queue
from embedded_azure.servicebus.broker.sql_tree import Value
from tests.support.clock import Clock

ids = count()


class Sections:
    """What a message is to a rule here: its label, and its application properties."""

    def __init__(self, message: Message) -> None:
        sections = message.sections
        assert isinstance(sections, dict)
        self.values: Mapping[str, Value] = sections

    def system(self, name: str) -> Value:
        return {"label": self.values.get("label"), "sessionid": None}[name.casefold()]

    def user(self, name: str) -> Value:
        return self.values.get(name)

    def has_user(self, name: str) -> bool:
        return name in self.values


def broker(*entities: QueueSpec | TopicSpec, clock: Any = None) -> Broker:
    return Broker(
        [spec for spec in entities if isinstance(spec, QueueSpec)],
        clock or Clock(),
        topics=[spec for spec in entities if isinstance(spec, TopicSpec)],
        describe=Sections,
    )


def message(
    session: str | None = None, at: float | None = None, ttl: float | None = None, **values: Any
) -> Message:
    return Message(
        sections=values,
        size=10,
        message_id=f"m{next(ids)}",
        session_id=session,
        scheduled_enqueue_time=at,
        time_to_live=ttl,
    )


def topic(*subscriptions: SubscriptionSpec, **terms: Any) -> TopicSpec:
    return TopicSpec(name="events", subscriptions=subscriptions, **terms)


def subscription(name: str = "all", *rules: RuleSpec, **terms: Any) -> SubscriptionSpec:
    return SubscriptionSpec(name=name, rules=rules or (RuleSpec(),), **terms)


def queue(name: str, **terms: Any) -> QueueSpec:
    return QueueSpec(name=name, duplicate_detection_window=None, **terms)


def contents(entity: Queue) -> list[Any]:
    return [message.sections for message in entity.peek(0, 100)]


def condition(error: pytest.ExceptionInfo[BrokerError]) -> str:
    return error.value.condition


# -- topics


def test_every_subscription_gets_a_message_of_its_own() -> None:
    bus = broker(topic(subscription("a"), subscription("b")))
    bus.entity("events").send([message(n=1)])
    a, b = bus.entity("events/Subscriptions/a"), bus.entity("EVENTS/subscriptions/B")
    a.complete(a.take(1)[0].token)
    assert (a.counts().active, b.counts().active) == (0, 1)


@pytest.mark.parametrize(
    ("rules", "taken"),
    [
        ((RuleSpec(),), [1, 2, 3]),
        ((RuleSpec(sql="n > 1"),), [2, 3]),
        ((RuleSpec(name="two", sql="n = 2"), RuleSpec(name="three", sql="n = 3")), [2, 3]),
        ((RuleSpec(name="two", sql="n = 2"), RuleSpec(name="big", sql="n >= 2")), [2, 3]),
        ((RuleSpec(sql="sys.Label = 'l2'"),), [2]),
        ((RuleSpec(correlation=CorrelationSpec(label="l3")),), [3]),
        ((RuleSpec(correlation=CorrelationSpec(label="l3", properties={"n": 3})),), [3]),
        ((RuleSpec(correlation=CorrelationSpec(label="l3", properties={"n": 2})),), []),
        ((RuleSpec(correlation=CorrelationSpec(properties={"n": "3"})),), []),
    ],
)
def test_a_subscription_takes_what_any_of_its_rules_matches_and_once(
    rules: tuple[RuleSpec, ...], taken: list[int]
) -> None:
    bus = broker(topic(subscription("some", *rules)))
    bus.entity("events").send([message(n=n, label=f"l{n}") for n in (1, 2, 3)])
    assert [each["n"] for each in contents(bus.entity("events/Subscriptions/some"))] == taken


def test_each_matching_rule_with_an_action_gives_a_copy_and_the_others_one_together() -> None:
    rules = (
        RuleSpec(name="plain"),
        RuleSpec(name="again", sql="n > 0"),
        RuleSpec(name="set", sql="n > 1", action="SET n = n * @k; SET seen = true", action_parameters={"k": 10}),
        RuleSpec(name="gone", sql="n > 2", action="REMOVE n"),
    )
    bus = broker(topic(subscription("some", *rules)))
    for number in range(1, 4):
        bus.entity("events").send([message(n=number)])
    taken = bus.entity("events/Subscriptions/some").take(10)
    set_twice = {"n": 20, "seen": True}
    changes = [dict(locked.message.changed_properties) for locked in taken]
    assert changes == [{}, {}, set_twice, {}, {"n": 30, "seen": True}, {"n": None}]


def test_a_subscription_without_rules_takes_nothing_and_new_rules_hold_from_then_on() -> None:
    bus = broker(topic(subscription("some")))
    rules = bus.topic("events").subscriptions[0].rules
    rules.remove("$default")
    bus.entity("events").send([message(n=1)])
    rules.add(RuleSpec(name="two", sql="n = 2"))
    bus.entity("events").send([message(n=2), message(n=3)])
    assert contents(bus.entity("events/Subscriptions/some")) == [{"n": 2}]


@pytest.mark.parametrize(
    ("spec", "refused"),
    [
        (RuleSpec(name="r", sql="n ="), "com.microsoft:argument-error"),
        (RuleSpec(name="r", sql="n = 1", correlation=CorrelationSpec(to="x")), "com.microsoft:argument-error"),
        (RuleSpec(name="r", correlation=CorrelationSpec()), "com.microsoft:argument-error"),
        (RuleSpec(name="a/b"), "com.microsoft:argument-error"),
        (RuleSpec(name="r" * 51), "com.microsoft:argument-error"),
        (RuleSpec(name="$DEFAULT"), "com.microsoft:entity-already-exists"),
    ],
)
def test_a_rule_that_cannot_be_is_refused(spec: RuleSpec, refused: str) -> None:
    rules = broker(topic(subscription())).topic("events").subscriptions[0].rules
    with pytest.raises(BrokerError) as error:
        rules.add(spec)
    assert condition(error) == refused
    assert [rule.name for rule in rules.list()] == ["$Default"]


def test_a_message_whose_filter_cannot_be_evaluated_is_dead_lettered_in_that_subscription_only() -> None:
    faulty = RuleSpec(sql="n / 0 = 1")
    bus = broker(
        topic(
            subscription("strict", faulty),
            subscription("lenient", faulty, dead_letter_on_filter_error=False),
            subscription("fine"),
        )
    )
    bus.entity("events").send([message(n=1)])
    (dead,) = bus.entity("events/Subscriptions/strict/$DeadLetterQueue").peek(0, 9)
    assert dead.dead_letter_reason == "FilterEvaluationException"
    assert "division by zero" in str(dead.dead_letter_description)
    assert bus.entity("events/Subscriptions/lenient").counts().active == 0
    assert bus.entity("events/Subscriptions/lenient").counts().dead_lettered == 0
    assert bus.entity("events/Subscriptions/fine").counts().active == 1


def test_a_scheduled_message_waits_in_the_topic_and_meets_the_rules_of_the_moment_it_falls_due() -> None:
    clock = Clock()
    bus = broker(topic(subscription("some", RuleSpec(sql="n = 1"))), clock=clock)
    numbers = bus.entity("events").schedule([message(n=1, at=1_010.0), message(n=1, at=1_020.0)])
    found = bus.entity("events/Subscriptions/some")
    assert (bus.entity("events").counts().scheduled, found.counts().active) == (2, 0)
    bus.entity("events").cancel_scheduled(numbers[1:])
    assert bus.next_event_at() == 1_010.0
    clock.now = 1_030.0
    assert len(found.take(9)) == 1
    assert bus.entity("events").counts().scheduled == 0


def test_time_to_live_is_the_least_of_message_topic_and_subscription() -> None:
    clock = Clock()
    bus = broker(
        topic(subscription("short", default_time_to_live=5), subscription("long"), default_time_to_live=50),
        clock=clock,
    )
    bus.entity("events").send([message(ttl=20), message()])
    ends = {
        name: [each.expires_at for each in bus.entity(f"events/Subscriptions/{name}").peek(0, 9)]
        for name in ("short", "long")
    }
    assert ends == {"short": [1_005, 1_005], "long": [1_020, 1_050]}


def test_a_topic_detects_duplicates_for_all_its_subscriptions() -> None:
    bus = broker(topic(subscription(), duplicate_detection_window=60))
    first = message()
    bus.entity("events").send([first])
    bus.entity("events").send([replace(message(), message_id=first.message_id)])
    assert bus.entity("events/Subscriptions/all").counts().active == 1


def test_a_message_without_session_id_is_dead_lettered_by_a_subscription_that_needs_one() -> None:
    bus = broker(topic(subscription("chat", requires_session=True)))
    bus.entity("events").send([message(), message(session="s")])
    chat = bus.entity("events/Subscriptions/chat")
    assert (chat.counts().active, chat.counts().dead_lettered) == (1, 1)
    assert chat.sessions(0, 9) == ["s"]


def test_messages_of_subscriptions_have_numbers_of_their_own_and_remember_the_topics() -> None:
    bus = broker(topic(subscription("some", RuleSpec(sql="n = 2"))))
    bus.entity("events").send([message(n=1), message(n=2)])
    (found,) = bus.entity("events/Subscriptions/some").peek(0, 9)
    assert (found.sequence_number, found.enqueued_sequence_number) == (1, 2)


def test_nothing_is_received_from_a_topic_or_sent_to_a_subscription() -> None:
    bus = broker(topic(subscription()))
    with pytest.raises(BrokerError, match="one of its subscriptions: all") as error:
        bus.entity("events").take(1)
    assert condition(error) == "amqp:not-allowed"
    with pytest.raises(BrokerError, match="send to its topic"):
        bus.entity("events/Subscriptions/all").send([message()])
    with pytest.raises(BrokerError, match="could not be found"):
        bus.entity("events/$DeadLetterQueue")


# -- forwarding


def test_a_queue_passes_on_what_it_is_sent_to_a_queue_or_a_topic() -> None:
    bus = broker(
        queue("a", forward_to="b"),
        queue("b", forward_to="events"),
        topic(subscription("end", forward_to="z")),
        queue("z"),
    )
    bus.entity("a").send([message(n=1)])
    (found,) = bus.entity("z").peek(0, 9)
    assert (found.sections, found.hops, found.delivery_count) == ({"n": 1}, 3, 0)
    assert [bus.entity(name).counts().active for name in ("a", "b")] == [0, 0]


def test_nothing_is_received_from_an_entity_that_passes_on() -> None:
    bus = broker(queue("a", forward_to="b"), queue("b"))
    with pytest.raises(BrokerError, match="auto-forwarding"):
        bus.entity("a").check_receivable()
    bus.entity("b").check_receivable()


def test_after_four_hops_a_message_rests_in_the_transfer_dead_letter_queue() -> None:
    names = ["a", "b", "c", "d", "e", "f"]
    bus = broker(*(queue(name, forward_to=to) for name, to in pairwise(names)), queue("f"))
    bus.entity("a").send([message()])
    (found,) = bus.entity("e/$Transfer/$DeadLetterQueue").peek(0, 9)
    assert found.dead_letter_reason == "MaxTransferHopCountExceeded"
    assert bus.entity("f").counts().active == 0


def test_entities_that_pass_on_to_each_other_come_to_an_end() -> None:
    bus = broker(queue("a", forward_to="b"), queue("b", forward_to="a"))
    bus.entity("a").send([message()])
    assert bus.entity("a").counts().transfer_dead_lettered + bus.entity("b").counts().transfer_dead_lettered == 1


def test_what_the_target_refuses_rests_where_it_was_with_the_reason() -> None:
    bus = broker(queue("a", forward_to="chat"), queue("chat", requires_session=True))
    bus.entity("a").send([message()])
    (found,) = bus.entity("a/$Transfer/$DeadLetterQueue").peek(0, 9)
    assert found.dead_letter_reason == "amqp:not-allowed"
    assert "no session id" in str(found.dead_letter_description)


def test_dead_letters_are_passed_on_with_where_they_came_from() -> None:
    bus = broker(queue("a", forward_dead_letters_to="morgue", max_delivery_count=1), queue("morgue"))
    bus.entity("a").send([message(n=1), message(n=2)])
    first, second = bus.entity("a").take(2)
    bus.entity("a").dead_letter(first.token, "Bad", "no good")
    bus.entity("a").abandon(second.token)
    found = bus.entity("morgue").peek(0, 9)
    assert [each.dead_letter_reason for each in found] == ["Bad", "MaxDeliveryCountExceeded"]
    assert {each.dead_letter_source for each in found} == {"a"}
    assert bus.entity("a").counts().dead_lettered == 0


# -- creating, changing and deleting


def test_entities_can_be_created_and_deleted_while_it_runs() -> None:
    bus = broker()
    bus.create_queue(queue("jobs"))
    bus.create_topic(topic())
    bus.create_subscription("events", subscription())
    bus.entity("events").send([message()])
    assert bus.entity("events/Subscriptions/all").counts().active == 1
    bus.delete("events/Subscriptions/all")
    assert not bus.has("events/Subscriptions/all")
    bus.delete("events")
    bus.delete("JOBS")
    assert (bus.queues, bus.topics) == ((), ())


def test_what_a_new_entity_waits_for_is_watched_too() -> None:
    bus = broker()
    told: list[float | None] = []
    bus.watch_deadline(lambda: told.append(bus.next_event_at()))
    bus.create_queue(queue("jobs")).send([message(ttl=5)])
    assert told == [1_005.0]


@pytest.mark.parametrize(
    ("create", "refused"),
    [
        (lambda bus: bus.create_queue(queue("JOBS")), "com.microsoft:entity-already-exists"),
        (lambda bus: bus.create_topic(TopicSpec(name="jobs")), "com.microsoft:entity-already-exists"),
        (lambda bus: bus.create_queue(queue("$jobs")), "com.microsoft:argument-error"),
        (lambda bus: bus.create_queue(queue("")), "com.microsoft:argument-error"),
        (lambda bus: bus.create_queue(queue("x", forward_to="nowhere")), "amqp:not-found"),
        (lambda bus: bus.create_subscription("events", subscription()), "com.microsoft:entity-already-exists"),
        (lambda bus: bus.create_subscription("events", subscription("a/b")), "com.microsoft:argument-error"),
        (lambda bus: bus.create_subscription("events", subscription("x", forward_to="nowhere")), "amqp:not-found"),
        (lambda bus: bus.create_subscription("jobs", subscription()), "amqp:not-found"),
        (lambda bus: bus.configure(queue("jobs", forward_to="jobs")), "com.microsoft:argument-error"),
        (lambda bus: bus.configure(queue("jobs", requires_session=True)), "com.microsoft:argument-error"),
        (lambda bus: bus.delete("jobs/$DeadLetterQueue"), "amqp:not-allowed"),
        (lambda bus: bus.delete("nowhere"), "amqp:not-found"),
    ],
)
def test_what_cannot_be_created_changes_nothing(create: Any, refused: str) -> None:
    bus = broker(queue("jobs"), topic(subscription()))
    with pytest.raises(BrokerError) as error:
        create(bus)
    assert condition(error) == refused
    assert [each.name for each in bus.queues] == ["jobs"]
    assert [each.name for each in bus.topic("events").subscriptions] == ["all"]
    assert bus.entity("jobs").spec == queue("jobs")


def test_a_queue_can_be_given_other_terms() -> None:
    bus = broker(queue("jobs"), queue("other"))
    bus.configure(queue("jobs", lock_duration=5, forward_dead_letters_to="other"))
    bus.entity("jobs").send([message()])
    (locked,) = bus.entity("jobs").take(1)
    assert locked.locked_until == 1_005.0
    bus.entity("jobs").dead_letter(locked.token)
    assert bus.entity("other").counts().active == 1
