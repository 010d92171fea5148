"""What a deployment's answers and refusals say of its quota."""

from dataclasses import dataclass
from enum import StrEnum


class ThrottleKind(StrEnum):
    """Why a 429 was given."""

    QUOTA = "quota"
    """Our own: tokens or requests per minute are used up."""
    CAPACITY = "capacity"
    """The service's own capacity is short, whatever quota is left."""
    CUT = "cut"
    """The service has lowered this deployment's rate for a while."""
    PROVISIONED = "provisioned"
    """A provisioned deployment is used beyond its units."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimits:
    """A deployment's rate-limit headers. None means unknown: absent, -1, and 0 on an answer, which the service
    has sent for the Responses API without meaning them.

    `utilisation` is the share of a provisioned deployment that is in use, 1.0 for all of it.
    """

    limit_tokens: int | None = None
    remaining_tokens: int | None = None
    limit_requests: int | None = None
    remaining_requests: int | None = None
    utilisation: float | None = None
