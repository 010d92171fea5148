"""The pure parts of the embedded Blob storage: pages of a listing, ranges, conditions, names; and its store."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from email.utils import formatdate
from functools import partial
from itertools import product
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from embedded_azure.blob.calls import read_metadata, read_target
from embedded_azure.blob.conditions import Conditions, Version, check_read, check_write
from embedded_azure.blob.documents import read_block_list
from embedded_azure.blob.listing import (
    Prefix,
    make_marker,
    name_after,
    read_marker,
    read_page,
    read_page_size,
)
from embedded_azure.blob.ranges import read_range
from embedded_azure.blob.refusals import Refused
from embedded_azure.blob.store import PIECE, Block, Description, Store


@dataclass(frozen=True)
class Row:
    name: str


def seek_in(names: Sequence[str], asked: list[int] | None = None) -> Callable[[str, int], Sequence[Row]]:
    """A store of these names, which are sorted. It notes in `asked` how many rows it gave."""

    def seek(start: str, count: int) -> Sequence[Row]:
        rows = [Row(name) for name in names if name >= start][:count]
        if asked is not None:
            asked.append(len(rows))
        return rows

    return seek


def read_all(names: Sequence[str], prefix: str, delimiter: str, size: int) -> list[list[str | Prefix]]:
    """Every page, each from the marker of the one before."""
    pages, start = [], ""
    while True:
        page = read_page(seek_in(names), prefix=prefix, delimiter=delimiter, start=start, size=size)
        pages.append([entry if isinstance(entry, Prefix) else entry.name for entry in page.entries])
        if page.next_name is None:
            return pages
        start = read_marker(make_marker(page.next_name))


def folded(names: Sequence[str], prefix: str, delimiter: str) -> list[str | Prefix]:
    """What a listing shows, said in the plainest way."""
    shown: list[str | Prefix] = []
    for name in names:
        if not name.startswith(prefix):
            continue
        end = name.find(delimiter, len(prefix)) if delimiter else -1
        entry: str | Prefix = name if end < 0 else Prefix(name[: end + len(delimiter)])
        if entry not in shown:
            shown.append(entry)
    return shown


letters = st.sampled_from(["a", "b", "/", "//", "~", "\0", "ä", "\ud7ff", "\U0010ffff"])
texts = st.lists(letters, max_size=6).map("".join)


@given(names=st.sets(texts.filter(bool), max_size=40), prefix=texts, delimiter=texts, size=st.integers(1, 7))
@example(names={f"a/{number:03}" for number in range(200)} | {"b"}, prefix="", delimiter="/", size=1)
@example(names={f"{number:03}" for number in range(200)}, prefix="", delimiter="/", size=67)
def test_pages_together_show_each_entry_once_in_order_and_all_but_the_last_are_full(
    names: set[str], prefix: str, delimiter: str, size: int
) -> None:
    ordered = sorted(names)
    pages = read_all(ordered, prefix, delimiter, size)
    assert [entry for page in pages for entry in page] == folded(ordered, prefix, delimiter)
    assert [len(page) for page in pages[:-1]] == [size] * (len(pages) - 1)
    assert len(pages) == 1 or pages[-1], "a page before told of more"


def test_a_folder_costs_one_question_however_much_is_in_it() -> None:
    names = sorted(f"{folder}/{number:05}" for folder in "abc" for number in range(5_001))
    asked: list[int] = []
    page = read_page(seek_in(names, asked), prefix="", delimiter="/", start="", size=5_000)
    assert page.entries == [Prefix("a/"), Prefix("b/"), Prefix("c/")]
    assert sum(asked) < 300


@given(texts)
def test_nothing_lies_between_a_prefix_and_the_name_after_it(prefix: str) -> None:
    after = name_after(prefix)
    if after is None:
        assert prefix.strip("\U0010ffff") == ""
    else:
        assert prefix + "\U0010ffff" * 9 < after
        after.encode()


@given(texts)
def test_a_marker_brings_back_its_name(name: str) -> None:
    assert read_marker(make_marker(name)) == name


@pytest.mark.parametrize("text", ["a", "2!", "2!####", "2!/w==", "1!YQ=="])
def test_a_marker_of_somebody_else_is_refused(text: str) -> None:
    if text == "2!":
        assert read_marker(text) == ""
        return
    with pytest.raises(Refused, match=r"marker is .*NextMarker"):
        read_marker(text)


@pytest.mark.parametrize(("text", "size"), [(None, 5_000), ("", 5_000), ("1", 1), ("4999", 4_999), ("5001", 5_000)])
def test_a_page_has_at_most_5000_entries(text: str | None, size: int) -> None:
    assert read_page_size(text) == size


@pytest.mark.parametrize("text", ["0", "-1", "x", "1.5", "²", "9" * 5_000])
def test_a_page_size_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(Refused, match="maxresults is"):
        read_page_size(text)


@given(first=st.integers(0, 60), last=st.none() | st.integers(0, 60), size=st.integers(0, 50))
def test_a_range_is_cut_to_the_blob(first: int, last: int | None, size: int) -> None:
    body = bytes(range(size))
    headers = {"x-ms-range": f"bytes={first}-{'' if last is None else last}", "Range": "bytes=0-0"}
    wanted = body[first : None if last is None else last + 1]
    backwards = last is not None and last < first
    if backwards or first >= size:
        with pytest.raises(Refused) as refused:
            read_range(headers, size)
        assert refused.value.code == ("InvalidHeaderValue" if backwards else "InvalidRange")
        return
    found = read_range(headers, size)
    assert found is not None
    assert body[found.start : found.end] == wanted
    assert found.header(size) == f"bytes {first}-{first + len(wanted) - 1}/{size}"


@pytest.mark.parametrize("text", ["bytes=-5", "bytes=0-1,3-4", "lines=1-2", "bytes=5-4", ""])
def test_a_range_that_azure_does_not_know_asks_for_the_whole(text: str) -> None:
    assert read_range({"Range": text}, 10) is None


THERE = Version(etag='"0x8D1"', modified=1_000_000_000)
BEFORE, AFTER = formatdate(THERE.modified - 1, usegmt=True), formatdate(THERE.modified + 1, usegmt=True)
SAME = formatdate(THERE.modified, usegmt=True)
ETAGS = [None, '"0x8D1"', "0x8D1", '"0x8D2"', "*"]
TIMES = [None, BEFORE, SAME, AFTER]


def headers_of(**headers: str | None) -> Conditions:
    return Conditions.parse({name.replace("_", "-"): value for name, value in headers.items() if value is not None})


def refusal_of(check: Callable[[], None]) -> tuple[int, str] | None:
    try:
        check()
    except Refused as refused:
        return refused.status, refused.code
    return None


def test_a_read_succeeds_where_every_wanted_thing_holds_and_the_caller_lacks_it() -> None:
    for match, none_match, since, unless in product(ETAGS, ETAGS, TIMES, TIMES):
        conditions = headers_of(
            If_Match=match, If_None_Match=none_match, If_Modified_Since=since, If_Unmodified_Since=unless
        )
        wanted = (match is None or "8D2" not in match) and unless != BEFORE
        outdated = [none_match == '"0x8D2"'] * (none_match is not None) + [since == BEFORE] * (since is not None)
        expected = None
        if none_match == "*":
            expected = (400, "UnsatisfiableCondition")
        elif not wanted:
            expected = (412, "ConditionNotMet")
        elif outdated and not any(outdated):
            expected = (304, "ConditionNotMet")
        assert refusal_of(partial(check_read, conditions, THERE)) == expected, conditions


@pytest.mark.parametrize("creates", [False, True])
def test_a_write_is_decided_by_its_etag_or_else_by_its_time(creates: bool) -> None:
    for match, none_match, since, unless in product(ETAGS, ETAGS, TIMES, TIMES):
        conditions = headers_of(
            If_Match=match, If_None_Match=none_match, If_Modified_Since=since, If_Unmodified_Since=unless
        )
        if none_match:
            met = none_match == '"0x8D2"'
        elif match:
            met = "8D2" not in match
        else:
            met = since == BEFORE if since else unless != BEFORE
        expected: tuple[int, str] | None = None if met else (412, "ConditionNotMet")
        if none_match == "*" and creates:
            expected = (409, "BlobAlreadyExists")
        missing = (412, "ConditionNotMet") if match not in (None, "*") else None
        if (none_match or since) and (match or unless):
            expected = missing = (400, "MultipleConditionHeadersNotSupported")
        assert refusal_of(partial(check_write, conditions, THERE, creates=creates)) == expected, conditions
        assert refusal_of(partial(check_write, conditions, None, creates=creates)) == missing, conditions


@pytest.mark.parametrize(
    "headers",
    [
        {"If-Match": '"1", "2"'},
        {"If-None-Match": '""'},
        {"If-Modified-Since": "yesterday"},
        {"If-Unmodified-Since": "Wed, 99 Oct 2025 10:00:00 GMT"},
    ],
)
def test_a_condition_that_cannot_be_read_is_refused_with_its_value(headers: Mapping[str, str]) -> None:
    [(name, _)] = headers.items()
    with pytest.raises(Refused, match=f"{name} is '") as refused:
        Conditions.parse(headers)
    assert refused.value.status == 400


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("/a", ("a", "", "")),
        ("/a/abc", ("a", "abc", "")),
        ("/a/abc/x%2Fy%20z", ("a", "abc", "x/y z")),
        ("/a/abc//x/", ("a", "abc", "/x/")),
        ("/a/abc/%C3%A4", ("a", "abc", "ä")),
        ("/a/abc/" + "x" * 1_024, ("a", "abc", "x" * 1_024)),
    ],
)
def test_a_path_names_account_container_and_blob(path: str, names: tuple[str, str, str]) -> None:
    target = read_target(path)
    assert (target.account, target.container, target.blob) == names


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/a/ab", "InvalidResourceName"),
        ("/a/aB-c", "InvalidResourceName"),
        ("/a/a--c", "InvalidResourceName"),
        ("/a/" + "x" * 64, "InvalidResourceName"),
        ("/a/abc/" + "x" * 1_025, "InvalidResourceName"),
        ("/a/abc/%FF", "InvalidUri"),
        ("/a/abc/a%00b", "InvalidUri"),
        ("/a/abc/a%EF%BF%BE", "InvalidUri"),
    ],
)
def test_a_name_that_cannot_be_one_is_refused(path: str, code: str) -> None:
    with pytest.raises(Refused) as refused:
        read_target(path)
    assert refused.value.code == code


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"x-ms-meta-": "1"}, "EmptyMetadataKey"),
        ({"x-ms-meta-a-b": "1"}, "InvalidMetadata"),
        ({"x-ms-meta-1": "1"}, "InvalidMetadata"),
        ({"x-ms-meta-a": "ä"}, "InvalidMetadata"),
        ({"x-ms-meta-a": "x" * 8_192}, "MetadataTooLarge"),
    ],
)
def test_metadata_that_cannot_be_kept_is_refused(headers: Mapping[str, str], code: str) -> None:
    with pytest.raises(Refused) as refused:
        read_metadata(headers)
    assert refused.value.code == code


def test_metadata_keeps_its_spelling() -> None:
    assert read_metadata({"X-MS-Meta-Tokens": "x" * 8_186, "Content-Type": "a"}) == {"Tokens": "x" * 8_186}


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"<BlockList>",
        b"<List/>",
        b"<BlockList><Newest>a</Newest></BlockList>",
        b'<!DOCTYPE x [<!ENTITY a "b">]><BlockList><Latest>&a;</Latest></BlockList>',
        b"<BlockList>" + b"<Latest>a</Latest>" * 50_001 + b"</BlockList>",
    ],
    ids=range(6),
)
def test_a_block_list_that_is_none_is_refused(document: bytes) -> None:
    with pytest.raises(Refused) as refused:
        read_block_list(document)
    assert refused.value.status == 400


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(Store(tmp_path / "blobs.sqlite", clock=lambda: 1_000.0)) as opened:
        opened.create_container("abc", {})
        yield opened


def put(store: Store, name: str, body: bytes) -> str:
    """The ETag."""
    block = Block(id="", size=len(body), content=store.new_content())
    for start in range(0, len(body), PIECE):
        store.append(block.content, start, body[start : start + PIECE])
    return store.put_blob("abc", name, Description(), [block]).etag


def pieces_in(store: Store) -> int:
    return int(store._database.execute("SELECT count(*) FROM piece").fetchone()[0])


@given(cuts=st.lists(st.integers(1, 9), max_size=8), first=st.integers(0, 40), length=st.integers(0, 40))
def test_any_range_of_any_blocks_is_read(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], first: int, length: int
) -> None:
    with closing(Store(tmp_path_factory.mktemp("store") / "blobs.sqlite")) as store:
        body, blocks = b"", []
        for size in cuts:
            data = bytes(range(len(body), len(body) + size))
            content = store.new_content()
            for start in range(0, size, 2):
                store.append(content, start, data[start : start + 2])
            blocks.append(Block(id="x", size=size, content=content))
            body += data
        assert b"".join(store.read(blocks, first, first + length)) == body[first : first + length]


def test_no_etag_comes_twice_though_the_clock_stands_still(store: Store) -> None:
    assert len({put(store, "a", b"x") for _ in range(1_000)}) == 1_000


def test_what_is_replaced_or_deleted_leaves_no_bytes(store: Store) -> None:
    large = b"x" * (3 * PIECE + 1)
    put(store, "a", large)
    put(store, "b", large)
    assert pieces_in(store) == 8
    put(store, "a", b"small")
    assert pieces_in(store) == 5
    for block_id in ("one", "two", "two"):
        content = store.new_content()
        store.append(content, 0, b"x")
        store.put_block("abc", "c", Block(id=block_id, size=1, content=content))
    assert pieces_in(store) == 7
    store.delete_blob("abc", "b")
    assert pieces_in(store) == 3
    store.delete_container("abc")
    assert pieces_in(store) == 0


def test_a_blob_that_is_replaced_while_it_is_read_is_not_mixed_with_the_new_one(store: Store) -> None:
    put(store, "a", b"x" * (2 * PIECE))
    reading = store.read(store.blocks("abc", "a", committed=True), 0, 2 * PIECE)
    assert next(reading) == b"x" * PIECE
    put(store, "a", b"y" * (2 * PIECE))
    with pytest.raises(KeyError):
        next(reading)


def test_a_store_begins_empty(tmp_path: Path) -> None:
    for _ in range(2):
        with closing(Store(tmp_path / "blobs.sqlite")) as store:
            assert store.create_container("abc", {})
            put(store, "a", b"x")
