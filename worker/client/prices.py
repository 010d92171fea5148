"""What tokens cost. There is no price in the code: AOAI_WORKER_PRICES has them, in whatever currency."""

from collections.abc import Mapping
from dataclasses import dataclass

from worker.jobs.outcomes import Usage
from worker.settings import Price

PER = 1_000_000
"""Tokens that a price is for."""


@dataclass(frozen=True, slots=True)
class Cost:
    """`models`: of each model, None where it has no price."""

    models: Mapping[str, float | None]

    @property
    def total(self) -> float | None:
        """None where a price is missing."""
        amounts = [amount for amount in self.models.values() if amount is not None]
        return sum(amounts) if len(amounts) == len(self.models) else None

    @property
    def unpriced(self) -> list[str]:
        return sorted(model for model, amount in self.models.items() if amount is None)


def cost_of(usage: Mapping[str, Usage], prices: Mapping[str, Price]) -> Cost:
    """`usage`: tokens by model."""
    return Cost({model: _amount(tokens, prices.get(model)) for model, tokens in usage.items()})


def _amount(tokens: Usage, price: Price | None) -> float | None:
    if price is None:
        return None
    cached_input = price.input if price.cached_input is None else price.cached_input
    # the service counts cached tokens among those of the prompt
    fresh = max(0, tokens.prompt - tokens.cached)
    return (fresh * price.input + tokens.cached * cached_input + tokens.completion * price.output) / PER
