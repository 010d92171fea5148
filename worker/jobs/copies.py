"""A message that is sent on, to another queue or to its own again: what stays, and what of it changes."""

from collections.abc import Mapping
from dataclasses import dataclass

ENQUEUED_AT = "enqueued-at"
"""Property of a job that was moved: when it was first enqueued, RFC 3339."""

CHECK_RESULT = "check-result"
"""Property of a job that may have been answered before: the sink is asked before the job is paid for."""

MODEL_PROPERTY = "model"
"""Property of a claim: the model of the job that it stands for, so that nobody fetches it to find the queue."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """How the message that is sent differs from the one that was received. `changes` of application properties:
    None takes one away. `time_to_live`: seconds, None for what the queue gives."""

    message_id: str
    changes: Mapping[str, str | bool | None]
    time_to_live: float | None = None

    def apply(self, properties: Mapping[str, object]) -> dict[str, object]:
        kept = {name: value for name, value in properties.items() if name not in self.changes}
        return kept | {name: value for name, value in self.changes.items() if value is not None}
