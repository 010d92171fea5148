"""Shared access signatures: tokens that a client signs itself with a key of the namespace or of an entity.

A namespace like the demo's has no keys: local authentication is off, as it should be in Azure. On its plaintext
port the embedded Service Bus knows the key that connection strings for Microsoft's emulator carry.
"""

import base64
import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote_plus

from embedded_azure.config import SharedAccessRule

SCHEME: Final = "SharedAccessSignature"
EMULATOR_RULE: Final = SharedAccessRule(name="RootManageSharedAccessKey", key="SAS_KEY_VALUE")
"""As in `Endpoint=sb://localhost;SharedAccessKeyName=RootManageSharedAccessKey;SharedAccessKey=SAS_KEY_VALUE;...`"""


class SignatureRefused(Exception):
    """The message may be shown to the client."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """What a good token grants: the rights of `rule` on `resource` and below, until `expires_at` (unix seconds)."""

    rule: SharedAccessRule
    resource: str
    expires_at: float


def verify(token: str, rules: Sequence[SharedAccessRule], now: float) -> Signature:
    """Raises SignatureRefused. `resource` is still the address it was, with its scheme and host."""
    if not rules:
        raise SignatureRefused(
            "InvalidAuthorization: local (SAS) authentication is disabled for this namespace; "
            "use a Microsoft Entra token."
        )
    fields = dict(part.partition("=")[::2] for part in token.removeprefix(SCHEME).strip().split("&"))
    try:
        resource, signature, expiry, name = (fields[key] for key in ("sr", "sig", "se", "skn"))
        expires_at = float(int(expiry))
    except (KeyError, ValueError):
        raise SignatureRefused("MalformedToken: a shared access signature has sr, sig, se and skn.") from None
    for rule in rules:
        if rule.name == unquote_plus(name) and _signed(rule.key, resource, expiry, signature):
            break
    else:
        raise SignatureRefused("InvalidSignature: The token has an invalid signature.")
    if expires_at <= now:
        raise SignatureRefused(f"ExpiredToken: The token is expired. Expiration time: {expiry} (unix seconds).")
    return Signature(rule=rule, resource=unquote_plus(resource), expires_at=expires_at)


def _signed(key: str, resource: str, expiry: str, signature: str) -> bool:
    digest = hmac.digest(key.encode(), f"{resource}\n{expiry}".encode(), hashlib.sha256)
    # Some clients encode the signature for the URL and some do not; + is part of its alphabet.
    return any(
        hmac.compare_digest(base64.b64encode(digest), found.encode(errors="replace"))
        for found in (signature, unquote_plus(signature.replace("+", "%2B")))
    )
