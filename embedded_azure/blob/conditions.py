"""Conditional headers: whether a request may go on, given what is there. Pure functions.

Source: Specifying conditional headers for Blob service operations. A write looks at one header, a read at all of
them; both compare times in whole seconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from embedded_azure.blob.refusals import Refused, not_modified

ANY = "*"


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """What a condition is compared with. `etag` has its quotes, `modified` is in epoch seconds."""

    etag: str
    modified: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """The conditional headers of a request; None where one was not sent. ETags have no quotes, times are epoch
    seconds."""

    if_match: str | None = None
    if_none_match: str | None = None
    if_modified_since: float | None = None
    if_unmodified_since: float | None = None

    @classmethod
    def parse(cls, headers: Mapping[str, str]) -> "Conditions":
        """Raises Refused where a time or an ETag cannot be read."""
        return cls(
            if_match=_etag(headers, "If-Match"),
            if_none_match=_etag(headers, "If-None-Match"),
            if_modified_since=_time(headers, "If-Modified-Since"),
            if_unmodified_since=_time(headers, "If-Unmodified-Since"),
        )


def check_read(conditions: Conditions, there: Version | None) -> None:
    """Raises Refused with 412 where the caller wants another version, with 304 where it has this one.

    `there` is None where nothing is there, which only a named ETag objects to.
    """
    if conditions.if_none_match == ANY:
        raise Refused("UnsatisfiableCondition", "If-None-Match is '*': nothing that can be read meets it")
    if there is None:
        if conditions.if_match is not None:
            raise Refused("ConditionNotMet")
        return
    if conditions.if_match != ANY and _is_named(conditions.if_match, there) is False:
        raise Refused("ConditionNotMet")
    if _is_after(there, conditions.if_unmodified_since):
        raise Refused("ConditionNotMet")
    known, modified = _is_named(conditions.if_none_match, there), _is_after(there, conditions.if_modified_since)
    # of the two that say what the caller has, one that finds it outdated is enough to send the blob
    if (known or modified is False) and not (known is False or modified):
        raise not_modified()


def check_write(conditions: Conditions, there: Version | None, *, creates: bool = False) -> None:
    """Raises Refused. `there` is None where nothing is there. `creates`: the write makes what is missing."""
    _check_combination(conditions)
    if there is None:
        if conditions.if_match not in (None, ANY):
            raise Refused("ConditionNotMet")
        return
    if creates and conditions.if_none_match == ANY:
        raise Refused("BlobAlreadyExists")
    if not _is_met(conditions, there):
        raise Refused("ConditionNotMet")


def _is_met(conditions: Conditions, there: Version) -> bool:
    """Of a write. An ETag decides alone, whatever time stands beside it."""
    if conditions.if_none_match is not None:
        return conditions.if_none_match not in (ANY, there.etag.strip('"'))
    if conditions.if_match is not None:
        return conditions.if_match in (ANY, there.etag.strip('"'))
    if conditions.if_modified_since is not None:
        return there.modified > conditions.if_modified_since
    return conditions.if_unmodified_since is None or there.modified <= conditions.if_unmodified_since


def _check_combination(conditions: Conditions) -> None:
    changed = conditions.if_none_match is not None or conditions.if_modified_since is not None
    unchanged = conditions.if_match is not None or conditions.if_unmodified_since is not None
    if changed and unchanged:
        detail = "a write has If-None-Match and If-Modified-Since, or If-Match and If-Unmodified-Since"
        raise Refused("MultipleConditionHeadersNotSupported", detail)


def _is_named(etag: str | None, there: Version) -> bool | None:
    return None if etag is None else etag == there.etag.strip('"')


def _is_after(there: Version, time: float | None) -> bool | None:
    return None if time is None else there.modified > time


def _etag(headers: Mapping[str, str], name: str) -> str | None:
    text = headers.get(name)
    if text is None:
        return None
    if "," in text:
        raise Refused("MultipleConditionHeadersNotSupported", f"{name} is {text!r:.200}; one ETag is allowed")
    etag = text.strip().strip('"')
    if not etag:
        raise Refused("InvalidHeaderValue", f"{name} is {text!r:.200}; it is an ETag or '*'")
    return etag


def _time(headers: Mapping[str, str], name: str) -> float | None:
    text = headers.get(name)
    if text is None:
        return None
    try:
        return parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError) as error:
        detail = f"{name} is {text!r:.200}; it is a date such as 'Wed, 01 Oct 2025 10:00:00 GMT'"
        raise Refused("InvalidHeaderValue", detail) from error
