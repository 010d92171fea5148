"""Takes out of a recording what must not be published: who, where and with what token.

Two nets. What the kit knows of its target goes by name, and whatever has the shape of an id, a token, a host, an
address or a mailbox goes by shape. It rather takes out too much. Pure.
"""

import re
from collections.abc import Mapping
from typing import Any

PUBLIC_HOSTS = frozenset(
    {
        "ai.azure.com",
        "aka.ms",
        "cognitiveservices.azure.com",
        "go.microsoft.com",
        "learn.microsoft.com",
        "login.microsoftonline.com",
        "management.azure.com",
        "servicebus.azure.net",
        "storage.azure.com",
    }
)
"""Audiences and pages of Azure's own, the same for everybody."""

_HOST = re.compile(
    r"(?i)\b(?:[a-z0-9_-]+\.)+(?:azure\.com|azure\.net|windows\.net|microsoft\.com|microsoftonline\.com|azure-api\.net)\b"
)
_SHAPES = (
    (re.compile(r"eyJ[\w-]{8,}(?:\.[\w-]*)*"), "<token>"),
    (re.compile(r"(?i)(?<![0-9a-f])[0-9a-f]{8}-?(?:[0-9a-f]{4}-?){3}[0-9a-f]{12}(?![0-9a-f])"), "<id>"),
    (re.compile(r"(?i)\b(sig|sas|key|secret|password|SharedAccessKey)=[^\s&;\"'<]+"), r"\1=<secret>"),
    (re.compile(r"(?i)(/resourceGroups/)[^/\s\"'<]+"), r"\1<group>"),
    (re.compile(r"(/home/|/Users/)[^/\s\"']+"), r"\1<user>"),
    (re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+"), "<mailbox>"),
    (re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}\b"), "<ip>"),
    (re.compile(r"(?i)(?<![\w:])(?:[0-9a-f]{0,4}:){3,7}[0-9a-f]{0,4}(?![\w:])"), "<ip>"),
    (re.compile(r"(?i)\blocalhost:\d+"), "<host>"),
    # keys and opaque tokens: long, without a space, and with a digit, which no long word or path of Azure's has
    (re.compile(r"(?=[\w+/=-]*\d)[\w+/=-]{32,}"), "<opaque>"),
)


class Redactor:
    """`known` maps what must go to what stands in its place, in any case of letters."""

    def __init__(self, known: Mapping[str, str]) -> None:
        self._names = {secret.casefold(): f"<{name}>" for secret, name in known.items() if secret}
        longest_first = sorted(self._names, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)", re.IGNORECASE)

    def text(self, text: str) -> str:
        text = self._known.sub(lambda found: self._names.get(found[0].casefold(), "<known>"), text)
        text = _HOST.sub(_public_or_host, text)
        for shape, placeholder in _SHAPES:
            text = shape.sub(placeholder, text)
        return text

    def value(self, value: Any) -> Any:
        """The same in every text of a JSON document, names included."""
        match value:
            case str():
                return self.text(value)
            case dict():
                return {
                    self.text(name): "<token>" if name == "access_token" else self.value(each)
                    for name, each in value.items()
                }
            case list():
                return [self.value(each) for each in value]
            case _:
                return value


def _public_or_host(found: re.Match[str]) -> str:
    return found[0] if found[0].casefold() in PUBLIC_HOSTS else "<host>"
