"""Stand-ins for az, kubectl and other programs: they write down what they are asked for, and answer by rules."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PROGRAM = """#!{python} -IS
import json, pathlib, re, sys
folder = pathlib.Path(__file__).parent
call = [pathlib.Path(__file__).name, *sys.argv[1:]]
with (folder / "log").open("a") as log:
    log.write(json.dumps(call) + "\\n")
text = " ".join(call)
for pattern, answer, status in json.loads((folder / "rules").read_text()):
    found = re.search(pattern, text)
    if found:
        if answer:
            print(found.expand(answer))
        sys.exit(status)
"""


@dataclass(frozen=True, slots=True)
class Rule:
    """What matches `pattern`, a regular expression over the words of a call, is answered with `answer`.

    `answer` may name groups of the pattern, as in `re.sub`. The first rule that matches counts; a call that none
    matches succeeds and prints nothing.
    """

    pattern: str
    answer: str = ""
    status: int = 0


def install(folder: Path, programs: Sequence[str], rules: Sequence[Rule]) -> None:
    """Put `programs` into `folder`, which then goes in front of PATH."""
    folder.mkdir(exist_ok=True)
    (folder / "rules").write_text(json.dumps([(rule.pattern, rule.answer, rule.status) for rule in rules]))
    for program in programs:
        (folder / program).write_text(PROGRAM.format(python=sys.executable))
        (folder / program).chmod(0o755)


def calls(folder: Path) -> list[list[str]]:
    """Every call so far, in order: the program's name and its arguments."""
    log = folder / "log"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
