"""The `blob` sink: a blob for each result, created on the condition that it is not there yet.

A name says whose result it is and whether it failed, so a batch's state is a listing, and reading destroys nothing.
"""

from worker.azure.blob.container import LARGEST_PUT, BlobContainer, BlobFailed
from worker.azure.blob.names import job_prefix, parse_result_name, result_name
from worker.errors import ResultTooLarge, SinkUnavailable
from worker.jobs.job import Job
from worker.jobs.results import Result, encode_summary


class BlobResults:
    """A `Sink`. `container` is open as long as this is used."""

    def __init__(self, container: BlobContainer, *, prefix: str = "results") -> None:
        self._container = container
        self._prefix = prefix

    async def open(self) -> None:
        """Prove that the container exists and that we may list it and write to it. Raises SinkUnavailable."""
        try:
            await self._container.prove(self._prefix)
        except BlobFailed as error:
            raise SinkUnavailable.from_error(error) from error

    async def write(self, result: Result) -> bool:
        """One request. After a SinkUnavailable False may also mean that the first attempt had arrived after all.

        An answer and an error of one job have two names, and the one that is there first does not keep the other
        out: collectors prefer the answer.
        """
        if len(result.line) > LARGEST_PUT:
            raise ResultTooLarge(size=len(result.line), allowed=LARGEST_PUT)
        name = result_name(self._prefix, result.job, failed=result.failed)
        try:
            return await self._container.create(name, result.line, encode_summary(result.summary)) is not None
        except BlobFailed as error:
            raise SinkUnavailable.from_error(error) from error

    async def has(self, job: Job) -> bool:
        """One request: a listing of what is there of the job. A later replay's result supersedes, so it counts."""
        found = False
        try:
            async for names in self._container.names(job_prefix(self._prefix, job)):
                results = [result for name in names if (result := parse_result_name(name))]
                found = found or any(result.replay >= job.replay for result in results)
        except BlobFailed as error:
            raise SinkUnavailable.from_error(error) from error
        return found
