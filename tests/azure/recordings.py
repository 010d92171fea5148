"""Recordings: what a probe saw, as a file, and how two of them are compared.

A recording of the source `azure` is evidence, and the embedded Azure is held to it (tests/embedded). Only what a
client may rely on is compared: status, code, names of headers, shape of the body. Prose changes and is not.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from tests.azure.probing import Exchange, Result, Verdict

FOLDER = Path(__file__).parent / "recordings"
Source = Literal["azure", "embedded"]


@dataclass(frozen=True, kw_only=True)
class Recording:
    """`date` is the day of the run, in UTC."""

    name: str
    source: Source
    date: date
    verdict: Verdict
    seen: str
    exchanges: tuple[Exchange, ...]


def recording_of(result: Result, source: Source, day: date) -> Recording:
    observed = result.observation
    return Recording(
        name=result.name,
        source=source,
        date=day,
        verdict=observed.verdict,
        seen=observed.seen,
        exchanges=tuple(observed.exchanges),
    )


def write(recording: Recording, folder: Path = FOLDER) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{recording.name}.json"
    path.write_text(
        json.dumps(asdict(recording), indent=2, default=str, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    return path


def read_all(source: Source, folder: Path = FOLDER) -> dict[str, Recording]:
    """By name. Raises pydantic.ValidationError for a file that is no recording."""
    adapter = TypeAdapter(Recording)
    recordings = [adapter.validate_json(path.read_bytes()) for path in sorted(folder.glob("*.json"))]
    return {recording.name: recording for recording in recordings if recording.source == source}


def compare(recording: Recording, result: Result) -> Iterator[str]:
    """What the embedded Azure does otherwise. A probe that decided nothing there says nothing of it."""
    if recording.verdict is not Verdict.UNKNOWN:
        yield from differences(recording.exchanges, result.observation.exchanges)


def differences(theirs: Sequence[Exchange], ours: Sequence[Exchange]) -> Iterator[str]:
    """What differs in what a client may rely on; nothing when all is equal."""
    if len(theirs) != len(ours):
        yield f"{len(theirs)} exchanges there, {len(ours)} here"
    for there, here in zip(theirs, ours, strict=False):
        for what, one, other in (
            ("status", there.status, here.status),
            ("code", there.code, here.code),
            ("headers", sorted(there.headers), sorted(here.headers)),
            ("body", shape(there.body), shape(here.body)),
        ):
            if one != other:
                yield f"{there.asked}: {what} {one} there, {other} here"


def shape(value: Any) -> Any:
    """The names and kinds of a document, without its values. A list has the shape of its first entry."""
    match value:
        case Mapping():
            return {name: shape(each) for name, each in sorted(value.items())}
        case [first, *_]:
            return [shape(first)]
        case _:
            return "number" if type(value) in (int, float) else type(value).__name__
