"""Faults a prompt asks for, so that an example file can show every ending of a job.

| phrase in the prompt          | what happens                                                               |
|-------------------------------|----------------------------------------------------------------------------|
| `[[content-filter]]`          | 400 `content_filter`: the prompt is refused                                |
| `[[content-filter-bare]]`     | the same, and the refusal does not say what the filter found               |
| `[[content-filter-answer]]`   | 200 with an empty answer and `finish_reason: content_filter`               |
| `[[content-filter-answer:5]]` | the same, but the filter strikes after 5 tokens of the answer              |
| `[[status:503]]`              | always fails with that status (400 to 599)                                 |
| `[[status:503x2]]`            | fails so the first 2 times for this prompt, then answers                   |
| `[[hang]]`                    | never answers, until the client gives up                                   |
| `[[malformed]]`               | 200 with broken JSON                                                       |
| `[[cut-after:5]]`             | the connection is cut after 5 tokens (20 bytes of an answer sent whole)    |
| `[[hang-after:5]]`            | nothing more comes after 5 tokens                                          |
| `[[fail-after:5]]`            | a stream ends in an error after 5 tokens; a whole answer is a 500          |
| `[[cut-after:5x2]]`           | so the first 2 times for this prompt; also `hang-after`, `fail-after`      |
| `[[tokens:100]]`              | an answer of at least 100 tokens (at most 100,000)                         |
"""

import re
from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal, cast

Break = Literal["cut", "hang", "fail"]

_PHRASE = re.compile(
    r"\[\[(?:(?P<word>content-filter(?:-bare)?|hang|malformed)"
    r"|content-filter-answer(?P<filter>:\d{1,6})?"
    r"|status:(?P<status>[45]\d\d)(?:x(?P<times>\d{1,6}))?"
    r"|(?P<how>cut|hang|fail)-after:(?P<after>\d{1,6})(?:x(?P<often>\d{1,6}))?"
    r"|tokens:(?P<tokens>\d{1,6}))\]\]"
)
_MOST_TOKENS = 100_000
_MOST_FAILING_PROMPTS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a prompt asks for. `times` None is always; `breaks_after` counts tokens of the answer."""

    filter_prompt: bool = False
    is_bare: bool = False
    filter_answer: bool = False
    filter_after: int = 0
    hang: bool = False
    malformed: bool = False
    status: int | None = None
    breaks: Break | None = None
    breaks_after: int = 0
    times: int | None = None
    tokens: int = 0


NO_WISH = Wish()


def read_wish(text: str) -> Wish:
    """What the phrases in `text` ask for. A later one replaces an earlier one of its kind."""
    if "[[" not in text:
        return NO_WISH
    found = list(_PHRASE.finditer(text))
    words = {match["word"] for match in found}
    status, broken, tokens = (_last(found, group) for group in ("status", "how", "tokens"))
    filtered = next((match for match in reversed(found) if match[0].startswith("[[content-filter-a")), None)
    times = (status and status["times"]) or (broken and broken["often"])
    return Wish(
        filter_prompt=not words.isdisjoint({"content-filter", "content-filter-bare"}),
        is_bare="content-filter-bare" in words,
        filter_answer=filtered is not None,
        filter_after=int(((filtered and filtered["filter"]) or ":0")[1:]),
        hang="hang" in words,
        malformed="malformed" in words,
        status=int(status["status"]) if status else None,
        breaks=cast(Break, broken["how"]) if broken else None,
        breaks_after=int(broken["after"]) if broken else 0,
        times=int(times) if times else None,
        tokens=min(int(tokens["tokens"]), _MOST_TOKENS) if tokens else 0,
    )


def _last(found: list[re.Match[str]], group: str) -> re.Match[str] | None:
    return next((match for match in reversed(found) if match[group]), None)


class GrantedFailures:
    """How often each prompt has had the failure it asks for so many times. Bounded: the oldest is forgotten."""

    def __init__(self) -> None:
        self._so_far: OrderedDict[str, int] = OrderedDict()

    def grants(self, digest: str, times: int | None) -> bool:
        """Whether the prompt fails now, which counts where it asks for so many times only."""
        if times is None:
            return True
        so_far = self._so_far.get(digest, 0)
        if so_far >= times:
            return False
        self._so_far[digest] = so_far + 1
        if len(self._so_far) > _MOST_FAILING_PROMPTS:
            self._so_far.popitem(last=False)
        return True
