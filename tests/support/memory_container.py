"""Blobs in memory that keep the promises of `BlobContainer`, and what a worker and a producer put there."""

import itertools
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from email.utils import formatdate
from types import MappingProxyType

from tests.support.blob_jobs import make_job, make_line
from worker.azure.blob.container import BlobFailed, ListedBlob
from worker.azure.blob.names import manifest_name, result_name
from worker.jobs.batch_records import Manifest, encode_manifest
from worker.jobs.results import ResultSummary, encode_summary
from worker.waits import loop_time

PREFIX = "results"


class MemoryContainer:
    """Blobs are listed by `page` at a time; each such listing first runs `before_listing` with its number."""

    def __init__(self, *, page: int = 5_000) -> None:
        self.stored: dict[str, bytes] = {}
        self.metadata: dict[str, Mapping[str, str]] = {}
        self.modified: dict[str, float] = {}
        self.etags: dict[str, str] = {}
        self.failures: list[BlobFailed] = []
        self.listed: list[float] = []
        self.read_names: list[str] = []
        self.before_listing: Callable[[int], None] = lambda number: None
        self._page = page
        self._versions = itertools.count(2)

    async def create(
        self, name: str, body: bytes, metadata: Mapping[str, str] = MappingProxyType({})
    ) -> str | None:
        if name in self.stored:
            return None
        self.stored[name], self.metadata[name], self.modified[name] = body, metadata, time.time()
        return '"0x1"'

    async def replace(self, name: str, body: bytes, *, etag: str | None = None) -> str | None:
        if etag and etag != self.etags.get(name):
            return None
        self.stored[name], self.modified[name] = body, time.time()
        self.etags[name] = f'"{next(self._versions):#x}"'
        return self.etags[name]

    async def delete(self, name: str, *, etag: str | None = None) -> None:
        if etag in (None, self.etags.get(name)):
            self.stored.pop(name, None)
            self.etags.pop(name, None)

    async def read(self, name: str, *, at_most: int) -> bytes:
        self.read_names.append(name)
        if name not in self.stored:
            raise BlobFailed("not there", status=404, code="BlobNotFound")
        return self.stored[name]

    async def names(self, prefix: str) -> AsyncIterator[Sequence[str]]:
        yield self._names(prefix)

    async def blobs(self, prefix: str, *, metadata: bool = True) -> AsyncIterator[Sequence[ListedBlob]]:
        self.listed.append(loop_time())
        self.before_listing(len(self.listed))
        if self.failures:
            raise self.failures.pop(0)
        names = self._names(prefix)
        for start in range(0, len(names), self._page):
            yield [self._listed(name, metadata) for name in names[start : start + self._page]]

    async def folders(self, prefix: str) -> AsyncIterator[Sequence[str]]:
        rest = (name.removeprefix(prefix) for name in self._names(prefix))
        yield sorted({f"{prefix}{name.partition('/')[0]}/" for name in rest if "/" in name})

    def put(
        self, name: str, *, replay: int = 0, failed: bool = False, summary: ResultSummary | None = None
    ) -> None:
        """The result of the job `b1/<name>`."""
        job = make_job(name, replay=replay)
        blob = result_name(PREFIX, job, failed=failed)
        self.stored.setdefault(blob, make_line(job, failed=failed))
        if summary:
            self.metadata[blob] = encode_summary(summary)

    def announce(self, total: int, *, batch_id: str = "b1", submitted_at: str = "") -> None:
        manifest = Manifest(batch_id=batch_id, total=total, sha256="0" * 64, submitted_at=submitted_at)
        self.stored[manifest_name(PREFIX, batch_id)] = encode_manifest(manifest)

    def _names(self, prefix: str) -> Sequence[str]:
        return sorted(name for name in self.stored if name.startswith(prefix))

    def _listed(self, name: str, metadata: bool) -> ListedBlob:
        modified = formatdate(self.modified.get(name, 0.0), usegmt=True)
        return ListedBlob(name, modified, self.metadata.get(name, {}) if metadata else {})
