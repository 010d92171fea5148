"""Durations, times and truth values as the administration API writes them."""

import re
from datetime import UTC, datetime
from typing import Final

from embedded_azure.servicebus.broker.messages import ARGUMENT_ERROR, BrokerError

FOREVER: Final = "P10675199DT2H48M5.4775807S"
"""The longest time .NET can say."""
_LONGEST: Final = 10_675_199 * 86_400.0
_DURATION: Final = re.compile(
    r"P(?:(\d{1,9})D)?(?:T(?:(\d{1,9})H)?(?:(\d{1,9})M)?(?:(\d{1,9}(?:\.\d{1,9})?)S)?)?", re.ASCII
)


def write_duration(seconds: float | None) -> str:
    """None is for ever."""
    if seconds is None:
        return FOREVER
    days, rest = divmod(seconds, 86_400)
    hours, rest = divmod(rest, 3_600)
    minutes, rest = divmod(rest, 60)
    parts = [f"{count:g}{unit}" for count, unit in ((hours, "H"), (minutes, "M"), (round(rest, 7), "S")) if count]
    day = f"{days:.0f}D" if days else ""
    return f"P{day}T{''.join(parts)}" if parts else f"P{day}" if day else "PT0S"


def read_duration(name: str, text: str) -> float | None:
    """Seconds; None is for ever. Raises BrokerError naming the field."""
    found = _DURATION.fullmatch(text)
    if found is None or not any(found.groups()):
        raise BrokerError(ARGUMENT_ERROR, f"{name} is a duration such as PT5M, not {text[:80]!r}")
    days, hours, minutes, seconds = (float(group or 0) for group in found.groups())
    total = days * 86_400 + hours * 3_600 + minutes * 60 + seconds
    return None if total >= _LONGEST else total


def read_bool(name: str, text: str) -> bool:
    """Raises BrokerError naming the field."""
    if text.lower() not in {"true", "false"}:
        raise BrokerError(ARGUMENT_ERROR, f"{name} is true or false, not {text[:80]!r}")
    return text.lower() == "true"


def read_int(name: str, text: str, least: int, most: int) -> int:
    """Raises BrokerError naming the field."""
    if not re.fullmatch(r"\d{1,18}", text, re.ASCII) or not least <= int(text) <= most:
        raise BrokerError(ARGUMENT_ERROR, f"{name} is a whole number from {least} to {most}, not {text[:80]!r}")
    return int(text)


def write_time(at: float) -> str:
    """Unix seconds as UTC."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
