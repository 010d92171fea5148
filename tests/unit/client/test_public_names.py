import re

import pytest

import worker.client as client
from worker.client import JobClient, SyncJobClient
from worker.errors import WorkerError

CLIENTS = (JobClient, SyncJobClient)
DOCUMENTED = {
    name
    for kind in CLIENTS
    for method in vars(kind).values()
    for raised in re.findall(
        r"Raises ([^.:]*)", getattr(getattr(method, "__func__", method), "__doc__", None) or ""
    )
    for name in re.findall(r"\b[A-Z][a-z]+[A-Z]\w+", raised)
} - {"ServiceBusError"}


def test_documentation_of_methods_names_what_they_raise() -> None:
    assert {"InvalidDeadline", "BlobFailed", "InvalidSettings", "ClaimUnavailable"} <= DOCUMENTED


@pytest.mark.parametrize("name", [*sorted(DOCUMENTED), "TokenUnavailable", "WorkerError"])
def test_what_a_method_raises_can_be_imported_from_the_client(name: str) -> None:
    assert name in client.__all__
    assert issubclass(getattr(client, name), WorkerError)


def test_the_cost_of_a_status_can_be_told_with_what_the_client_has() -> None:
    usage = client.BatchDetail().usage
    assert client.cost_of(usage, {}) == client.Cost({})


def test_both_clients_have_the_same_public_names_but_for_watch() -> None:
    names, sync_names = ({name for name in vars(kind) if not name.startswith("_")} for kind in CLIENTS)
    assert names - sync_names == {"watch"}
