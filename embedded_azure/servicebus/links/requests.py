"""Requests and responses over a pair of links to one node: what `$cbs` and `$management` have in common."""

import struct
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from embedded_azure.amqp.codec import DecodeError
from embedded_azure.amqp.links import Delivery, IncomingLink, OutgoingLink
from embedded_azure.amqp.messages import EncodedMessage, decode_message, encode_message
from embedded_azure.amqp.performatives import Accepted, DeliveryState, Error, Rejected

MAX_REQUEST: Final = 1 << 20
"""Bytes one request may have."""
MAX_WAITING: Final = 1_000
"""Responses that may wait for credit; a client that does not read them loses the link."""
_TAG = struct.Struct(">I")


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    application_properties: Mapping[str, Any]
    body: Any = None


class Responses:
    """The node behind the link that responses leave on. They are sent settled: the SDK settles none."""

    def __init__(self, link: OutgoingLink, on_detached: Callable[[], None]) -> None:
        self._link = link
        self._on_detached = on_detached
        self._waiting: deque[bytes] = deque()
        self._sent = 0

    def send(self, response: bytes) -> None:
        if len(self._waiting) >= MAX_WAITING:
            self._link.detach(
                Error(
                    condition="amqp:resource-limit-exceeded",
                    description=f"{MAX_WAITING} responses wait for credit on link {self._link.name!r}",
                )
            )
            return
        self._waiting.append(response)
        self.on_ready()

    def on_ready(self) -> None:
        while self._waiting and self._link.ready:
            self._sent += 1
            self._link.send(self._waiting.popleft(), _TAG.pack(self._sent), settled=True)

    def on_disposition(self, delivery_id: int, state: DeliveryState | None, settled: bool) -> None:
        """They were settled when they were sent."""

    def on_detached(self) -> None:
        self._waiting.clear()
        self._on_detached()


class Requests:
    """The node behind the link that requests arrive on. `responses` finds the way for the answer, if any."""

    def __init__(
        self,
        link: IncomingLink,
        answer: Callable[[EncodedMessage], Response | None],
        responses: Callable[[], Responses | None],
        on_detached: Callable[[], None],
    ) -> None:
        """`answer` may raise DecodeError: the request is then rejected. None is no answer at all."""
        self._link = link
        self._answer = answer
        self._responses = responses
        self._on_detached = on_detached

    def on_delivery(self, delivery: Delivery) -> None:
        state: DeliveryState = Accepted()
        try:
            self._handle(decode_message(delivery.payload))
        except DecodeError as error:
            state = Rejected(error=Error(condition="amqp:decode-error", description=str(error)))
        if not delivery.settled:
            self._link.settle(delivery.delivery_id, state)

    def on_detached(self) -> None:
        self._on_detached()

    def _handle(self, request: EncodedMessage) -> None:
        response = self._answer(request)
        responses = self._responses()
        if response is not None and responses is not None:
            responses.send(
                encode_message(
                    correlation_id=request.message_id,
                    application_properties=response.application_properties,
                    value=response.body,
                )
            )
