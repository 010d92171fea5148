"""What `submit --skip-invalid` leaves out: written beside the file, and the first few told."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Self

if TYPE_CHECKING:
    from worker.client import LineProblem

SHOWN_PROBLEMS = 20


class InvalidLines:
    """Lines that are not sent: into `<file>.invalid.jsonl`, with their reasons; the first few also to be told. A
    context manager. Of standard input or a pipe, where `file` is None, they are told only."""

    def __init__(self, file: Path | None) -> None:
        self.count = 0
        self._path = file and file.with_name(f"{file.name}.invalid.jsonl")
        self._told: list[str] = []
        self._stack = ExitStack()
        self._out: BinaryIO | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __call__(self, problem: "LineProblem", line: bytes) -> None:
        self.count += 1
        if self.count <= SHOWN_PROBLEMS:
            self._told.append(f"  {problem}")
        if self._path:
            if self._out is None:
                self._out = self._stack.enter_context(self._path.open("wb"))
            document = {
                "line": problem.line,
                "problem": problem.problem,
                "content": line.decode(errors="backslashreplace"),
            }
            self._out.write(json.dumps(document, ensure_ascii=False).encode(errors="backslashreplace") + b"\n")

    def describe(self, name: str) -> str:
        lines = [f"{name}: {self.count:,} {'line is' if self.count == 1 else 'lines are'} left out:", *self._told]
        if self.count > SHOWN_PROBLEMS:
            lines.append(f"  ... and {self.count - SHOWN_PROBLEMS:,} more")
        if self._path:
            lines.append(
                f"They are in {self._path} with their reasons. Next: fix them and submit them as a separate batch"
            )
        return "\n".join(lines)
