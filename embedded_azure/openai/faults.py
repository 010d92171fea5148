"""The faults that the embedded Azure OpenAI has beside those of HTTP (`http_faults.py`) and of every service.

All may be narrowed to a deployment. What is said of a streamed answer's `after` is in tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from embedded_azure.faults import AnswerFault, Fault
from embedded_azure.http_faults import BodyFault, ConnectionFault


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentConnectionFault(ConnectionFault):
    """As every service has it."""

    deployment: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentBodyFault(BodyFault):
    """As every service has it; of a streamed answer, `after` counts tokens."""

    deployment: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamFault(Fault):
    """How the next streamed answers fail, `after` so many tokens, with status 200 long sent: `error` is a failure
    of the service, `throttle` a rate limit, `filter` a content filter that strikes in the midst of the answer."""

    kind: Literal["stream"] = "stream"
    how: Literal["error", "throttle", "filter"] = "error"
    after: Annotated[int, Field(ge=0)] = 4
    deployment: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ThrottleFault(Fault):
    """A 429 whatever the quota says. `reason` decides on its words and headers: the deployment's own `call` or
    `token` rate, `capacity` (the service has no room: neither the quota nor its headers show why), or `provisioned`
    (the deployment's units are in use)."""

    kind: Literal["throttle"] = "throttle"
    reason: Literal["call", "token", "capacity", "provisioned"] = "token"
    retry_after: Annotated[float, Field(ge=0)] | None = 1.0
    deployment: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaCutFault(Fault):
    """While it lasts, the quota is `factor` of what is configured, as Azure cuts the rate of standard deployments
    when many want it; the `x-ratelimit-limit-*` headers tell."""

    kind: Literal["quota_cut"] = "quota_cut"
    factor: Annotated[float, Field(gt=0, le=1)] = 0.5
    deployment: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadersFault(Fault):
    """Headers of the next answers and refusals, by name: another value, or null for none. Azure itself has sent
    x-ratelimit headers of -1 and 0 with responses, and 429s without `retry-after`."""

    kind: Literal["headers"] = "headers"
    headers: Mapping[str, str | None] = field(default_factory=dict)
    deployment: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkFault(Fault):
    """The account is closed to the caller's network, whatever its token (403). `how`: its `firewall` is, or it
    admits `private` endpoints only."""

    kind: Literal["network"] = "network"
    how: Literal["firewall", "private"] = "firewall"


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessFault(Fault):
    """A good caller is refused as if our set-up were wrong. `how`: a `role` is missing; it is `spreading`, which
    has two wordings in turn; the `token` is bad; it is of another `tenant`."""

    kind: Literal["access"] = "access"
    how: Literal["role", "spreading", "token", "tenant"] = "spreading"


FAULTS: tuple[type[Fault], ...] = (
    AnswerFault,
    DeploymentConnectionFault,
    DeploymentBodyFault,
    StreamFault,
    ThrottleFault,
    QuotaCutFault,
    HeadersFault,
    NetworkFault,
    AccessFault,
)
"""The kinds of fault that may be set here."""
