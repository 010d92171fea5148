"""Azure's real refusals, each with its cause: what the services were seen to answer, in their own words and codes.

What the SDKs make of them on the way is in `tests/contract`.
"""

import json
import logging
import socket
import ssl

import aiohttp
import pytest
from aiohttp.client_reqrep import ConnectionKey
from azure.core.exceptions import ServiceRequestError
from azure.servicebus._pyamqp.error import AMQPConnectionError, AMQPLinkError, ErrorCondition, TokenAuthFailure
from azure.servicebus._transport._pyamqp_transport import PyamqpTransport
from azure.servicebus.exceptions import OperationTimeoutError, ServiceBusServerBusyError

from worker.azure.blob.container import refusal
from worker.azure.network import find_cause
from worker.azure.openai.refusals import Exchange, classify
from worker.azure.servicebus.faults import cause_of_fault
from worker.errors import Cause, NoToken, RefusedByService, SetupWrong, TokenUnavailable
from worker.interfaces import Target

TARGET = Target(deployment="mini", endpoint="https://account.openai.azure.com")
NO_TOKEN = TokenUnavailable("https://servicebus.azure.net//.default", "AADSTS700016: unknown", code="700016")

LOGGER = logging.getLogger("azure.servicebus")

# Azure OpenAI

LACKS = "The principal `x` lacks the required data action `a` to perform `b` operation."
SPREADS = "Principal does not have access to API/Operation."
BAD_TOKEN = (
    "Unauthorized. Access token is missing, invalid, audience is incorrect (https://cognitiveservices.azure.com), "
    "or have expired."
)
OTHER_TENANT = "Token tenant 1111 does not match resource tenant."
FIREWALL = "Access denied due to Virtual Network/Firewall rules."
PRIVATE = "Public access is disabled. Please configure private endpoint."
ABSENT = "The API deployment for this resource does not exist."
ABSENT_NOW = (
    f"{ABSENT} If you created the deployment within the last 5 minutes, please wait a moment and try again."
)


@pytest.mark.parametrize(
    ("status", "code", "message", "cause"),
    [
        (401, "PermissionDenied", LACKS, Cause.ROLE_MISSING),
        (403, "PermissionDenied", LACKS, Cause.ROLE_MISSING),
        (401, "PermissionDenied", SPREADS, Cause.ROLE_SPREADING),
        (401, "401", BAD_TOKEN, Cause.TOKEN_REFUSED),
        (400, "Tenant provided in token does not match resource token", OTHER_TENANT, Cause.WRONG_TENANT),
        (400, "BadRequest", OTHER_TENANT, Cause.WRONG_TENANT),
        (403, "403", FIREWALL, Cause.NETWORK_CLOSED),
        (403, "AccessDenied", PRIVATE, Cause.NETWORK_CLOSED),
        (403, "403", "Your resource has been temporarily blocked", Cause.FORBIDDEN),
        (404, "DeploymentNotFound", ABSENT, Cause.MISSING),
        (404, "DeploymentNotFound", ABSENT_NOW, Cause.MISSING),
        (403, "AccessDenied", FIREWALL, Cause.NETWORK_CLOSED),
        (403, "403", PRIVATE, Cause.NETWORK_CLOSED),
        (404, "404", "Resource not found", Cause.WRONG_ENDPOINT),
        (307, "", "", Cause.WRONG_ENDPOINT),
    ],
)
def test_a_deployment_refuses_for_a_cause(status: int, code: str, message: str, cause: Cause) -> None:
    body = json.dumps({"error": {"code": code, "message": message}}).encode()
    failure = classify(status, body, Exchange(target=TARGET, headers={}))
    assert (type(failure), failure.cause) == (SetupWrong, cause)


def test_a_bad_token_is_known_without_the_envelope_of_an_error() -> None:
    body = json.dumps({"statusCode": 401, "message": BAD_TOKEN}).encode()
    assert classify(401, body, Exchange(target=TARGET, headers={})).cause is Cause.TOKEN_REFUSED


