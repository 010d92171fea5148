"""Tokens: one broker owns the only token cache, and every client of the process asks it.

It implements azure-core's `AsyncTokenCredential`, so Azure OpenAI, Service Bus and Blob share it and its events.
Each refresh asks a fresh credential over one shared session: a credential of the SDK that lives on swallows the
errors of a proactive refresh, ignores a forced one within 30 s of the last and re-reads the projected token only
every 600 s. Which credential that is, `CredentialFetch` knows; the broker knows time and promises only.
"""

import asyncio
import os
import random
import re
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Protocol, Self

import aiohttp
from azure.core.credentials import AccessToken, AccessTokenInfo, TokenRequestOptions
from azure.core.credentials_async import AsyncTokenCredential
from azure.core.exceptions import AzureError
from azure.core.pipeline.transport import AioHttpTransport
from azure.identity.aio import (
    AzureCliCredential,
    DefaultAzureCredential,
    ManagedIdentityCredential,
    WorkloadIdentityCredential,
)

from worker.azure.network import has_proxy, trust
from worker.errors import InvalidSettings, TokenUnavailable
from worker.interfaces import Observer, TokenRefreshed, TokenRefreshFailed
from worker.settings import ServiceBusSettings
from worker.waits import backoff

TOKEN_TIMEOUT = 10.0
"""Seconds for one token request, all in all. The SDK's own 300 would stall a refresh for minutes."""

LONGEST_RETRY_DELAY = 15.0
"""Seconds, less up to half by chance. Work waits for the token, and a try costs Entra one small request."""

EXPIRY_MARGIN = 30.0
"""Seconds before its expiry at which a token is no longer handed out: it must survive the call it is sent with."""

SOONEST_REFRESH = 5.0
"""Seconds before which no refresh follows another, be the clock wrong or the token's life nothing but margin."""

AADSTS_CODES = frozenset(
    str(code)
    for code in (
        50020,
        53003,
        65001,
        70011,
        70021,
        70025,
        90002,
        500011,
        700016,
        700024,
        700027,
        700211,
        700212,
        700213,
        900023,
        7000112,
        7000215,
        7000222,
        7002137,
        7002138,
    )
)
"""Entra's codes that a metric names; any other is `other`."""

Fetch = Callable[[str, str | None], Awaitable[AccessTokenInfo]]
"""Asks for a new token for a scope, with a claims challenge or None. Raises TokenUnavailable."""


