"""What goes wrong when one talks to Service Bus by the SDK: its cause, and how to say it in one line."""

import re
from dataclasses import dataclass

from aiohttp import (
    ClientConnectorCertificateError,
    ClientConnectorError,
    ClientHttpProxyError,
    ClientResponseError,
    ServerTimeoutError,
)
from azure.servicebus._pyamqp.error import (
    AMQPException,
    AMQPLinkError,
    ErrorCondition,
    MessageException,
    TokenAuthFailure,
)
from azure.servicebus.exceptions import (
    MessagingEntityDisabledError,
    MessagingEntityNotFoundError,
    OperationTimeoutError,
    ServiceBusAuthenticationError,
    ServiceBusAuthorizationError,
    ServiceBusCommunicationError,
    ServiceBusConnectionError,
    ServiceBusError,
)

from worker.azure.network import causes_of, find_cause
from worker.errors import Cause, TokenUnavailable
from worker.roles import SERVICE_BUS_DATA_RECEIVER, SERVICE_BUS_DATA_SENDER, Role

FAULTS = (
    ServiceBusError,
    TokenUnavailable,
    OSError,
    TimeoutError,
    # slips of the SDK while a link goes down: an attribute of a closed handler, an empty array, a lost frame
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What the SDK is known to raise when a link, a connection or a token fails."""


def is_not_allowed(error: BaseException) -> bool:
    """The queue takes no such message, as one with sessions takes none without. The SDK has no class for it."""
    match error:
        case AMQPLinkError() | MessageException() if error.condition == ErrorCondition.NotAllowed:
            return True
    return False


def cause_of_fault(error: BaseException) -> Cause | None:
    """What the fault comes from; None where only waiting can tell, as for a busy server or a full queue."""
    return find_cause(error, _cause_of)


def _cause_of(error: BaseException) -> Cause | None:
    # the errors of the AMQP layer, within the SDK's own, have no public class; tests/contract holds them to this
    match error:
        case TokenAuthFailure(status_code=404) | MessagingEntityNotFoundError():
            return Cause.MISSING
        case TokenAuthFailure() | ServiceBusAuthenticationError():
            return _cause_of_unauthorized(str(error), otherwise=Cause.TOKEN_REFUSED)
        case AMQPException(condition=ErrorCondition.UnauthorizedAccess) | ServiceBusAuthorizationError():
            return _cause_of_unauthorized(str(error), otherwise=Cause.ROLE_MISSING)
        case AMQPException(condition=ErrorCondition.NotAllowed) if "requires sessions" in str(error):
            return Cause.SESSIONS_REQUIRED
        case MessagingEntityDisabledError():
            return Cause.DISABLED
        case ClientHttpProxyError():
            return Cause.PROXY_REFUSED
        case ClientResponseError(status=401 | 403):
            return Cause.NETWORK_CLOSED
        case ClientResponseError():
            return Cause.WRONG_ENDPOINT
        case OperationTimeoutError() | ServiceBusCommunicationError() | ServiceBusConnectionError():
            return Cause.UNREACHABLE
    return None


def _cause_of_unauthorized(words: str, *, otherwise: Cause) -> Cause:
    """Azure has one condition for all that it does not let in, so its words must tell a closed network, a missing
    claim and a token of another tenant apart."""
    if "Ip has been prevented" in words or "public network access" in words.lower():
        return Cause.NETWORK_CLOSED
    if "InvalidIssuer" in words:
        return Cause.WRONG_TENANT
    return Cause.ROLE_MISSING if claims_wanted(words) else otherwise


def claims_wanted(words: str) -> list[Role]:
    """The roles that carry the claims which Azure misses: "'Listen' claim(s) are required"."""
    return [_ROLES[claim] for claim in re.findall(r"'(\w+)' claim", words) if claim in _ROLES]


_ROLES = {"Send": SERVICE_BUS_DATA_SENDER, "Listen": SERVICE_BUS_DATA_RECEIVER}


def describe_fault(error: BaseException) -> str:
    """The error's first line, with what is behind it: a refused token arrives as a lost connection, and only the
    inner exception tells that it was refused and why."""
    if unopened := find_unopened(error):
        return f"{unopened.what}; {unopened.next_step}"
    inner = getattr(error, "inner_exception", None)
    told = [_first_line(error), _one_line(inner)] if isinstance(inner, BaseException) else [_first_line(error)]
    return ": ".join(dict.fromkeys(told))


def _one_line(error: BaseException) -> str:
    """Of a refused token the reason comes last, below the status."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unopened:
    """A WebSocket that could not be opened. `what` names the host and port that were tried: the proxy's where the
    proxy is what fails."""

    what: str
    next_step: str


def find_unopened(error: BaseException) -> Unopened | None:
    """Behind what the SDK has made of it, which is a failed authentication or a bare number."""
    causes = list(causes_of(error))
    # tokens and administration come over HTTP too
    if any(isinstance(cause, TokenUnavailable) for cause in causes):
        return None
    if not any(isinstance(cause, ServiceBusError) for cause in causes):
        return None
    return next(filter(None, map(_describe_unopened, causes)), None)


def _describe_unopened(cause: BaseException) -> Unopened | None:
    match cause:
        case ClientConnectorCertificateError(host=host, port=port, certificate_error=refusal):
            reason = getattr(refusal, "verify_message", None) or _one_line(refusal)
            what = f"{_CANNOT} {host}:{port}: its certificate is not trusted: {reason}"
            return Unopened(what=what, next_step=_TRUST)
        case ClientConnectorError(host=host, port=port, os_error=refusal):
            what = f"{_CANNOT} {host}:{port}: {refusal.strerror or _one_line(refusal)}"
            return Unopened(what=what, next_step=_REACH)
        case ServerTimeoutError():
            return Unopened(what=f"{_CANNOT} Service Bus: {_one_line(cause)}", next_step=_REACH)
        case ClientHttpProxyError():
            return Unopened(what=f"{_CANNOT} Service Bus: {_answer(cause)} (the proxy)", next_step=_PASS)
        case ClientResponseError(status=401 | 403):
            return Unopened(what=f"{_CANNOT} Service Bus: {_answer(cause)}", next_step=_ADMIT)
        case ClientResponseError():
            return Unopened(what=f"{_CANNOT} Service Bus: {_answer(cause)}", next_step=_AIM)
    return None


_CANNOT = "cannot connect by WebSockets to"
_TRUST = "set AOAI_WORKER_CA_FILE to the authority that signed it: that of a private endpoint or of TLS inspection"
_REACH = (
    "let this network reach it: Service Bus accepts WebSockets on port 443 of the namespace. HTTPS_PROXY and "
    "NO_PROXY decide whether a proxy is used"
)
_PASS = (
    "HTTPS_PROXY must name a proxy that may CONNECT to port 443 of the namespace (http://user:password@host:port "
    "if it needs a password); NO_PROXY names the hosts to reach without it"
)
_ADMIT = "check the namespace's firewall: it must allow this network, or have a private endpoint in it"
_AIM = "AOAI_WORKER_SERVICEBUS_ENDPOINT, if set, must name port 443 of the namespace; port 5671 accepts only AMQP"


def _answer(error: ClientResponseError) -> str:
    url = error.request_info.real_url
    reason = next(iter(error.message.splitlines()), "")[:100]
    return f"{url.host}:{url.port} answered {error.status} {reason}".rstrip()
