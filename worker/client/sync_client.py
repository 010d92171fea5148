"""`JobClient` for scripts that have no event loop."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from contextlib import ExitStack
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from azure.core.credentials_async import AsyncTokenCredential

from worker.client.job_client import JobClient
from worker.environment import load
from worker.settings import ConnectionSettings, Price

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")


def _blocking(
    method: Callable[Concatenate[JobClient, Arguments], Coroutine[Any, Any, Answer]],
) -> "Callable[Concatenate[SyncJobClient, Arguments], Answer]":
    @wraps(method)
    def call(self: "SyncJobClient", /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Answer:
        return self._open_runner.run(method(self._client, *args, **kwargs))

    return call


class SyncJobClient:
    """A connection with the methods of `JobClient` but for `watch`, which return when they are done; a context
    manager.

    It runs a loop of its own, one call at a time, in one thread. Where a loop runs already, as in a notebook, use
    `JobClient`. Ctrl-C ends the call with KeyboardInterrupt.
    """

    def __init__(self, settings: ConnectionSettings, credential: AsyncTokenCredential | None = None) -> None:
        """`credential`: instead of the one that the settings name; it is not closed here."""
        self._client = JobClient(settings, credential)
        self._stack = ExitStack()
        self._runner: asyncio.Runner | None = None

    @classmethod
    def from_environment(cls) -> Self:
        """Raises InvalidSettings with every problem at once."""
        return cls(load(ConnectionSettings))

    def __enter__(self) -> Self:
        if asyncio._get_running_loop() is not None:
            raise RuntimeError("an event loop runs here already; use JobClient, and await its methods")
        with ExitStack() as stack:
            runner = stack.enter_context(asyncio.Runner())
            runner.run(self._client.__aenter__())
            stack.push(lambda *details: runner.run(self._client.__aexit__(*details)))
            self._runner, self._stack = runner, stack.pop_all()
        return self

    def __exit__(self, *details: Any) -> None:
        self._runner = None
        self._stack.__exit__(*details)

    submit = _blocking(JobClient.submit)
    status = _blocking(JobClient.status)
    newest = _blocking(JobClient.newest)
    cancel = _blocking(JobClient.cancel)
    retry = _blocking(JobClient.retry)
    collect = _blocking(JobClient.collect)

    @property
    def prices(self) -> Mapping[str, Price]:
        """Of the settings, by model."""
        return self._client.prices

    @property
    def _open_runner(self) -> asyncio.Runner:
        if self._runner is None:
            raise RuntimeError("this SyncJobClient is not open: with SyncJobClient.from_environment() as client")
        return self._runner
