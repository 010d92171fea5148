"""How Azure OpenAI refuses: one function per error document, with the status and words of the service."""

import math
from collections.abc import Mapping
from typing import Any

_TROUBLE_SHOOTING = "https://go.microsoft.com/fwlink/?linkid=2198766"
_WHICH_MODELS = "https://go.microsoft.com/fwlink/?linkid=2197993"


class Refused(Exception):
    """The service's refusal: `status`, the JSON `document` and `headers` of the response."""

    def __init__(self, status: int, document: dict[str, Any], headers: Mapping[str, str] | None = None) -> None:
        super().__init__(document["error"]["message"])
        self.status = status
        self.document = document
        self.headers = headers or {}


def no_credential() -> Refused:
    message = (
        "Access denied due to invalid subscription key or wrong API endpoint. Make sure to provide a valid key "
        "for an active subscription and use a correct regional API endpoint for your resource."
    )
    return Refused(401, _coded("401", message))


def bad_token(reason: str) -> Refused:
    """`reason` says more than Azure does; it comes in a header, so that the body stays Azure's."""
    message = (
        "Unauthorized. Access token is missing, invalid, audience is incorrect "
        "(https://cognitiveservices.azure.com), or have expired."
    )
    return Refused(401, _coded("401", message), {"x-local-reason": reason})


def keys_disabled() -> Refused:
    message = "Key based authentication is disabled for this resource."
    return Refused(403, _coded("AuthenticationTypeDisabled", message))


def lacks_data_action(object_id: str, action: str, operation: str) -> Refused:
    message = (
        f"The principal `{object_id}` lacks the required data action "
        f"`Microsoft.CognitiveServices/accounts/OpenAI/{action}` to perform `{operation}` operation."
    )
    return Refused(401, _coded("PermissionDenied", message))


def not_authorized(app_id: str, object_id: str, action: str, scope: str) -> Refused:
    """The answer of Azure Resource Manager to a caller without a management role."""
    message = (
        f"The client '{app_id}' with object id '{object_id}' does not have authorization to perform action "
        f"'{action}' over scope '{scope}' or the scope is invalid. If access was recently granted, please refresh "
        "your credentials."
    )
    return Refused(403, _coded("AuthorizationFailed", message))


def not_found() -> Refused:
    return Refused(404, _coded("404", "Resource not found"))


def api_version_not_supported() -> Refused:
    """The v1 surface, to an `api-version` that is not its own. The other does not know such a path (404)."""
    return Refused(400, _coded("BadRequest", "API version not supported"))


def responses_need_a_later_version() -> Refused:
    message = "Azure OpenAI Responses API is enabled only for api-version 2025-03-01-preview and later"
    return Refused(400, _coded("BadRequest", message))


def no_such_deployment() -> Refused:
    message = (
        "The API deployment for this resource does not exist. If you created the deployment within the last "
        "5 minutes, please wait a moment and try again."
    )
    return Refused(404, _coded("DeploymentNotFound", message))


def operation_not_supported(operation: str, model: str) -> Refused:
    message = (
        f"The {operation} operation does not work with the specified model, {model}. Please choose different model "
        "and try again. You can learn more about which models can be used with each operation here: "
        f"{_WHICH_MODELS}."
    )
    return Refused(400, _coded("OperationNotSupported", message))


def too_large() -> Refused:
    return Refused(413, _coded("413", "The request body is too large."))


def invalid_request(message: str, param: str | None = None, code: str | None = None) -> Refused:
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    return Refused(400, {"error": error})


def prompt_filtered() -> Refused:
    error = {
        "message": (
            "The response was filtered due to the prompt triggering Azure OpenAI's content management policy. "
            "Please modify your prompt and retry. To learn more about our content filtering policies please read "
            f"our documentation: {_TROUBLE_SHOOTING}"
        ),
        "type": None,
        "param": "prompt",
        "code": "content_filter",
        "status": 400,
        "innererror": {
            "code": "ResponsibleAIPolicyViolation",
            "content_filter_result": {
                "hate": {"filtered": True, "severity": "high"},
                "jailbreak": {"filtered": False, "detected": False},
                "self_harm": {"filtered": False, "severity": "safe"},
                "sexual": {"filtered": False, "severity": "safe"},
                "violence": {"filtered": True, "severity": "medium"},
            },
        },
    }
    return Refused(400, {"error": error})


def throttled(
    operation: str, kind: str, api_version: str, retry_after: float, headers: Mapping[str, str]
) -> Refused:
    """`kind` is what ran out: `token` or `call`. `retry_after` in seconds appears in the words only."""
    message = (
        f"Requests to the {operation} Operation under Azure OpenAI API version {api_version} have "
        f"exceeded {kind} rate limit of your current OpenAI S0 pricing tier. Please retry after "
        f"{math.ceil(retry_after)} seconds. Please go here: https://aka.ms/oai/quotaincrease if you would like to "
        "further increase the default rate limit."
    )
    return Refused(429, _coded("429", message), headers)


def no_capacity(headers: Mapping[str, str]) -> Refused:
    """A 429 that is not the caller's doing: the shared pool is full. As users quote it in public issues."""
    message = (
        "The system is currently experiencing high demand and cannot process your request. Your request exceeds "
        "the maximum usage size allowed during peak load. For improved capacity reliability, consider switching to "
        "Provisioned Throughput."
    )
    error = {"message": message, "type": "too_many_requests", "param": None, "code": "no_capacity"}
    return Refused(429, {"error": error}, headers)


def provisioned_full(headers: Mapping[str, str]) -> Refused:
    """A provisioned deployment at more than 100 %. No public quotation was found: these words are ours."""
    message = (
        "The deployment's provisioned throughput units are in use at more than 100%. The service is temporarily "
        "unable to process your request. Please try again later."
    )
    return Refused(429, _coded("429", message), headers)


def stream_error() -> dict[str, Any]:
    """What a stream that has begun ends with, when the service fails."""
    message = "The server had an error while processing your request. Sorry about that!"
    return {"message": message, "type": "server_error", "param": None, "code": None}


def stream_throttled() -> dict[str, Any]:
    """What a stream that has begun ends with, when the quota is used up; as quoted in public issues."""
    return {
        "type": "too_many_requests",
        "code": "rate_limit_exceeded",
        "headers": {"x-ms-fe-error": "true"},
        "message": "Your requests to the deployment have exceeded rate limit.",
        "param": None,
    }


def failed(status: int, headers: Mapping[str, str] | None = None) -> Refused:
    """A failure inside the service."""
    if status == 500:
        return Refused(status, {"error": stream_error()}, headers)
    return Refused(status, _coded(str(status), _FAILURES.get(status, "The request failed.")), headers)


_FAILURES = {
    408: "The operation was timeout.",
    502: "Bad gateway.",
    503: "The service is temporarily unable to process your request. Please try again later.",
    504: "The operation was timeout.",
}


def _coded(code: str, message: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": message}}
