"""What pods and producers tell each other: one set of promises for the fake and for Blob storage."""

import pytest

from tests.support.blob_service import BlobService
from worker.azure.blob.container import BlobContainer
from worker.azure.blob.fleet import BlobFleet
from worker.azure.blob.names import cancellation_name
from worker.client.blob_batches import BlobBatches
from worker.errors import Cause, SinkUnavailable
from worker.interfaces import Fleet
from worker.jobs.batch_records import Manifest, PodReport
from worker.testing import FakeFleet

PREFIX = "results"


def fleet_of(container: BlobContainer, pod: str = "pod-1") -> BlobFleet:
    return BlobFleet(container, prefix=PREFIX, pod=pod)


@pytest.fixture(params=["fake", "container", "azurite_container"])
def fleet(request: pytest.FixtureRequest) -> Fleet:
    return FakeFleet() if request.param == "fake" else fleet_of(request.getfixturevalue(request.param))


async def test_a_batch_that_nobody_cancelled_is_not(fleet: Fleet) -> None:
    assert await fleet.cancelled_up_to("b1") is None


async def test_a_report_takes_the_place_of_the_last_and_can_be_withdrawn_twice(fleet: Fleet) -> None:
    for number in range(3):
        await fleet.report(PodReport(pod="pod-1", at=float(number)))
    for _ in range(2):
        await fleet.withdraw()


async def test_a_pod_hears_what_a_producer_cancelled_and_a_producer_what_pods_tell(
    container: BlobContainer,
) -> None:
    batches = BlobBatches(container, PREFIX)
    await batches.announce(Manifest(batch_id="b1", total=3, sha256="", submitted_at=""))
    await batches.cancel("b1")
    fleet = fleet_of(container)
    assert await fleet.cancelled_up_to("b1") == 999
    report = PodReport(pod="pod 1/2", at=1.5, running={"b1": 2}, waits={"small": "429: slow down"})
    strange = fleet_of(container, "pod 1/2")
    await strange.report(report)
    assert await batches.pods() == (report,)
    await strange.withdraw()
    assert await batches.pods() == ()


async def test_a_cancellation_that_cannot_be_read_cancels_nothing(container: BlobContainer) -> None:
    await container.replace(cancellation_name(PREFIX, "b1"), b"{")
    assert await fleet_of(container).cancelled_up_to("b1") is None


async def test_who_has_no_role_is_told_so(container: BlobContainer, blob_storage: BlobService) -> None:
    async with blob_storage.open(container.url, "stranger") as closed:
        fleet = fleet_of(closed)
        for attempt in (fleet.cancelled_up_to("b1"), fleet.report(PodReport(pod="", at=0.0)), fleet.withdraw()):
            with pytest.raises(SinkUnavailable) as raised:
                await attempt
            assert raised.value.cause is Cause.ROLE_MISSING
