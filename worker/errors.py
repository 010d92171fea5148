"""Every error of the worker, by condition.

    WorkerError
    ├── InvalidSettings          start-up refuses; every problem is listed
    ├── NotAJob                  a message that is dead-lettered, with the reason
    ├── CallFailed               a call to the model that brought no answer
    │   ├── Throttled            429: the deployment's gate closes, no attempt is counted
    │   ├── RefusedByService     a 4xx that is about this job: final
    │   │   └── AnswerTooLarge   an answer of more bytes than we take in: final
    │   ├── Unavailable          5xx, time-out, lost connection, broken answer: an attempt is counted
    │   └── SetupWrong           our identity, role or deployment is wrong: receiving stops
    │       └── NoToken          there is no token to call with; the service was not asked
    ├── Expired                  the job's deadline passed before it was answered
    ├── ClaimUnavailable         the body that a claim check stands for could not be read now
    ├── TokenUnavailable         no valid token and none to be had now
    ├── SinkUnavailable          the result could not be written now; the answer is kept
    ├── ResultTooLarge           the sink can never take this line
    ├── SourceUnavailable        the job queue cannot be reached or read now
    └── Interrupted              the job is ended from outside
        ├── BatchCancelled       its producer wants no more calls for its batch
        ├── LockLost             another holder decides
        └── HandedBack           the message goes back to the queue

Errors carry what the handler needs; the original is chained (`raise ... from`).
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Self

from worker.rate_limits import RateLimits, ThrottleKind


class Cause(StrEnum):
    """Why Azure cannot be reached, or refuses us: a closed list, and each has its own fix.

    The adapters find it in Azure's codes, conditions and headers, and in Azure's words where there is nothing else.
    The values stand in logs, in `/readyz` and in the document of `check` (docs/operations.md).
    """

    NO_TOKEN = "no_token"
    """Entra, or the CLI, gave no token; TokenUnavailable has the AADSTS code."""
    TOKEN_REFUSED = "token_refused"
    """The service does not accept the token: its audience, its signature or its time."""
    WRONG_TENANT = "wrong_tenant"
    """The token is of another tenant than the resource."""
    ROLE_MISSING = "role_missing"
    ROLE_SPREADING = "role_spreading"
    """A role that was just assigned may not have reached all of Azure yet, or there is none."""
    FORBIDDEN = "forbidden"
    """A 403 that does not tell whether a role is missing or the network is closed."""
    NETWORK_CLOSED = "network_closed"
    """The resource's firewall does not admit this network."""
    MISSING = "missing"
    """The queue, the deployment or the container does not exist."""
    DISABLED = "disabled"
    SESSIONS_REQUIRED = "sessions_required"
    """A queue that can only be received session by session."""
    WRONG_ENDPOINT = "wrong_endpoint"
    """Something answers there that is not the service: a redirect, an unknown path."""
    NAME_NOT_RESOLVED = "name_not_resolved"
    TLS_UNTRUSTED = "tls_untrusted"
    PROXY_REFUSED = "proxy_refused"
    UNREACHABLE = "unreachable"


class WorkerError(Exception):
    """Base of all errors that the worker raises on purpose.

    `detail` is what is wrong with the `subject`, which the message begins with; `cause` is None where only waiting,
    or the detail itself, can tell what to do.
    """

    def __init__(self, detail: str, *, subject: str = "", cause: Cause | None = None) -> None:
        super().__init__(f"{subject}: {detail}" if subject else detail)
        self.detail = detail
        self.subject = subject
        self.cause = cause

    @classmethod
    def from_error(cls, error: "WorkerError") -> Self:
        """The same failure for the layer above, for classes without fields of their own."""
        return cls(error.detail, subject=error.subject, cause=error.cause)


