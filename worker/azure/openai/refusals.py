"""What a refusal of a deployment means for the job and for the worker, and what its headers say of quota.

Pure functions over status, headers and error body, wherever the error stood: under an error status, in the middle
of a stream, or in a response that failed. `answers.py` and `streams.py` read what is no refusal.
"""

import math
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any

import orjson

from worker.errors import CallFailed, Cause, RefusedByService, SetupWrong, Throttled, Unavailable
from worker.interfaces import Target
from worker.jobs.job import JsonObject, on_one_line
from worker.rate_limits import RateLimits, ThrottleKind

RETRIED_STATUSES = frozenset({408, 409, 424})
"""4xx that speak of the moment and not of the request; the openai SDK retries 408 and 409 too."""

LONGEST_WAIT = 86_400.0
"""Seconds that a `retry-after` may ask for: Azure's quotas are counted over a day at most."""

BEARER = re.compile(rb"(?i)(bearer\s+)[\w.~+/=-]{16,}|eyJ[\w-]{10,}\.[\w-]+(?:\.[\w-]*)?")
"""A token within an error: a gateway may echo the request that it refused, and the result goes to a producer."""

MAX_ERROR_TEXT = 2_000
"""Characters of an error body that is not JSON, such as a proxy's page, kept in the result."""

UTILISATION = "azure-openai-deployment-utilization"

_COUNTS = (
    "x-ratelimit-limit-tokens",
    "x-ratelimit-remaining-tokens",
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
)
_UNKNOWN = [None] * len(_COUNTS)

_STATUS_OF = {
    "rate_limit_exceeded": 429,
    "rate_limit_error": 429,
    "ratelimitreached": 429,
    "too_many_requests": 429,
    "nocapacity": 429,
    "no_capacity": 429,
    "content_filter": 400,
    "content_policy_violation": 400,
    "responsibleaipolicyviolation": 400,
    "context_length_exceeded": 400,
    "invalid_prompt": 400,
    "invalid_request_error": 400,
}
"""The status that an error in the body of a 200 would have had, by its `code` or `type` in lower case."""

_CAPACITY_CODES = frozenset(
    {"nocapacity", "no_capacity", "engine_overloaded", "server_overloaded", "model_overloaded"}
)
_CAPACITY_WORDS = ("high demand", "peak load", "temporarily unable to process", "overloaded", "no capacity")

_OWN_CODES = frozenset({"content_filter", "content_policy_violation", "invalid_prompt", "operationnotsupported"})
_OWN_WORDS = ("outbound network access is restricted",)

_MISSING_CODES = frozenset({"deploymentnotfound", "model_not_found"})
_CLOSED_WORDS = ("virtual network", "firewall", "public access is disabled")
_TENANT_WORDS = re.compile(r"token tenant \S+ does not match resource tenant\.?")
"""The whole message: an error may quote the request, and a producer must not be able to close the deployment."""
_SPREADING_WORDS = "principal does not have access"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """What surrounds an answer or a refusal. The names of `headers` are in lower case.

    `passthrough`: producers name deployments, so a missing one is the job's fault and not ours.
    """

    target: Target
    headers: Mapping[str, str]
    passthrough: bool = False

    @property
    def request_id(self) -> str | None:
        return self.headers.get("x-request-id") or self.headers.get("apim-request-id")


def plain_headers(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """The headers by lower-case name, of a repeated one the last. A look-up in httpx2's own costs 0.8 us."""
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in raw}


def classify(status: int, body: bytes, exchange: Exchange) -> CallFailed:
    """What an error status of a deployment means.

    A 403, and a 404 unless models are passed through, is our set-up: the role, the network rules, the name of the
    deployment. Yet one that names a field of the request other than the model is about that one job.
    """
    body = BEARER.sub(rb"\1[redacted]", body)
    error = _error_in(body)
    cause = cause_of_refusal(status, error)
    kind = _kind(status, error, cause, passthrough=exchange.passthrough)
    target = exchange.target
    failure = kind(
        f"{status} from {target.deployment} at {target.endpoint}: {_message(error, body)}",
        status=status,
        body=_one_line(body, status),
        request_id=exchange.request_id,
        retry_after=retry_after(exchange.headers, time.time()),
        rate_limits=read_headroom(exchange.headers, throttled=status == 429),
        cause=cause if kind is SetupWrong else None,
    )
    if isinstance(failure, Throttled):
        failure.kind = throttle_kind(error, failure.rate_limits, target)
    return failure


