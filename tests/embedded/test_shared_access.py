"""Shared access signatures, checked against the SDK's own signing."""

import time

import pytest
from azure.servicebus._base_handler import _generate_sas_token
from hypothesis import given
from hypothesis import strategies as st

from embedded_azure.config import SharedAccessRule
from embedded_azure.servicebus.shared_access import SignatureRefused, verify

RULE = SharedAccessRule(name="rule-one", key="a key+/=", rights=("Send",))
ADDRESS = "sb://local.servicebus.windows.net/jobs"


def signed(address: str = ADDRESS, rule: SharedAccessRule = RULE) -> str:
    token: str = _generate_sas_token(address, rule.name, rule.key).token
    return token


@given(st.text(st.characters(codec="ascii", categories=["L", "N", "P"]), min_size=1, max_size=60))
def test_what_the_sdk_signs_is_good_whatever_the_path_and_the_key(text: str) -> None:
    rule = SharedAccessRule(name="r", key=text)
    signature = verify(signed(f"{ADDRESS}/{text}", rule), [RULE, rule], time.time())
    assert (signature.rule, signature.resource.rstrip("/")) == (rule, f"{ADDRESS}/{text}".rstrip("/"))


@pytest.mark.parametrize(
    ("token", "told"),
    [
        (signed(rule=SharedAccessRule(name=RULE.name, key="another")), "InvalidSignature"),
        (signed(rule=SharedAccessRule(name="another", key=RULE.key)), "InvalidSignature"),
        (signed().replace("jobs", "held"), "InvalidSignature"),
        (signed().partition("&se=")[0], "MalformedToken"),
        ("SharedAccessSignature", "MalformedToken"),
        ("SharedAccessSignature sr=a&sig=b&se=soon&skn=c", "MalformedToken"),
    ],
)
def test_what_is_not_signed_with_a_rules_key_is_refused(token: str, told: str) -> None:
    with pytest.raises(SignatureRefused, match=told):
        verify(token, [RULE], time.time())


def test_a_signature_ends_when_it_says() -> None:
    token = signed()
    end = verify(token, [RULE], time.time()).expires_at
    verify(token, [RULE], end - 1)
    with pytest.raises(SignatureRefused, match="ExpiredToken"):
        verify(token, [RULE], end)


def test_without_rules_keys_are_off() -> None:
    with pytest.raises(SignatureRefused, match="authentication is disabled"):
        verify(signed(), [], time.time())


@given(st.text(max_size=200))
def test_no_text_does_more_than_be_refused(text: str) -> None:
    with pytest.raises(SignatureRefused):
        verify(f"SharedAccessSignature {text}", [RULE], time.time())