class TokenBroker(AsyncTokenCredential):
    """Hands out valid tokens and keeps them valid.

    One request per scope (and claims) at a time, however many callers wait. A token is refreshed in the background
    once its `refresh_on` has passed, while callers go on with the last good one; they wait only when there is none.
    After a failure it asks again in the background after 1 s to 15 s, doubling, so that a token is there soon after
    the cause is gone; callers without a token get the failure at once in the meantime.
    """

    def __init__(
        self,
        fetch: Fetch,
        *,
        observer: Observer,
        clock: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
        resources: AsyncExitStack | None = None,
    ) -> None:
        self._fetch = fetch
        self._observer = observer
        self._clock = clock
        self._jitter = jitter
        self._tokens: dict[str, AccessTokenInfo] = {}
        self._flights: dict[tuple[str, str | None], asyncio.Task[AccessTokenInfo | TokenUnavailable]] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._failures: dict[str, _Failure] = {}
        self._resources = resources or AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        flights = list(self._flights.values())
        for flight in flights:
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)
        await self._resources.aclose()

    async def bearer(self, scope: str) -> str:
        """A token that is valid now. Raises TokenUnavailable."""
        token = self._valid(scope) or await self._refresh(scope)
        return token.token

    async def replace(self, scope: str, rejected: str) -> str:
        """A newer token than the one that a service has just rejected. Raises TokenUnavailable."""
        token = self._tokens.get(scope)
        if token is None or token.token == rejected:
            token = await self._refresh(scope)
        return token.token

    async def get_token(
        self,
        *scopes: str,
        claims: str | None = None,
        tenant_id: str | None = None,
        enable_cae: bool = False,
        **kwargs: Any,
    ) -> AccessToken:
        """For azure-core's clients. Raises TokenUnavailable, as every method that needs a token."""
        token = await self._for_client(scopes, claims)
        return AccessToken(token.token, token.expires_on)

    async def get_token_info(self, *scopes: str, options: TokenRequestOptions | None = None) -> AccessTokenInfo:
        return await self._for_client(scopes, (options or {}).get("claims"))

    async def _for_client(self, scopes: tuple[str, ...], claims: str | None) -> AccessTokenInfo:
        (scope,) = scopes
        if claims:
            return await self._refresh(scope, claims)
        return self._valid(scope) or await self._refresh(scope)

    def _valid(self, scope: str) -> AccessTokenInfo | None:
        token = self._tokens.get(scope)
        if token is not None and token.expires_on - EXPIRY_MARGIN > self._clock():
            return token
        return None

    async def _refresh(self, scope: str, claims: str | None = None) -> AccessTokenInfo:
        failure = self._failures.get(scope)
        if failure is not None and self._clock() < failure.retry_at:
            raise failure.error
        flight = self._flights.get((scope, claims)) or self._start_flight(scope, claims)
        # waiting on the task rather than awaiting it: a cancelled caller must not take the others' request along
        await asyncio.wait({flight})
        if flight.cancelled():
            raise TokenUnavailable(scope, "the worker is closing", code="none")
        outcome = flight.result()
        if isinstance(outcome, TokenUnavailable):
            raise outcome
        return outcome

    def _start_flight(
        self, scope: str, claims: str | None = None
    ) -> asyncio.Task[AccessTokenInfo | TokenUnavailable]:
        flight = asyncio.get_running_loop().create_task(self._fly(scope, claims), name=f"token {scope}")
        self._flights[scope, claims] = flight
        flight.add_done_callback(lambda _: self._flights.pop((scope, claims), None))
        return flight

    async def _fly(self, scope: str, claims: str | None) -> AccessTokenInfo | TokenUnavailable:
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            token = await self._fetch(scope, claims)
        except TokenUnavailable as error:
            self._note_failure(scope, error, loop.time() - started)
            return error
        self._tokens[scope] = token
        self._failures.pop(scope, None)
        refresh_on = refresh_moment(token, self._clock(), self._jitter())
        self._schedule(scope, refresh_on)
        self._observer(
            TokenRefreshed(
                scope=scope,
                seconds=loop.time() - started,
                expires_on=token.expires_on,
                refresh_on=refresh_on,
            )
        )
        return token

    def _note_failure(self, scope: str, error: TokenUnavailable, seconds: float) -> None:
        now = self._clock()
        earlier = self._failures.get(scope)
        count = earlier.count + 1 if earlier else 1
        retry_at = now + backoff(count, base=1.0, cap=LONGEST_RETRY_DELAY) * (1 - self._jitter() / 2)
        self._failures[scope] = _Failure(error, count, retry_at)
        token = self._tokens.get(scope)
        if token is not None:
            self._schedule(scope, retry_at)
        self._observer(
            TokenRefreshFailed(
                scope=scope,
                seconds=seconds,
                code=error.code,
                detail=error.detail,
                usable_for=max(0.0, token.expires_on - now) if token else 0.0,
            )
        )

    def _schedule(self, scope: str, moment: float) -> None:
        if scope in self._timers:
            self._timers[scope].cancel()
        delay = max(0.0, moment - self._clock())
        loop = asyncio.get_running_loop()
        self._timers[scope] = loop.call_later(delay, self._refresh_in_background, scope)

    def _refresh_in_background(self, scope: str) -> None:
        if (scope, None) not in self._flights:
            self._start_flight(scope)


class _Failure:
    """The last failure for a scope; until `retry_at` (Unix seconds) callers get it instead of a request."""

    def __init__(self, error: TokenUnavailable, count: int, retry_at: float) -> None:
        self.error = error
        self.count = count
        self.retry_at = retry_at


def refresh_moment(token: AccessTokenInfo, now: float, jitter: float) -> float:
    """When to refresh, Unix seconds: the server's `refresh_on`, else half of what is left of the token's life.

    `jitter` in [0, 1) spreads pods that started together over the tenth after it.
    """
    left = max(0.0, token.expires_on - now)
    ahead = max(0.0, token.refresh_on - now) if token.refresh_on else left / 2
    return now + max(SOONEST_REFRESH, min(ahead + jitter * ahead / 10, left - EXPIRY_MARGIN))


