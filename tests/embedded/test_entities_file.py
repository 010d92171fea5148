"""The entities file: what it may say, what it means, and what is said of a file that cannot be used."""

import dataclasses
from pathlib import Path

import pytest

from embedded_azure.config import (
    PREMIUM_BYTES,
    Config,
    CorrelationSpec,
    QueueSpec,
    RuleSpec,
    SubscriptionSpec,
    TopicSpec,
    default_config,
)
from embedded_azure.entities_file import EntitiesError, put_entities
from embedded_azure.servicebus.broker.broker import Broker

WHOLE = """
tier: premium
queues:
  - name: orders
    lock_duration: PT30S
    max_delivery_count: 3
    requires_session: true
    duplicate_detection_window: 600
    default_time_to_live: PT1H
    dead_letter_on_expiry: true
    forward_dead_letters_to: morgue
  - name: morgue
    max_message_bytes: 1000
topics:
  - name: events
    subscriptions:
      - name: all
      - name: urgent
        forward_to: orders
        rules:
          - name: high
            sql: priority > 3 AND sys.Label = 'order'
          - name: mine
            correlation: {label: order, properties: {region: eu, n: 3}}
roles:
  - {identity: worker, role: Azure Service Bus Data Receiver, entity: orders}
  - {identity: producer, role: Azure Service Bus Data Sender, entity: events}
  - {identity: stranger, role: Azure Service Bus Data Receiver, entity: events/Subscriptions/all}
"""


def put(tmp_path: Path, text: str) -> Config:
    path = tmp_path / "entities.yaml"
    path.write_text(text)
    return put_entities(default_config(), path)


def test_everything_a_file_says_is_in_the_config(tmp_path: Path) -> None:
    config = put(tmp_path, WHOLE)
    assert config.queues == (
        QueueSpec(
            name="orders",
            lock_duration=30.0,
            max_delivery_count=3,
            requires_session=True,
            duplicate_detection_window=600.0,
            default_time_to_live=3_600.0,
            dead_letter_on_expiry=True,
            max_message_bytes=PREMIUM_BYTES,
            forward_dead_letters_to="morgue",
        ),
        QueueSpec(
            name="morgue",
            lock_duration=60.0,
            max_delivery_count=10,
            duplicate_detection_window=None,
            dead_letter_on_expiry=False,
            max_message_bytes=1_000,
        ),
    )
    azure = SubscriptionSpec(name="all", lock_duration=60.0, max_delivery_count=10, dead_letter_on_expiry=False)
    mine = CorrelationSpec(label="order", properties={"region": "eu", "n": 3})
    rules = (
        RuleSpec(name="high", sql="priority > 3 AND sys.Label = 'order'"),
        RuleSpec(name="mine", correlation=mine),
    )
    urgent = dataclasses.replace(azure, name="urgent", forward_to="orders", rules=rules)
    assert config.topics == (
        TopicSpec(name="events", max_message_bytes=PREMIUM_BYTES, subscriptions=(azure, urgent)),
    )
    assert Broker(config.queues, topics=config.topics).has("events/Subscriptions/urgent")


def test_roles_are_those_of_the_file_and_what_is_not_service_bus_stays(tmp_path: Path) -> None:
    config = put(tmp_path, WHOLE)
    worker, stranger = config.identity("worker").object_id, config.identity("stranger").object_id
    assert config.roles_of(worker, "servicebus/orders") == {"Azure Service Bus Data Receiver"}
    assert config.roles_of(worker, "servicebus/morgue") == set()
    assert config.roles_of(worker, "openai") == {"Cognitive Services OpenAI User"}
    assert config.roles_of(stranger, "servicebus/events/Subscriptions/all") == {"Azure Service Bus Data Receiver"}
    assert config.roles_of(stranger, "servicebus/events") == set()


def test_without_roles_worker_and_producer_own_everything(tmp_path: Path) -> None:
    config = put(tmp_path, "queues: [{name: q}]")
    for name, roles in (("worker", {"Azure Service Bus Data Owner"}), ("stranger", set())):
        assert config.roles_of(config.identity(name).object_id, "servicebus/q") == roles


def test_a_config_with_topics_survives_its_file(tmp_path: Path) -> None:
    config = put(tmp_path, WHOLE)
    config.save(tmp_path / "config.json")
    assert Config.load(tmp_path / "config.json") == config


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "the file: Input should be a valid dictionary"),
        ("{}", "neither queues nor topics"),
        ("queues: [", "is not YAML"),
        ("queues: [{name: q, colour: red}]", "queues.0.colour: Extra inputs are not permitted"),
        ("queues: [{name: q, lock_duration: 301}]", "queues.0.lock_duration: Input should be less than or equal"),
        ("queues: [{name: q, lock_duration: 0}]", "queues.0.lock_duration"),
        ("queues: [{name: q, max_message_bytes: 200000000}]", "queues.0.max_message_bytes"),
        ("queues: [{}]", "queues.0.name: Field required"),
        ("queues: [{name: q}, {name: Q}]", "there is an entity 'Q' already"),
        ("queues: [{name: q, forward_to: nowhere}]", "no queue or topic 'nowhere' to pass on to; there are: q"),
        (
            "topics: [{name: t, subscriptions: [{name: s, rules: [{name: r, sql: 'n ='}]}]}]",
            "the SQL filter of rule 'r': at character 4",
        ),
        ("topics: [{name: t, subscriptions: [{name: s}, {name: s}]}]", "has a subscription 's' already"),
        ("queues: [{name: q}]\nroles: [{identity: me, role: Azure Service Bus Data Owner}]", "no identity 'me'"),
        (
            "queues: [{name: q}]\nroles: [{identity: worker, role: Azure Service Bus Data Owner, entity: x}]",
            "there is no entity 'x'; there are q",
        ),
        ("queues: [{name: q}]\nroles: [{identity: worker, role: Reader}]", "roles.0.role"),
    ],
)
def test_a_file_that_cannot_be_used_says_where_and_why(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(EntitiesError) as error:
        put(tmp_path, text)
    assert told in str(error.value)
    assert "entities.yaml" in str(error.value)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(EntitiesError, match="cannot be read: No such file"):
        put_entities(default_config(), tmp_path / "nowhere.yaml")