@pytest.mark.parametrize(
    ("status", "error", "passthrough"),
    [
        (400, {"code": "content_filter", "message": "filtered"}, False),
        (404, {"code": "DeploymentNotFound", "message": ABSENT}, True),
        (403, {"code": "x", "param": "input", "message": FIREWALL}, False),
        (429, {"code": "RateLimitReached", "message": "slow down"}, False),
        (503, {"code": "x", "message": FIREWALL}, False),
    ],
)
def test_what_is_about_the_job_or_the_moment_has_no_cause(
    status: int, error: dict[str, str], passthrough: bool
) -> None:
    body = json.dumps({"error": error}).encode()
    failure = classify(status, body, Exchange(target=TARGET, headers={}, passthrough=passthrough))
    assert not isinstance(failure, SetupWrong)
    assert failure.cause is None


def test_a_job_whose_error_quotes_words_of_tenants_is_refused_for_itself() -> None:
    message = f"Unknown parameter: '{OTHER_TENANT}'."
    body = json.dumps({"error": {"code": "unknown_parameter", "message": message}}).encode()
    assert isinstance(classify(400, body, Exchange(target=TARGET, headers={})), RefusedByService)


# Blob storage


@pytest.mark.parametrize(
    ("status", "code", "cause", "told"),
    [
        (403, "AuthorizationPermissionMismatch", Cause.ROLE_MISSING, 'role "Storage Blob Data Contributor"'),
        (403, "AuthorizationFailure", Cause.NETWORK_CLOSED, "firewall blocks this network"),
        (403, "AuthenticationFailed", Cause.TOKEN_REFUSED, "AZURE_TENANT_ID"),
        (401, "InvalidAuthenticationInfo", Cause.TOKEN_REFUSED, "AZURE_TENANT_ID"),
        (403, "AccountIsDisabled", Cause.FORBIDDEN, 'role "Storage Blob Data Contributor"'),
        (404, "ContainerNotFound", Cause.MISSING, "create it"),
        (302, "no error code", Cause.WRONG_ENDPOINT, "refused"),
        (409, "ContainerBeingDeleted", None, "refused"),
        (503, "ServerBusy", None, "throttles"),
        (500, "InternalError", None, "tries again later"),
    ],
)
def test_blob_storage_refuses_for_a_cause(status: int, code: str, cause: Cause | None, told: str) -> None:
    failure = refusal("https://store.blob.core.windows.net/results", status, code)
    assert failure.cause is cause
    assert told in failure.detail
    assert str(failure) == f"container https://store.blob.core.windows.net/results: {failure.detail}"


@pytest.mark.parametrize("code", ["AuthorizationPermissionMismatch", "AuthenticationFailed"])
def test_a_firewall_is_not_named_where_it_is_not_to_blame(code: str) -> None:
    assert "firewall" not in refusal("https://store.blob.core.windows.net/results", 403, code).detail


# Service Bus


def by_the_sdk(error: Exception, *, endpoint: str | None = None) -> Exception:
    """As the SDK wraps what its AMQP layer raises; with an endpoint of one's own it names another class."""
    return PyamqpTransport.create_servicebus_exception(LOGGER, error, custom_endpoint_address=endpoint)


def token_refused(status: int, words: str) -> Exception:
    return TokenAuthFailure(status, words.encode())  # type: ignore[no-untyped-call]


