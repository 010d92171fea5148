"""The blobs of one storage account, in a file of SQLite below the state directory: what is held is on disk.

A blob is an ordered list of blocks (one, where it was put whole), a block is a content, and a content is pieces
of at most 1 MiB, written as they arrive and read one at a time. So no blob is ever in memory whole, a block list
moves no bytes, and a listing is a range of an index. Everything happens in one thread; what must be one step is
one call.
"""

import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson

from embedded_azure.blob.conditions import Version

PIECE: Final = 1 << 20
_CACHE_KIB: Final = 32 << 10
"""Pages of the file that are kept in memory, beside what the kernel caches."""

_SCHEMA = """
CREATE TABLE container (name TEXT PRIMARY KEY, etag TEXT, modified INTEGER, metadata TEXT) WITHOUT ROWID;
CREATE TABLE blob (
    container TEXT, name TEXT, etag TEXT, created INTEGER, modified INTEGER, size INTEGER,
    properties TEXT, metadata TEXT, PRIMARY KEY (container, name)
) WITHOUT ROWID;
CREATE TABLE block (
    container TEXT, name TEXT, committed INTEGER, position INTEGER, id TEXT, size INTEGER, content INTEGER,
    PRIMARY KEY (container, name, committed, position)
) WITHOUT ROWID;
CREATE UNIQUE INDEX uncommitted ON block (container, name, id) WHERE committed = 0;
CREATE TABLE piece (content INTEGER, start INTEGER, data BLOB, PRIMARY KEY (content, start));
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """`modified` is in epoch seconds."""

    name: str
    etag: str
    modified: int
    metadata: Mapping[str, str]

    @property
    def version(self) -> Version:
        return Version(etag=self.etag, modified=self.modified)


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """A committed block blob without its bytes. `properties` are headers as they are sent with it, such as
    Content-Type; times are epoch seconds."""

    name: str
    etag: str
    created: int
    modified: int
    size: int
    properties: Mapping[str, str]
    metadata: Mapping[str, str]

    @property
    def version(self) -> Version:
        return Version(etag=self.etag, modified=self.modified)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """`id` is as the client wrote it, in base64; empty for a blob that was put whole."""

    id: str
    size: int
    content: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What a write says of a blob beside its bytes."""

    properties: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)


