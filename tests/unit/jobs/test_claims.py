"""Claims: what they say, and which urls they may name."""

import hashlib
import re
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from worker.azure.blob.claims import claimed_name
from worker.errors import DeadLetterReason, NotAJob
from worker.jobs.claims import encode_claim, make_claim
from worker.jobs.job import Claim, parse_claim

CONTAINER = "https://account.blob.core.windows.net/batches"
PLACE = f"{CONTAINER}/claims/"


@given(body=st.binary(max_size=100), etag=st.none() | st.just('"0x8DC"'))
def test_a_claim_is_read_as_it_was_made(body: bytes, etag: str | None) -> None:
    claim = make_claim(f"{PLACE}b1/x.json", body, etag=etag)
    assert claim == Claim(url=claim.url, length=len(body), sha256=hashlib.sha256(body).hexdigest(), etag=etag)
    assert parse_claim(encode_claim(claim)) == claim


@pytest.mark.parametrize("name", ["a", "b1/a.json", "..~/a.json", "a/b/c/d", "a..b/...", "~", "-", "A" * 1_000])
def test_a_plain_name_in_the_folder_of_claims_is_taken(name: str) -> None:
    assert claimed_name(PLACE + name, CONTAINER) == f"claims/{name}"


HOSTILE = [
    "",
    "claims/b1/a.json",
    "/claims/b1/a.json",
    "http://account.blob.core.windows.net/batches/claims/a",
    "HTTPS://account.blob.core.windows.net/batches/claims/a",
    "https://account.blob.core.windows.net./batches/claims/a",
    "https://account.blob.core.windows.net:443/batches/claims/a",
    "https://account.blob.core.windows.net:8443/batches/claims/a",
    "https://user@account.blob.core.windows.net/batches/claims/a",
    "https://user:secret@account.blob.core.windows.net/batches/claims/a",
    "https://account.blob.core.windows.net@evil.example/batches/claims/a",
    "https://account.blob.core.windows.net.evil.example/batches/claims/a",
    "https://evil.example/https://account.blob.core.windows.net/batches/claims/a",
    "https://other.blob.core.windows.net/batches/claims/a",
    "https://169.254.169.254/metadata/identity/oauth2/token",
    "https://account.blob.core.windows.net/other/claims/a",
    "https://account.blob.core.windows.net/batches-2/claims/a",
    "https://account.blob.core.windows.net/batches/results/b1/a.ok.json",
    "https://account.blob.core.windows.net/batches/claims",
    "https://account.blob.core.windows.net//batches/claims/a",
    PLACE,
    f"{PLACE}/a",
    f"{PLACE}a/",
    f"{PLACE}a//b",
    f"{PLACE}../results/a",
    f"{PLACE}./a",
    f"{PLACE}a/..",
    f"{PLACE}a/../../results/b",
    f"{PLACE}..",
    f"{PLACE}%2e%2e/results/a",
    f"{PLACE}a%2Fb",
    f"{PLACE}..\\results\\a",
    f"{PLACE}a?sv=2023-11-03&sig=abc",
    f"{PLACE}a?comp=list",
    f"{PLACE}a?",
    f"{PLACE}a#b",
    f"{PLACE}a b",
    f"{PLACE}a\r\nHost: evil.example",
    f"{PLACE}a\n",
    f"{PLACE}a\x00",
    f"{PLACE}ä",
    f"{PLACE}a;b",
    f"{PLACE}a@b",
    f"{PLACE}a:b",
    f" {PLACE}a",
    f"{PLACE}{'a' * 1_025}",
    "file:///etc/passwd",
    "javascript:alert(1)",
]


@pytest.mark.parametrize("url", HOSTILE)
def test_no_other_url_is_fetched(url: str) -> None:
    with pytest.raises(NotAJob) as caught:
        claimed_name(url, CONTAINER)
    assert caught.value.reason is DeadLetterReason.INVALID_CLAIM
    assert PLACE in caught.value.description
    assert "evil" not in caught.value.description


URL_PARTS = st.sampled_from(
    [*"./\\?#@:%&=~-_ab\r\n\t ä", "..", "%2e", "%2F", "//", "https://", "evil.example", PLACE]
)


@given(parts=st.lists(URL_PARTS, max_size=8), place=st.booleans())
def test_whatever_is_taken_stays_in_the_folder_for_every_reader_of_urls(parts: list[str], place: bool) -> None:
    url = (PLACE if place else "") + "".join(parts)
    try:
        name = claimed_name(url, CONTAINER)
    except NotAJob:
        return
    fetched = f"{CONTAINER}/{name}"
    assert fetched == url
    split = urlsplit(fetched)
    assert (split.scheme, split.netloc, split.query, split.fragment) == (
        "https",
        "account.blob.core.windows.net",
        "",
        "",
    )
    assert str(URL(fetched)) == fetched, "aiohttp would normalise it"
    assert not re.search(r"(^|/)\.{0,2}(/|$)", name)
