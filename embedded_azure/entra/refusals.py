"""How Entra refuses: the AADSTS codes of workload identity federation, with status, OAuth error and words.

The words are Entra's as users quote them in public issues and its documentation lists them. For a wrong
`client_assertion_type` and for a bad signature of a federated issuer no public quotation was found: 900144 and
700027 stand for them. Nor are the words of 7002137 known, only that no record matches: they are those of 700213.
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any


@dataclass(frozen=True, slots=True)
class _Rule:
    """A refusal of Entra's: the OAuth `error`, the HTTP status, and the text after `AADSTS<code>: `."""

    error: str
    status: int
    text: str


_SEE_CREDENTIAL = (
    "Check your federated identity credential Subject, Audience and Issuer against the presented assertion. "
    "https://learn.microsoft.com/entra/workload-id/workload-identity-federation"
)
_NO_RECORD = "No matching federated identity record found for presented assertion "
_NOT_INSTALLED = (
    "This can happen if the application has not been installed by the administrator of the tenant or "
    "consented to by any user in the tenant. You may have sent your authentication request to the wrong "
    "tenant."
)
_RULES: Mapping[int, _Rule] = {
    50027: _Rule("invalid_request", 400, "JWT token is invalid or malformed."),
    50196: _Rule(
        "invalid_grant",
        400,
        "The server terminated an operation because it encountered a client request loop. Please contact your "
        "app vendor.",
    ),
    53003: _Rule(
        "invalid_grant",
        400,
        "Access has been blocked by Conditional Access policies. The access policy does not allow token issuance.",
    ),
    70003: _Rule("unsupported_grant_type", 400, "The app requested an unsupported grant type '{grant_type}'."),
    70011: _Rule(
        "invalid_scope",
        400,
        "The provided request must include a 'scope' input parameter. The provided value for the input "
        "parameter 'scope' is not valid. The scope {scope} is not valid.",
    ),
    70021: _Rule(
        "invalid_client",
        401,
        "No matching federated identity record found for presented assertion. Assertion Issuer: '{issuer}'. "
        "Assertion Subject: '{subject}'. Assertion Audience: '{audience}'. " + _SEE_CREDENTIAL,
    ),
    70025: _Rule(
        "invalid_client",
        401,
        "The client '{client_id}'({name}) has no configured federated identity credentials.",
    ),
    90002: _Rule(
        "invalid_request",
        400,
        "Tenant '{tenant}' not found. Check to make sure you have the correct tenant ID and are signing into "
        "the correct cloud. Check with your subscription administrator, this may happen if there are no "
        "active subscriptions for the tenant.",
    ),
    90033: _Rule("temporarily_unavailable", 503, "A transient error has occurred. Please try again."),
    90055: _Rule(
        "temporarily_unavailable",
        429,
        "There are too many incoming requests. This exception is thrown for blocked tenants.",
    ),
    500011: _Rule(
        "invalid_resource",
        400,
        "The resource principal named {resource} was not found in the tenant named {tenant}. " + _NOT_INSTALLED,
    ),
    700016: _Rule(
        "unauthorized_client",
        400,
        "Application with identifier '{client_id}' was not found in the directory '{tenant}'. " + _NOT_INSTALLED,
    ),
    700024: _Rule(
        "invalid_client",
        401,
        "Client assertion is not within its valid time range. Current time: {now}, assertion valid from "
        "{not_before}, expiry time of assertion {expires}. Review the documentation at "
        "https://learn.microsoft.com/entra/identity-platform/certificate-credentials .",
    ),
    700027: _Rule(
        "invalid_client",
        401,
        "Client assertion contains an invalid signature. [Reason - The signature does not verify with the "
        "keys of the issuer.]",
    ),
    700211: _Rule(
        "invalid_client",
        401,
        _NO_RECORD + "issuer '{issuer}'. " + _SEE_CREDENTIAL,
    ),
    700212: _Rule(
        "invalid_client",
        401,
        _NO_RECORD + "audience '{audience}'. " + _SEE_CREDENTIAL,
    ),
    700213: _Rule(
        "invalid_client",
        401,
        _NO_RECORD + "subject '{subject}'. " + _SEE_CREDENTIAL,
    ),
    900023: _Rule(
        "invalid_request",
        400,
        "Specified tenant identifier '{tenant}' is neither a valid DNS name, nor a valid external domain.",
    ),
    900144: _Rule("invalid_request", 400, "The request body must contain the following parameter: '{parameter}'."),
    1002012: _Rule(
        "invalid_scope",
        400,
        "The provided value for scope {scope} is not valid. Client credential flows must have a scope value "
        "with /.default suffixed to the resource identifier (application ID URI).",
    ),
    5002730: _Rule("invalid_request", 400, "Invalid JWT token. Unsupported key for the signing algorithm."),
    7002137: _Rule("invalid_client", 401, _NO_RECORD + "subject '{subject}'. " + _SEE_CREDENTIAL),
    7002138: _Rule(
        "invalid_client",
        401,
        _NO_RECORD + "subject '{subject}'. The subject matches with case-insensitive comparison, but not with "
        "case-sensitive comparison. " + _SEE_CREDENTIAL,
    ),
    7000112: _Rule(
        "unauthorized_client",
        400,
        "Application '{client_id}'({name}) is disabled.",
    ),
    7000215: _Rule(
        "invalid_client",
        401,
        "Invalid client secret provided. Ensure the secret being sent in the request is the client secret "
        "value, not the client secret ID, for a secret added to app '{client_id}'.",
    ),
    7000216: _Rule(
        "invalid_client",
        401,
        "'client_assertion', 'client_secret' or 'request' is required for the 'client_credentials' grant type.",
    ),
    7000229: _Rule(
        "unauthorized_client",
        400,
        "The client application {client_id} is missing service principal in the tenant {tenant}. See "
        "instructions here: https://go.microsoft.com/fwlink/?linkid=2225119",
    ),
}


CODES = frozenset(_RULES)
"""The AADSTS codes that can be asked for."""


class _Words(dict[str, str]):
    """What is said in place of words that a refusal on demand was not given."""

    def __missing__(self, name: str) -> str:
        return f"<{name}>"


class TokenDenied(Exception):
    """Entra's refusal, to be sent as `status` with `body(...)`."""

    def __init__(self, code: int, *, status: int | None = None, **words: str) -> None:
        rule = _RULES[code]
        self.code = code
        self.status = status or rule.status
        self.error = rule.error
        self.text = f"AADSTS{code}: {rule.text.format_map(_Words(words))}"
        super().__init__(self.text)

    def body(self, now: float) -> dict[str, Any]:
        """Entra's error document. A trace id is new at every call."""
        trace, correlation = str(uuid.uuid4()), str(uuid.uuid4())
        timestamp = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        description = f"{self.text} Trace ID: {trace} Correlation ID: {correlation} Timestamp: {timestamp}"
        return {
            "error": self.error,
            "error_description": description,
            "error_codes": [self.code],
            "timestamp": timestamp,
            "trace_id": trace,
            "correlation_id": correlation,
            "error_uri": f"https://login.microsoftonline.com/error?code={self.code}",
        }
