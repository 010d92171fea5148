"""ATOM and the values in it: read with suspicion, written as Azure does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedded_azure.servicebus.administration.atom import ATOM, SERVICE_BUS, AtomError, child_text, read_description
from embedded_azure.servicebus.administration.values import FOREVER, read_duration, write_duration
from embedded_azure.servicebus.broker.messages import BrokerError

ENTRY = f"""<entry xmlns="{ATOM}"><content type="application/xml"><QueueDescription xmlns="{SERVICE_BUS}">
<UserMetadata>%s</UserMetadata></QueueDescription></content></entry>"""


def test_a_description_is_found_whatever_the_prefixes() -> None:
    prefixed = ENTRY.replace("<entry xmlns=", "<a:entry xmlns:a=").replace("</entry", "</a:entry")
    prefixed = prefixed.replace("<content", "<a:content").replace("</content", "</a:content")
    for document in (ENTRY, prefixed):
        description = read_description((document % "a &amp; b").encode(), "QueueDescription")
        assert child_text(description, "UserMetadata") == "a & b"
        assert child_text(description, "LockDuration") is None


def test_a_document_with_a_type_declaration_is_refused_even_if_it_is_fine_otherwise() -> None:
    with pytest.raises(AtomError, match="document type declaration"):
        read_description(f'<!DOCTYPE entry [<!ENTITY e "x">]>{ENTRY % "&e;"}'.encode(), "QueueDescription")


@pytest.mark.parametrize(
    ("document", "named"),
    [
        (ENTRY % ("<a>" * 40 + "</a>" * 40), "nested 32 deep"),
        (ENTRY % ("<a>" * 37_000 + "</a>" * 37_000), "nested 32 deep"),
        (ENTRY % ("x" * (1 << 18)), "at most 262144"),
        (ENTRY.replace("QueueDescription", "Other") % "x", "must be one QueueDescription"),
        ("<entry/>", "an ATOM entry is expected"),
        (ENTRY % "&e;", "not well-formed"),
    ],
    ids=["deep", "as-deep-as-fits", "large", "other", "no-namespace", "entity"],
)
def test_what_is_no_description_is_refused_by_what_is_wrong(document: str, named: str) -> None:
    with pytest.raises(AtomError, match=named):
        read_description(document.encode(), "QueueDescription")


@given(st.integers(0, 10_000_000 * 86_400 * 1_000))
def test_a_duration_is_read_as_it_was_written(milliseconds: int) -> None:
    seconds = milliseconds / 1_000
    assert read_duration("x", write_duration(seconds)) == pytest.approx(seconds, abs=1e-3)


def test_for_ever_is_what_dotnet_writes_for_it() -> None:
    assert write_duration(None) == FOREVER
    assert read_duration("x", FOREVER) is None


@pytest.mark.parametrize("text", ["", "P", "PT", "5", "PT5", "P1Y", "-PT5M", "PT5M ", "PT\u0665M"])
def test_what_is_no_duration_is_refused_by_the_name_of_its_field(text: str) -> None:
    with pytest.raises(BrokerError, match="LockDuration is a duration"):
        read_duration("LockDuration", text)
