"""What tokens cost. There is no price in the code: AOAI_WORKER_PRICES has them, in whatever currency."""

from collections.abc import Mapping
from dataclasses import dataclass

from worker.jobs.outcomes import Usage
from worker.settings import Price


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
    return Cost({model: prices[model].cost(of) if model in prices else None for model, of in usage.items()})