LISTEN = "Unauthorized access. 'Listen' claim(s) are required to perform this operation. Resource: 'sb://b/jobs'."
IP = "Ip has been prevented to connect to the endpoint. For more information see: https://aka.ms/sbnetwork"
BUSY = "The request was terminated because the namespace b is being throttled. Error code : 50009. Please wait."
DISABLED = "Messaging entity 'b:Queue:jobs' is currently disabled for Send operations."
IDLE_RECEIVER = "The link 'a' is force detached by the broker because it was idle. Detach origin: IdleTimerExpired."
IDLE_SENDER = "The link 'a' is force detached. Code: publisher(1). Details: AmqpMessagePublisher.IdleTimerExpired."
WRONG_AUDIENCE = "InvalidAudience: The authorization header contains a token with a wrong audience."
SESSIONS = "It is not possible for an entity that requires sessions to create a non-sessionful message receiver."


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (AMQPLinkError(ErrorCondition.UnauthorizedAccess, description=LISTEN), Cause.ROLE_MISSING),
        (AMQPLinkError(ErrorCondition.UnauthorizedAccess, description=IP), Cause.NETWORK_CLOSED),
        (AMQPConnectionError(ErrorCondition.UnauthorizedAccess, description=IP), Cause.NETWORK_CLOSED),
        (AMQPLinkError(ErrorCondition.NotFound, description="no such entity"), Cause.MISSING),
        (AMQPLinkError(ErrorCondition.NotAllowed, description=SESSIONS), Cause.SESSIONS_REQUIRED),
        (AMQPLinkError(ErrorCondition.NotAllowed, description="a name in use"), None),
        (AMQPLinkError(b"com.microsoft:entity-disabled", description="off"), Cause.DISABLED),
        (AMQPLinkError(b"com.microsoft:entity-disabled", description=DISABLED), Cause.DISABLED),
        (AMQPLinkError(b"com.microsoft:server-busy", description="wait 2 seconds"), None),
        (AMQPLinkError(b"com.microsoft:server-busy", description=BUSY), None),
        (AMQPLinkError(b"amqp:link:detach-forced", description=IDLE_RECEIVER), Cause.UNREACHABLE),
        (AMQPLinkError(b"amqp:link:detach-forced", description=IDLE_SENDER), Cause.UNREACHABLE),
        (token_refused(404, "The messaging entity 'sb://b/jobs' could not be found."), Cause.MISSING),
        (token_refused(401, "InvalidIssuer: Token issuer is invalid."), Cause.WRONG_TENANT),
        (token_refused(401, "InvalidAudience: The audience is invalid."), Cause.TOKEN_REFUSED),
        (token_refused(401, "InvalidAudience: Invalid authorization token audience."), Cause.TOKEN_REFUSED),
        (token_refused(401, WRONG_AUDIENCE), Cause.TOKEN_REFUSED),
        (token_refused(401, "ExpiredToken: The token is expired."), Cause.TOKEN_REFUSED),
        (token_refused(401, IP), Cause.NETWORK_CLOSED),
        (AMQPConnectionError(ErrorCondition.SocketError, description="Connection not open."), Cause.UNREACHABLE),
    ],
)
@pytest.mark.parametrize("endpoint", [None, "sb://localhost:5671"])
def test_service_bus_refuses_for_a_cause(error: Exception, endpoint: str | None, cause: Cause | None) -> None:
    assert cause_of_fault(by_the_sdk(error, endpoint=endpoint)) is cause


def test_a_silent_broker_cannot_be_reached_and_a_busy_one_only_wants_time() -> None:
    assert cause_of_fault(OperationTimeoutError()) is Cause.UNREACHABLE
    assert cause_of_fault(TimeoutError()) is Cause.UNREACHABLE
    assert cause_of_fault(ServiceBusServerBusyError()) is None


# Connections

KEY = ConnectionKey("absent.example", 443, True, True, None, None, None)
UNTRUSTED = ssl.SSLCertVerificationError(1, "self-signed certificate")
UNKNOWN = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
REFUSED = ConnectionRefusedError(111, "Connect call failed")


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (UNKNOWN, Cause.NAME_NOT_RESOLVED),
        (UNTRUSTED, Cause.TLS_UNTRUSTED),
        (REFUSED, Cause.UNREACHABLE),
        (TimeoutError(), Cause.UNREACHABLE),
    ],
)
def test_a_connection_fails_for_the_same_cause_whatever_wraps_it(error: OSError, cause: Cause) -> None:
    amqp = AMQPConnectionError(ErrorCondition.SocketError, description=f"Failed to initiate: {error}", error=error)
    amqp.__cause__ = error
    http = aiohttp.ClientConnectorError(KEY, error)
    http.__cause__ = error
    assert cause_of_fault(by_the_sdk(amqp)) is cause
    assert cause_of_fault(by_the_sdk(amqp, endpoint="sb://localhost:5671")) is cause
    assert find_cause(ServiceRequestError("failed", error=http)) is cause
    assert find_cause(error) is cause


def test_a_token_that_could_not_be_had_is_the_cause_and_not_what_kept_it_from_coming() -> None:
    no_token = TokenUnavailable("https://servicebus.azure.net//.default", "no route", code="none")
    no_token.__cause__ = ServiceRequestError("no route", error=UNKNOWN)
    assert cause_of_fault(by_the_sdk(no_token)) is Cause.NO_TOKEN
    assert find_cause(no_token) is Cause.NO_TOKEN


def test_what_fails_for_want_of_a_token_says_so_with_entras_code() -> None:
    assert (NO_TOKEN.cause, NO_TOKEN.code) == (Cause.NO_TOKEN, "700016")
    assert NoToken(NO_TOKEN).cause is Cause.NO_TOKEN
