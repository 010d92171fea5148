"""Blob storage: writes that are refused, fail, are not answered, or find no container."""

from tests.faults.scenario import Scenario
from tests.faults.scenarios.disturbed import disturbed

WRITES = {"operation": "put_blob"}


def refused(code: str, status: int, *, in_subset: bool = False) -> Scenario:
    return disturbed(
        f"blob {status} {code}",
        "blob",
        {"kind": "answer", "code": code, "count": 24, **WRITES},
        in_subset=in_subset,
    )


SCENARIOS = (
    refused("ContainerBeingDeleted", 409),
    refused("LeaseNotPresentWithBlobOperation", 412),
    refused("InternalError", 500),
    refused("OperationTimedOut", 500),
    refused("ServerBusy", 503),
    refused("AuthorizationFailure", 403),
    refused("ContainerNotFound", 404, in_subset=True),
    disturbed(
        "blob written, then 409 BlobAlreadyExists",
        "blob",
        {"kind": "lose_answer", "count": 24, **WRITES},
        injected="blob fault `lose_answer`, 24 times: each write is tried again and finds its own blob",
    ),
    disturbed(
        "blob answers not in time",
        "blob",
        {"kind": "connection", "how": "hang", "count": 4, **WRITES},
        lock_duration=30.0,
        injected="blob fault `connection` (hang), 4 times: each until the client's time-out of 60 s",
    ),
)