def classify_within(error: JsonObject, exchange: Exchange) -> CallFailed:
    """What an error means that came in the body of a 200, as if it had come with the status that it stands for.

    Azure ends streams so whose tokens run over the quota: `rate_limit_exceeded`, or only words that say so
    (github.com/earendil-works/pi/issues/7983, github.com/sozercan/vekil/pull/267).
    """
    try:
        body = orjson.dumps({"error": error})
    except orjson.JSONEncodeError:  # it nests deeper than what may be written
        body = orjson.dumps({"error": {"code": _text(error.get("code")), "message": _text(error.get("message"))}})
    return classify(_status_of(error), body, exchange)


def throttle_kind(error: JsonObject, rate_limits: RateLimits | None, target: Target) -> ThrottleKind:
    """Which of its four causes a 429 has; our own quota where nothing tells otherwise.

    Capacity is told by words alone: "System is experiencing high demand", "The service is temporarily unable to
    process your request" (Learn, "Manage Azure OpenAI quota"), "... exceeds the maximum usage size allowed during
    peak load. ... consider switching to Provisioned Throughput" (Learn Q&A 12567967; so the word "provisioned"
    tells nothing). A provisioned deployment sends its utilisation instead of x-ratelimit headers (Learn,
    "Provisioned throughput"). A temporary cut shows in limits below those that the deployment was given (same page
    on quota), which are known where the configuration has them.
    """
    words = _text(error.get("message")).lower()
    if _code(error) in _CAPACITY_CODES or any(phrase in words for phrase in _CAPACITY_WORDS):
        return ThrottleKind.CAPACITY
    if rate_limits is None:
        return ThrottleKind.QUOTA
    if rate_limits.utilisation is not None:
        return ThrottleKind.PROVISIONED
    is_cut = _is_below(rate_limits.limit_tokens, target.tokens_per_minute) or _is_below(
        rate_limits.limit_requests, target.requests_per_minute
    )
    return ThrottleKind.CUT if is_cut else ThrottleKind.QUOTA


def read_headroom(headers: Mapping[str, str], *, throttled: bool = False) -> RateLimits | None:
    """None where the headers tell nothing. Only a 429 can mean a remainder of 0 (openai-dotnet#838)."""
    counts = [_count(headers.get(name), throttled) for name in _COUNTS]
    utilisation = _share(headers.get(UTILISATION))
    if utilisation is None and counts == _UNKNOWN:
        return None
    limit_tokens, tokens, limit_requests, requests = counts
    return RateLimits(
        limit_tokens=limit_tokens or None,
        remaining_tokens=tokens,
        limit_requests=limit_requests or None,
        remaining_requests=requests,
        utilisation=utilisation,
    )


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """The wait that the service asks for in seconds; None where it names none, or nonsense: below 0, over a day.

    `retry-after-ms` is the more exact; `retry-after` may hold seconds or an HTTP date.
    """
    plain = headers.get("retry-after")
    waits = (_number(headers.get("retry-after-ms")) / 1_000, _number(plain), _moment(plain) - now)
    return next((seconds for seconds in waits if 0 < seconds <= LONGEST_WAIT), None)


