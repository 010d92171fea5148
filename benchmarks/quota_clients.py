"""Other clients of a deployment that always have another job: `python -m benchmarks.quota_clients NAME POD LIMIT`.

Each is set up as its documentation has it, with calls at once as the worker has slots. The openai SDK runs in our
own environment, the others in `.venv-peers`, so nothing here may need more than those have.
"""

import asyncio
import itertools
import json
import os
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from azure.identity import WorkloadIdentityCredential as SyncCredential
from azure.identity import get_bearer_token_provider as get_sync_token_provider
from azure.identity.aio import WorkloadIdentityCredential, get_bearer_token_provider
from openai import AsyncOpenAI, DefaultAsyncHttpxClient, OpenAIError

from benchmarks.jobs import MAX_TOKENS, MODELS, job_line

CALLS = 64
FIRST_NUMBER = 100_000
"""Of the first pod's jobs; each has so many of its own. All have six digits, so all prompts are equally long."""
PAUSE = 1.0
"""Seconds between a job that failed for good and the next. A client may fail without having asked the service."""
SCOPE = "https://cognitiveservices.azure.com/.default"
CHARACTERS_PER_TOKEN = 4.0
"""What the service here counts."""

Body = dict[str, Any]
Client = Callable[[Iterator[Body], int], Coroutine[Any, Any, None]]
"""Sends these for ever, within that many tokens a minute. It prints "ready" and its version first."""


def bodies(pod: int) -> Iterator[Body]:
    """Requests that nobody else sends; the answers are as long as `max_tokens` lets them be."""
    for number in itertools.count(FIRST_NUMBER * (pod + 1)):
        yield json.loads(job_line(number, answer_tokens=MAX_TOKENS))["body"]


def be_ready(package: str) -> None:
    print("ready", package, version(package), flush=True)


@asynccontextmanager
async def open_client(**options: Any) -> AsyncIterator[AsyncOpenAI]:
    ca_file = os.environ["AOAI_WORKER_CA_FILE"]
    async with (
        WorkloadIdentityCredential(connection_verify=ca_file) as credential,
        AsyncOpenAI(
            base_url=f"{os.environ['AZURE_OPENAI_ENDPOINT']}/openai/v1/",
            api_key=get_bearer_token_provider(credential, SCOPE),
            http_client=DefaultAsyncHttpxClient(verify=ssl.create_default_context(cafile=ca_file)),
            **options,
        ) as client,
    ):
        yield client


async def keep_calling(call: Callable[[Body], Awaitable[object]], requests: Iterator[Body]) -> None:
    """CALLS at once. Clients of the openai SDK raise its errors."""

    async def send_all() -> None:
        for body in requests:
            try:
                await call(body)
            except OpenAIError as error:
                print(repr(error)[:300], flush=True)
                await asyncio.sleep(PAUSE)

    async with asyncio.TaskGroup() as group:
        for _ in range(CALLS):
            group.create_task(send_all())


async def use_openai(requests: Iterator[Body], _tokens_per_minute: int) -> None:
    """The SDK alone: it retries twice, and has no budget."""
    async with open_client() as client:
        be_ready("openai")
        await keep_calling(lambda body: client.chat.completions.create(**body), requests)


async def use_litellm(requests: Iterator[Body], tokens_per_minute: int) -> None:
    import litellm

    ca_file = os.environ["AOAI_WORKER_CA_FILE"]
    litellm.ssl_verify = ca_file
    litellm.suppress_debug_info = True
    deployment = {
        "model": f"azure/{MODELS[0]}",
        "api_base": os.environ["AZURE_OPENAI_ENDPOINT"],
        "api_version": "2024-10-21",
        "azure_ad_token_provider": get_sync_token_provider(SyncCredential(connection_verify=ca_file), SCOPE),
        "tpm": tokens_per_minute,
    }
    router = litellm.Router(
        model_list=[{"model_name": MODELS[0], "litellm_params": deployment}],
        routing_strategy="usage-based-routing-v2",
    )
    be_ready("litellm")
    await keep_calling(lambda body: router.acompletion(**body), requests)


async def use_async_batch_llm(requests: Iterator[Body], tokens_per_minute: int, **options: Any) -> None:
    from async_batch_llm import (
        CharacterTokenEstimator,
        OpenAIModel,
        OpenAIStrategy,
        ProcessorConfig,
        process_stream,
    )

    config = ProcessorConfig(
        concurrency=CALLS,
        max_queue_size=2 * CALLS,
        max_tokens_per_minute=tokens_per_minute,
        token_estimator=CharacterTokenEstimator(
            characters_per_token=CHARACTERS_PER_TOKEN, expected_output_tokens=MAX_TOKENS
        ),
        **options,
    )
    async with open_client(max_retries=0) as client:  # it retries itself
        model = OpenAIModel(MODELS[0], client, api_surface="chat_completions")
        strategy = OpenAIStrategy(model, generation_config={"max_tokens": MAX_TOKENS})
        prompts = (body["messages"][0]["content"] for body in requests)
        be_ready("async-batch-llm")
        async for result in process_stream(strategy, prompts, config=config):
            if not result.success:
                print(str(result.error)[:300], flush=True)


async def use_async_batch_llm_tuned(requests: Iterator[Body], tokens_per_minute: int) -> None:
    from async_batch_llm import RateLimitConfig

    rate_limit = RateLimitConfig(cooldown_seconds=10.0, slow_start_items=0)
    await use_async_batch_llm(requests, tokens_per_minute, rate_limit=rate_limit, quota_burst_seconds=5.0)


CLIENTS: dict[str, Client] = {
    "openai": use_openai,
    "litellm": use_litellm,
    "async-batch-llm": use_async_batch_llm,
    "async-batch-llm-tuned": use_async_batch_llm_tuned,
}


def main() -> None:
    name, pod, tokens_per_minute = sys.argv[1:]
    asyncio.run(CLIENTS[name](bodies(int(pod)), int(tokens_per_minute)))


if __name__ == "__main__":
    main()