class InvalidSettings(WorkerError):
    """`problems` holds one readable line for each wrong setting."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class DeadLetterReason(StrEnum):
    """The closed list of reasons with which the worker dead-letters a message."""

    INVALID_JSON = "InvalidJson"
    INVALID_JOB = "InvalidJob"
    UNSUPPORTED_OPERATION = "UnsupportedOperation"
    UNSUPPORTED_CONTENT_TYPE = "UnsupportedContentType"
    INVALID_CLAIM = "InvalidClaim"


class NotAJob(WorkerError):
    """The message cannot be read as a job. `description` says how to fix it."""

    def __init__(self, reason: DeadLetterReason, description: str) -> None:
        super().__init__(f"{reason}: {description}")
        self.reason = reason
        self.description = description


class CallFailed(WorkerError):
    """A call to a deployment brought no answer.

    `status` is the HTTP status, None when there was none; `body` (JSON on one line, or empty) and `request_id`
    are what the service said; `retry_after` is the wait in seconds that it asked for; `rate_limits` is what its
    headers say of the deployment's quota.
    """

    def __init__(
        self,
        detail: str,
        *,
        status: int | None = None,
        body: bytes = b"",
        request_id: str | None = None,
        retry_after: float | None = None,
        rate_limits: RateLimits | None = None,
        cause: Cause | None = None,
    ) -> None:
        super().__init__(detail, cause=cause)
        self.status = status
        self.body = body
        self.request_id = request_id
        self.retry_after = retry_after
        self.rate_limits = rate_limits


class Throttled(CallFailed):
    """429: the deployment takes no more for now. `kind` says why; `is_stray`: others are answered meanwhile, and
    nobody is asked to wait."""

    kind: ThrottleKind = ThrottleKind.QUOTA
    is_stray = False


class RefusedByService(CallFailed):
    """The service refuses this very request; asking again would bring the same."""


class AnswerTooLarge(RefusedByService):
    """The service answers with more than we take in; it is paid for and lost, and would be again."""


class Unavailable(CallFailed):
    """The service or the way to it failed; another attempt may succeed."""


class SetupWrong(CallFailed):
    """Every job would fail like this: the identity, its role or the deployment is wrong."""


class NoToken(SetupWrong):
    """There is no token for `scope` to call with; the service was not asked."""

    def __init__(self, error: "TokenUnavailable") -> None:
        super().__init__(str(error), cause=error.cause)
        self.scope = error.scope


class Expired(WorkerError):
    """The job's deadline passed before it was answered."""


class ClaimUnavailable(WorkerError):
    """The blob behind a claim check could not be read now; another attempt may succeed."""


class TokenUnavailable(WorkerError):
    """No valid token for `scope`. `code` is an AADSTS code of the closed set, `other`, `timeout` or `none`."""

    def __init__(self, scope: str, detail: str, *, code: str) -> None:
        super().__init__(detail, subject=f"no token for {scope}", cause=Cause.NO_TOKEN)
        self.scope = scope
        self.code = code


class SinkUnavailable(WorkerError):
    """The results could not be written now."""


class ResultTooLarge(WorkerError):
    """The line is larger than the sink can ever take. Sizes in bytes; None where the sink did not say."""

    def __init__(self, *, size: int, allowed: int | None) -> None:
        limit = "fewer" if allowed is None else f"at most {allowed:,}"
        super().__init__(f"the result has {size:,} bytes; the sink takes {limit}")
        self.size = size
        self.allowed = allowed


class SourceUnavailable(WorkerError):
    """The job queue cannot be reached or read now."""


class Interrupted(WorkerError):
    """The job was ended from outside before it had an outcome."""


class BatchCancelled(Interrupted):
    """The job's producer wants no more calls for the batch."""

    def __init__(self, batch_id: str) -> None:
        super().__init__(f"batch {batch_id} was cancelled before this job was answered. Next: `aoai-worker retry`")


class LockLost(Interrupted):
    """The message's lock lapsed; another worker may hold it by now."""


class HandedBack(Interrupted):
    """The message goes back to the queue. `reason` is a word from `outcomes.HandBackReason`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
