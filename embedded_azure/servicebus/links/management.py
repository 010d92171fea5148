"""`<entity>/$management`: the operations on messages and sessions that have no link of their own.

Each operation is a function from the request's map to a status and the answer's map; the table is at the end.
An empty AMQP array is never sent, for the SDK cannot read one: 204 instead.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, TypeVar
from uuid import UUID

from embedded_azure.amqp.codec import Array, DecodeError, Int, Long, Symbol, Timestamp
from embedded_azure.amqp.messages import EncodedMessage
from embedded_azure.servicebus.access import UNAUTHORIZED, AccessRefused, Claim
from embedded_azure.servicebus.broker.broker import BrokerError, Locked, Queue, Session
from embedded_azure.servicebus.broker.messages import (
    ARGUMENT_ERROR,
    MESSAGE_LOCK_LOST,
    MESSAGE_NOT_FOUND,
    NOT_ALLOWED,
    NOT_FOUND,
    QUEUE_FULL,
    SESSION_CANNOT_BE_LOCKED,
    SESSION_LOCK_LOST,
)
from embedded_azure.servicebus.broker.rules import ALREADY_EXISTS, Rules
from embedded_azure.servicebus.links.contents import (
    encode_delivery,
    encode_locked,
    milliseconds,
    properties_of,
    read_message,
)
from embedded_azure.servicebus.links.requests import Response
from embedded_azure.servicebus.links.rule_terms import describe_rule, read_rule

MANAGEMENT: Final = "/$management"
MAX_PEEK: Final = 250
MAX_RESPONSE: Final = 1 << 20
"""Bytes of messages in one answer; what does not fit is asked for again."""

_STATUS: Final[Mapping[str, int]] = MappingProxyType(
    {
        MESSAGE_LOCK_LOST: 410,
        SESSION_LOCK_LOST: 410,
        MESSAGE_NOT_FOUND: 404,
        NOT_FOUND: 404,
        UNAUTHORIZED: 401,
        ARGUMENT_ERROR: 400,
        NOT_ALLOWED: 400,
        SESSION_CANNOT_BE_LOCKED: 409,
        QUEUE_FULL: 403,
        ALREADY_EXISTS: 409,
        "amqp:not-implemented": 501,
        "com.microsoft:argument-out-of-range": 400,
        "com.microsoft:entity-disabled": 403,
        "com.microsoft:server-busy": 503,
        "com.microsoft:timeout": 408,
    }
)
_NO_TIME: Final = 253_402_300_800_000
"""The year 10000, by which clients say that it does not matter when a session was updated."""
_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    status: int = 200
    body: Mapping[str, Any] = field(default_factory=dict)


NO_CONTENT: Final = Answer(status=204)


@dataclass(frozen=True, slots=True)
class Arguments:
    """The map a request carries. Each getter raises BrokerError when the argument is missing or of another type."""

    values: Mapping[Any, Any]

    def get(self, name: str, kind: type[_Value]) -> _Value:
        value = self.values.get(name)
        if type(value) is not kind:
            raise _bad_argument(f"'{name}' must be {kind.__name__}, not {value!r:.80}")
        return value

    def optional(self, name: str, kind: type[_Value]) -> _Value | None:
        return None if self.values.get(name) is None else self.get(name, kind)

    def all(self, name: str, kind: type[_Value]) -> list[_Value]:
        values = self.get(name, list)
        if not values or not all(type(value) is kind for value in values):
            raise _bad_argument(f"'{name}' must be an array of {kind.__name__}, not {values!r:.80}")
        return values


class Desk:
    """Answers the requests on one management link.

    `check` raises AccessRefused without the claim; `held_session` finds the session a receiver on the same
    connection holds, and raises BrokerError if none does.
    """

    def __init__(
        self, queue: Queue, check: Callable[[Claim], None], held_session: Callable[[Queue, str], Session]
    ) -> None:
        self.queue = queue
        self.held_session = held_session
        self._check = check

    def answer(self, request: EncodedMessage) -> Response:
        """Raises DecodeError."""
        properties = request.application_properties()
        body = request.value()
        try:
            claim, operate = _operation(properties.get("operation"))
            self._check(claim)
            answer = operate(self, Arguments(body if isinstance(body, dict) else {}))
        except BrokerError as refusal:
            return refused_response(refusal.condition, refusal.description)
        except AccessRefused as refusal:
            return refused_response(UNAUTHORIZED, refusal.description)
        description = "OK" if answer.status == 200 else "No content"
        return Response(
            application_properties={"statusCode": Int(answer.status), "statusDescription": description},
            body=dict(answer.body),
        )

    def session(self, arguments: Arguments) -> Session:
        return self.held_session(self.queue, arguments.get("session-id", str))

    def rules(self) -> Rules:
        """Raises not-allowed when this is no subscription."""
        if self.queue.rules is None:
            raise BrokerError(NOT_ALLOWED, f"{self.queue.name!r} has no rules; subscriptions have")
        return self.queue.rules


def refused_response(condition: str, description: str) -> Response:
    return Response(
        application_properties={
            "statusCode": Int(_STATUS.get(condition, 500)),
            "statusDescription": description,
            "errorCondition": Symbol(condition),
        },
        body={},
    )


def _bad_argument(description: str) -> BrokerError:
    return BrokerError(ARGUMENT_ERROR, description)


def _renew_lock(desk: Desk, arguments: Arguments) -> Answer:
    ends = desk.queue.renew(arguments.all("lock-tokens", UUID))
    return Answer(body={"expirations": Array(Timestamp, tuple(milliseconds(end) for end in ends))})


def _peek(desk: Desk, arguments: Arguments) -> Answer:
    count = min(arguments.get("message-count", int), MAX_PEEK)
    first = arguments.get("from-sequence-number", int)
    messages: list[dict[str, bytes]] = []
    size = 0
    for message in desk.queue.peek(first, count, arguments.optional("session-id", str)):
        encoded = encode_delivery(message)
        size += len(encoded)
        if messages and size > MAX_RESPONSE:
            break
        messages.append({"message": encoded})
    return Answer(body={"messages": messages}) if messages else NO_CONTENT


def _schedule(desk: Desk, arguments: Arguments) -> Answer:
    entries = arguments.all("messages", dict)
    try:
        messages = [read_message(Arguments(entry).get("message", bytes)) for entry in entries]
    except DecodeError as error:
        raise _bad_argument(f"a message to schedule cannot be read: {error}") from error
    numbers = desk.queue.schedule(messages)
    return Answer(body={"sequence-numbers": Array(Long, tuple(numbers))})


def _cancel(desk: Desk, arguments: Arguments) -> Answer:
    desk.queue.cancel_scheduled(arguments.all("sequence-numbers", int))
    return Answer()


def _receive(desk: Desk, arguments: Arguments) -> Answer:
    session_id = arguments.optional("session-id", str)
    session = None if session_id is None else desk.held_session(desk.queue, session_id)
    taken = desk.queue.take_deferred(
        arguments.all("sequence-numbers", int),
        delete=arguments.get("receiver-settle-mode", int) == 0,
        session=session,
    )
    return Answer(body={"messages": [_deferred(locked) for locked in taken]}) if taken else NO_CONTENT


def _deferred(locked: Locked) -> dict[str, Any]:
    return {"message": encode_locked(locked), "lock-token": locked.token}


def _update_disposition(desk: Desk, arguments: Arguments) -> Answer:
    settle = _settlement(desk.queue, arguments)
    for token in arguments.all("lock-tokens", UUID):
        settle(token)
    return Answer()


def _settlement(queue: Queue, arguments: Arguments) -> Callable[[UUID], None]:
    change = properties_of(arguments.optional("properties-to-modify", dict))
    match arguments.get("disposition-status", str):
        case "completed":
            return queue.complete
        case "abandoned":
            return lambda token: queue.abandon(token, change)
        case "defered":  # so spelt on the wire
            return lambda token: queue.defer(token, change)
        case "suspended":
            reason = arguments.optional("deadletter-reason", str)
            description = arguments.optional("deadletter-description", str)
            return lambda token: queue.dead_letter(token, reason, description, change)
        case other:
            raise _bad_argument(
                f"'disposition-status' must be completed, abandoned, defered or suspended, not {other!r}"
            )


def _renew_session_lock(desk: Desk, arguments: Arguments) -> Answer:
    return Answer(body={"expiration": milliseconds(desk.session(arguments).renew())})


def _get_session_state(desk: Desk, arguments: Arguments) -> Answer:
    return Answer(body={"session-state": desk.session(arguments).state})


def _set_session_state(desk: Desk, arguments: Arguments) -> Answer:
    desk.session(arguments).state = arguments.optional("session-state", bytes)
    return Answer()


def _message_sessions(desk: Desk, arguments: Arguments) -> Answer:
    skip, top = arguments.get("skip", int), arguments.get("top", int)
    after = arguments.optional("last-updated-time", int)
    sessions = desk.queue.sessions(skip, top, None if after in (None, _NO_TIME) else after / 1000)
    if not sessions:
        return NO_CONTENT
    return Answer(body={"skip": Int(skip + len(sessions)), "sessions-ids": Array(str, tuple(sessions))})


def _add_rule(desk: Desk, arguments: Arguments) -> Answer:
    desk.rules().add(read_rule(arguments.get("rule-name", str), arguments.get("rule-description", dict)))
    return Answer()


def _remove_rule(desk: Desk, arguments: Arguments) -> Answer:
    desk.rules().remove(arguments.get("rule-name", str))
    return Answer()


def _enumerate_rules(desk: Desk, arguments: Arguments) -> Answer:
    skip, top = arguments.get("skip", int), arguments.get("top", int)
    if skip < 0 or top < 0:
        raise _bad_argument(f"'skip' and 'top' are not negative; these are {skip} and {top}")
    found = desk.rules().list()[skip : skip + top]
    if not found:
        return NO_CONTENT
    return Answer(body={"rules": [{"rule-description": describe_rule(rule)} for rule in found]})


Operation = Callable[[Desk, Arguments], Answer]

_OPERATIONS: Final[Mapping[str, tuple[Claim, Operation]]] = MappingProxyType(
    {
        "com.microsoft:renew-lock": (Claim.LISTEN, _renew_lock),
        "com.microsoft:peek-message": (Claim.LISTEN, _peek),
        "com.microsoft:schedule-message": (Claim.SEND, _schedule),
        "com.microsoft:cancel-scheduled-message": (Claim.SEND, _cancel),
        "com.microsoft:receive-by-sequence-number": (Claim.LISTEN, _receive),
        "com.microsoft:update-disposition": (Claim.LISTEN, _update_disposition),
        "com.microsoft:renew-session-lock": (Claim.LISTEN, _renew_session_lock),
        "com.microsoft:get-session-state": (Claim.LISTEN, _get_session_state),
        "com.microsoft:set-session-state": (Claim.LISTEN, _set_session_state),
        "com.microsoft:get-message-sessions": (Claim.LISTEN, _message_sessions),
        "com.microsoft:add-rule": (Claim.LISTEN, _add_rule),
        "com.microsoft:remove-rule": (Claim.LISTEN, _remove_rule),
        "com.microsoft:enumerate-rules": (Claim.LISTEN, _enumerate_rules),
    }
)


def _operation(name: Any) -> tuple[Claim, Operation]:
    known = _OPERATIONS.get(name) if isinstance(name, str) else None
    if known is None:
        raise BrokerError(
            "amqp:not-implemented", f"operation {name!r} is not known here; {', '.join(_OPERATIONS)} are"
        )
    return known
