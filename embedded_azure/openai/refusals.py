"""How Azure OpenAI refuses: one function per error document, with the status and words of the service."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

REGION = "local"
"""Where all accounts are."""

_TROUBLE_SHOOTING = "https://go.microsoft.com/fwlink/?linkid=2198766"
_WHICH_MODELS = "https://go.microsoft.com/fwlink/?linkid=2197993"


class Refused(Exception):
    """The service's refusal: `status`, the JSON `document` and `headers` of the response."""

    def __init__(self, status: int, document: dict[str, Any], headers: Mapping[str, str] | None = None) -> None:
        super().__init__(document.get("error", document)["message"])
        self.status = status
        self.document = document
        self.headers = headers or {}


def no_credential() -> Refused:
    message = (
        "Access denied due to invalid subscription key or wrong API endpoint. Make sure to provide a valid key "
        "for an active subscription and use a correct regional API endpoint for your resource."
    )
    return Refused(401, _coded("401", message))


def bad_token(reason: str, audience: str) -> Refused:
    """Without the envelope `error`, as the gateway answers before the service is asked.

    `reason` says more than Azure does; it comes in a header, so that the body stays Azure's.
    """
    message = (
        f"Unauthorized. Access token is missing, invalid, audience is incorrect ({audience}), or have expired."
    )
    return Refused(401, {"statusCode": 401, "message": message}, {"x-local-reason": reason})


def other_tenant(tenant: str) -> Refused:
    """To a token that is good and of another tenant than the resource."""
    message = f"Token tenant {tenant} does not match resource tenant."
    return Refused(400, _coded("Tenant provided in token does not match resource token", message))


def firewall_closed() -> Refused:
    return Refused(403, _coded("AccessDenied", "Access denied due to Virtual Network/Firewall rules."))


def public_access_disabled() -> Refused:
    message = "Public access is disabled. Please configure private endpoint."
    return Refused(403, _coded("403", message))


def keys_disabled() -> Refused:
    message = "Key based authentication is disabled for this resource."
    return Refused(403, _coded("AuthenticationTypeDisabled", message))


def lacks_data_action(object_id: str, action: str, operation: str) -> Refused:
    message = (
        f"The principal `{object_id}` lacks the required data action "
        f"`Microsoft.CognitiveServices/accounts/OpenAI/{action}` to perform `{operation}` operation."
    )
    return Refused(401, _coded("PermissionDenied", message))


def access_not_spread() -> Refused:
    """What alternates with `lacks_data_action` while a role that was just assigned reaches all of the service."""
    return Refused(401, _coded("PermissionDenied", "Principal does not have access to API/Operation."))


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
    """Azure adds at times: "If you created the deployment within the last 5 minutes, please wait a moment"."""
    return Refused(404, _coded("DeploymentNotFound", "The API deployment for this resource does not exist."))


def operation_not_supported(operation: str, model: str) -> Refused:
    message = (
        f"The {operation} operation does not work with the specified model, {model}. Please choose different model "
        "and try again. You can learn more about which models can be used with each operation here: "
        f"{_WHICH_MODELS}."
    )
    return Refused(400, _coded("OperationNotSupported", message))


def too_large() -> Refused:
    return Refused(413, _coded("413", "The request body is too large."))


def too_many_headers() -> Refused:
    """More custom headers than are passed on. The status is documented; these words are ours."""
    return Refused(431, _coded("431", "Request Header Fields Too Large"))


def output_budget_too_small() -> Refused:
    """To a chat whose budget is used up before its answer has begun."""
    return invalid_request(
        "Could not finish the message because max_tokens or model output limit was reached. Please try again with "
        "higher max_tokens."
    )


def invalid_request(message: str, param: str | None = None, code: str | None = None) -> Refused:
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    return Refused(400, {"error": error})


_FILTERED_PROMPT = {
    "hate": {"filtered": True, "severity": "high"},
    "jailbreak": {"filtered": False, "detected": False},
    "self_harm": {"filtered": False, "severity": "safe"},
    "sexual": {"filtered": False, "severity": "safe"},
    "violence": {"filtered": True, "severity": "medium"},
}
_PROMPT_FILTERED = (
    "The response was filtered due to the prompt triggering Azure OpenAI's content management policy. "
    "Please modify your prompt and retry. To learn more about our content filtering policies please read "
    f"our documentation: {_TROUBLE_SHOOTING}"
)


def prompt_filtered(*, is_bare: bool = False) -> Refused:
    """As chat and completions have it; `is_bare`: without the `innererror`, which Azure leaves out at times."""
    error: dict[str, Any] = {
        "message": _PROMPT_FILTERED,
        "type": None,
        "param": "prompt",
        "code": "content_filter",
        "status": 400,
    }
    if not is_bare:
        error["innererror"] = {
            "code": "ResponsibleAIPolicyViolation",
            "content_filter_result": _FILTERED_PROMPT,
        }
    return Refused(400, {"error": error})


def response_filtered(*, is_bare: bool = False) -> Refused:
    """As responses have it; `is_bare`: without what the filter found."""
    error: dict[str, Any] = {
        "message": _PROMPT_FILTERED,
        "type": "invalid_request_error",
        "param": "prompt",
        "code": "content_filter",
    }
    if not is_bare:
        found = {"blocked": True, "source_type": "prompt", "content_filter_raw": []}
        error["content_filters"] = [{**found, "content_filter_results": _FILTERED_PROMPT}]
    return Refused(400, {"error": error})


@dataclass(frozen=True, slots=True, kw_only=True)
class Throttling:
    """What the words of a 429 name: who was asked for what, and after how many seconds it may be asked again."""

    deployment: str
    model: str
    operation: str
    api_version: str
    retry_after: float = 0.0


def throttled(kind: str, named: Throttling, headers: Mapping[str, str]) -> Refused:
    """`kind` is what ran out: `token` or `call`. So worded since the middle of 2025."""
    message = (
        f"Your requests to {named.deployment} for {named.model} in {REGION} have exceeded the {kind} rate limit "
        f"for your current OpenAI S0 pricing tier. This request was for {named.operation} under Azure OpenAI API "
        f"version {named.api_version}. Please retry after {math.ceil(named.retry_after)} seconds. To increase your "
        "default rate limit, visit: https://aka.ms/oai/quotaincrease."
    )
    return Refused(429, _coded("RateLimitReached", message), headers)


def no_capacity(retry_after: float | None, headers: Mapping[str, str]) -> Refused:
    """A 429 that is not the caller's doing: the shared pool is full. As users quote it in public issues."""
    wait = "" if retry_after is None else f" Please retry after {math.ceil(retry_after)} seconds."
    message = (
        "The system is currently experiencing high demand and cannot process your request. Your request exceeds "
        f"the maximum usage size allowed during peak load.{wait} For improved capacity reliability, consider "
        "switching to Provisioned Throughput."
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
