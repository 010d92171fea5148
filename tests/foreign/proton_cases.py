"""The cases of Apache Qpid Proton, for plain AMQP 1.0. They run in an environment that has it and nothing of ours.

One JSON line on standard output for each case, as tests/foreign/javascript/run.mjs writes them.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

from proton import ConnectionException, Delivery, Described, Message, SSLDomain, symbol, ulong
from proton.reactor import AtMostOnce, Filter
from proton.utils import BlockingConnection, BlockingReceiver, LinkDetached, SendException

CLIENT = "python-qpid-proton"
LONGEST_WAIT = 5.0
ADDRESS = f"amqps://{os.environ['AOAI_WORKER_SERVICEBUS_ENDPOINT']}"
NAMESPACE = os.environ["AOAI_WORKER_SERVICEBUS_NAMESPACE"]
QUEUES = iter(os.environ["PLAIN_QUEUES"].split())
Case = Callable[[], None]
CASES: list[Case] = []


def case(function: Case) -> Case:
    """Its docstring is the case's name."""
    CASES.append(function)
    return function


@contextmanager
def connected(**options: Any) -> Iterator[BlockingConnection]:
    """With a key, unless `options` say otherwise."""
    trust = SSLDomain(SSLDomain.MODE_CLIENT)
    trust.set_trusted_ca_db(os.environ["AOAI_WORKER_CA_FILE"])
    trust.set_peer_authentication(SSLDomain.VERIFY_PEER_NAME)
    with_key = {"user": os.environ["KEY_NAME"], "password": os.environ["KEY"], "allowed_mechs": "PLAIN"}
    given = {**with_key, **options}
    connection = BlockingConnection(ADDRESS, timeout=LONGEST_WAIT, ssl_domain=trust, reconnect=False, **given)
    try:
        yield connection
    finally:
        connection.close()


def anonymously() -> Any:
    return connected(user=None, password=None, allowed_mechs="ANONYMOUS")


@contextmanager
def filled(count: int) -> Iterator[tuple[BlockingConnection, str, BlockingReceiver]]:
    """A queue that no other case uses with `count` messages in it, whose bodies are their numbers."""
    queue = next(QUEUES)
    with connected() as connection:
        sender = connection.create_sender(queue)
        for number in range(count):
            assert sender.send(Message(body=number)).remote_state == Delivery.ACCEPTED
        sender.close()  # Proton gives two links to one address the same name
        yield connection, queue, connection.create_receiver(queue, credit=0)


def is_empty(connection: BlockingConnection, queue: str) -> bool:
    """Whether the answer to a drain is that nothing is there."""
    receiver = connection.create_receiver(queue, credit=0, name="drain")
    link = receiver.link
    link.drain(1)
    connection.wait(lambda: link.credit == 0 and not link.draining(), msg="the answer to a drain")
    empty = not receiver.fetcher.has_message
    receiver.close()
    return bool(empty)


def put_token(connection: BlockingConnection, name: str, token: str) -> int:
    replies = connection.create_receiver("$cbs", credit=1)
    properties = {"operation": "put-token", "type": "jwt", "name": f"amqps://{NAMESPACE}/{name}"}
    request = Message(id="put-1", reply_to="cbs-reply", properties=properties, body=token)
    connection.create_sender("$cbs").send(request)
    return int(replies.receive().properties["status-code"])


@case
def sends_and_receives() -> None:
    """SASL PLAIN with the name of a key and the key"""
    with filled(1) as (connection, queue, receiver):
        assert receiver.receive().body == 0
        receiver.accept()
        assert is_empty(connection, queue)


@case
def refuses_another_key() -> None:
    """SASL PLAIN with another key is refused"""
    try:
        with connected(password="wrong"):
            raise AssertionError("it was let in")
    except ConnectionException as error:
        if "amqp:unauthorized-access" not in str(error):
            raise


@case
def takes_a_bearer_token() -> None:
    """A bearer token that is put to $cbs opens links"""
    queue = next(QUEUES)
    with anonymously() as connection:
        assert put_token(connection, queue, os.environ["TOKEN"]) == 202
        connection.create_sender(queue).send(Message(body="x"))
        assert connection.create_receiver(queue).receive().body == "x"


@case
def refuses_an_unsigned_token() -> None:
    """A token that nobody signed is a 401"""
    with anonymously() as connection:
        assert put_token(connection, "jobs", "not.a.token") == 401


@case
def refuses_a_link_without_a_token() -> None:
    """A link without a token is refused"""
    with anonymously() as connection:
        assert _refusal(lambda: connection.create_sender("jobs")) == "amqp:unauthorized-access"


@case
def refuses_an_absent_entity() -> None:
    """A link to an entity that does not exist is refused"""
    with connected() as connection:
        assert _refusal(lambda: connection.create_sender("absent")) == "amqp:not-found"


def _refusal(attach: Callable[[], object]) -> str:
    try:
        attach()
    except LinkDetached as error:
        return str(error.condition)
    raise AssertionError("no link was detached")