def cause_of_refusal(status: int, error: JsonObject) -> Cause | None:
    """Why a status that is about our set-up was given. A code stands for several causes, so words tell them apart:

    - a token of another tenant gets a 400 ("Tenant provided in token does not match resource token"; Azure-Samples/
      ai-rag-chat-evaluator#94);
    - `PermissionDenied` is a missing role, and one that is still spreading through Azure;
    - a 403 is the network's as well as the role's.
    """
    words = _text(error.get("message")).lower()
    is_denied = _code(error) == "permissiondenied"
    match status:
        case 400 | 401 | 403 if _TENANT_WORDS.fullmatch(words):
            return Cause.WRONG_TENANT
        case 401 | 403 if is_denied and _SPREADING_WORDS in words:
            return Cause.ROLE_SPREADING
        case 401 | 403 if is_denied:
            return Cause.ROLE_MISSING
        case 401:
            return Cause.TOKEN_REFUSED
        case 403:
            return Cause.NETWORK_CLOSED if any(phrase in words for phrase in _CLOSED_WORDS) else Cause.FORBIDDEN
        case 404:
            return Cause.MISSING if _code(error) in _MISSING_CODES else Cause.WRONG_ENDPOINT
        case _ if 300 <= status < 400:  # a redirect is followed nowhere
            return Cause.WRONG_ENDPOINT
    return None


def _kind(status: int, error: JsonObject, cause: Cause | None, *, passthrough: bool) -> type[CallFailed]:
    if status == 429:
        return Throttled
    if status >= 500 or status in RETRIED_STATUSES:
        return Unavailable
    if status == 401 or 300 <= status < 400 or cause is Cause.WRONG_TENANT:
        return SetupWrong
    if status == 403 or (status == 404 and not passthrough):
        return RefusedByService if _names_the_job(error) else SetupWrong
    return RefusedByService


def _names_the_job(error: JsonObject) -> bool:
    """Whether an error is about this one request: it names one of its fields, or what stands in it."""
    param = error.get("param")
    if isinstance(param, str) and param not in ("", "model"):
        return True
    words = _text(error.get("message")).lower()
    return _code(error) in _OWN_CODES or words.startswith(_OWN_WORDS)


def _status_of(error: JsonObject) -> int:
    for value in (error.get("status"), error.get("code"), error.get("type")):
        text = _text(value).lower()
        if len(text) == 3 and text.isascii() and text.isdecimal() and 400 <= int(text) <= 599:
            return int(text)
        if text in _STATUS_OF:
            return _STATUS_OF[text]
    return 429 if "rate limit" in _text(error.get("message")).lower() else 500


def _code(error: JsonObject) -> str:
    return _text(error.get("code")).lower()


def _text(value: object) -> str:
    """A string or number; nothing of what else could stand in its place, which may nest too deep to be written."""
    return str(value) if isinstance(value, (str, int)) else ""


def _is_below(limit: int | None, given: int | None) -> bool:
    return limit is not None and given is not None and limit < given


def _count(text: str | None, throttled: bool) -> int | None:
    """A header's count; None where it is absent, none such as -1, or a 0 that means nothing."""
    if text is None or not text.isascii() or not text.isdecimal() or len(text) > 15:
        return None
    return int(text) or (0 if throttled else None)


def _share(text: str | None) -> float | None:
    """Percent, with or without the sign, as a share."""
    if text is None:
        return None
    percent = _number(text.strip().removesuffix("%"))
    return percent / 100 if 0 <= percent < math.inf else None


def _number(text: str | None) -> float:
    try:
        return float(text or "")
    except ValueError:
        return math.nan


def _moment(date: str | None) -> float:
    """An HTTP date as Unix seconds; it is in UTC even where it does not say so."""
    try:
        moment = parsedate_to_datetime(date or "")
    except (ValueError, OverflowError):
        return math.nan
    return moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()


def _error_in(body: bytes) -> JsonObject:
    """The error object of a body, empty where there is none. Azure's gateway leaves the envelope out at times."""
    try:
        document: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    if not isinstance(document, dict):
        return {}
    error = document.get("error", document)
    return error if isinstance(error, dict) else {}


def _message(error: JsonObject, body: bytes) -> str:
    return _text(error.get("message"))[:300] or body[:100].decode(errors="replace")


def _one_line(body: bytes, status: int) -> bytes:
    """The service's error as JSON on one line; what is not JSON becomes the message of an error object."""
    try:
        orjson.loads(body)
    except orjson.JSONDecodeError:
        text = body[:MAX_ERROR_TEXT].decode(errors="replace")
        return orjson.dumps({"error": {"code": str(status), "message": text}})
    return on_one_line(body)
