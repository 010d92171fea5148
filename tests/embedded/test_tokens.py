"""Access tokens: what verifies, and everything that must not."""

from collections.abc import Callable

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedded_azure.certificates import make_signing_key, private_pem, public_pem
from embedded_azure.entra.tokens import AccessTokens, Caller, TokenIssuer, TokenRefused, issuer_of
from tests.support.clock import Clock

AUDIENCE = "https://servicebus.azure.net"
KEY = make_signing_key()
STRANGERS_KEY = make_signing_key()


def issuer_with(key: object = KEY, tenant: str = "t", clock: Callable[[], float] | None = None) -> TokenIssuer:
    return TokenIssuer(private_pem(key), tenant, 3_600.0, clock or Clock())  # type: ignore[arg-type]  # an RSA key


def verifier(clock: Callable[[], float] | None = None) -> AccessTokens:
    return AccessTokens(public_pem(KEY), issuer_of("t"), clock or Clock())


def issue(issuer: TokenIssuer, audience: str = AUDIENCE) -> str:
    return issuer.issue(audience=audience, client_id="app", object_id="object")


def test_a_fresh_token_names_its_caller() -> None:
    caller = verifier().verify(issue(issuer_with()), AUDIENCE)
    assert caller == Caller(object_id="object", app_id="app", expires_at=1_000 + 3_600)


def test_audiences_are_compared_without_trailing_slashes() -> None:
    token = issue(issuer_with(), "https://servicebus.azure.net//")
    assert verifier().verify(token, AUDIENCE + "/").app_id == "app"


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        (issue(issuer_with(), "https://storage.azure.com"), "InvalidAudience"),
        (issue(issuer_with(tenant="another")), "InvalidIssuer"),
        (issue(issuer_with(STRANGERS_KEY)), "InvalidSignature"),
        (jwt.encode({"aud": AUDIENCE}, "s" * 64, algorithm="HS256"), "InvalidSignature"),
        (jwt.encode({"aud": AUDIENCE}, "", algorithm="none"), "InvalidSignature"),
        (jwt.encode({"aud": AUDIENCE}, KEY, algorithm="RS512"), "InvalidSignature"),
        (jwt.encode({"aud": AUDIENCE}, KEY, algorithm="RS256"), "InvalidToken"),
        ("", "MalformedToken"),
        ("a.b.c", "MalformedToken"),
        ("\udcff.b.c", "MalformedToken"),
        ("a" * 20_000, "InvalidToken"),
    ],
)
def test_a_token_that_proves_nothing_is_refused(token: str, reason: str) -> None:
    with pytest.raises(TokenRefused) as refused:
        verifier().verify(token, AUDIENCE)
    assert refused.value.reason.startswith(reason)


def test_a_token_dies_at_its_expiry_though_it_was_verified_before() -> None:
    clock = Clock()
    tokens, token = verifier(clock), issue(issuer_with(clock=clock))
    clock.now += 3_599.0
    tokens.verify(token, AUDIENCE)
    clock.now += 1.0
    with pytest.raises(TokenRefused, match="ExpiredToken"):
        tokens.verify(token, AUDIENCE)


def test_a_token_of_tomorrow_is_refused_today() -> None:
    clock = Clock()
    clock.now += 86_400.0
    token = issue(issuer_with(clock=clock))
    with pytest.raises(TokenRefused, match="TokenNotYetValid"):
        verifier().verify(token, AUDIENCE)


def test_a_verified_token_opens_no_other_audience() -> None:
    tokens, token = verifier(), issue(issuer_with())
    tokens.verify(token, AUDIENCE)
    with pytest.raises(TokenRefused, match="InvalidAudience"):
        tokens.verify(token, "https://storage.azure.com")


@given(st.integers(0, 400), st.characters(codec="ascii", exclude_categories=["Cc"]))
def test_a_token_with_one_character_changed_is_refused(position: int, character: str) -> None:
    token = ISSUED
    position %= len(token) - 1  # the very last character may hold unused bits
    changed = token[:position] + character + token[position + 1 :]
    if changed == token:
        return
    with pytest.raises(TokenRefused):
        verifier().verify(changed, AUDIENCE)


ISSUED = issue(issuer_with())
