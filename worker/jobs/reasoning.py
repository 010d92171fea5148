"""Which models reason before they answer, and what such models refuse; both by the name that a job gives.

Sources: Microsoft Learn, "Azure OpenAI reasoning models", section "Not supported"; and OpenAI's guide to GPT-5.1
and newer, "Parameter compatibility": they take the parameters of sampling with the effort `none`. A deployment may
be named after another model than it has, so from these names follow estimates and warnings, and no refusals.
"""

import re
from collections.abc import Mapping

from worker.jobs.job import JobLine, JsonObject, Operation

REASONING = re.compile(r"(?:gpt-5(?!.*-chat)|o\d)(?!\w)")
"""The beginning of a name: `gpt-5.4-mini`, not `gpt-5-chat`."""
NO_EFFORT = "none"
USUAL_EFFORT = "medium"
"""Of most models; newer ones begin with `none`."""

_INSTEAD_OF_MAX_TOKENS = {
    Operation.CHAT_COMPLETIONS: "max_completion_tokens",
    Operation.RESPONSES: "max_output_tokens",
}
_ALLOWED: Mapping[str, tuple[object, ...]] = {
    "temperature": (1,),
    "top_p": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
}
"""What a model takes of each parameter while it reasons."""


def effort_of(model: str, body: JsonObject) -> str | None:
    """How hard the model shall reason; None where it is none that reasons."""
    if not REASONING.match(model):
        return None
    of_response = body.get("reasoning")
    effort = of_response.get("effort") if isinstance(of_response, dict) else body.get("reasoning_effort")
    return effort if isinstance(effort, str) else USUAL_EFFORT


def refused_parameters(line: JobLine) -> Mapping[str, str]:
    """What the model that the line names will hardly take, and for each what to do instead."""
    instead = _INSTEAD_OF_MAX_TOKENS.get(line.operation)
    effort = effort_of(line.model, line.body)
    if instead is None or effort is None:
        return {}
    refused = {"max_tokens": f"use {instead}"} if line.body.get("max_tokens") is not None else {}
    if effort == NO_EFFORT:
        return refused
    return refused | {
        name: "leave it out, or try the reasoning effort none"
        for name, allowed in _ALLOWED.items()
        if (value := line.body.get(name)) is not None and value not in allowed
    }
