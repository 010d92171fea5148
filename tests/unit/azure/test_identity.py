"""Tokens: nobody waits for a refresh that is not needed yet, and a token service that is down is left in peace."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
from azure.core.credentials import AccessTokenInfo, TokenRequestOptions
from azure.core.exceptions import ClientAuthenticationError, ServiceRequestError
from azure.identity import CredentialUnavailableError
from azure.identity.aio import DefaultAzureCredential
from hypothesis import given
from hypothesis import strategies as st

from tests.support.bench import EPOCH, wall_clock
from worker.azure import identity
from worker.azure.identity import (
    EXPIRY_MARGIN,
    SOONEST_REFRESH,
    TOKEN_TIMEOUT,
    CredentialFetch,
    TokenBroker,
    aadsts_code,
    check_environment,
    open_broker,
    refresh_moment,
)
from worker.errors import InvalidSettings, TokenUnavailable
from worker.interfaces import TokenRefreshed, TokenRefreshFailed
from worker.settings import ConnectionSettings
from worker.testing import EventList

SCOPE = "https://cognitiveservices.azure.com/.default"
OTHER_SCOPE = "https://servicebus.azure.net//.default"

HOUR = 3_600.0


class TokenService:
    """Gives out `token-1`, `token-2` and so on, each after `latency` seconds; while `down`, it refuses.

    `requests` tells when each was asked for, in loop seconds, for which scope and with which claims.
    """

    def __init__(self, *, lifetime: float = HOUR, refresh_in: float | None = None, latency: float = 0.0) -> None:
        self.lifetime = lifetime
        self.refresh_in = refresh_in
        self.latency = latency
        self.down = False
        self.requests: list[tuple[float, str, str | None]] = []

    @property
    def times(self) -> list[float]:
        return [round(moment, 3) for moment, _, _ in self.requests]

    async def __call__(self, scope: str, claims: str | None) -> AccessTokenInfo:
        self.requests.append((asyncio.get_running_loop().time(), scope, claims))
        name = f"token-{len(self.requests)}"
        await asyncio.sleep(self.latency)
        if self.down:
            raise TokenUnavailable(scope, "AADSTS700016: down", code="700016")
        now = wall_clock()
        refresh_on = None if self.refresh_in is None else int(now + self.refresh_in)
        return AccessTokenInfo(name, int(now + self.lifetime), refresh_on=refresh_on)


@pytest.fixture
def service() -> TokenService:
    return TokenService()


@pytest.fixture
def events() -> EventList:
    return EventList()


@pytest.fixture
async def broker(service: TokenService, events: EventList) -> AsyncIterator[TokenBroker]:
    """Without jitter, so that every moment is exact."""
    async with TokenBroker(service, observer=events, clock=wall_clock, jitter=lambda: 0.0) as made:
        yield made


async def after(seconds: float) -> None:
    """Let virtual time pass."""
    await asyncio.sleep(seconds)


# Handing out


@pytest.mark.looptime
async def test_a_token_is_requested_once_and_handed_out_again(broker: TokenBroker, service: TokenService) -> None:
    assert await broker.bearer(SCOPE) == "token-1"
    assert await broker.bearer(SCOPE) == "token-1"
    assert service.requests == [(0.0, SCOPE, None)]


@pytest.mark.looptime
async def test_fifty_cold_callers_share_one_request(
    broker: TokenBroker, service: TokenService, looptime: float
) -> None:
    service.latency = 2.0
    tokens = await asyncio.gather(*[broker.bearer(SCOPE) for _ in range(50)])
    assert set(tokens) == {"token-1"}
    assert service.times == [0.0]
    assert looptime == 2.0


@pytest.mark.looptime
async def test_each_scope_has_its_own_token(broker: TokenBroker, service: TokenService) -> None:
    service.latency = 1.0
    one, other = await asyncio.gather(broker.bearer(SCOPE), broker.bearer(OTHER_SCOPE))
    assert (one, other) == ("token-1", "token-2")
    assert service.times == [0.0, 0.0]


@pytest.mark.looptime
async def test_azure_cores_clients_get_the_same_tokens(broker: TokenBroker, service: TokenService) -> None:
    bearer = await broker.bearer(SCOPE)
    token = await broker.get_token(SCOPE, enable_cae=True)
    info = await broker.get_token_info(SCOPE, options={"enable_cae": True})
    assert token.token == info.token == bearer
    assert token.expires_on == info.expires_on == EPOCH + HOUR
    assert len(service.requests) == 1


@pytest.mark.looptime
async def test_a_cancelled_caller_does_not_take_the_others_request_along(
    broker: TokenBroker, service: TokenService
) -> None:
    service.latency = 2.0
    impatient = asyncio.create_task(broker.bearer(SCOPE))
    patient = asyncio.create_task(broker.bearer(SCOPE))
    await after(1.0)
    impatient.cancel()
    assert await patient == "token-1"
    assert impatient.cancelled()
    assert service.times == [0.0]


# Refreshing


@pytest.mark.looptime
async def test_a_token_is_refreshed_in_the_background_when_the_service_says_so(
    broker: TokenBroker, service: TokenService
) -> None:
    service.refresh_in = 1_000.0
    await broker.bearer(SCOPE)
    await after(999.0)
    assert await broker.bearer(SCOPE) == "token-1"
    await after(2.0)
    assert service.times == [0.0, 1_000.0]
    assert await broker.bearer(SCOPE) == "token-2"
    await after(1_000.0)
    assert service.times == [0.0, 1_000.0, 2_000.0]


@pytest.mark.looptime
async def test_a_token_without_a_word_of_the_service_is_refreshed_at_half_its_life(
    broker: TokenBroker, service: TokenService
) -> None:
    await broker.bearer(SCOPE)
    await after(HOUR)
    assert service.times == [0.0, HOUR / 2]


@pytest.mark.looptime
async def test_jitter_spreads_refreshes_over_a_tenth(service: TokenService, events: EventList) -> None:
    service.refresh_in = 1_000.0
    async with TokenBroker(service, observer=events, clock=wall_clock, jitter=lambda: 0.5) as broker:
        await broker.bearer(SCOPE)
        await after(1_049.0)
        assert service.times == [0.0]
        await after(2.0)
        assert service.times == [0.0, 1_050.0]


@pytest.mark.looptime
async def test_callers_get_the_last_good_token_while_a_slow_refresh_is_under_way(
    broker: TokenBroker, service: TokenService, looptime: float
) -> None:
    await broker.bearer(SCOPE)
    service.latency = 60.0
    await after(HOUR / 2 + 1)
    assert service.times == [0.0, HOUR / 2]
    assert await asyncio.gather(*[broker.bearer(SCOPE) for _ in range(20)]) == ["token-1"] * 20
    assert (await broker.get_token_info(SCOPE)).token == "token-1"
    assert looptime == HOUR / 2 + 1  # nobody has waited
    await after(60.0)
    assert await broker.bearer(SCOPE) == "token-2"


@pytest.mark.looptime
async def test_a_token_that_would_lapse_under_way_is_not_handed_out(
    broker: TokenBroker, service: TokenService
) -> None:
    service.refresh_in = HOUR  # a service that says so: the last moment
    await broker.bearer(SCOPE)
    service.latency = 10.0
    await after(HOUR - EXPIRY_MARGIN - 1)
    assert await broker.bearer(SCOPE) == "token-1"
    await after(2.0)
    assert await broker.bearer(SCOPE) == "token-2"
    assert service.times == [0.0, HOUR - EXPIRY_MARGIN]


@pytest.mark.looptime
async def test_a_token_that_is_as_good_as_lapsed_is_not_refreshed_without_pause(
    broker: TokenBroker, service: TokenService
) -> None:
    service.lifetime = 1.0  # or our clock is ahead of the service's
    await broker.bearer(SCOPE)
    await after(60.0)
    assert len(service.requests) <= 60 / SOONEST_REFRESH + 1


@pytest.mark.looptime
async def test_each_refresh_is_reported_with_its_duration_and_the_next(
    broker: TokenBroker, service: TokenService, events: EventList
) -> None:
    service.latency = 2.0
    service.refresh_in = 1_000.0
    await broker.bearer(SCOPE)
    assert events.all == [
        TokenRefreshed(scope=SCOPE, seconds=2.0, expires_on=EPOCH + 2 + HOUR, refresh_on=EPOCH + 2 + 1_000)
    ]


# Failing


@pytest.mark.looptime
async def test_a_failed_refresh_keeps_the_last_good_token_and_is_tried_again_ever_more_slowly(
    broker: TokenBroker, service: TokenService
) -> None:
    await broker.bearer(SCOPE)
    service.down = True
    await after(HOUR / 2 + 16)
    assert service.times == [0.0, 1800.0, 1801.0, 1803.0, 1807.0, 1815.0]
    assert await broker.bearer(SCOPE) == "token-1"
    service.down = False
    await after(15.0)
    assert service.times[-1] == 1830.0
    assert await broker.bearer(SCOPE) == "token-7"


@pytest.mark.looptime
async def test_jitter_shortens_the_waits_after_failures_by_half_at_most(
    service: TokenService, events: EventList
) -> None:
    service.refresh_in = 100.0
    async with TokenBroker(service, observer=events, clock=wall_clock, jitter=lambda: 0.999) as broker:
        await broker.bearer(SCOPE)
        service.down = True
        await after(154.0)
    waits = [round(later - earlier, 1) for earlier, later in pairwise(service.times[1:9])]
    assert waits == [0.5, 1, 2, 4, 7.5, 7.5, 7.5]


@pytest.mark.looptime
async def test_the_backoff_begins_anew_after_a_success(broker: TokenBroker, service: TokenService) -> None:
    service.refresh_in = 100.0
    await broker.bearer(SCOPE)
    service.down = True
    await after(102.0)
    service.down = False
    await after(2.0)
    assert service.times == [0.0, 100.0, 101.0, 103.0]
    service.down = True
    await after(101.0)
    assert service.times[4:] == [203.0, 204.0]


@pytest.mark.looptime
async def test_failures_are_reported_with_how_long_the_last_good_token_lasts(
    broker: TokenBroker, service: TokenService, events: EventList
) -> None:
    await broker.bearer(SCOPE)
    service.down = True
    service.latency = 0.5
    await after(HOUR / 2 + 1)
    (failure,) = events.of(TokenRefreshFailed)
    assert failure == TokenRefreshFailed(
        scope=SCOPE, seconds=0.5, code="700016", detail="AADSTS700016: down", usable_for=HOUR / 2 - 0.5
    )


@pytest.mark.looptime
async def test_without_a_token_callers_get_the_failure_and_the_next_ones_get_it_at_once(
    broker: TokenBroker, service: TokenService, looptime: float
) -> None:
    service.down = True
    service.latency = 0.25
    outcomes = await asyncio.gather(*[broker.bearer(SCOPE) for _ in range(50)], return_exceptions=True)
    assert {str(outcome) for outcome in outcomes} == {f"no token for {SCOPE}: AADSTS700016: down"}
    for _ in range(10):
        with pytest.raises(TokenUnavailable):
            await broker.bearer(SCOPE)
    assert looptime == 0.25
    assert service.times == [0.0]
    await after(1.0)
    with pytest.raises(TokenUnavailable):
        await broker.bearer(SCOPE)
    assert service.times == [0.0, 1.25]


@pytest.mark.looptime
async def test_an_outage_of_one_scope_does_not_pause_another(broker: TokenBroker, service: TokenService) -> None:
    service.down = True
    with pytest.raises(TokenUnavailable):
        await broker.bearer(SCOPE)
    service.down = False
    assert await broker.bearer(OTHER_SCOPE) == "token-2"


@pytest.mark.looptime
async def test_without_a_token_nothing_is_requested_that_nobody_asked_for(
    broker: TokenBroker, service: TokenService
) -> None:
    service.down = True
    with pytest.raises(TokenUnavailable):
        await broker.bearer(SCOPE)
    await after(HOUR)
    assert service.times == [0.0]


@pytest.mark.looptime
async def test_an_outage_of_a_day_is_survived(
    broker: TokenBroker, service: TokenService, events: EventList
) -> None:
    await broker.bearer(SCOPE)
    service.down = True
    await after(24 * HOUR)
    assert len(events.of(TokenRefreshFailed)) > 5_000, "2.0 ** 1024 is beyond a float, and longer changes nothing"
    assert events.of(TokenRefreshFailed)[-1].usable_for == 0.0
    service.down = False
    await after(15.0)
    assert (await broker.bearer(SCOPE)).startswith("token-")


# Replacing


@pytest.mark.looptime
async def test_a_rejected_token_is_replaced_once_for_all_whom_it_failed(
    broker: TokenBroker, service: TokenService
) -> None:
    service.latency = 1.0
    rejected = await broker.bearer(SCOPE)
    tokens = await asyncio.gather(*[broker.replace(SCOPE, rejected) for _ in range(50)])
    assert set(tokens) == {"token-2"}
    assert await broker.replace(SCOPE, rejected) == "token-2"  # one who learns of it late
    assert service.times == [0.0, 1.0]


@pytest.mark.looptime
async def test_without_a_token_a_replacement_is_requested(broker: TokenBroker) -> None:
    assert await broker.replace(SCOPE, "from-elsewhere") == "token-1"


@pytest.mark.looptime
async def test_a_replacement_that_cannot_be_had_is_a_failure_and_not_the_rejected_token(
    broker: TokenBroker, service: TokenService
) -> None:
    rejected = await broker.bearer(SCOPE)
    service.down = True
    for _ in range(2):
        with pytest.raises(TokenUnavailable):
            await broker.replace(SCOPE, rejected)
    assert len(service.requests) == 2


# Claims


@pytest.mark.looptime
async def test_a_claims_challenge_is_passed_on_and_its_token_is_for_everybody(
    broker: TokenBroker, service: TokenService
) -> None:
    await broker.bearer(SCOPE)
    assert (await broker.get_token(SCOPE, claims="{a}")).token == "token-2"
    assert (await broker.get_token_info(SCOPE, options={"claims": "{b}"})).token == "token-3"
    assert [claims for _, _, claims in service.requests] == [None, "{a}", "{b}"]
    assert await broker.bearer(SCOPE) == "token-3"


@pytest.mark.looptime
async def test_a_claims_challenge_is_not_answered_with_a_request_that_is_under_way_without_them(
    broker: TokenBroker, service: TokenService
) -> None:
    service.latency = 1.0
    plain, challenged, same = await asyncio.gather(
        broker.get_token(SCOPE), broker.get_token(SCOPE, claims="{a}"), broker.get_token(SCOPE, claims="{a}")
    )
    assert (plain.token, challenged.token, same.token) == ("token-1", "token-2", "token-2")
    assert [claims for _, _, claims in service.requests] == [None, "{a}"]


# Closing


@pytest.mark.looptime
@pytest.mark.parametrize("moment", [0.0, HOUR / 2 + 1])  # between two refreshes, and during one
async def test_closing_leaves_no_task_and_no_timer(service: TokenService, events: EventList, moment: float) -> None:
    async with TokenBroker(service, observer=events, clock=wall_clock, jitter=lambda: 0.0) as broker:
        await broker.bearer(SCOPE)
        service.latency = 60.0
        await after(moment)
        requests = len(service.requests)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    await after(2 * HOUR)
    assert len(service.requests) == requests


@pytest.mark.looptime
async def test_callers_who_wait_when_it_is_closed_are_told_so(service: TokenService, events: EventList) -> None:
    service.latency = 60.0
    async with TokenBroker(service, observer=events, clock=wall_clock) as broker:
        waiting = asyncio.create_task(broker.bearer(SCOPE))
        await after(1.0)
    with pytest.raises(TokenUnavailable, match="closing"):
        await waiting


# Arithmetic


@given(
    lifetime=st.floats(-HOUR, 30 * 24 * HOUR),
    refresh_in=st.none() | st.floats(-HOUR, 30 * 24 * HOUR),
    jitter=st.floats(0, 1, exclude_max=True),
)
def test_a_refresh_comes_before_the_token_lapses_and_never_without_pause(
    lifetime: float, refresh_in: float | None, jitter: float
) -> None:
    now = EPOCH
    refresh_on = None if refresh_in is None else int(now + refresh_in)
    token = AccessTokenInfo("t", int(now + lifetime), refresh_on=refresh_on)
    moment = refresh_moment(token, now, jitter)
    assert moment >= now + SOONEST_REFRESH
    assert moment <= max(now + SOONEST_REFRESH, token.expires_on - EXPIRY_MARGIN)
    if refresh_on is not None and now + SOONEST_REFRESH <= refresh_on <= token.expires_on - EXPIRY_MARGIN:
        assert refresh_on - 1e-3 <= moment <= refresh_on + (refresh_on - now) / 10 + 1e-3


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("AADSTS700016: Application with identifier 'x' was not found", "700016"),
        ("Microsoft Entra ID error '(invalid_client) AADSTS7000215: Invalid secret'", "7000215"),
        ("AADSTS900561: The endpoint only accepts POST", "other"),
        ("AADSTS70: a code whose beginning is another's", "other"),
        ("connection refused", "none"),
        ("", "none"),
    ],
)
def test_only_codes_of_the_closed_set_become_labels(message: str, code: str) -> None:
    assert aadsts_code(message) == code


@given(st.text(max_size=40) | st.integers(0).map(lambda number: f"AADSTS{number}"))
def test_whatever_entra_says_the_label_is_of_a_closed_set(message: str) -> None:
    assert aadsts_code(message) in identity.AADSTS_CODES | {"other", "none"}


# Credentials of azure-identity


class FakeCredential:
    """A credential that behaves as the given function says; `closed` tells how many were closed."""

    def __init__(self, behave: Callable[[str, str | None], AccessTokenInfo | Exception | float]) -> None:
        self._behave = behave
        self.opened = 0
        self.closed = 0

    async def __aenter__(self) -> Self:
        self.opened += 1
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.closed += 1

    async def get_token_info(self, *scopes: str, options: TokenRequestOptions | None = None) -> AccessTokenInfo:
        (scope,) = scopes
        behaviour = self._behave(scope, (options or {}).get("claims"))
        if isinstance(behaviour, Exception):
            raise behaviour
        if isinstance(behaviour, AccessTokenInfo):
            return behaviour
        await asyncio.sleep(behaviour)
        raise AssertionError("nobody should wait so long")


def fetch_of(credential: FakeCredential, *, timeout: float = 10.0) -> CredentialFetch:
    return CredentialFetch(lambda: credential, timeout=timeout)


async def test_each_request_asks_a_fresh_credential_and_closes_it() -> None:
    asked: list[tuple[str, str | None]] = []

    def note(scope: str, claims: str | None) -> AccessTokenInfo:
        asked.append((scope, claims))
        return AccessTokenInfo("t", 1)

    credential = FakeCredential(note)
    fetch = fetch_of(credential)
    assert (await fetch(SCOPE, None)).token == "t"
    assert (await fetch(SCOPE, "{a}")).token == "t"
    assert asked == [(SCOPE, None), (SCOPE, "{a}")]
    assert (credential.opened, credential.closed) == (2, 2)


@pytest.mark.looptime
async def test_a_token_request_takes_no_longer_than_its_timeout(looptime: float) -> None:
    credential = FakeCredential(lambda scope, claims: math.inf)
    with pytest.raises(TokenUnavailable, match=r"took longer than 2\.5 s") as caught:
        await fetch_of(credential, timeout=2.5)(SCOPE, None)
    assert caught.value.code == "timeout"
    assert caught.value.scope == SCOPE
    assert looptime == 2.5
    assert credential.closed == 1


@pytest.mark.parametrize(
    ("error", "detail", "code"),
    [
        (
            ClientAuthenticationError("AADSTS700016: Application not found\nTrace ID: 1"),
            "AADSTS700016: Application not found",
            "700016",
        ),
        (ClientAuthenticationError("AADSTS900561: POST only"), "AADSTS900561: POST only", "other"),
        (ServiceRequestError("Cannot connect to host login.microsoftonline.com:443"), "Cannot connect", "none"),
        (CredentialUnavailableError("Azure CLI not found on path"), "Azure CLI not found on path", "none"),
        (
            FileNotFoundError(2, "No such file or directory", "/token"),
            "No such file or directory: '/token'",
            "none",
        ),
        (ValueError("'tenant_id' is required"), "'tenant_id' is required", "none"),
        (KeyError("access_token"), "answer cannot be read: KeyError('access_token')", "none"),
        (TypeError("not a mapping"), "answer cannot be read: TypeError('not a mapping')", "none"),
        (OSError(), "OSError", "none"),
        (ClientAuthenticationError("x" * 2_000), "x" * 500, "none"),
    ],
)
async def test_whatever_fails_is_a_token_unavailable_with_a_line_and_a_code(
    error: Exception, detail: str, code: str
) -> None:
    with pytest.raises(TokenUnavailable) as caught:
        await fetch_of(FakeCredential(lambda scope, claims: error))(SCOPE, None)
    assert detail in caught.value.detail
    assert len(caught.value.detail.splitlines()) == 1
    assert len(caught.value.detail) <= 600
    assert caught.value.code == code
    assert caught.value.__cause__ is error


async def test_a_credential_that_cannot_even_be_made_is_a_token_unavailable() -> None:
    def make() -> FakeCredential:
        raise ValueError("missing AZURE_TENANT_ID")

    with pytest.raises(TokenUnavailable, match="missing AZURE_TENANT_ID"):
        await CredentialFetch(make, timeout=1.0)(SCOPE, None)


@pytest.mark.looptime
async def test_a_cancelled_request_is_cancelled_and_not_a_failure() -> None:
    credential = FakeCredential(lambda scope, claims: math.inf)
    request = asyncio.ensure_future(fetch_of(credential)(SCOPE, None))
    await after(1.0)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert credential.closed == 1


# Choosing


Made = list[tuple[str, dict[str, Any]]]


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in (
        "AZURE_CLIENT_ID",
        "AZURE_TENANT_ID",
        "AZURE_FEDERATED_TOKEN_FILE",
        "AZURE_CLIENT_SECRET",
        "AZURE_TOKEN_CREDENTIALS",
    ):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.fixture
def made(environment: pytest.MonkeyPatch) -> Made:
    """Which credentials were made, and with what; none of them reaches for the network."""
    found: Made = []

    def stand_in(name: str) -> Callable[..., FakeCredential]:
        def make(**options: Any) -> FakeCredential:
            found.append((name, options))
            return FakeCredential(lambda scope, claims: AccessTokenInfo(f"from {name}", 2**40))

        return make

    for name in (
        "WorkloadIdentityCredential",
        "ManagedIdentityCredential",
        "AzureCliCredential",
        "DefaultAzureCredential",
    ):
        environment.setattr(identity, name, stand_in(name))
    return found


def settings_of(**values: Any) -> ConnectionSettings:
    return ConnectionSettings(servicebus_namespace="my-namespace.servicebus.windows.net", sink="queue", **values)


@pytest.mark.parametrize(
    ("credential", "in_a_pod", "chosen"),
    [
        ("auto", True, "WorkloadIdentityCredential"),
        ("auto", False, "AzureCliCredential"),
        ("workload", False, "WorkloadIdentityCredential"),
        ("managed", True, "ManagedIdentityCredential"),
        ("managed", False, "ManagedIdentityCredential"),
        ("cli", True, "AzureCliCredential"),
        ("default", True, "DefaultAzureCredential"),
        ("default", False, "DefaultAzureCredential"),
    ],
)
async def test_the_credential_is_chosen_by_name_or_by_the_projected_token(
    environment: pytest.MonkeyPatch, made: Made, events: EventList, credential: str, in_a_pod: bool, chosen: str
) -> None:
    if in_a_pod:
        environment.setenv("AZURE_FEDERATED_TOKEN_FILE", "/var/run/secrets/azure/tokens/azure-identity-token")
    async with open_broker(settings_of(credential=credential), events) as broker:
        assert await broker.bearer(SCOPE) == f"from {chosen}"
    assert [name for name, _ in made] == [chosen]


@pytest.mark.parametrize("credential", ["workload", "managed", "default"])
async def test_a_token_request_is_tried_once_and_within_its_timeout(
    made: Made, events: EventList, credential: str
) -> None:
    async with open_broker(settings_of(credential=credential), events) as broker:
        await broker.bearer(SCOPE)
    ((_, options),) = made
    assert options["retry_total"] == 0
    assert options["connection_timeout"] == options["read_timeout"] == TOKEN_TIMEOUT


async def test_every_request_goes_over_one_shared_session_that_closes_with_the_broker(
    made: Made, events: EventList
) -> None:
    async with open_broker(settings_of(credential="workload"), events) as broker:
        await broker.bearer(SCOPE)
        await broker.replace(SCOPE, "from WorkloadIdentityCredential")
        first, second = [options["transport"] for _, options in made]
        assert first is not second
        assert first.session is second.session
        await first.close()
        assert not second.session.closed
    assert second.session.closed


async def test_a_managed_identity_may_be_one_of_several(
    environment: pytest.MonkeyPatch, made: Made, events: EventList
) -> None:
    environment.setenv("AZURE_CLIENT_ID", "11111111-1111-1111-1111-111111111111")
    async with open_broker(settings_of(credential="managed"), events) as broker:
        await broker.bearer(SCOPE)
    assert made[0][1]["client_id"] == "11111111-1111-1111-1111-111111111111"


@pytest.mark.parametrize("enabled", [True, False])
async def test_identity_bindings_are_asked_for_by_their_setting(
    made: Made, events: EventList, enabled: bool
) -> None:
    async with open_broker(settings_of(credential="workload", enable_azure_proxy=enabled), events) as broker:
        await broker.bearer(SCOPE)
    assert made[0][1]["enable_azure_proxy"] is enabled


@pytest.mark.parametrize("wanted", [None, "prod", "dev", "EnvironmentCredential"])
async def test_azure_identitys_chain_never_takes_a_secret_from_the_environment(
    environment: pytest.MonkeyPatch, events: EventList, wanted: str | None
) -> None:
    environment.setenv("AZURE_TENANT_ID", "22222222-2222-2222-2222-222222222222")
    environment.setenv("AZURE_CLIENT_ID", "11111111-1111-1111-1111-111111111111")
    environment.setenv("AZURE_CLIENT_SECRET", "s3kret")
    if wanted:
        environment.setenv("AZURE_TOKEN_CREDENTIALS", wanted)
    chains: list[list[str]] = []

    class Inspected(DefaultAzureCredential):
        async def get_token_info(self, *scopes: str, options: TokenRequestOptions | None = None) -> AccessTokenInfo:
            chains.append([type(credential).__name__ for credential in self.credentials])
            return AccessTokenInfo("t", 2**40)

    environment.setattr(identity, "DefaultAzureCredential", Inspected)
    async with open_broker(settings_of(credential="default"), events) as broker:
        try:
            await broker.bearer(SCOPE)
        except TokenUnavailable:
            assert wanted == "EnvironmentCredential"  # azure-identity refuses a chain of nothing
    assert all("EnvironmentCredential" not in chain for chain in chains)


async def test_a_workload_identity_without_its_webhook_is_told_so(
    environment: pytest.MonkeyPatch, events: EventList
) -> None:
    async with open_broker(settings_of(credential="workload"), events) as broker:
        with pytest.raises(TokenUnavailable, match="tenant_id"):
            await broker.bearer(SCOPE)


def test_what_the_webhook_should_have_set_is_checked_before_anything_starts(
    environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(InvalidSettings) as caught:
        check_environment(settings_of(credential="workload"))
    assert [problem.split()[0] for problem in caught.value.problems] == [
        "AZURE_CLIENT_ID",
        "AZURE_TENANT_ID",
        "AZURE_FEDERATED_TOKEN_FILE",
    ]
    assert all("azure.workload.identity/use" in problem for problem in caught.value.problems)
    environment.setenv("AZURE_FEDERATED_TOKEN_FILE", str(tmp_path / "token"))
    with pytest.raises(InvalidSettings) as caught:
        check_environment(settings_of(credential="auto"))
    assert len(caught.value.problems) == 2
    environment.setenv("AZURE_CLIENT_ID", "c")
    environment.setenv("AZURE_TENANT_ID", "t")
    check_environment(settings_of(credential="auto"))


@pytest.mark.parametrize("credential", ["auto", "managed", "cli", "default"])
def test_without_a_projected_token_the_webhook_is_not_missed(
    environment: pytest.MonkeyPatch, credential: str
) -> None:
    check_environment(settings_of(credential=credential))
