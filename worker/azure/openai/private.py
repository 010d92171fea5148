"""The openai client, bent to what a call of ours is: bytes out, a response that is not read yet back.

All that leans on what the client does not promise is here; `tests/contract/test_openai_private.py` holds every
version of it to just that.
"""

from collections.abc import Awaitable, Callable
from typing import Any, cast

import httpx2
import openai

_HEADERS = {
    "Accept": "application/json",
    "Content-Type": "application/json",
    "User-Agent": f"AsyncOpenAI/Python {openai.__version__}",
}

_OPTIONS: Any = {
    "security": {"bearer_auth": True},
    "max_retries": 0,
    "timeout": None,  # the whole call has one
    "params": {},
    "idempotency_key": "none",  # goes into a header that this API does not have
}
"""Of every request. What is not given here the client copies or makes up each time, such as a UUID for the key."""


class _FewHeaders:
    """In front of a client: it does not tell of itself and of the machine, which costs 0.02 ms of CPU a call, and
    takes no header from the environment (`OPENAI_CUSTOM_HEADERS`, `OPENAI_ORG_ID`)."""

    @property
    def default_headers(self) -> dict[str, str | openai.Omit]:
        return {**_HEADERS}


class _Client(_FewHeaders, openai.AsyncOpenAI):
    """Of the v1 surface."""


class _AzureClient(_FewHeaders, openai.AsyncAzureOpenAI):
    """Of the surface of an api-version."""


def make_client(
    endpoint: str, *, api_version: str | None, bearer: Callable[[], Awaitable[str]], http: httpx2.AsyncClient
) -> openai.AsyncOpenAI:
    """A client that never tries again. `bearer` is asked at every call; `api_version` None is v1."""
    if api_version is None:
        return _Client(base_url=f"{endpoint}/openai/v1/", api_key=bearer, http_client=http, max_retries=0)
    return _AzureClient(
        azure_endpoint=endpoint,
        api_version=api_version,
        azure_ad_token_provider=bearer,
        http_client=http,
        max_retries=0,
    )


async def post(client: openai.AsyncOpenAI, url: str, body: bytes) -> httpx2.Response:
    """A response whose body is not read yet; to be closed. A whole URL spares the joining of base and path.

    Raises openai.APIStatusError, its body read, and openai.APIConnectionError.
    """
    answered = await client.post(
        url,
        cast_to=httpx2.Response,
        content=body,
        options=_OPTIONS,
        stream=True,
        stream_cls=openai.AsyncStream[Any],
    )
    return cast(httpx2.Response, answered)  # as `cast_to` asks, streamed or not
