"""How every client reaches a server: whom it trusts, whether by a proxy, and what keeps a connection from being
made."""

import re
import socket
import ssl
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import aiohttp
from azure.core.exceptions import AzureError

from worker.errors import Cause, InvalidSettings, TokenUnavailable


def trust(ca_file: Path | None) -> ssl.SSLContext:
    """Verify servers against `ca_file`, or against the system's authorities when there is none."""
    return ssl.create_default_context(cafile=ca_file)


def has_proxy() -> bool:
    """Whether the environment names a proxy.

    Only then may aiohttp trust the environment: it would also look for a .netrc file in a thread at every request,
    a tenth of a job's CPU, and send what it finds there as a password.
    """
    return "https" in urllib.request.getproxies_environment()


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """An HTTP proxy that tunnels by CONNECT. `address` is its URL without the port."""

    address: str
    port: int
    user: str | None
    password: str | None


def proxy_to(host: str, port: int) -> Proxy | None:
    """The proxy on the way to `host`: what HTTPS_PROXY names, unless NO_PROXY names the host.

    For a client that cannot look at the environment itself. Raises InvalidSettings where it is no HTTP proxy.
    """
    named = urllib.request.getproxies_environment().get("https")
    if not named or urllib.request.proxy_bypass(f"{host}:{port}"):
        return None
    try:
        return _read_proxy(named)
    except ValueError as error:
        # what stands before the @ is a password
        shown = re.sub(r"(?s)^([a-z0-9]+://)?.*@", r"\1...@", named)
        raise InvalidSettings(
            [
                f"HTTPS_PROXY={shown}: must be http://host:port or http://user:password@host:port to reach "
                f"{host}:{port}. Change it, or add {host} to NO_PROXY."
            ]
        ) from error


def _read_proxy(url: str) -> Proxy:
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname or parts.path not in ("", "/"):
        raise ValueError("not the URL of an HTTP proxy")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return Proxy(
        address=f"http://{host}",
        port=80 if parts.port is None else parts.port,
        user=None if parts.username is None else unquote(parts.username),
        password=None if parts.password is None else unquote(parts.password),
    )


def causes_of(error: BaseException) -> Iterator[BaseException]:
    """From the innermost outwards: the SDKs wrap what they were given."""
    chain: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in chain:
        chain.append(following)
        inner = following.inner_exception if isinstance(following, AzureError) else None
        following = inner or following.__cause__
    yield from reversed(chain)


def find_cause(
    error: BaseException, cause_of: Callable[[BaseException], Cause | None] = lambda _: None
) -> Cause | None:
    """Of a failed connection, or of what `cause_of` knows: the innermost that tells decides.

    A token that could not be had comes first: what kept it from coming is behind it, and is another server's.
    """
    chain = list(causes_of(error))
    if any(isinstance(one, TokenUnavailable) for one in chain):
        return Cause.NO_TOKEN
    return next(filter(None, (cause_of(one) or _cause_of_connection(one) for one in chain)), None)


def _cause_of_connection(error: BaseException) -> Cause | None:
    match error:
        case ssl.SSLCertVerificationError() | aiohttp.ClientConnectorCertificateError():
            return Cause.TLS_UNTRUSTED
        case socket.gaierror() | aiohttp.ClientConnectorDNSError():
            return Cause.NAME_NOT_RESOLVED
        case aiohttp.ClientHttpProxyError():
            return Cause.PROXY_REFUSED
        case aiohttp.ClientResponseError():
            return None  # it was reached
        case OSError() | TimeoutError() | aiohttp.ClientError():
            return Cause.UNREACHABLE
    return None
