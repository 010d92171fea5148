"""The faults that the embedded Blob storage has beside those of HTTP (`http_faults.py`) and of every service.

All may be narrowed to a `container`, and to an `operation` as `GET /local/stats` names it.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from embedded_azure.blob.refusals import CODES
from embedded_azure.faults import Fault
from embedded_azure.http_faults import BodyFault, ConnectionFault

Operation = Literal[
    "account_properties",
    "list_containers",
    "create_container",
    "get_container",
    "set_container_metadata",
    "delete_container",
    "list_blobs",
    "put_blob",
    "get_blob",
    "head_blob",
    "delete_blob",
    "set_blob_metadata",
    "set_blob_properties",
    "put_block",
    "put_block_list",
    "get_block_list",
]


def _known_code(code: str) -> str:
    if code not in CODES:
        raise ValueError(f"Blob storage's refusals here are {', '.join(sorted(CODES))}, not {code!r:.80}")
    return code


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageAnswerFault(Fault):
    """What the next requests meet: `latency` seconds more, then the refusal `code` with Azure's status and words,
    instead of an answer: ServerBusy (503) as an account that throttles, AuthorizationFailure (403) as its firewall.
    `retry_after` (seconds) is the header sent along."""

    kind: Literal["answer"] = "answer"
    latency: Annotated[float, Field(ge=0)] = 0.0
    code: Annotated[str, AfterValidator(_known_code)] | None = None
    status: Annotated[int, Field(ge=400, le=599)] | None = None
    """Instead of the status that goes with `code`, which then is InternalError unless it is named."""
    retry_after: Annotated[float, Field(ge=0)] | None = None
    container: str | None = None
    operation: Operation | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageConnectionFault(ConnectionFault):
    """As every service has it."""

    container: str | None = None
    operation: Operation | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageBodyFault(BodyFault):
    """As every service has it: of the next blobs that are read whole, and of listings."""

    container: str | None = None
    operation: Operation | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoseAnswerFault(Fault):
    """What was asked is done, and the connection is reset before the answer: a client that tries again meets its
    own write."""

    kind: Literal["lose_answer", "lose_every_answer"] = "lose_answer"
    container: str | None = None
    operation: Operation | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoseEveryAnswerFault(LoseAnswerFault):
    """Refusals are lost as well, so the client does not learn of its own write."""

    kind: Literal["lose_every_answer"] = "lose_every_answer"


FAULTS: tuple[type[Fault], ...] = (
    StorageAnswerFault,
    StorageConnectionFault,
    StorageBodyFault,
    LoseAnswerFault,
    LoseEveryAnswerFault,
)
"""The kinds of fault that may be set here."""
