"""What pods and producers tell each other beside the results: which batches are cancelled, what each pod does."""

from worker.azure.blob.container import BlobContainer, BlobFailed
from worker.azure.blob.names import cancellation_name, report_name
from worker.errors import SinkUnavailable
from worker.jobs.batch_records import PodReport, decode_cancellation, encode_report

LARGEST_CANCELLATION = 64 << 10
"""Bytes; what is larger is no cancellation."""


class BlobFleet:
    """A `Fleet`. `container` is open as long as this is used."""

    def __init__(self, container: BlobContainer, *, prefix: str, pod: str) -> None:
        self._container = container
        self._prefix = prefix
        self._report = report_name(prefix, pod)

    async def cancelled_up_to(self, batch_id: str) -> int | None:
        """One request."""
        name = cancellation_name(self._prefix, batch_id)
        try:
            body = await self._container.read(name, at_most=LARGEST_CANCELLATION)
            return decode_cancellation(body).replay
        except ValueError:
            return None  # what nobody can read cancels nothing; `status` names it
        except BlobFailed as error:
            if error.status == 404:
                return None
            raise SinkUnavailable.from_error(error) from error

    async def report(self, report: PodReport) -> None:
        try:
            await self._container.replace(self._report, encode_report(report))
        except BlobFailed as error:
            raise SinkUnavailable.from_error(error) from error

    async def withdraw(self) -> None:
        try:
            await self._container.delete(self._report)
        except BlobFailed as error:
            raise SinkUnavailable.from_error(error) from error
