"""The table of metrics in docs/operations.md, from what /metrics shows."""

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from prometheus_client import Metric
from prometheus_client.registry import Collector

from scripts.reference.blocks import replace, table
from worker.admission.admission import Admission
from worker.telemetry.metrics import Metrics

SUFFIXES = {"counter": "_total", "info": "_info"}
SHOWN_AS = {"info": "gauge"}
"""Types of the client library that Prometheus stores as another."""
TOKEN_FILE = "AZURE_FEDERATED_TOKEN_FILE"


class Row(NamedTuple):
    """As Prometheus stores it. What a library adds by itself to the labels, such as `le`, is left out."""

    name: str
    kind: str
    labels: tuple[str, ...]
    meaning: str


def render(page: str) -> str:
    rows = (
        (f"`{row.name}`", row.kind, ", ".join(f"`{label}`" for label in row.labels), row.meaning)
        for row in metrics()
    )
    return replace(page, "metrics", table(("metric", "type", "labels", "meaning"), rows))


def metrics() -> tuple[Row, ...]:
    """Everything that /metrics can show."""

    async def collect() -> tuple[Row, ...]:  # where there is a clock for the gates
        with _workload_identity():
            made = Metrics(queues=["q"], deployments=["d"], scopes=["https://s//.default"], slots=1, bytes_limit=1)
            made.watch(Admission({}, slots=1, observer=made))
        collectors = made.registry._collector_to_names
        return tuple(_row(one, family) for one in collectors for family in one.collect())

    return asyncio.run(collect())


@contextmanager
def _workload_identity() -> Iterator[None]:
    """One metric is about its token file."""
    before = os.environ.get(TOKEN_FILE)
    os.environ[TOKEN_FILE] = "token"
    try:
        yield
    finally:
        os.environ.pop(TOKEN_FILE)
        if before is not None:
            os.environ[TOKEN_FILE] = before


def _row(collector: Collector, family: Metric) -> Row:
    # whether or not there is a series already; an info's labels are those of its one series
    labels = [*getattr(collector, "_labelnames", ()), *getattr(family, "_labelnames", ())]
    labels += [label for sample in family.samples for label in sample.labels if family.type == "info"]
    return Row(
        name=family.name + SUFFIXES.get(family.type, ""),
        kind=SHOWN_AS.get(family.type, family.type),
        labels=tuple(dict.fromkeys(labels)),
        meaning=family.documentation,
    )
