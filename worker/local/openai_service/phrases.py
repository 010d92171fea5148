"""Faults a prompt asks for, so that an example file can show every ending of a job.

| phrase in the prompt        | what happens                                                          |
|-----------------------------|-----------------------------------------------------------------------|
| `[[content-filter]]`        | 400 `content_filter`: the prompt is refused                           |
| `[[content-filter-answer]]` | 200 with an empty answer and `finish_reason: content_filter`          |
| `[[status:503]]`            | always fails with that status (400 to 599)                            |
| `[[status:503x2]]`          | fails so the first 2 times for this prompt, then answers              |
| `[[hang]]`                  | never answers, until the client gives up                              |
| `[[malformed]]`             | 200 with broken JSON                                                  |
| `[[tokens:100]]`            | an answer of at least 100 tokens (at most 100,000)                    |
"""

import re
from dataclasses import dataclass

_PHRASE = re.compile(
    r"\[\[(?:(content-filter-answer|content-filter|hang|malformed)"
    r"|status:([45]\d\d)(?:x(\d{1,6}))?|tokens:(\d{1,6}))\]\]"
)
_MOST_TOKENS = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a prompt asks for. `times` None is always."""

    filter_prompt: bool = False
    filter_answer: bool = False
    hang: bool = False
    malformed: bool = False
    status: int | None = None
    times: int | None = None
    tokens: int = 0


NO_WISH = Wish()


def read_wish(text: str) -> Wish:
    """What the phrases in `text` ask for. A later `status` or `tokens` replaces an earlier one."""
    if "[[" not in text:
        return NO_WISH
    found = list(_PHRASE.finditer(text))
    words = {match[1] for match in found}
    status = next((match for match in reversed(found) if match[2]), None)
    tokens = next((match for match in reversed(found) if match[4]), None)
    return Wish(
        filter_prompt="content-filter" in words,
        filter_answer="content-filter-answer" in words,
        hang="hang" in words,
        malformed="malformed" in words,
        status=int(status[2]) if status else None,
        times=int(status[3]) if status and status[3] else None,
        tokens=min(int(tokens[4]), _MOST_TOKENS) if tokens else 0,
    )
