"""What form an answer must have: plain text, JSON, JSON of a schema, or a call of a tool; and what is told of it.

Chat and responses name these differently; both are read here into an `Output`. A tool is called where `tool_choice`
wants that, or where the question names the tool; none is called again once its result is there, so that an agent
comes to an end.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from embedded_azure.openai.bodies import parse_count, parse_flag, parse_text, unsupported, wrong_type, wrong_value
from embedded_azure.openai.models import Model
from embedded_azure.openai.refusals import invalid_request
from embedded_azure.openai.schemas import check_strict, generate

_REASONING_TOKENS = {"none": 0, "minimal": 16, "low": 64, "medium": 128, "high": 256, "xhigh": 512}
"""By effort. Azure's are the model's own affair; here they are fixed, so that a test can count on them."""
_FORMATS = frozenset({"text", "json_object", "json_schema"})
_CHOICES = frozenset({"none", "auto", "required"})
_MOST_LOGPROBS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A function that may be called. `parameters` is a JSON Schema."""

    name: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """`schema` None: text, or a JSON object of our own. `tool` is called with what the schema describes."""

    param: str = ""
    is_json: bool = False
    schema: Mapping[str, Any] | None = None
    tool: str | None = None
    is_forced: bool = False
    """Whether `tool_choice` names the tool, which ends an answer of chat as a plain one ends."""

    @property
    def is_text(self) -> bool:
        return not self.is_json and self.schema is None

    def say(self, said: str, digest: str) -> str:
        """What is answered in place of the plain words `said`. Raises Refused for a schema beyond us."""
        if self.schema is not None:
            return orjson.dumps(generate(self.schema, said, digest, param=self.param)).decode()
        return orjson.dumps({"answer": said}).decode() if self.is_json else said


TEXT = Output()


def read_output(
    form: Any, tools: Any, choice: Any, *, param: str, question: str, prompt: str, called: Collection[str]
) -> Output:
    """`form` is the `response_format` of chat or the `text.format` of responses, `param` its name. `prompt` is all
    that was said, and `called` names the tools that were called since the question. Raises Refused with status 400.
    """
    known = _read_tools(tools)
    named = _read_choice(choice, known)
    tool = known.get(named) or _chosen(named, list(known.values()), question, called)
    if tool is not None:
        return Output(param="tools", schema=tool.parameters, tool=tool.name, is_forced=named in known)
    return _read_format(form, param, prompt)


def read_logprobs(body: Mapping[str, Any], *, wanted: bool, reasons: bool) -> int | None:
    """How many alternatives to tell for each token, None where no logprobs are asked for. Raises Refused."""
    most = parse_count(dict(body), "top_logprobs", least=0, most=_MOST_LOGPROBS)
    if not wanted:
        if most:
            raise invalid_request("'top_logprobs' is only allowed when 'logprobs' is asked for.", "top_logprobs")
        return None
    if reasons:
        raise unsupported("logprobs")
    return most or 0


def read_reasoning_tokens(effort: Any, param: str, model: Model) -> int:
    """The tokens that are spent before the answer; a model that does not reason takes no effort. Raises Refused."""
    if not model.reasons:
        if effort is not None:
            raise unsupported(param)
        return 0
    if effort is not None and (not isinstance(effort, str) or effort not in _REASONING_TOKENS):
        raise wrong_value(param, effort, frozenset(_REASONING_TOKENS))
    return _REASONING_TOKENS[effort or "medium"]


def logprobs_of(tokens: list[str], alternatives: int) -> list[dict[str, Any]]:
    """Of each token: all are as good as certain, and each alternative is half as likely as the one before."""

    def entry(token: str, logprob: float) -> dict[str, Any]:
        return {"token": token, "logprob": logprob, "bytes": list(token.encode("utf-8", "replace"))}

    return [
        {
            **entry(token, -0.01),
            "top_logprobs": [
                entry(token if rank == 0 else f"{token}~{rank}", -0.01 - 0.7 * rank) for rank in range(alternatives)
            ],
        }
        for token in tokens
    ]


def _read_tools(tools: Any) -> dict[str, Tool]:
    if tools is None:
        return {}
    if not isinstance(tools, list):
        raise wrong_type("tools", "an array of objects", tools)
    found: dict[str, Tool] = {}
    for index, tool in enumerate(tools):
        if not isinstance(tool, dict):
            raise wrong_type(f"tools[{index}]", "an object", tool)
        function = tool.get("function", tool)  # responses have its fields at the top
        if tool.get("type") != "function" or not isinstance(function, dict):
            continue  # tools of the service's own are read past
        name = parse_text(function, "name")
        if not name:
            raise invalid_request(
                f"Missing required parameter: 'tools[{index}].name'.", "tools", "missing_required_parameter"
            )
        parameters = function.get("parameters") or {"type": "object", "properties": {}}
        if not isinstance(parameters, dict):
            raise wrong_type(f"tools[{index}].parameters", "an object", parameters)
        if parse_flag(function, "strict", default=False):
            check_strict(parameters, name=f"function '{name}'", param=f"tools[{index}].parameters")
        found[name] = Tool(name=name, parameters=parameters)
    return found


def _read_choice(choice: Any, known: Mapping[str, Tool]) -> str:
    """`none`, `auto`, `required`, or the name of the tool that must be called."""
    if choice is None:
        return "auto"
    if isinstance(choice, str):
        if choice not in _CHOICES:
            raise wrong_value("tool_choice", choice, _CHOICES)
        if not known and choice == "required":
            raise invalid_request("'tool_choice' is only allowed when 'tools' are specified.", "tool_choice")
        return choice
    if not isinstance(choice, dict):
        raise wrong_type("tool_choice", "one of a string or object", choice)
    if choice.get("type") != "function":
        return "auto"
    function = choice.get("function", choice)
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or name not in known:
        raise invalid_request(f"Tool choice {name!r:.80} not found in 'tools' parameter.", "tool_choice")
    return name


def _chosen(choice: str, tools: list[Tool], question: str, called: Collection[str]) -> Tool | None:
    if choice == "none":
        return None
    left = [tool for tool in tools if tool.name not in called]
    named = next((tool for tool in left if tool.name in question), None)
    return named or (next(iter(left or tools), None) if choice == "required" else None)


def _read_format(form: Any, param: str, prompt: str) -> Output:
    if form is None:
        return TEXT
    if not isinstance(form, dict):
        raise wrong_type(param, "an object", form)
    kind = form.get("type")
    if not isinstance(kind, str) or kind not in _FORMATS:
        raise wrong_value(f"{param}.type", kind, _FORMATS)
    if kind == "text":
        return TEXT
    if kind == "json_object":
        if "json" not in prompt.lower():
            where = "messages" if param == "response_format" else "input"
            raise invalid_request(
                f"'{where}' must contain the word 'json' in some form, to use '{param}' of type 'json_object'.",
                where,
            )
        return Output(param=param, is_json=True)
    described = form.get("json_schema", form)  # responses have its fields at the top
    if not isinstance(described, dict) or not isinstance(described.get("schema"), dict):
        raise invalid_request(
            f"Missing required parameter: '{param}.schema'.", f"{param}.schema", "missing_required_parameter"
        )
    schema = described["schema"]
    if parse_flag(described, "strict", default=False):
        check_strict(schema, name=f"{param.split('.')[0]} '{described.get('name')}'", param=param)
    return Output(param=param, is_json=True, schema=schema)
