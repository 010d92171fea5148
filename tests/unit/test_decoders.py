"""What others write is read, or refused with the documented error: never another one, never without end."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.decoders import DECODERS, Decoder
from tests.support.json_values import json_values
from worker.azure.blob.container import BlobFailed, parse_page

decoders = pytest.mark.parametrize("decoder", DECODERS.values(), ids=list(DECODERS))

HOSTILE = (
    *(
        b"null",
        b"true",
        b"-1",
        b"0.5",
        b'""',
        b'"a"',
        b"[]",
        b"{}",
        b"[[]]",
        b'{"a":[]}',
        b"1e400",
        b"-0.0",
        b"NaN",
    ),
    b"nan",
    b"inf",
    b"1e308",
    b"9" * 400,
    b"9" * 5_000,
    b"[" * 1_000 + b"]" * 1_000,
    b'{"a":' * 1_000 + b"1" + b"}" * 1_000,
    b"[" * 100_000,
    b'"\\ud800"',
    b'"\\u0000\\u001b[2J\\u202e"',
    b"\xff\xfe",
    b"\x00",
    b"\r\n",
    b'"0001-01-01T00:00:00+23:59"',
    b'"9999-12-31T23:59:59.999999Z"',
    b"\xd9\xa3",  # a digit, though not one of ASCII
)
TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|-?[0-9][0-9.eE+]*|true|false|null|[a-z]+|.', re.DOTALL)
"""Of JSON, XML and headers: what may be exchanged for something else."""


def mutated(valid: bytes) -> st.SearchStrategy[bytes]:
    tokens = TOKEN.findall(valid)
    places = st.lists(
        st.tuples(st.integers(0, len(tokens) - 1), st.sampled_from(HOSTILE) | st.binary(max_size=4)),
        min_size=1,
        max_size=3,
    )

    def exchange(changes: list[tuple[int, bytes]]) -> bytes:
        changed = dict(changes)
        return b"".join(changed.get(place, token) for place, token in enumerate(tokens))

    return places.map(exchange)


def read(decoder: Decoder, raw: bytes) -> None:
    try:
        decoder.read(raw)
    except decoder.errors as error:
        # the error itself must be one that can be written
        str(error).encode()


@decoders
def test_the_valid_example_is_read(decoder: Decoder) -> None:
    decoder.read(decoder.valid)


@decoders
@given(raw=st.binary(max_size=200) | json_values.map(lambda value: str(value).encode()))
def test_bytes_of_anybody_are_read_or_refused(decoder: Decoder, raw: bytes) -> None:
    read(decoder, raw)


@decoders
@given(data=st.data())
def test_what_is_nearly_valid_is_read_or_refused(decoder: Decoder, data: st.DataObject) -> None:
    read(decoder, data.draw(mutated(decoder.valid)))


def test_entities_of_a_listing_that_expand_without_end_are_refused() -> None:
    entities = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 12))
    listing = f'<!DOCTYPE a [<!ENTITY a0 "{"x" * 100}">{entities}]><a>&a11;</a>'
    with pytest.raises(BlobFailed, match="its listing is not XML"):
        parse_page("https://a.blob.core.windows.net/c", listing.encode())


@decoders
def test_each_hostile_value_in_each_place_is_read_or_refused(decoder: Decoder) -> None:
    tokens = TOKEN.findall(decoder.valid)
    for place in range(len(tokens)):
        for hostile in HOSTILE:
            read(decoder, b"".join([*tokens[:place], hostile, *tokens[place + 1 :]]))
