"""What a client asserts of itself: a service account's token, checked against the federated credential it names.

Pure. The embedded Entra and the cluster's token proxy check alike, each for an audience of its own.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TypeGuard

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from embedded_azure.config import Identity
from embedded_azure.entra.refusals import TokenDenied


def check_assertion(
    assertion: str, identity: Identity, *, key: RSAPublicKey, issuer: str, audience: str, now: float
) -> None:
    """Verify it as the federated credential of `identity` asks. Raises TokenDenied."""
    if not identity.federated:
        raise TokenDenied(70025, client_id=identity.client_id, name=identity.name)
    if (claimed := claimed_issuer(assertion)) != issuer:
        raise TokenDenied(700211, issuer=claimed)
    claims = _signed_claims(assertion, key)
    if (subject := str(claims.get("sub"))) != identity.subject:
        is_other_case = subject.casefold() == identity.subject.casefold()
        raise TokenDenied(7002138 if is_other_case else 700213, subject=subject)
    if audience not in (audiences := _audiences(claims)):
        raise TokenDenied(700212, audience=", ".join(audiences))
    _check_validity(claims, now)


def claimed_issuer(assertion: str) -> str:
    """The issuer as the assertion has it: unverified, only good for refusing it. Raises TokenDenied."""
    try:
        claims = jwt.decode(assertion, options={"verify_signature": False})
    except (jwt.InvalidTokenError, RecursionError, UnicodeError) as error:
        raise TokenDenied(50027) from error
    return str(claims.get("iss"))


def _signed_claims(assertion: str, key: RSAPublicKey) -> dict[str, Any]:
    options: jwt.types.Options = {
        "verify_exp": False,
        "verify_nbf": False,
        "verify_iat": False,
        "verify_aud": False,
        "verify_iss": False,
        "verify_sub": False,
        "verify_jti": False,
    }
    try:
        return jwt.decode(assertion, key, algorithms=["RS256"], options=options)
    except jwt.InvalidAlgorithmError as error:
        raise TokenDenied(5002730) from error
    except jwt.InvalidTokenError as error:
        raise TokenDenied(700027) from error


def _audiences(claims: Mapping[str, Any]) -> list[str]:
    audience = claims.get("aud")
    return [str(one) for one in audience] if isinstance(audience, list) else [str(audience)]


def _check_validity(claims: Mapping[str, Any], now: float) -> None:
    not_before, expires = claims.get("nbf", 0), claims.get("exp")
    if not _is_date(expires) or not _is_date(not_before):
        raise TokenDenied(50027)
    if not not_before <= now < expires:
        raise TokenDenied(700024, now=_utc(now), not_before=_utc(not_before), expires=_utc(expires))


def _is_date(seconds: object) -> TypeGuard[float]:
    return isinstance(seconds, int | float) and not isinstance(seconds, bool) and abs(seconds) < 1e11


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f0Z")
