"""Faults on demand: counted, timed, narrowed down, and refused when they make no sense."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from embedded_azure.blob import faults as blob_faults
from embedded_azure.entra import faults as entra_faults
from embedded_azure.faults import AnswerFault, Fault, Faults, add_fault_routes
from embedded_azure.openai import faults as openai_faults
from embedded_azure.servicebus.faults import control as bus_faults
from tests.support.clock import Clock


@dataclass(frozen=True, slots=True, kw_only=True)
class Flood(Fault):
    """A kind of these tests."""

    kind: Literal["flood"] = "flood"
    cellar: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm(Fault):
    kind: Literal["alarm"] = "alarm"

    @property
    def acts_at_once(self) -> bool:
        return True


def statuses(faults: Faults, *deployments: str | None) -> list[int | None]:
    taken = [faults.take(AnswerFault, deployment=name) for name in deployments]
    return [None if fault is None else fault.status for fault in taken]


def make(initial: object, clock: Clock | None = None) -> Faults:
    return Faults(
        AnswerFault, Flood, Alarm, initial=initial, known={"deployment": {"a", "b"}}, clock=clock or Clock()
    )


def test_a_fault_hits_as_many_requests_as_it_says() -> None:
    assert statuses(make({"status": 503, "count": 2}), None, None, None) == [503, 503, None]


def test_a_fault_without_a_count_lasts_until_it_is_cleared() -> None:
    faults = make({"status": 503})
    assert statuses(faults, None, None, None) == [503] * 3
    faults.set(b"{}")
    assert statuses(faults, None) == [None]


def test_a_fault_lasts_as_long_as_it_says() -> None:
    clock = Clock()
    faults = make({"status": 503, "seconds": 2}, clock)
    clock.now += 1.5
    assert statuses(faults, None) == [503]
    assert faults.left()[0]["seconds"] == 0.5
    clock.now += 0.5
    assert statuses(faults, None) == [None]
    assert faults.left() == []


def test_each_fault_that_is_set_tells_how_often_it_has_struck() -> None:
    faults = make([{"status": 503, "deployment": "a"}, {"status": 429, "count": 3}, {"kind": "flood"}])
    assert statuses(faults, "a", "b", "a", "a") == [503, 429, 503, 503]
    assert faults.has(Flood)
    assert [(fault["kind"], fault["struck"]) for fault in faults.left()] == [
        ("answer", 3),
        ("answer", 1),
        ("flood", 0),
    ]


def test_a_fault_of_one_deployment_neither_hits_nor_counts_on_another() -> None:
    faults = make({"status": 429, "count": 1, "deployment": "a"})
    assert statuses(faults, "b", "a", "a") == [None, 429, None]


def test_faults_of_one_kind_strike_one_after_the_other_and_kinds_do_not_meet() -> None:
    faults = make([{"status": 429, "count": 1}, {"kind": "flood"}, {"status": 503, "count": 1}])
    assert statuses(faults, None, None, None) == [429, 503, None]
    assert faults.take(Flood, cellar="mine") == Flood()
    assert faults.has(Flood)
    assert not faults.has(AnswerFault)


def test_a_fault_that_is_added_leaves_those_that_are_set() -> None:
    faults = make({"status": 429, "count": 1})
    faults.add(b'{"status": 503, "count": 1}')
    assert statuses(faults, None, None) == [429, 503]


def test_what_acts_at_once_is_told_and_not_kept() -> None:
    faults, told = make([]), list[Fault]()
    faults.watch(told.append)
    faults.set(b'[{"kind": "alarm"}, {"kind": "flood"}]')
    assert told == [Alarm(), Flood()]
    assert [fault["kind"] for fault in faults.left()] == ["flood"]


def test_retry_headers_are_those_asked_for_and_no_others() -> None:
    fault = make({"status": 429, "retry_after_ms": 800}).take(AnswerFault)
    assert fault is not None
    assert fault.headers() == {"retry-after-ms": "800"}


@pytest.mark.parametrize(
    ("document", "named"),
    [
        (b'{"status": 200}', "status"),
        (b'{"statsu": 503}', "statsu"),
        (b'{"count": -1}', "count"),
        (b'{"deployment": "c"}', "'c'; there are: a, b"),
        (b'{"kind": "fire"}', "'fire'; there are: answer, flood, alarm"),
        (b'{"kind": ["flood"]}', "kind is"),
        (b'{"kind": "flood", "status": 503}', "status"),
        (b"7", "a JSON object, or an array"),
        (b"[7]", "a JSON object, not 7"),
        (b'[{"kind": "flood"}, {"status": 1}]', "status"),
        (b"{", "EOF"),
    ],
)
def test_a_fault_that_makes_no_sense_is_refused_by_name_and_changes_nothing(document: bytes, named: str) -> None:
    faults = make({"status": 503})
    with pytest.raises(ValueError, match=named):
        faults.set(document)
    assert statuses(faults, "a") == [503]
    assert not faults.has(Flood)


@pytest.fixture
async def control() -> AsyncIterator[TestClient[web.Request, web.Application]]:
    app = web.Application()
    add_fault_routes(app, make([]))
    async with TestClient(TestServer(app)) as client:
        yield client


async def test_faults_are_set_added_shown_and_cleared_over_http(
    control: TestClient[web.Request, web.Application],
) -> None:
    async with control.put("/local/faults", json={"status": 503}) as response:
        assert [fault["status"] for fault in await response.json()] == [503]
    async with control.post("/local/faults", json=[{"kind": "flood", "count": 1}]) as response:
        assert [fault["kind"] for fault in await response.json()] == ["answer", "flood"]
    async with control.delete("/local/faults") as response:
        assert await response.json() == []
    async with control.get("/local/faults") as response:
        assert await response.json() == []


@pytest.mark.parametrize("body", [b'{"status": 1}', b'{"kind": "fire"}', b"\xff"])
async def test_a_bad_fault_is_answered_by_its_problems(
    control: TestClient[web.Request, web.Application], body: bytes
) -> None:
    async with control.put("/local/faults", data=body) as response:
        assert response.status == 400
        assert (await response.json())["problems"]


async def test_the_schema_of_every_kind_is_told(control: TestClient[web.Request, web.Application]) -> None:
    async with control.get("/local/faults/kinds") as response:
        kinds = await response.json()
    assert list(kinds) == ["answer", "flood", "alarm"]
    assert set(kinds["flood"]["properties"]) == {"kind", "count", "seconds", "cellar"}


SERVICES = {
    "Service Bus": bus_faults.FAULTS,
    "Entra": entra_faults.FAULTS,
    "Azure OpenAI": openai_faults.FAULTS,
    "Blob storage": blob_faults.FAULTS,
}


@pytest.mark.parametrize("service", SERVICES)
def test_every_kind_and_each_of_its_fields_is_documented(service: str) -> None:
    page = (Path(__file__).parents[2] / "docs" / "fault-injection.md").read_text()
    for kind in SERVICES[service]:
        (name,) = Faults(kind).kinds()
        assert f"\n| `{name}` |" in page, name
        missing = [field.name for field in fields(kind) if f"`{field.name}`" not in page]
        assert missing == [], name
