"""Checks what came out of chat.jsonl against what README.md says must come out.

python examples/check_chat.py OUT.jsonl [ERR.jsonl]
"""

import json
import sys
from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

EXPECTED = {
    "refused-prompt": "400 content_filter",
    "negative-max-tokens": "400 integer_below_min_value",
    "unlisted-model": "error model_not_allowed",
    "filtered-answer": "200 finish_reason content_filter",
    "recovers": "200 after 3 attempts",
}
"""By the beginning of the custom_id; every other job is answered with 200."""


class WrongResults(Exception):
    """A job has no result, two, or another than it must have."""


def check(batch: Path, results: Iterable[Path]) -> Counter[str]:
    """How often each kind of result came. Raises WrongResults unless each job has exactly the one it must have."""
    lines = [line for file in results for line in read_lines(file)]
    counts = Counter(line["custom_id"] for line in lines)
    wrong = [job["custom_id"] for job in read_lines(batch) if counts.pop(job["custom_id"], 0) != 1]
    if wrong or counts:
        raise WrongResults(f"these have not exactly one result: {[*wrong, *counts]}")
    kinds: Counter[str] = Counter()
    for line in lines:
        expected = EXPECTED.get(line["custom_id"].rpartition("-")[0], "200")
        if not (found := describe(line)).startswith(expected):
            raise WrongResults(f"{line['custom_id']} is {found!r}, not {expected!r}: {line}")
        kinds[expected] += 1
    return kinds


def describe(line: dict[str, Any]) -> str:
    if line["error"]:
        return f"error {line['error']['code']}"
    response = line["response"]
    if response["status_code"] != 200:
        return f"{response['status_code']} {response['body']['error']['code']}"
    attempts = line["worker"]["attempts"]
    finish = response["body"]["choices"][0]["finish_reason"]
    return f"200 after {attempts} attempts" if attempts > 1 else f"200 finish_reason {finish}"


def read_lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def working_seconds(results: Iterable[Path]) -> float:
    """From the first job's start to the last one's end, by the worker's clock."""
    records = [line["worker"] for file in results for line in read_lines(file)]
    started = min(datetime.fromisoformat(record["started"]) for record in records)
    finished = max(datetime.fromisoformat(record["finished"]) for record in records)
    return (finished - started).total_seconds()


def main() -> None:
    try:
        kinds = check(Path(__file__).with_name("chat.jsonl"), [Path(name) for name in sys.argv[1:]])
    except WrongResults as wrong:
        sys.exit(str(wrong))
    for kind, count in kinds.most_common():
        sys.stdout.write(f"{count:>4}  {kind}\n")


if __name__ == "__main__":
    main()
