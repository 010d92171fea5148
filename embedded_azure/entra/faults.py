"""The faults that the embedded Entra has beside those of HTTP (`http_faults.py`) and of every service."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from embedded_azure.entra.refusals import CODES
from embedded_azure.faults import AnswerFault, Fault
from embedded_azure.http_faults import BodyFault, ConnectionFault


def _known_code(code: int) -> int:
    if code not in CODES:
        listed = ", ".join(map(str, sorted(CODES)))
        raise ValueError(f"Entra's refusals here are {listed}, not {code}")
    return code


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusalFault(Fault):
    """The next requests are refused with AADSTS`code`, whatever they ask: 700213 as by a federated credential that
    has not spread yet, 700024 as if the assertion were stale. `client_id` narrows it to one application."""

    kind: Literal["refusal"] = "refusal"
    code: Annotated[int, AfterValidator(_known_code)] = 700213
    client_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenFault(Fault):
    """The next tokens live `lifetime` seconds, with `refresh_in` as it is (0: none is sent). `claims_lifetime` is
    what the response says in place of the truth."""

    kind: Literal["token"] = "token"
    lifetime: Annotated[float, Field(ge=0)] | None = None
    claims_lifetime: Annotated[float, Field(ge=0)] | None = None
    refresh_in: Annotated[float, Field(ge=0)] | None = None
    client_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockFault(Fault):
    """While it lasts, Entra's clock is `skew` seconds ahead of everybody's (or behind, when negative): assertions
    seem stale or not valid yet to it, and its tokens are dated by it."""

    kind: Literal["clock"] = "clock"
    skew: float = 0.0


FAULTS: tuple[type[Fault], ...] = (
    AnswerFault,
    ConnectionFault,
    BodyFault,
    RefusalFault,
    TokenFault,
    ClockFault,
)
"""The kinds of fault that may be set in Entra, and at the cluster's token proxy, which speaks for it."""
