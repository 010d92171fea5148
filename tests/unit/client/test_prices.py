"""Money: what is known, and that nothing is claimed beyond it."""

import pytest

from worker.client.prices import Cost, cost_of
from worker.jobs.outcomes import Usage
from worker.settings import Price

PRICES = {
    "small": Price(input=1.0, cached_input=0.5, output=4.0),
    "plain": Price(input=2.0, output=0),
}


def test_cached_tokens_are_part_of_the_prompt_and_have_their_own_price() -> None:
    usage = {"small": Usage(prompt=3_000_000, cached=1_000_000, completion=500_000)}
    assert cost_of(usage, PRICES).models == pytest.approx({"small": 2.0 + 0.5 + 2.0})


def test_without_a_price_of_their_own_cached_tokens_cost_as_much_as_others() -> None:
    usage = {"plain": Usage(prompt=2_000_000, cached=1_000_000, completion=7)}
    assert cost_of(usage, PRICES).total == pytest.approx(4.0)


def test_where_a_model_has_no_price_no_total_is_claimed() -> None:
    cost = cost_of({"small": Usage(prompt=1_000_000), "new": Usage(prompt=1)}, PRICES)
    assert cost == Cost({"small": 1.0, "new": None})
    assert (cost.total, cost.unpriced) == (None, ["new"])


def test_no_tokens_cost_nothing() -> None:
    assert cost_of({}, {}).total == 0
