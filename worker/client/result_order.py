"""The results of a batch in the order of its input: for people and programs that read the two side by side."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import orjson

from worker.client.result_files import UnusableOutput

SUFFIX = ".sorted"


def sort_like(custom_ids: Iterable[str], out: Path) -> None:
    """Rewrite a file of results in the order of `custom_ids`; others come after these, in the order they had.

    In memory is the place of each line. The file is replaced at the end, so it is whole at any moment.
    Raises UnusableOutput where a line is no result, or OSError.
    """
    places = _places(out)
    new = out.with_name(f"{out.name}{SUFFIX}")
    with out.open("rb") as results, new.open("wb") as ordered:
        for custom_id in custom_ids:
            if place := places.pop(custom_id, None):
                _copy(results, ordered, place)
        for place in places.values():
            _copy(results, ordered, place)
        ordered.flush()
        os.fsync(ordered.fileno())
    new.replace(out)


def _places(out: Path) -> dict[str, tuple[int, int]]:
    """Of each result its line's beginning and length."""
    places: dict[str, tuple[int, int]] = {}
    at = 0
    with out.open("rb") as results:
        for number, line in enumerate(results, start=1):
            try:
                places[str(orjson.loads(line)["custom_id"])] = (at, len(line))
            except (ValueError, KeyError, TypeError) as error:
                raise UnusableOutput(
                    f"{out}: line {number:,} is not a result, so the file was not sorted. "
                    "Next: collect into another file"
                ) from error
            at += len(line)
    return places


def _copy(results: BinaryIO, ordered: BinaryIO, place: tuple[int, int]) -> None:
    at, size = place
    results.seek(at)
    ordered.write(results.read(size))
