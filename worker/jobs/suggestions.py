"""What may help a job that failed: a sentence in its result, by the code of the failure."""

from collections.abc import Mapping

import orjson

from worker.jobs.job import JobLine, JsonObject
from worker.jobs.outcomes import Answered, Concluded, Failed, FailureCode, Refused
from worker.jobs.reasoning import effort_of, refused_parameters

OF_FAILURE: Mapping[FailureCode, str] = {
    FailureCode.EXPIRED: "submit it again with a later deadline, or when the queue is shorter",
    FailureCode.MODEL_NOT_ALLOWED: "submit it with --model-map OLD=NEW, or add the model to AOAI_WORKER_MODELS",
    FailureCode.ATTEMPTS_EXHAUSTED: "the service failed each time: aoai-worker retry sends it again",
    FailureCode.ANSWER_TOO_LARGE: "ask for a shorter answer, or let results go to Blob storage",
    FailureCode.MAX_DELIVERIES: "the workers' logs tell what killed them; then aoai-worker retry sends it again",
    FailureCode.BATCH_CANCELLED: "aoai-worker retry sends it again",
}
OF_CODE: Mapping[str, str] = {
    "content_filter": (
        "the prompt met the content filter; body.error.innererror has its categories: change the prompt, or the "
        "deployment's filter"
    ),
    "context_length_exceeded": "shorten the prompt, allow fewer tokens, or take a model with a larger context",
    "DeploymentNotFound": "create the deployment, or submit with --model-map OLD=NEW",
    "model_not_found": "create the deployment, or submit with --model-map OLD=NEW",
}
"""By `error.code` of what the service said."""
TOO_SHORT = "could not finish the message because max_tokens"
"""What the service says, in any case, where all tokens that were allowed went into reasoning."""


def suggestion_for(line: JobLine, outcome: Concluded) -> str | None:
    """None where nothing is known to help."""
    match outcome:
        case Answered():
            return None
        case Failed(code=code):
            return OF_FAILURE[code]
        case Refused(response=response) if response.status >= 500 or response.status in (408, 429):
            return "the service failed each time: aoai-worker retry sends it again"
        case Refused(response=response):
            return _of_refusal(line, _error_in(response.body))


def _of_refusal(line: JobLine, error: JsonObject) -> str | None:
    parameter = error.get("param")
    if isinstance(parameter, str) and (remedy := refused_parameters(line).get(parameter)):
        return f"{line.model} does not take {parameter}: {remedy}"
    message, code = error.get("message"), error.get("code")
    if isinstance(message, str) and TOO_SHORT in message.lower() and effort_of(line.model, line.body):
        return "allow more tokens: a model that reasons needs them before it answers; or a lower reasoning effort"
    return OF_CODE.get(code) if isinstance(code, str) else None


def _error_in(body: bytes) -> JsonObject:
    """Empty where there is none of OpenAI's form."""
    try:
        error = orjson.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        return {}
    return error if isinstance(error, dict) else {}
