"""The lists of the data plane: the models of an account's region, and (of old api-versions only) its deployments.

As in Azure, a model is listed whether or not it is deployed; the stand-in knows of no others than those that are.
"""

from collections.abc import Iterable
from typing import Any

from embedded_azure.config import Deployment
from embedded_azure.openai.refusals import Refused

# Nothing here was ever released; some date has to stand there.
_RELEASED = 1_721_172_741


def list_models(deployments: Iterable[Deployment]) -> dict[str, Any]:
    models = {spec.model: _model(spec) for spec in deployments}
    return {"data": [models[name] for name in sorted(models)], "object": "list"}


def find_model(deployments: Iterable[Deployment], name: str) -> dict[str, Any]:
    """Raises Refused (404)."""
    for spec in deployments:
        if spec.model == name:
            return _model(spec)
    message = f"The model '{name}' does not exist."
    error = {"message": message, "type": "invalid_request_error", "param": "model", "code": "model_not_found"}
    raise Refused(404, {"error": error})


def list_deployments(deployments: Iterable[Deployment]) -> dict[str, Any]:
    return {"data": [_deployment(spec) for spec in deployments], "object": "list"}


def _model(spec: Deployment) -> dict[str, Any]:
    return {
        "status": "succeeded",
        "capabilities": {
            "fine_tune": False,
            "inference": True,
            "completion": spec.kind == "completions",
            "chat_completion": spec.kind == "chat",
            "embeddings": spec.kind == "embeddings",
        },
        "lifecycle_status": "generally-available",
        "deprecation": {},
        "id": spec.model,
        "created": _RELEASED,
        "created_at": _RELEASED,
        "updated_at": _RELEASED,
        "object": "model",
        "owned_by": "system",
    }


def _deployment(spec: Deployment) -> dict[str, Any]:
    return {
        "scale_settings": {"scale_type": "standard"},
        "model": spec.model,
        "owner": "organization-owner",
        "id": spec.name,
        "status": "succeeded",
        "created_at": _RELEASED,
        "updated_at": _RELEASED,
        "object": "deployment",
    }
