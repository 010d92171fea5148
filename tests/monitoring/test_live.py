"""With a real Prometheus on real workers under load, every panel and every alert has something to look at."""

import asyncio
import math
from collections.abc import AsyncIterator, Mapping

import pytest
import pytest_asyncio

from tests.monitoring.expressions import alerts, compared, metrics_of, panel_expressions, rules
from tests.monitoring.prometheus import promtool
from tests.monitoring.scene import Scene, watched_fleet

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]

WITHOUT_DATA = {
    "Token refreshes B": "a failed refresh is counted by its AADSTS code, and no refresh fails here",
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    async with watched_fleet(tmp_path_factory.mktemp("scene")) as running:
        await running.submit(2_400)
        await running.throttle(20)
        await running.until(
            "sum(aoai_worker_throttles_total) > 0 and sum(aoai_worker_quota_remaining_requests) > 0"
        )
        await running.until("sum(increase(aoai_worker_jobs_total[30s])) > 100")
        await running.until("aoai_worker:jobs_failed:ratio_rate3d >= 0")
        await running.submit(240)  # sorting ends within seconds, and its rate is seen for 20 s only
        yield running


async def has_data(scene: Scene, expression: str) -> bool:
    """A value, that is: not only series of which there is nothing to compute yet."""
    found = await scene.prometheus.query(expression)
    return any(not math.isnan(float(series["value"][1])) for series in found)


async def never_with_data(scene: Scene, asked: Mapping[str, str], *, looks: int = 30) -> set[str]:
    """What shows nothing in any of the looks, a second apart: a rate needs traffic of its kind just then."""
    empty = dict(asked)
    for _ in range(looks):
        empty = {name: text for name, text in empty.items() if not await has_data(scene, text)}
        if empty.keys() <= WITHOUT_DATA.keys():
            break
        await asyncio.sleep(1)
    return set(empty)


async def test_every_panel_shows_something(scene: Scene) -> None:
    asked = {named.where: named.expression for named in panel_expressions()}
    assert await never_with_data(scene, asked) == WITHOUT_DATA.keys()


async def test_every_comparison_of_an_alert_has_something_to_compare(scene: Scene) -> None:
    sides = {(alert["alert"], side) for alert in alerts() for side in compared(alert["expr"])}
    assert {(name, side) for name, side in sides if not await has_data(scene, side)} == set()


async def test_every_metric_of_a_rule_is_there(scene: Scene) -> None:
    named = set().union(*(metrics_of(rule["expr"]) for rule in rules()))
    assert {metric for metric in named if not await has_data(scene, metric)} == set()


async def test_prometheus_evaluates_every_rule_without_a_complaint(scene: Scene) -> None:
    evaluated = await scene.prometheus.rules()
    assert len(evaluated) == len(rules())
    assert {rule["name"]: rule["lastError"] for rule in evaluated if rule.get("lastError")} == {}


async def test_nothing_fires_in_a_fleet_that_works(scene: Scene) -> None:
    assert await scene.prometheus.query('ALERTS{alertstate="firing"}') == []


async def test_promtool_finds_the_names_and_types_of_the_metrics_in_order(scene: Scene) -> None:
    for worker in scene.workers:
        status, text = await worker.get("/metrics")
        assert status == 200
        code, output = promtool("check", "metrics", stdin=text)
        assert (code, output) == (0, "")
