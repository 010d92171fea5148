"""What goes wrong when one talks to Service Bus by the SDK, and how to say it in one line."""

from azure.servicebus.exceptions import ServiceBusError

from worker.errors import TokenUnavailable

FAULTS = (
    ServiceBusError,
    TokenUnavailable,
    OSError,
    TimeoutError,
    # slips of the SDK while a link goes down: an attribute of a closed handler, an empty array, a lost frame
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What the SDK is known to raise when a link, a connection or a token fails."""


def describe_fault(error: BaseException) -> str:
    """The error's first line, with what is behind it: a refused token arrives as a lost connection, and only the
    inner exception tells that it was refused and why."""
    inner = getattr(error, "inner_exception", None)
    told = [_first_line(error), _one_line(inner)] if isinstance(inner, BaseException) else [_first_line(error)]
    return ": ".join(dict.fromkeys(told))


def _one_line(error: BaseException) -> str:
    """Of a refused token the reason comes last, below the status."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
