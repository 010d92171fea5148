"""How messages get from entity to entity: auto-forwarding, and dead letters that are sent on.

A message that the target will not have, or that has come too far, rests in the transfer dead-letter queue of the
entity it was to leave.
"""

from collections.abc import Callable
from typing import Final

from embedded_azure.servicebus.broker.lives import Route
from embedded_azure.servicebus.broker.messages import BrokerError, Message
from embedded_azure.servicebus.broker.queues import Queue

MOST_HOPS: Final = 4
"""From entity to entity; Service Bus allows as many."""


def route(source: Queue, target: str, find: Callable[[str], Queue]) -> Route:
    """What to set as `source.passes_on` or `passes_dead_letters_on`. `find` raises BrokerError for no entity."""

    def pass_on(message: Message, at: float) -> None:
        message.hops += 1
        if message.hops > MOST_HOPS:
            source.lay_aside(
                message,
                "MaxTransferHopCountExceeded",
                f"The message was passed on {MOST_HOPS} times; '{source.name}' may not pass it on to '{target}'.",
            )
            return
        try:
            find(target).arrive(message.copied(), at)
        except BrokerError as refusal:
            source.lay_aside(message, refusal.condition, refusal.description)

    return pass_on
