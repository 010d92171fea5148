"""Stands in for the SDK's private test tools: no recordings, and a credential of the embedded Entra."""

import asyncio
import functools
import time
from collections.abc import Callable, Coroutine
from typing import Any

from azure.core.credentials import AccessToken

from tests.foreign.adapter.preparers import ServiceBusResourceGroupPreparer
from tests.foreign.adapter.process import owners_token


class AzureRecordedTestCase:
    """Tests run live and never from a recording."""

    is_live = True
    in_recording = False

    @staticmethod
    def await_prepared_test(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
        """The test in an event loop of its own."""

        @functools.wraps(test)
        def run(*given: Any, **more: Any) -> None:
            asyncio.run(test(*given, **more))

        return run


AzureMgmtRecordedTestCase = AzureRecordedTestCase
RandomNameResourceGroupPreparer = ServiceBusResourceGroupPreparer


class _Credential:
    def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        return AccessToken(owners_token(), int(time.time()) + 3_600)

    def close(self) -> None: ...

    def __enter__(self) -> "_Credential":
        return self

    def __exit__(self, *error: object) -> None: ...


class _AsyncCredential:
    async def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        return AccessToken(owners_token(), int(time.time()) + 3_600)

    async def close(self) -> None: ...

    async def __aenter__(self) -> "_AsyncCredential":
        return self

    async def __aexit__(self, *error: object) -> None: ...


def get_credential(*, is_async: bool = False, **_options: Any) -> Any:
    return _AsyncCredential() if is_async else _Credential()


def set_custom_default_matcher(**_options: Any) -> None:
    """Nothing is recorded, so nothing is matched."""


class AzureHttpError(Exception):
    """Of azure-common; the tests import it and never meet it."""


class AzureConflictHttpError(AzureHttpError): ...
