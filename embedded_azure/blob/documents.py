"""The XML of Blob storage: listings and block lists, as Azure's clients read and write them."""

from collections.abc import Iterable, Mapping, Sequence
from email.utils import formatdate
from functools import lru_cache
from typing import Final
from xml.etree.ElementTree import Element, ParseError
from xml.sax.saxutils import escape, quoteattr

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import fromstring

from embedded_azure.blob.listing import Page, Prefix, make_marker
from embedded_azure.blob.refusals import Refused
from embedded_azure.blob.store import Blob, Block, Container

_DECLARATION: Final = '<?xml version="1.0" encoding="utf-8"?>'
MOST_BLOCKS: Final = 50_000
_FIXED: Final = (
    "<BlobType>BlockBlob</BlobType><AccessTier>Hot</AccessTier><AccessTierInferred>true</AccessTierInferred>"
    "<LeaseStatus>unlocked</LeaseStatus><LeaseState>available</LeaseState><ServerEncrypted>true</ServerEncrypted>"
)
_LISTED: Final = (
    "Content-Type",
    "Content-Encoding",
    "Content-Language",
    "Content-MD5",
    "Cache-Control",
    "Content-Disposition",
)


@lru_cache(maxsize=1_024)
def http_date(seconds: int) -> str:
    return formatdate(seconds, usegmt=True)


def list_of_blobs(
    page: Page[Blob], *, endpoint: str, container: str, asked: Mapping[str, str], with_metadata: bool
) -> bytes:
    """`asked` are the parameters of the request, which the answer repeats."""
    entries = "".join(
        f"<BlobPrefix><Name>{escape(entry.name)}</Name></BlobPrefix>"
        if isinstance(entry, Prefix)
        else _listed_blob(entry, with_metadata)
        for entry in page.entries
    )
    name = f" ContainerName={quoteattr(container)}"
    return _enumeration(endpoint, name, asked, f"<Blobs>{entries}</Blobs>", page.next_name)


def list_of_containers(
    page: Page[Container], *, endpoint: str, asked: Mapping[str, str], with_metadata: bool
) -> bytes:
    entries = "".join(
        f"<Container><Name>{entry.name}</Name><Properties>"
        f"<Last-Modified>{http_date(entry.modified)}</Last-Modified><Etag>{escape(entry.etag)}</Etag>"
        "<LeaseStatus>unlocked</LeaseStatus><LeaseState>available</LeaseState>"
        "<HasImmutabilityPolicy>false</HasImmutabilityPolicy><HasLegalHold>false</HasLegalHold></Properties>"
        f"{_metadata(entry.metadata) if with_metadata else ''}</Container>"
        for entry in page.entries
        if isinstance(entry, Container)
    )
    return _enumeration(endpoint, "", asked, f"<Containers>{entries}</Containers>", page.next_name)


def list_of_blocks(committed: Iterable[Block] | None, uncommitted: Iterable[Block] | None) -> bytes:
    """None where they were not asked for."""
    parts = [
        f"<{name}>{''.join(map(_listed_block, blocks))}</{name}>"
        for name, blocks in (("CommittedBlocks", committed), ("UncommittedBlocks", uncommitted))
        if blocks is not None
    ]
    return f"{_DECLARATION}<BlockList>{''.join(parts)}</BlockList>".encode()


def read_block_list(document: bytes) -> Sequence[tuple[str, str]]:
    """Where each block is looked for (`Committed`, `Uncommitted` or `Latest`) and its id. Raises Refused."""
    try:
        root: Element = fromstring(document)
    except (ParseError, DefusedXmlException, ValueError) as error:
        raise Refused("InvalidXmlDocument", f"the block list cannot be read: {error}"[:300]) from error
    asked = [(element.tag, (element.text or "").strip()) for element in root]
    if root.tag != "BlockList" or any(place not in ("Committed", "Uncommitted", "Latest") for place, _ in asked):
        raise Refused("InvalidXmlDocument", "a BlockList has elements Committed, Uncommitted and Latest")
    if len(asked) > MOST_BLOCKS:
        raise Refused("BlockListTooLong", f"the list has {len(asked):,} blocks")
    return asked


def _enumeration(
    endpoint: str, attributes: str, asked: Mapping[str, str], entries: str, next_name: str | None
) -> bytes:
    said = "".join(
        f"<{element}>{escape(asked[name])}</{element}>"
        for name, element in (
            ("prefix", "Prefix"),
            ("marker", "Marker"),
            ("maxresults", "MaxResults"),
            ("delimiter", "Delimiter"),
        )
        if asked.get(name)
    )
    marker = "" if next_name is None else make_marker(next_name)
    return (
        f"{_DECLARATION}<EnumerationResults ServiceEndpoint={quoteattr(endpoint)}{attributes}>"
        f"{said}{entries}<NextMarker>{marker}</NextMarker></EnumerationResults>"
    ).encode()


def _listed_blob(blob: Blob, with_metadata: bool) -> str:
    properties = blob.properties
    listed = "".join(f"<{name}>{escape(properties[name])}</{name}>" for name in _LISTED if name in properties)
    return (
        f"<Blob><Name>{escape(blob.name)}</Name><Properties>"
        f"<Creation-Time>{http_date(blob.created)}</Creation-Time>"
        f"<Last-Modified>{http_date(blob.modified)}</Last-Modified><Etag>{blob.etag.strip(chr(34))}</Etag>"
        f"<Content-Length>{blob.size}</Content-Length>{listed}{_FIXED}</Properties>"
        f"{_metadata(blob.metadata) if with_metadata else ''}<OrMetadata /></Blob>"
    )


def _metadata(metadata: Mapping[str, str]) -> str:
    pairs = "".join(f"<{name}>{escape(value)}</{name}>" for name, value in metadata.items())
    return f"<Metadata>{pairs}</Metadata>" if pairs else "<Metadata />"


def _listed_block(block: Block) -> str:
    return f"<Block><Name>{block.id}</Name><Size>{block.size}</Size></Block>"
