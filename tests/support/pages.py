"""The blocks of the documents, as tests run them: fenced ones with their language, and indented ones."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    str(path.relative_to(ROOT))
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*.md"))
)
INDENTED = "indented"
"""In place of a language: a block of lines that begin with four spaces."""

_BLOCK = re.compile(
    r"^```(?P<language>\w*)\n(?P<fenced>(?:.*\n)*?)```$|(?<=\n\n)(?P<indented>(?:    .*\n)+)", re.MULTILINE
)
_MEASURED = re.compile(r"\b\d+(\.\d+)?(?= s\b| jobs/s\b)")


@dataclass(frozen=True, slots=True)
class Block:
    language: str
    text: str

    @property
    def first_line(self) -> str:
        return self.text.partition("\n")[0]


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> list[Block]:
    """In the order of the page."""
    return [
        Block(found["language"], found["fenced"])
        if found["indented"] is None
        else Block(INDENTED, re.sub(r"^    ", "", found["indented"], flags=re.MULTILINE))
        for found in _BLOCK.finditer(read(page))
    ]


def filled(text: str, names: Mapping[str, str]) -> str:
    """With a value for each name that stands for a reader's own, such as BATCH. Raises if one is not there."""
    for name, value in names.items():
        assert name in text, f"{name} is not in {text!r}"
        text = text.replace(name, value)
    return text


def is_promql(line: str) -> bool:
    """In a runbook; the other lines are commands."""
    return bool(re.match(r"(sum|max|min|avg)( by \(|\()|(up|keda_\w+|aoai_worker_\w+)\{", line))


def broken_promises(promised: str, printed: str) -> list[str]:
    """The promised lines that were not printed in this order; others may stand between them.

    `...` stands for anything, a measured time for any other, and spaces count as one.
    """
    rest = iter(printed.splitlines())
    lines = [line for line in promised.splitlines() if line.strip()]
    return [line for line in lines if not any(_shape(line).fullmatch(_plain(one)) for one in rest)]


def _shape(line: str) -> re.Pattern[str]:
    return re.compile(re.escape(_plain(line)).replace(r"\.\.\.", ".*"))


def _plain(line: str) -> str:
    return _MEASURED.sub("0", " ".join(line.split()))