def aadsts_code(message: str) -> str:
    """The metric label for an error message of Entra: a code of the closed set, `other`, or `none`."""
    found = re.search(r"AADSTS(\d+)", message)
    if found is None:
        return "none"
    return found[1] if found[1] in AADSTS_CODES else "other"


class _Credential(Protocol):
    """What all of azure-identity's asynchronous credentials have in common."""

    async def __aenter__(self) -> Any: ...

    async def __aexit__(self, *arguments: Any) -> None: ...

    async def get_token_info(self, *scopes: str, options: TokenRequestOptions | None = None) -> AccessTokenInfo: ...


class CredentialFetch:
    """Asks a fresh credential of azure-identity each time. `timeout`: seconds for one token, all in all."""

    def __init__(self, make: Callable[[], _Credential], *, timeout: float) -> None:
        self._make = make
        self._timeout = timeout

    async def __call__(self, scope: str, claims: str | None) -> AccessTokenInfo:
        options: TokenRequestOptions = {"claims": claims} if claims else {}
        try:
            async with asyncio.timeout(self._timeout), self._make() as credential:
                token: AccessTokenInfo = await credential.get_token_info(scope, options=options)
                return token
        except TimeoutError as error:
            detail = f"the token request took longer than {self._timeout:g} s"
            raise TokenUnavailable(scope, detail, code="timeout") from error
        except (AzureError, OSError, ValueError) as error:
            raise TokenUnavailable(scope, _first_line(error), code=aadsts_code(str(error))) from error
        except (LookupError, TypeError, AttributeError) as error:
            # what azure-identity raises for answers it does not foresee, such as one without a token
            detail = f"the token service's answer cannot be read: {error!r}"
            raise TokenUnavailable(scope, detail, code="none") from error


def open_broker(settings: ServiceBusSettings, observer: Observer) -> TokenBroker:
    """The process's broker; call it inside the running loop and close it at the end."""
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=trust(settings.ca_file)), trust_env=has_proxy()
    )
    make = _credential_maker(settings, session)
    resources = AsyncExitStack()
    resources.push_async_callback(session.close)
    fetch = CredentialFetch(make, timeout=TOKEN_TIMEOUT)
    return TokenBroker(fetch, observer=observer, resources=resources)


def check_environment(settings: ServiceBusSettings) -> None:
    """Raises InvalidSettings naming the variables that the workload identity webhook should have set."""
    if chosen_credential(settings) != "workload":
        return
    names = ("AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AZURE_FEDERATED_TOKEN_FILE")
    missing = [name for name in names if not os.environ.get(name)]
    if missing:
        raise InvalidSettings(
            [
                f"{name} is missing: the workload identity webhook sets it in pods with the label "
                'azure.workload.identity/use: "true" whose service account has a client id'
                for name in missing
            ]
        )


def chosen_credential(settings: ServiceBusSettings) -> str:
    """What `auto` stands for here, or what was named."""
    if settings.credential != "auto":
        return settings.credential
    return "workload" if os.environ.get("AZURE_FEDERATED_TOKEN_FILE") else "cli"


def _credential_maker(settings: ServiceBusSettings, session: aiohttp.ClientSession) -> Callable[[], _Credential]:
    def over_the_shared_session() -> dict[str, Any]:
        # one try: the broker repeats by its own clock, in the background
        return {
            "transport": AioHttpTransport(session=session, session_owner=False),
            "connection_timeout": TOKEN_TIMEOUT,
            "read_timeout": TOKEN_TIMEOUT,
            "retry_total": 0,
        }

    match chosen_credential(settings):
        case "workload":
            return lambda: WorkloadIdentityCredential(
                enable_azure_proxy=settings.enable_azure_proxy, **over_the_shared_session()
            )
        case "managed":
            return lambda: ManagedIdentityCredential(
                client_id=os.environ.get("AZURE_CLIENT_ID"), **over_the_shared_session()
            )
        case "default":
            return lambda: DefaultAzureCredential(exclude_environment_credential=True, **over_the_shared_session())
        case _:
            return AzureCliCredential


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:500]
