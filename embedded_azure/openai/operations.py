"""The operations of the data plane: what each is called, who may ask for it, where, and of which models.

A further operation is a row here and a module that reads its requests.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from embedded_azure.config import ModelKind
from embedded_azure.openai.answers import Made, Stamp
from embedded_azure.openai.chat import read_chat
from embedded_azure.openai.completions import read_completion
from embedded_azure.openai.embeddings import read_embeddings
from embedded_azure.openai.phrases import Wish
from embedded_azure.openai.refusals import Refused, prompt_filtered, response_filtered
from embedded_azure.openai.response_events import fail_response, stream_response
from embedded_azure.openai.responses import read_response
from embedded_azure.openai.streams import (
    Piece,
    StreamOptions,
    fail_chunks,
    stream_chat,
    stream_completion,
)


class Request(Protocol):
    """A request that has been read."""

    @property
    def text(self) -> str:
        """All that the prompt says."""

    @property
    def digest(self) -> str:
        """12 hex digits of the prompt: equal prompts, and no others, share it."""

    @property
    def prompt_tokens(self) -> int: ...

    @property
    def max_tokens(self) -> int | None:
        """For one choice."""

    @property
    def choices(self) -> int:
        """0 where nothing is generated."""

    @property
    def stream(self) -> StreamOptions | None:
        """None where a whole answer is asked for."""

    def answer(self, wish: Wish, stamp: Stamp, /) -> Made: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """`read` takes the body and the model's name, and raises Refused with status 400."""

    name: str
    """As `OperationNotSupported` names it."""
    throttled_as: str
    """As the words of a 429 name it."""
    action: str
    """The data action that the caller's role must have."""
    v1_path: str
    versioned_path: str
    """The path that wants an api-version; without `{deployment}` the body's model names it, as on the other."""
    kind: ModelKind
    read: Callable[[dict[str, Any], str], Request]
    pieces: Callable[[dict[str, Any], StreamOptions, int], Iterator[Piece]] | None = None
    """The stream of the whole document, in events of so many tokens; None where the service streams nothing."""
    fail: Callable[[dict[str, Any], dict[str, Any], int], bytes] = fail_chunks
    """The end of a stream of the document that fails with this error, after so many of its events."""
    filtered: Callable[..., Refused] = prompt_filtered
    """The refusal of a prompt that the content filter blocks; `is_bare`: without what it found."""
    throttles_in_stream: bool = False
    """Whether a stream is told that the quota is used up in the stream itself, after a status 200."""

    @property
    def description(self) -> str:
        """As a refusal for lack of the data action names it."""
        return f"POST {self.versioned_path.replace('{deployment}', '{deployment-id}')}"


OPERATIONS = (
    Operation(
        name="chatCompletion",
        throttled_as="ChatCompletions_Create",
        action="deployments/chat/completions/action",
        v1_path="/openai/v1/chat/completions",
        versioned_path="/openai/deployments/{deployment}/chat/completions",
        kind="chat",
        read=read_chat,
        pieces=stream_chat,
    ),
    Operation(
        name="responses",
        throttled_as="Responses_Create",
        action="responses/write",
        v1_path="/openai/v1/responses",
        versioned_path="/openai/responses",
        kind="chat",
        read=read_response,
        pieces=stream_response,
        fail=fail_response,
        filtered=response_filtered,
        throttles_in_stream=True,
    ),
    Operation(
        name="completion",
        throttled_as="Completions_Create",
        action="deployments/completions/action",
        v1_path="/openai/v1/completions",
        versioned_path="/openai/deployments/{deployment}/completions",
        kind="completions",
        read=read_completion,
        pieces=stream_completion,
    ),
    Operation(
        name="embeddings",
        throttled_as="Embeddings_Create",
        action="deployments/embeddings/action",
        v1_path="/openai/v1/embeddings",
        versioned_path="/openai/deployments/{deployment}/embeddings",
        kind="embeddings",
        read=read_embeddings,
    ),
)
