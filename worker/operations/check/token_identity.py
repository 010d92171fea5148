"""Who a token says that we are. Read without verifying, to be shown to an operator; no decision rests on it.

The token itself never leaves this module.
"""

import base64
import binascii
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker.operations.check.findings import Finding, State
from worker.operations.check.suggestions import AUDIENCE

PROJECTED = "service-account token"
LARGEST = 1 << 16
"""Bytes of a token file that are read; the tokens of Kubernetes have some 1,500."""

WEBHOOK = (
    'check that the pod has the label azure.workload.identity/use: "true" and was created after the webhook; '
    "kubectl describe pod shows the volume azure-identity-token"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenClaims:
    """What is not claimed is empty. Moments in Unix seconds."""

    issuer: str = ""
    subject: str = ""
    audience: tuple[str, ...] = ()
    object_id: str | None = None
    is_user: bool = False
    issued_at: float | None = None
    expires_at: float | None = None


def read_claims(token: str) -> TokenClaims:
    """Nothing is claimed by what is not a JSON Web Token: a service may hand out opaque ones."""
    try:
        payload = token.strip().split(".")[1]
        document = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (IndexError, ValueError, binascii.Error, RecursionError):
        return TokenClaims()
    if not isinstance(document, dict):
        return TokenClaims()
    audience = document.get("aud")
    return TokenClaims(
        issuer=_text(document.get("iss")),
        subject=_text(document.get("sub")),
        audience=tuple(_text(one) for one in (audience if isinstance(audience, list) else [audience]) if one),
        object_id=_text(document.get("oid")) or None,
        is_user="scp" in document,
        issued_at=_moment(document.get("iat")),
        expires_at=_moment(document.get("exp")),
    )


def read_projected(path: str | None) -> TokenClaims:
    """The claims of a token file; none where it cannot be read."""
    try:
        return _read(path) if path else TokenClaims()
    except OSError:
        return TokenClaims()


def describe_projected(path: str, now: float, *, through_proxy: bool) -> Finding:
    """The service account's token, which is exchanged for every other; the kubelet renews it."""
    try:
        claims = _read(path)
    except OSError as error:
        return _broken(f"{path}: {error.strerror}", WEBHOOK)
    if not claims.subject:
        return _broken(f"{path} does not hold a JSON Web Token", WEBHOOK)
    if claims.expires_at is not None and claims.expires_at <= now:
        suggestion = "delete the pod, as the kubelet no longer renews its token, and check the node's clock"
        return _broken(f"{path} expired {span(now - claims.expires_at)} ago", suggestion)
    if not through_proxy and AUDIENCE not in claims.audience:
        return _broken(f"its audience is {_joined(claims)} and must be {AUDIENCE}", WEBHOOK)
    age = "" if claims.issued_at is None else f", {span(now - claims.issued_at)} old"
    detail = f"subject {claims.subject}, issuer {claims.issuer}{age}{_left(claims, now)}"
    return Finding(state=State.OK, name=PROJECTED, detail=detail)


def describe_access(claims: TokenClaims, now: float) -> str:
    if claims == TokenClaims():
        return "valid, but its claims cannot be read"
    who = f", object id {claims.object_id}" if claims.object_id else ""
    return f"audience {_joined(claims)}{who}{_left(claims, now)}"


def span(seconds: float) -> str:
    """Two units at most: `23 h 58 min`, `12 min`, `40 s`."""
    if abs(seconds) < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(int(seconds) // 60, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _read(path: str) -> TokenClaims:
    with Path(path).open("rb") as file:
        return read_claims(file.read(LARGEST).decode(errors="replace"))


def _broken(detail: str, suggestion: str) -> Finding:
    return Finding(state=State.WRONG, name=PROJECTED, detail=detail, suggestion=suggestion)


def _joined(claims: TokenClaims) -> str:
    return ", ".join(claims.audience) or "no audience"


def _left(claims: TokenClaims, now: float) -> str:
    return "" if claims.expires_at is None else f", expires in {span(claims.expires_at - now)}"


def _text(value: Any) -> str:
    """A claim is shown on a terminal: printable characters only, and not too many."""
    return "".join(filter(str.isprintable, value))[:300] if isinstance(value, str) else ""


def _moment(value: Any) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) < 1e12 else None
