"""Where faults strike the links of the embedded Service Bus: nodes around the real ones that keep things from them.

Without a fault they hand everything on. An entity is narrowed to by its path in lower case.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from embedded_azure.amqp.links import Consumer, Delivery, IncomingLink, OutgoingLink, Producer
from embedded_azure.amqp.messages import EncodedMessage
from embedded_azure.amqp.performatives import DeliveryState, Error, Rejected
from embedded_azure.faults import Faults
from embedded_azure.servicebus.broker.broker import BrokerError
from embedded_azure.servicebus.broker.messages import NOT_FOUND
from embedded_azure.servicebus.faults.control import LoseAnswerFault, RefuseFault
from embedded_azure.servicebus.links.cbs import token_response
from embedded_azure.servicebus.links.management import refused_response
from embedded_azure.servicebus.links.requests import Response

Answer = Callable[[EncodedMessage], Response | None]


class LinkFaults:
    """The faults of the namespace as the links meet them. `on_attach` is told of every entity asked for."""

    def __init__(self, faults: Faults, on_attach: Callable[[str], None]) -> None:
        self._faults = faults
        self._on_attach = on_attach

    def check_attach(self, entity: str) -> None:
        """Raises BrokerError."""
        self._on_attach(entity)
        if error := self.refusal("attach", entity.lower()):
            raise BrokerError(error.condition, error.description or "")

    def consumer(self, node: Consumer, link: IncomingLink, entity: str) -> Consumer:
        return _DisturbedConsumer(node, link, self, entity.lower())

    def producer(self, node: Producer, link: OutgoingLink, entity: str) -> Producer:
        return _DisturbedProducer(node, link, self, entity.lower())

    def management(self, entity: str, answer: Answer) -> Answer:
        """Answers requests to the entity's `$management`."""
        entity = entity.lower()

        def disturbed(request: EncodedMessage) -> Response | None:
            operation = request.application_properties().get("operation")
            error = self.refusal("management", entity, operation)
            if error is not None:
                return refused_response(error.condition, error.description or "")
            return self._answer("management", entity, operation, answer, request)

        return disturbed

    def put_token(self, answer: Answer) -> Answer:
        """Answers requests to `$cbs`, whose `name` is the entity."""

        def disturbed(request: EncodedMessage) -> Response | None:
            entity = _entity_of(request.application_properties().get("name"))
            error = self.refusal("put-token", entity)
            if error is not None:
                return token_response(_TOKEN_STATUS.get(error.condition, 500), error.description or "")
            return self._answer("put-token", entity, None, answer, request)

        return disturbed

    def refusal(self, on: str, entity: str, operation: Any = None) -> Error | None:
        fault = self._faults.take(RefuseFault, on=on, entity=entity, operation=operation)
        return None if fault is None else Error(condition=fault.condition, description=fault.description)

    def loss(self, on: str, entity: str, operation: Any = None) -> LoseAnswerFault | None:
        return self._faults.take(LoseAnswerFault, on=on, entity=entity, operation=operation)

    def _answer(
        self, on: str, entity: str, operation: Any, answer: Answer, request: EncodedMessage
    ) -> Response | None:
        loss = self.loss(on, entity, operation)
        if loss is None:
            return answer(request)
        if loss.applied:
            answer(request)
        return None


_TOKEN_STATUS = {
    NOT_FOUND: 404,
    "amqp:unauthorized-access": 401,
    "com.microsoft:auth-failed": 401,
    "com.microsoft:timeout": 408,
    "com.microsoft:server-busy": 503,
}


class _DisturbedConsumer:
    def __init__(self, node: Consumer, link: IncomingLink, faults: LinkFaults, entity: str) -> None:
        self._node = node
        self._link = link
        self._faults = faults
        self._entity = entity

    def on_delivery(self, delivery: Delivery) -> None:
        if error := self._faults.refusal("send", self._entity):
            self._refuse(delivery, error)
        elif loss := self._faults.loss("send", self._entity):
            if loss.applied:
                self._node.on_delivery(replace(delivery, settled=True))  # so it will not answer
        else:
            self._node.on_delivery(delivery)

    def on_detached(self) -> None:
        self._node.on_detached()

    def _refuse(self, delivery: Delivery, error: Error) -> None:
        if delivery.settled:
            self._link.detach(error)  # no answer is wanted: it would learn of it in no other way
        else:
            self._link.settle(delivery.delivery_id, Rejected(error=error))


class _DisturbedProducer:
    def __init__(self, node: Producer, link: OutgoingLink, faults: LinkFaults, entity: str) -> None:
        self._node = node
        self._link = link
        self._faults = faults
        self._entity = entity

    def on_ready(self) -> None:
        if error := self._faults.refusal("receive", self._entity):
            self._link.detach(error)
        else:
            self._node.on_ready()

    def on_disposition(self, delivery_id: int, state: DeliveryState | None, settled: bool) -> None:
        if error := self._faults.refusal("settle", self._entity):
            if not settled:
                self._link.settle(delivery_id, Rejected(error=error))
        elif loss := self._faults.loss("settle", self._entity):
            self._link.session.unsettled.pop(delivery_id, None)
            if loss.applied:
                self._node.on_disposition(delivery_id, state, True)  # settled by the peer: it will not answer
        else:
            self._node.on_disposition(delivery_id, state, settled)

    def on_detached(self) -> None:
        self._node.on_detached()


def _entity_of(audience: Any) -> str:
    """`sb://host/jobs/` is about `jobs`."""
    return audience.partition("://")[2].partition("/")[2].strip("/").lower() if isinstance(audience, str) else ""
