"""What counts as an answer of each operation: whole, or else what a 200 means that holds none.

What the answers of the operations look like is in `FORMS`. Streams come here once assembled (`streams.py`).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

from worker.azure.openai.refusals import Exchange, classify_within, read_headroom
from worker.errors import CallFailed, RefusedByService, Throttled, Unavailable
from worker.jobs.job import NUMBERS, JsonObject, Operation, on_one_line, without_numbers
from worker.jobs.outcomes import Response, Usage

WHOLE_STATUSES = ("completed", "incomplete")
"""Of a response; an incomplete one was cut by `max_output_tokens` or by the content filter."""

REFUSING_CODES = frozenset(
    {
        "invalid_prompt",
        "data_residency_mismatch",
        "bio_policy",
        "misalignment_policy_violation",
        "invalid_image",
        "invalid_image_format",
        "invalid_base64_image",
        "invalid_image_url",
        "image_too_large",
        "image_too_small",
        "image_parse_error",
        "image_content_policy_violation",
        "invalid_image_mode",
        "image_file_too_large",
        "unsupported_image_media_type",
        "empty_image_file",
        "image_file_not_found",
        "content_filter",
    }
)
"""With which a response fails for what was asked: all that the API's reference lists (`ResponseError.code`) but
`server_error`, `rate_limit_exceeded`, `vector_store_timeout` and `failed_to_download_image`, which may pass."""

_WORD = re.compile(r"[a-z0-9_]{1,40}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """What an answer of an operation looks like. `lacks` tells what it lacks to be whole, or None."""

    name: str
    lacks: Callable[[JsonObject], str | None]
    prompt: str = "prompt_tokens"
    completion: str = "completion_tokens"


def read_answer(operation: Operation, body: bytes, exchange: Exchange) -> Response:
    """The answer of a 200. Raises CallFailed, as `accept` does."""
    try:
        document = _parse_embeddings(body) if operation is Operation.EMBEDDINGS else orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise _broken(FORMS[operation], body, f"{error}{_beginning(body)}") from None
    return accept(operation, document, body, exchange)


def _parse_embeddings(body: bytes) -> object:
    """The document with one number for each array of numbers, every array checked by itself: as objects, all the
    numbers of an answer would take several times its bytes. Raises JSONDecodeError."""
    try:
        for numbers in NUMBERS.finditer(body):
            orjson.loads(memoryview(body)[numbers.start() : numbers.end()])
        return orjson.loads(without_numbers(body))
    except orjson.JSONDecodeError:
        return orjson.loads(body)  # what looked like an array may have been a text


def accept(operation: Operation, document: object, body: bytes, exchange: Exchange) -> Response:
    """`document` as an answer; `body` is the same in bytes.

    Raises Unavailable where it is not whole, and what its error says where it is a response that failed.
    """
    form = FORMS[operation]
    if not isinstance(document, dict):
        raise _broken(form, body, "it is no object")
    if lack := form.lacks(document):
        raise _failure(document, body, exchange) or _broken(form, body, lack)
    return Response(
        status=200,
        request_id=exchange.request_id,
        body=on_one_line(body),
        usage=_usage(document.get("usage"), form),
        rate_limits=read_headroom(exchange.headers),
    )


def _failure(document: JsonObject, body: bytes, exchange: Exchange) -> CallFailed | None:
    """What a response that failed says of the job or of the deployment; None where another attempt may succeed.

    One that fails for what was asked is the service's last word, as it is: an object with status "failed".
    """
    error = document.get("error")
    if document.get("status") != "failed" or not isinstance(error, dict):
        return None
    code = error.get("code")
    if isinstance(code, str) and code in REFUSING_CODES:
        return RefusedByService(
            f"the response of {exchange.target.deployment} failed: {code}",
            status=200,
            body=on_one_line(body),
            request_id=exchange.request_id,
            rate_limits=read_headroom(exchange.headers),
        )
    meant = classify_within(error, exchange)
    return meant if isinstance(meant, Throttled) else None


def _broken(form: Form, body: bytes, lack: str) -> Unavailable:
    return Unavailable(f"the answer of {len(body):,} bytes is not a whole {form.name}: {lack}")


def _lacks_choices(document: JsonObject) -> str | None:
    return None if _is_filled(document.get("choices")) else "it has no choices"


def _lacks_data(document: JsonObject) -> str | None:
    return None if _is_filled(document.get("data")) else "it has no data"


def _lacks_output(document: JsonObject) -> str | None:
    """A response that failed comes with a 200 too; its status tells."""
    status, error = document.get("status"), document.get("error")
    if status not in WHOLE_STATUSES:
        code = error.get("code") if isinstance(error, dict) else None
        return f"its status is {_word(status)}" + (f", its error's code {_word(code)}" if code else "")
    return None if isinstance(document.get("output"), list) else "it has no output"


def _is_filled(value: object) -> bool:
    return isinstance(value, list) and bool(value)


def _word(value: object) -> str:
    """One of the service's own words; not what else could stand in its place, as this goes to the log."""
    return value if isinstance(value, str) and _WORD.fullmatch(value) else "none that is known"


FORMS = {
    Operation.CHAT_COMPLETIONS: Form(name="chat completion", lacks=_lacks_choices),
    Operation.RESPONSES: Form(
        name="response", lacks=_lacks_output, prompt="input_tokens", completion="output_tokens"
    ),
    Operation.EMBEDDINGS: Form(name="list of embeddings", lacks=_lacks_data),
    Operation.COMPLETIONS: Form(name="completion", lacks=_lacks_choices),
}


def _beginning(body: bytes) -> str:
    """What a proxy's page begins with; nothing of what could be half an answer, as this goes to the log."""
    return f"; it begins with {body[:60]!r}" if body.lstrip()[:1] == b"<" else ""


def _usage(usage: Any, form: Form) -> Usage | None:
    """Counts that are missing, or none such as a string or -1, are 0."""
    if not isinstance(usage, dict):
        return None
    details = usage.get(f"{form.prompt}_details")
    return Usage(
        prompt=_count_of(usage.get(form.prompt)),
        completion=_count_of(usage.get(form.completion)),
        cached=_count_of(details.get("cached_tokens")) if isinstance(details, dict) else 0,
    )


def _count_of(value: Any) -> int:
    return value if type(value) is int and value > 0 else 0
