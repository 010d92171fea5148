"""`$cbs`: where a client puts its tokens (claims-based security), one operation, `put-token`."""

from collections.abc import Callable
from typing import Final

from embedded_azure.amqp.codec import Int
from embedded_azure.amqp.messages import EncodedMessage
from embedded_azure.servicebus.access import Access, AccessRefused
from embedded_azure.servicebus.links.requests import Response

CBS: Final = "$cbs"


class TokenDesk:
    """Answers put-token. `on_granted` runs after each token that was good, before the answer leaves."""

    def __init__(self, access: Access, on_granted: Callable[[], None]) -> None:
        self._access = access
        self._on_granted = on_granted

    def answer(self, request: EncodedMessage) -> Response:
        """Raises DecodeError."""
        properties = request.application_properties()
        operation, audience, token = properties.get("operation"), properties.get("name"), request.value()
        if operation != "put-token":
            return token_response(400, f"operation {operation!r} is not known here; 'put-token' is")
        if not isinstance(audience, str) or not isinstance(token, str):
            return token_response(
                400, "put-token needs the application property 'name' and the token as amqp-value"
            )
        try:
            self._access.put_token(audience, token)
        except AccessRefused as refusal:
            return token_response(refusal.status, refusal.description)
        self._on_granted()
        return token_response(202, "Accepted")


def token_response(status: int, description: str) -> Response:
    # No `error-condition`: with one, the SDK drops the status and the description.
    return Response(application_properties={"status-code": Int(status), "status-description": description})
