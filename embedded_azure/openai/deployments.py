"""A deployment at work: its quota, its own stream of latencies, and how it says that it is throttled."""

import math
import random
from collections.abc import Callable, Mapping

from embedded_azure.config import Deployment
from embedded_azure.openai.faults import ThrottleFault
from embedded_azure.openai.provisioned import ProvisionedThroughput
from embedded_azure.openai.quota import Allowance, Estimate, Estimator, Exceeded, Quota
from embedded_azure.openai.refusals import Refused, Throttling, no_capacity, provisioned_full, throttled


class ServedDeployment:
    """`spec` in service. `clock` turns the quota's windows."""

    def __init__(self, spec: Deployment, clock: Callable[[], float]) -> None:
        self.spec = spec
        self.allowance: Allowance = _allowance_of(spec, clock)
        self._estimator = Estimator(bias=spec.estimate_bias)
        self._random = random.Random(spec.seed)

    @property
    def is_provisioned(self) -> bool:
        return self.spec.provisioned_units > 0

    def estimate(self, prompt_tokens: int, max_tokens: int | None, choices: int) -> Estimate:
        return self._estimator.estimate(prompt_tokens, max_tokens, choices)

    def cut_quota(self, factor: float) -> None:
        """Provisioned throughput is never cut: it was bought."""
        if isinstance(self.allowance, Quota):
            self.allowance.scale(factor)

    def draw_times(self) -> tuple[float, float]:
        """Seconds to the first token, and for each. The n-th call of two equal configs takes equally long."""
        factor = math.exp(self.spec.latency_sigma * self._random.gauss(0.0, 1.0))
        first = self.spec.latency if self.spec.time_to_first_token is None else self.spec.time_to_first_token
        return first * factor, self.spec.time_per_token * factor

    def refuse(self, exceeded: Exceeded, throttled_as: str, api_version: str) -> Refused:
        """The 429 of a quota that is used up."""
        headers = {**retry_headers(exceeded.retry_after), **self.allowance.headers()}
        if exceeded.kind == "provisioned":
            return provisioned_full(headers)
        return self.throttle(exceeded.kind, throttled_as, api_version, exceeded.retry_after, headers)

    def throttle(
        self, kind: str, throttled_as: str, api_version: str, retry_after: float, headers: Mapping[str, str]
    ) -> Refused:
        """The 429 of its own `call` or `token` rate; `retry_after` in seconds stands in the words only."""
        named = Throttling(
            deployment=self.spec.name,
            model=self.spec.model,
            operation=throttled_as,
            api_version=api_version,
            retry_after=retry_after,
        )
        return throttled(kind, named, headers)

    def refuse_on_demand(self, fault: ThrottleFault, throttled_as: str, api_version: str) -> Refused:
        """The 429 that `fault` asks for, as its reason has it."""
        headers = {} if fault.retry_after is None else retry_headers(fault.retry_after)
        match fault.reason:
            case "capacity":
                return no_capacity(fault.retry_after, headers)
            case "provisioned":
                return provisioned_full({**headers, "azure-openai-deployment-utilization": "100.0%"})
            case "call" | "token":
                headers |= self.allowance.headers()
                return self.throttle(fault.reason, throttled_as, api_version, fault.retry_after or 0.0, headers)


def retry_headers(seconds: float) -> dict[str, str]:
    return {"retry-after": str(math.ceil(seconds)), "retry-after-ms": str(math.ceil(seconds * 1_000))}


def alter_headers(headers: Mapping[str, str], altered: Mapping[str, str | None]) -> dict[str, str]:
    """`headers` with those of `altered` in their place; None takes one away, whatever its case."""
    names = {name.lower() for name in altered}
    kept = {name: value for name, value in headers.items() if name.lower() not in names}
    return kept | {name: value for name, value in altered.items() if value is not None}


def _allowance_of(spec: Deployment, clock: Callable[[], float]) -> Allowance:
    if spec.provisioned_units > 0:
        return ProvisionedThroughput(
            units=spec.provisioned_units,
            tokens_per_unit=spec.tokens_per_unit,
            output_weight=spec.output_weight,
            clock=clock,
        )
    return Quota(spec.requests_per_minute, spec.tokens_per_minute, clock)
