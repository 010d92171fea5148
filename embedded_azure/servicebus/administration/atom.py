"""ATOM as the administration API of Service Bus speaks it: entries with a description in them, feeds, errors.

What is read comes from anybody: documents with a DTD, and so with entities, are refused, as are large and deep
ones.
"""

from collections.abc import Iterable, Sequence
from typing import Final
from xml.etree.ElementTree import Element, SubElement, tostring

from defusedxml import DTDForbidden
from defusedxml.ElementTree import ParseError, fromstring

ATOM: Final = "http://www.w3.org/2005/Atom"
SERVICE_BUS: Final = "http://schemas.microsoft.com/netservices/2010/10/servicebus/connect"
COUNTS: Final = "http://schemas.microsoft.com/netservices/2011/06/servicebus"
INSTANCE: Final = "http://www.w3.org/2001/XMLSchema-instance"
SCHEMA: Final = "http://www.w3.org/2001/XMLSchema"
COUNTS_PREFIX: Final = "d2p1"
CONTENT_TYPE: Final = "application/atom+xml;type=entry;charset=utf-8"
FEED_TYPE: Final = "application/atom+xml;type=feed;charset=utf-8"
ERROR_TYPE: Final = "application/xml; charset=utf-8"
LARGEST: Final = 1 << 18
"""Bytes of a document."""
DEEPEST: Final = 32


class AtomError(Exception):
    """The document cannot be read. The message may be shown to the client."""


def read_description(document: bytes, *names: str) -> Element:
    """The description, of one of these names, in the content of an entry. Raises AtomError."""
    entry = _parse(document)
    if entry.tag != f"{{{ATOM}}}entry":
        raise AtomError(f"an ATOM entry is expected, not {entry.tag[:80]!r}")
    content = entry.find(f"{{{ATOM}}}content")
    found = [] if content is None else list(content)
    if len(found) != 1 or found[0].tag not in {f"{{{SERVICE_BUS}}}{name}" for name in names}:
        raise AtomError(f"the entry's content must be one {' or '.join(names)} of {SERVICE_BUS}")
    return found[0]


def _parse(document: bytes) -> Element:
    if len(document) > LARGEST:
        raise AtomError(f"the document has {len(document)} bytes; at most {LARGEST} are read")
    try:
        element = fromstring(document, forbid_dtd=True)
    except DTDForbidden as error:
        raise AtomError("a document type declaration is not allowed here") from error
    except (ParseError, ValueError, LookupError) as error:
        raise AtomError(f"the document is not well-formed XML: {error}") from error
    level = [element]
    for _ in range(DEEPEST):
        level = [child for parent in level for child in parent]
    if level:
        raise AtomError(f"elements may be nested {DEEPEST} deep")
    return element


def child_text(parent: Element, name: str) -> str | None:
    """None when it is not there; what is empty is an empty string."""
    found = parent.find(f"{{{SERVICE_BUS}}}{name}")
    return None if found is None else (found.text or "").strip()


def add_text(parent: Element, name: str, value: object, namespace: str = SERVICE_BUS) -> Element:
    """Booleans as XML has them; None adds nothing to what is returned."""
    child = SubElement(parent, f"{{{namespace}}}{name}")
    child.text = str(value).lower() if isinstance(value, bool) else str(value)
    return child


def make_entry(*, url: str, title: str, author: str, created: str, updated: str, description: Element) -> Element:
    entry = Element(f"{{{ATOM}}}entry")
    add_text(entry, "id", url, ATOM)
    add_text(entry, "title", title, ATOM).set("type", "text")
    add_text(entry, "published", created, ATOM)
    add_text(entry, "updated", updated, ATOM)
    add_text(SubElement(entry, f"{{{ATOM}}}author"), "name", author, ATOM)
    SubElement(entry, f"{{{ATOM}}}link", {"rel": "self", "href": url})
    SubElement(entry, f"{{{ATOM}}}content", {"type": "application/xml"}).append(description)
    return entry


def make_feed(*, url: str, title: str, updated: str, entries: Iterable[Element], following: str | None) -> Element:
    """`following` is the address of the next page."""
    feed = Element(f"{{{ATOM}}}feed")
    add_text(feed, "title", title, ATOM).set("type", "text")
    add_text(feed, "id", url, ATOM)
    add_text(feed, "updated", updated, ATOM)
    SubElement(feed, f"{{{ATOM}}}link", {"rel": "self", "href": url})
    if following is not None:
        SubElement(feed, f"{{{ATOM}}}link", {"rel": "next", "href": following})
    feed.extend(entries)
    return feed


def make_error(code: int, detail: str) -> bytes:
    error = Element("Error")
    SubElement(error, "Code").text = str(code)
    SubElement(error, "Detail").text = "".join(letter if letter.isprintable() else "?" for letter in detail)
    return write(error)


def write(element: Element) -> bytes:
    """With default namespaces: the SDK for JavaScript looks for names as they are written, without prefixes."""
    written: bytes = tostring(_plain(element, ""), encoding="utf-8", xml_declaration=False)
    return written


def _plain(element: Element, above: str) -> Element:
    """A copy whose names have the prefixes that Azure's answers have. `above` is the default namespace there."""
    namespace, _, name = element.tag.rpartition("}")
    namespace = namespace.removeprefix("{")
    attributes = dict(element.attrib)
    kind = attributes.pop(f"{{{INSTANCE}}}type", None)
    if namespace == COUNTS:
        name, namespace = f"{COUNTS_PREFIX}:{name}", above
    elif namespace != above:
        attributes["xmlns"] = namespace
    if kind is not None:
        attributes |= {"i:type": kind, "xmlns:i": INSTANCE}
    plain = Element(name, attributes)
    plain.text = element.text
    if any(child.tag.startswith(f"{{{COUNTS}}}") for child in element):
        plain.set(f"xmlns:{COUNTS_PREFIX}", COUNTS)
    plain.extend(_plain(child, namespace) for child in element)
    return plain


def description_of(name: str, children: Sequence[Element] = ()) -> Element:
    description = Element(f"{{{SERVICE_BUS}}}{name}")
    description.extend(children)
    return description