@case
def keeps_all_sections() -> None:
    """All the sections of a message come back"""
    with filled(0) as (connection, queue, receiver):
        properties = {"text": "ä", "n": 3, "yes": True}
        sent = Message(id="m", correlation_id="c", subject="s", properties=properties, body=b"bytes", durable=True)
        sent.content_type = symbol("text/plain")
        sent.annotations = {symbol("x-opt-mine"): "kept"}
        connection.create_sender(queue).send(sent)
        message = receiver.receive()
        assert (message.id, message.correlation_id, message.subject) == ("m", "c", "s")
        assert (message.content_type, bytes(message.body)) == ("text/plain", b"bytes")
        assert message.properties == properties
        assert message.annotations["x-opt-mine"] == "kept"
        assert message.annotations["x-opt-sequence-number"] > 0


@case
def takes_several_frames() -> None:
    """A message of several frames"""
    with filled(0) as (connection, queue, receiver):
        connection.create_sender(queue).send(Message(body="x" * 200_000))
        assert len(receiver.receive().body) == 200_000


@case
def refuses_a_large_message() -> None:
    """A message that is too large is refused"""
    with filled(0) as (connection, queue, _receiver):
        try:
            connection.create_sender(queue).send(Message(body="x" * 300_000))
        except (LinkDetached, SendException):
            return
        raise AssertionError("it was taken")


@case
def released_stays_uncounted() -> None:
    """released: it comes again, and the count stays"""
    with filled(1) as (_connection, _queue, receiver):
        receiver.receive()
        receiver.release(delivered=False)
        assert receiver.receive().delivery_count == 0


@case
def modified_is_counted() -> None:
    """modified, delivery-failed: it comes again, and is counted"""
    with filled(1) as (_connection, _queue, receiver):
        receiver.receive()
        delivery = receiver.fetcher.unsettled.popleft()
        delivery.local.failed = True
        delivery.update(Delivery.MODIFIED)
        delivery.settle()
        assert receiver.receive().delivery_count == 1


@case
def modified_is_deferred() -> None:
    """modified, undeliverable-here: it is deferred"""
    with filled(1) as (connection, queue, receiver):
        receiver.receive()
        delivery = receiver.fetcher.unsettled.popleft()
        delivery.local.undeliverable = True
        delivery.update(Delivery.MODIFIED)
        delivery.settle()
        assert is_empty(connection, queue)


@case
def rejected_is_a_dead_letter() -> None:
    """rejected: it is a dead letter"""
    with filled(1) as (connection, queue, receiver):
        receiver.receive()
        receiver.reject()
        assert is_empty(connection, queue)
        assert connection.create_receiver(f"{queue}/$deadletterqueue").receive().body == 0


@case
def settled_is_received_and_deleted() -> None:
    """A settled transfer is received and deleted"""
    with filled(1) as (connection, queue, _receiver):
        settled = connection.create_receiver(queue, credit=1, name="settled", options=AtMostOnce())
        assert settled.receive().body == 0
        settled.close()
        assert is_empty(connection, queue)


@case
def keeps_to_the_credit() -> None:
    """credit: as many messages arrive as were asked for"""
    with filled(5) as (connection, _queue, receiver):
        receiver.link.flow(2)
        assert [receiver.receive().body, receiver.receive().body] == [0, 1]
        assert (receiver.link.credit, receiver.fetcher.has_message) == (0, 0)
        receiver.link.flow(3)
        assert [receiver.receive().body for _ in range(3)] == [2, 3, 4]
        connection.wait(lambda: receiver.link.credit == 0)


@case
def drains() -> None:
    """drain: what is there arrives, and the rest of the credit goes"""
    with filled(2) as (connection, _queue, receiver):
        receiver.link.drain(10)
        connection.wait(lambda: receiver.link.credit == 0 and not receiver.link.draining(), msg="the drain")
        assert receiver.fetcher.has_message == 2
        assert [receiver.receive().body, receiver.receive().body] == [0, 1]


@case
def accepts_a_session() -> None:
    """A session by its filter, as Microsoft's own clients send it"""
    _take_session("bare", "bare")


@case
def accepts_a_described_session() -> None:
    """A session by its filter, described as the standard wants"""
    _take_session("described", Described(ulong(0x0000_0137_0000_000C), "described"))


def _take_session(session: str, wanted: Any) -> None:
    with connected() as connection:
        sender = connection.create_sender("results")
        for number in range(2):
            sender.send(Message(body=number, group_id=session))
        by_session = Filter({symbol("com.microsoft:session-filter"): wanted})
        receiver = connection.create_receiver("results", credit=0, options=by_session)
        for number in range(2):
            message = receiver.receive()
            assert (message.body, message.group_id) == (number, session)
            receiver.accept()


@case
def link_is_stolen() -> None:
    """A second link of the same name takes the place of the first"""
    with filled(0) as (connection, queue, _receiver):
        assert _refusal(lambda: connection.create_receiver(queue, credit=0)) == "amqp:link:stolen"


def run(one: Case) -> dict[str, Any]:
    started = time.monotonic()
    outcome, reason = "passed", ""
    try:
        one()
    except Exception as error:
        outcome, reason = "failed", f"{type(error).__name__}: {error}"
    named = {"client": CLIENT, "version": version(CLIENT), "case": one.__doc__}
    return {**named, "outcome": outcome, "reason": reason, "seconds": time.monotonic() - started}


if __name__ == "__main__":
    for each in CASES:
        sys.stdout.write(json.dumps(run(each)) + "\n")
        sys.stdout.flush()
