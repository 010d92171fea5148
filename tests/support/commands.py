"""The command line in this process, and a client that answers it as it is told."""

from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from typer.testing import CliRunner, Result

from worker.cli.commands import app
from worker.client import Progress
from worker.settings import Price


class FakeClient:
    """Answers as it is told to; an exception is raised instead."""

    prices: Mapping[str, Price] = MappingProxyType({})

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def from_environment(self) -> Self:
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None: ...

    async def submit(self, *_: Any, **options: Any) -> Any:
        options["on_progress"](Progress(done=1, total=1))
        return self._give()

    async def status(self, *_: Any) -> Any:
        return self._give()

    async def collect(self, *_: Any, **options: Any) -> Any:
        options["on_progress"](Progress(done=0, total=None))
        return self._give()

    async def newest(self, limit: int) -> Any:
        return self._give()[:limit]

    async def watch(self, *_: Any, **options: Any) -> AsyncIterator[Any]:
        for status in self._give():
            yield status

    async def cancel(self, *_: Any) -> Any:
        return self._give()

    async def retry(self, *_: Any, **options: Any) -> Any:
        options["on_progress"](Progress(done=1, total=1))
        return self._give()

    def _give(self) -> Any:
        if isinstance(self._answer, BaseException):
            raise self._answer
        return self._answer


def call(*arguments: str | Path, input: str | None = None) -> Result:
    # in a thread: asyncio.run would throw away, unclosed, the loop that a plugin has set for the main one
    with ThreadPoolExecutor(1) as thread:
        run = partial(CliRunner().invoke, app, [str(argument) for argument in arguments], input=input)
        return thread.submit(run).result()
