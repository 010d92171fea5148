"""Entra's access tokens: issued by the embedded Entra, verified by every other service of the embedded Azure.

Tokens are JSON Web Tokens of version 1, as Azure's own services ask for, signed with RS256 and nothing else.
Who may do what with a verified token (roles) is the business of the service that verified it.
"""

import time
import uuid
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from jwt.algorithms import RSAAlgorithm

_ALGORITHM = "RS256"
_LONGEST_TOKEN = 16_384
_REMEMBERED_TOKENS = 1_024


class TokenRefused(Exception):
    """The token proves nothing here. `reason` may be sent to the caller and holds no part of the token."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class WrongTenant(TokenRefused):
    """The token is signed and of another tenant: `tenant` is its id, or its whole issuer where that names none."""

    def __init__(self, reason: str, tenant: str) -> None:
        super().__init__(reason)
        self.tenant = tenant


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Whom a token speaks for. `expires_at` is in epoch seconds."""

    object_id: str
    app_id: str
    expires_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Claims:
    audience: str
    issuer: str
    not_before: float
    caller: Caller


def issuer_of(tenant_id: str) -> str:
    """The `iss` of the tenant's version 1 access tokens."""
    return f"https://sts.windows.net/{tenant_id}/"


class AccessTokens:
    """Verifies access tokens: the signature once per token, times and audience at every call."""

    def __init__(self, public_key_pem: bytes, issuer: str, clock: Callable[[], float] = time.time) -> None:
        """Raises ValueError when the PEM is no RSA public key."""
        key = load_pem_public_key(public_key_pem)
        if not isinstance(key, RSAPublicKey):
            raise ValueError(f"Entra's key must be an RSA public key in PEM; this is a {type(key).__name__}")
        self._key = key
        self._issuer = issuer
        self._clock = clock
        self._claims: OrderedDict[str, _Claims] = OrderedDict()

    def verify(self, token: str, audience: str) -> Caller:
        """Whom `token` speaks for towards `audience`, which is compared without trailing slashes.

        Raises TokenRefused. No leeway is given for clocks: all of the embedded Azure shares one.
        """
        claims = self._signed_claims(token)
        _check_issuer(claims, self._issuer)
        _check_audience(claims, audience)
        _check_times(claims, self._clock())
        return claims.caller

    def _signed_claims(self, token: str) -> _Claims:
        if known := self._claims.get(token):
            return known
        claims = _parse(_decode(token, self._key))
        self._claims[token] = claims
        if len(self._claims) > _REMEMBERED_TOKENS:
            self._claims.popitem(last=False)
        return claims


class TokenIssuer:
    """Signs the tenant's access tokens. `lifetime` is in seconds."""

    def __init__(
        self,
        private_key_pem: bytes,
        tenant_id: str,
        lifetime: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Raises ValueError when the PEM is no RSA private key."""
        key = load_pem_private_key(private_key_pem, password=None)
        if not isinstance(key, RSAPrivateKey):
            raise ValueError(f"Entra's key must be an RSA private key in PEM; this is a {type(key).__name__}")
        self._key = key
        self._tenant_id = tenant_id
        self._clock = clock
        self.issuer = issuer_of(tenant_id)
        self.lifetime = lifetime

    def key_set(self) -> dict[str, Any]:
        """The JSON Web Key Set of what verifies its tokens."""
        key: dict[str, Any] = RSAAlgorithm.to_jwk(self._key.public_key(), as_dict=True)
        return {"keys": [{**key, "use": "sig", "alg": _ALGORITHM, "issuer": self.issuer}]}

    def issue(
        self,
        *,
        audience: str,
        client_id: str,
        object_id: str,
        lifetime: float | None = None,
        now: float | None = None,
    ) -> str:
        """A token for an application, valid for `lifetime` seconds (the issuer's own if None) from `now`."""
        now = self._clock() if now is None else now
        claims = {
            "aud": audience,
            "iss": self.issuer,
            "iat": int(now),
            "nbf": int(now),
            "exp": int(now + (self.lifetime if lifetime is None else lifetime)),
            "appid": client_id,
            "appidacr": "2",
            "idp": self.issuer,
            "idtyp": "app",
            "oid": object_id,
            "sub": object_id,
            "tid": self._tenant_id,
            "uti": uuid.uuid4().hex,
            "ver": "1.0",
        }
        return jwt.encode(claims, self._key, algorithm=_ALGORITHM)


def _decode(token: str, key: RSAPublicKey) -> dict[str, Any]:
    if len(token) > _LONGEST_TOKEN:
        raise TokenRefused(
            f"InvalidToken: The token is {len(token)} characters, at most {_LONGEST_TOKEN} are read."
        )
    if not token.isascii():
        raise TokenRefused("MalformedToken: The token is not a readable JSON Web Token.")
    options: jwt.types.Options = {
        "verify_signature": True,
        # The claims are checked by this module: with its own clock, and in Azure's words.
        "verify_exp": False,
        "verify_nbf": False,
        "verify_iat": False,
        "verify_aud": False,
        "verify_iss": False,
    }
    try:
        return jwt.decode(token, key, algorithms=[_ALGORITHM], options=options)
    except jwt.InvalidAlgorithmError as error:
        raise TokenRefused(f"InvalidSignature: The token must be signed with {_ALGORITHM}.") from error
    except jwt.InvalidSignatureError as error:
        raise TokenRefused("InvalidSignature: The token has an invalid signature.") from error
    except (jwt.InvalidTokenError, RecursionError) as error:
        raise TokenRefused("MalformedToken: The token is not a readable JSON Web Token.") from error


def _parse(claims: dict[str, Any]) -> _Claims:
    caller = Caller(
        object_id=_text(claims, "oid"), app_id=_text(claims, "appid"), expires_at=_seconds(claims, "exp")
    )
    return _Claims(
        audience=_text(claims, "aud"),
        issuer=_text(claims, "iss"),
        not_before=_seconds(claims, "nbf"),
        caller=caller,
    )


def _text(claims: dict[str, Any], name: str) -> str:
    value = claims.get(name)
    if not isinstance(value, str) or not value:
        raise TokenRefused(f"InvalidToken: The token has no usable claim '{name}'.")
    return value


def _seconds(claims: dict[str, Any], name: str) -> float:
    value = claims.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TokenRefused(f"InvalidToken: The token has no usable claim '{name}'.")
    return float(value)


def _check_issuer(claims: _Claims, issuer: str) -> None:
    if claims.issuer != issuer:
        reason = f"InvalidIssuer: The token was issued by '{claims.issuer}', expected '{issuer}'."
        raise WrongTenant(reason, claims.issuer.rstrip("/").rpartition("/")[2])


def _check_audience(claims: _Claims, audience: str) -> None:
    if claims.audience.rstrip("/") != audience.rstrip("/"):
        raise TokenRefused(
            f"InvalidAudience: The token is for the audience '{claims.audience}', expected '{audience}'."
        )


def _check_times(claims: _Claims, now: float) -> None:
    if now >= claims.caller.expires_at:
        raise TokenRefused(
            f"ExpiredToken: The token is expired. Expiration time: '{_utc(claims.caller.expires_at)}'."
        )
    if now < claims.not_before:
        raise TokenRefused(f"TokenNotYetValid: The token is not valid before '{_utc(claims.not_before)}'.")


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