class Store:
    """Containers and blobs. Whoever calls has looked whether the container is there.

    The file is made anew: like the queues of the embedded Service Bus, blobs live as long as the process. `clock`
    gives epoch seconds. Every method may raise sqlite3.Error, as where the disk is full.
    """

    def __init__(self, file: Path, clock: Callable[[], float] = time.time) -> None:
        for each in (file, file.with_name(f"{file.name}-wal")):
            each.unlink(missing_ok=True)
        self._clock = clock
        self._last_etag = 0
        self._last_content = 0
        self._last_position = 0
        # autocommit: a statement is a transaction unless `_step` joins several
        self._database = sqlite3.connect(file, isolation_level=None, cached_statements=256)
        # a crash may cost the file, which the next start makes anew: nothing is synchronised. The journal is on
        # disk, or the deletion of a container would hold all its pages in memory
        for pragma in ("page_size=8192", "locking_mode=EXCLUSIVE", "journal_mode=WAL", "synchronous=OFF"):
            self._database.execute(f"PRAGMA {pragma}")
        self._database.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
        self._database.executescript(_SCHEMA)

    def close(self) -> None:
        self._database.close()

    def create_container(self, name: str, metadata: Mapping[str, str]) -> Container | None:
        """None where there is one of this name."""
        made = Container(name=name, etag=self._new_etag(), modified=self._now(), metadata=metadata)
        row = (made.name, made.etag, made.modified, _json(metadata))
        done = self._database.execute("INSERT OR IGNORE INTO container VALUES (?, ?, ?, ?)", row)
        return made if done.rowcount else None

    def container(self, name: str) -> Container | None:
        rows = self._database.execute("SELECT * FROM container WHERE name = ?", (name,))
        return next(map(_container, rows), None)

    def containers(self, start: str, count: int) -> Sequence[Container]:
        """In alphabetical order from `start` on."""
        rows = self._database.execute(
            "SELECT * FROM container WHERE name >= ? ORDER BY name LIMIT ?", (start, count)
        )
        return [_container(row) for row in rows]

    def set_container_metadata(self, container: Container, metadata: Mapping[str, str]) -> Container:
        """The container as it is now."""
        etag, now = self._new_etag(), self._now()
        self._database.execute(
            "UPDATE container SET etag = ?, modified = ?, metadata = ? WHERE name = ?",
            (etag, now, _json(metadata), container.name),
        )
        return Container(name=container.name, etag=etag, modified=now, metadata=metadata)

    def delete_container(self, name: str) -> None:
        """With all that is in it."""
        with self._step():
            pieces = "DELETE FROM piece WHERE content IN (SELECT content FROM block WHERE container = ?)"
            self._database.execute(pieces, (name,))
            for table in ("block", "blob"):
                self._database.execute(f"DELETE FROM {table} WHERE container = ?", (name,))  # noqa: S608 - one of two words
            self._database.execute("DELETE FROM container WHERE name = ?", (name,))

    def blob(self, container: str, name: str) -> Blob | None:
        rows = self._database.execute(f"{_BLOBS} AND name = ?", (container, name))
        return next(map(_blob, rows), None)

    def blobs(self, container: str, start: str, count: int) -> Sequence[Blob]:
        """In alphabetical order from `start` on."""
        rows = self._database.execute(f"{_BLOBS} AND name >= ? ORDER BY name LIMIT ?", (container, start, count))
        return [_blob(row) for row in rows]

    def new_content(self) -> int:
        """The number of a content without pieces. It is `drop_content`'s until a blob or a block has it."""
        self._last_content += 1
        return self._last_content

    def append(self, content: int, start: int, data: bytes) -> None:
        """At most PIECE bytes."""
        self._database.execute("INSERT INTO piece VALUES (?, ?, ?)", (content, start, data))

    def drop_content(self, content: int) -> None:
        self._database.execute("DELETE FROM piece WHERE content = ?", (content,))

    def put_blob(
        self, container: str, name: str, description: Description, blocks: Sequence[Block], *, data: bytes = b""
    ) -> Blob:
        """Make the blob of these blocks, in place of what is there, and drop those that have become needless.
        `data` is put into the first block's content, where it has no pieces yet."""
        before = self.blob(container, name)
        now = self._now()
        made = Blob(
            name=name,
            etag=self._new_etag(),
            created=before.created if before else now,
            modified=now,
            size=sum(block.size for block in blocks),
            properties=description.properties,
            metadata=description.metadata,
        )
        with self._step():
            self._drop_blocks(container, name, keep={block.content for block in blocks})
            if data:
                self.append(blocks[0].content, 0, data)
            rows = [
                (container, name, 1, position, block.id, block.size, block.content)
                for position, block in enumerate(blocks)
            ]
            self._database.executemany("INSERT INTO block VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
            properties, metadata = _json(made.properties), _json(made.metadata)
            self._database.execute(
                "INSERT OR REPLACE INTO blob VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (container, name, made.etag, made.created, now, made.size, properties, metadata),
            )
        return made

    def describe_blob(self, container: str, name: str, description: Description) -> Blob:
        """Give a blob that is there other properties and metadata. The blob as it is then."""
        self._database.execute(
            "UPDATE blob SET etag = ?, modified = ?, properties = ?, metadata = ? WHERE container = ? AND name = ?",
            (
                self._new_etag(),
                self._now(),
                _json(description.properties),
                _json(description.metadata),
                container,
                name,
            ),
        )
        changed = self.blob(container, name)
        assert changed is not None
        return changed

    def delete_blob(self, container: str, name: str) -> None:
        with self._step():
            self._drop_blocks(container, name, keep=set())
            self._database.execute("DELETE FROM blob WHERE container = ? AND name = ?", (container, name))

    def put_block(self, container: str, name: str, block: Block) -> None:
        """Uncommitted, in place of an uncommitted one of the same id."""
        self._last_position += 1
        with self._step():
            replaced = self._database.execute(
                "DELETE FROM block WHERE container = ? AND name = ? AND committed = 0 AND id = ? RETURNING content",
                (container, name, block.id),
            ).fetchall()
            for (content,) in replaced:
                self.drop_content(content)
            self._database.execute(
                "INSERT INTO block VALUES (?, ?, 0, ?, ?, ?, ?)",
                (container, name, self._last_position, block.id, block.size, block.content),
            )

    def blocks(self, container: str, name: str, *, committed: bool) -> list[Block]:
        """In the order in which they make up the blob, or came."""
        rows = self._database.execute(
            "SELECT id, size, content FROM block "
            "WHERE container = ? AND name = ? AND committed = ? ORDER BY position",
            (container, name, int(committed)),
        )
        return [Block(id=name, size=size, content=content) for name, size, content in rows]

    def uncommitted_id(self, container: str, name: str) -> str | None:
        """Of any uncommitted block of the blob; None where it has none."""
        found = self._database.execute(
            "SELECT id FROM block WHERE container = ? AND name = ? AND committed = 0 LIMIT 1", (container, name)
        ).fetchone()
        return None if found is None else found[0]

    def read(self, blocks: Sequence[Block], start: int, end: int) -> Iterator[bytes]:
        """The bytes from `start` to `end` of what these blocks make up, piece by piece. Raises KeyError where
        the blob was replaced meanwhile, and a piece is gone."""
        offset = 0
        for block in blocks:
            first, last = max(start - offset, 0), min(end - offset, block.size)
            while first < last:
                begin, data = self._piece(block.content, first)
                part = data[first - begin : last - begin]
                yield part
                first += len(part)
            offset += block.size

    def _piece(self, content: int, at: int) -> tuple[int, bytes]:
        found = self._database.execute(
            "SELECT start, data FROM piece WHERE content = ? AND start <= ? ORDER BY start DESC LIMIT 1",
            (content, at),
        ).fetchone()
        if found is None:
            raise KeyError(content)
        return found[0], found[1]

    def _drop_blocks(self, container: str, name: str, *, keep: set[int]) -> None:
        rows = self._database.execute(
            "DELETE FROM block WHERE container = ? AND name = ? RETURNING content", (container, name)
        ).fetchall()
        for content in {row[0] for row in rows} - keep:
            self.drop_content(content)

    @contextmanager
    def _step(self) -> Iterator[None]:
        self._database.execute("BEGIN")
        try:
            yield
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")

    def _new_etag(self) -> str:
        """Never the same twice, even where the clock stands still."""
        self._last_etag = max(self._last_etag + 1, int(self._clock() * 1e7))
        return f'"0x8D{self._last_etag:014X}"'

    def _now(self) -> int:
        return int(self._clock())


_BLOBS = "SELECT name, etag, created, modified, size, properties, metadata FROM blob WHERE container = ?"


def _json(mapping: Mapping[str, str]) -> str:
    return orjson.dumps(dict(mapping)).decode()


def _container(row: Any) -> Container:
    name, etag, modified, metadata = row
    return Container(name=name, etag=etag, modified=modified, metadata=orjson.loads(metadata))


def _blob(row: Any) -> Blob:
    name, etag, created, modified, size, properties, metadata = row
    return Blob(
        name=name,
        etag=etag,
        created=created,
        modified=modified,
        size=size,
        properties=orjson.loads(properties),
        metadata=orjson.loads(metadata),
    )
