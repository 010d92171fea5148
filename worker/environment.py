"""Reads the settings once: environment variables, and one YAML file that AOAI_WORKER_CONFIG names.

An environment that would smuggle a key in is refused. Every problem is listed at once, each with the variable's
name, the value seen and what is allowed.
"""

import difflib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_settings import SettingsError

from worker.errors import InvalidSettings
from worker.settings import OWN_WORDS, PREFIX, Price, ServiceBusSettings, WorkerSettings, variable_of

SMUGGLED_KEYS = (
    "AZURE_OPENAI_API_KEY",
    "AZURE_OPENAI_KEY",
    "AZURE_OPENAI_AD_TOKEN",
    "OPENAI_API_KEY",
    "OPENAI_ADMIN_KEY",
    "OPENAI_CUSTOM_HEADERS",
    "AZURE_CLIENT_SECRET",
    "AZURE_CLIENT_CERTIFICATE_PATH",
    "AZURE_CLIENT_CERTIFICATE_PASSWORD",
    "AZURE_PASSWORD",
    "AZURE_STORAGE_KEY",
    "AZURE_STORAGE_SAS_TOKEN",
    "AZURE_STORAGE_CONNECTION_STRING",
)
"""Variables that carry a secret, or a header that could. Their values are never shown."""

CONNECTION_STRINGS = (
    "AZURE_SERVICEBUS_CONNECTION_STRING",
    "SERVICEBUS_CONNECTION_STRING",
    "SERVICE_BUS_CONNECTION_STRING",
    "SERVICEBUS_CONNECTION_STR",
    "AOAI_WORKER_SERVICEBUS_CONNECTION_STRING",
)
"""Refused unless they are the development emulator's, whose key is public."""

_SERVICE_LINK = re.compile(
    rf"{PREFIX}(\w+_)?(SERVICE_HOST=.*|SERVICE_PORT(_\w+)?=\d+|PORT=\w+://.*|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?=.*)"
)
"""Set by Kubernetes in every pod of a namespace that has a Service named `aoai-worker`, or so in the beginning."""

_KEY = re.compile(r"(?i)key|secret|password|sig=|://\S*@")
"""A value that speaks of a key may be one, put into the wrong setting."""


def prices() -> Mapping[str, Price]:
    """AOAI_WORKER_PRICES alone, for what asks no Azure. Raises InvalidSettings."""
    given = os.environ.get(f"{PREFIX}PRICES")
    try:
        return TypeAdapter(dict[str, Price]).validate_python(
            json.loads(given) if given else values_of_file().get("prices") or {}
        )
    except ValidationError as error:
        details = [{**detail, "loc": ("prices", *detail["loc"])} for detail in error.errors()]
        raise InvalidSettings([_explain(detail) for detail in details]) from error
    except ValueError as error:
        seen = _shown({"input": given, "loc": ("prices",)})
        raise InvalidSettings([f"{PREFIX}PRICES={seen}: must be JSON such as {_PRICES} ({error})"]) from error


def values_of_file() -> Mapping[str, Any]:
    """What the YAML file says, if one is named. Raises InvalidSettings."""
    file = os.environ.get(f"{PREFIX}CONFIG")
    return _read_yaml(Path(file)) if file else {}


MOST_VALUES = 20_000
"""Of a file of settings: a thousand models have some thousands. A few lines of aliases can stand for millions."""

S = TypeVar("S", bound=ServiceBusSettings)


def load(kind: type[S]) -> S:
    """Read the settings from this process's environment.

    Raises InvalidSettings with every problem at once.
    """
    problems = [*smuggled_keys(os.environ), *_unknown_settings(os.environ)]
    try:
        settings = kind(**_values_only_in_file())
    except ValidationError as error:
        problems += [_explain(detail) for detail in _without_alternatives(error.errors())]
    except SettingsError as error:
        problems.append(f"{error}: the value is not JSON ({error.__cause__})")
    except InvalidSettings as error:
        problems += error.problems
    else:
        if not problems:
            return settings
    raise InvalidSettings(problems)


def variables_set() -> frozenset[str]:
    """Names of this process's environment as pydantic takes them, in any case."""
    return frozenset(name.upper() for name in os.environ)


def _values_only_in_file() -> dict[str, Any]:
    """The environment takes precedence, so one pod can be tried with another value. A mapping such as `models` is
    replaced, not merged."""
    given = variables_set()
    return {name: value for name, value in values_of_file().items() if variable_of(name) not in given}


def smuggled_keys(environment: Mapping[str, str]) -> Iterator[str]:
    """One line for each variable that would bring a key into a keyless worker; values are not shown."""
    for name in SMUGGLED_KEYS:
        if environment.get(name):
            yield f"{name} is set; this worker is keyless and refuses to run with a key. Unset it."
    for name in CONNECTION_STRINGS:
        value = environment.get(name)
        if value and "usedevelopmentemulator=true" not in value.lower():
            yield (
                f"{name} is set to a connection string, which contains a key; only the development emulator's "
                f"is allowed. Unset it and set {PREFIX}SERVICEBUS_NAMESPACE."
            )


def _unknown_settings(environment: Mapping[str, str]) -> Iterator[str]:
    known = {field.upper() for field in WorkerSettings.model_fields} | {"CONFIG"}
    for name in sorted(environment.keys() - set(CONNECTION_STRINGS)):
        # pydantic takes the names in any case
        setting = name.upper().removeprefix(PREFIX)
        if not name.upper().startswith(PREFIX) or setting in known:
            continue
        if not _SERVICE_LINK.fullmatch(f"{name}={environment[name]}"):
            nearest = difflib.get_close_matches(setting, known, n=1)
            hint = f"did you mean {PREFIX}{nearest[0]}?" if nearest else "docs/settings.md lists the settings."
            yield f"{name} is not a setting; {hint}"


def _read_yaml(path: Path) -> dict[str, Any]:
    name = f"{PREFIX}CONFIG={path}"
    try:
        document = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise InvalidSettings([f"{name}: the file cannot be read: {error.strerror}"]) from error
    except yaml.YAMLError as error:
        raise InvalidSettings([f"{name}: the file is not YAML: {' '.join(str(error).split())}"]) from error
    except (ValueError, RecursionError) as error:  # a day that is none, a number of too many digits, deep nesting
        raise InvalidSettings([f"{name}: the file holds a value that cannot be read: {error}"]) from error
    if _count_values(document) > MOST_VALUES:
        raise InvalidSettings(
            [f"{name}: the file holds more than {MOST_VALUES:,} values, with its aliases expanded"]
        )
    if not isinstance(document, dict):
        raise InvalidSettings([f"{name}: the file must hold a mapping of settings, such as `slots: 64`"])
    unknown = [str(key) for key in document if key not in WorkerSettings.model_fields]
    if unknown:
        allowed = ", ".join(sorted(WorkerSettings.model_fields))
        raise InvalidSettings([f"{name}: no such setting: {', '.join(unknown)}; allowed are {allowed}"])
    return {str(key): value for key, value in document.items()}


def _count_values(document: object) -> int:
    """With what aliases repeat, and one more than MOST_VALUES at most."""
    left, count = [document], 0
    while left and count <= MOST_VALUES:
        value = left.pop()
        count += 1
        if isinstance(value, dict):
            left += value.values()
        elif isinstance(value, list):
            left += value
    return count


def _without_alternatives(details: Sequence[Any]) -> list[Any]:
    """One alternative of a setting is enough to explain it: not also that it is not `passthrough`."""
    seen: set[str] = set()
    kept = []
    for detail in details:
        first, *rest = [str(part) for part in detail["loc"]] or [""]
        if first not in seen or not any(part.startswith("literal[") for part in rest):
            kept.append(detail)
        seen.add(first)
    return kept


def _explain(detail: Any) -> str:
    """`NAME=value: what is allowed`, from one of pydantic's errors."""
    if (
        not detail["loc"] or detail["type"] == OWN_WORDS
    ):  # settings that do not fit together; the message names them
        return str(detail["msg"]).removeprefix("Value error, ")
    first, *rest = detail["loc"]
    # pydantic names a value of the file by its field, a missing one by its alias
    name = variable_of(first) if first in WorkerSettings.model_fields else str(first)
    where = "".join(f"[{part}]" for part in rest if not str(part).startswith(("list[", "dict[", "literal")))
    if detail["type"] == "missing":
        return f"{name}{where} is missing: {_PURPOSES.get(str(first), 'it has no default')}"
    return f"{name}{where}={_shown(detail)}: must be {_allowed(detail)}"


def _shown(detail: Any) -> str:
    text = repr(detail["input"])
    return "(not shown)" if _KEY.search(text) or _KEY.search(str(detail["loc"])) else text[:200]


def _allowed(detail: Any) -> str:
    """What would be accepted, in words that follow "must be"."""
    if detail["loc"][0] == "prices" and detail["type"] in ("extra_forbidden", "dict_type", "model_type"):
        return f"JSON such as {_PRICES}, prices of a million tokens"
    if detail["type"] in _TYPES:
        return _TYPES[detail["type"]]
    message = str(detail["msg"])
    for beginning in ("Value error, ", "Input should be ", "List should have ", "String should have "):
        message = message.removeprefix(beginning)
    return message


_PRICES = '{"gpt-5.4-mini": {"input": 1.5, "cached_input": 0.75, "output": 6.0}}'

_TYPES = {
    "bool_parsing": "true or false",
    "int_parsing": "a whole number",
    "float_parsing": "a number",
    "extra_forbidden": "left out; a deployment has a name and an endpoint",
    "list_type": 'a list of deployments, such as ["my-deployment"]',
    "dict_type": 'passthrough, or JSON such as {"gpt-5.4-mini": ["my-deployment"]}',
    "model_type": "the name of a deployment, or a name and an endpoint",
    "too_short": "at least one model, each with at least one deployment",
}

_PURPOSES = {
    "servicebus_namespace": "the Service Bus namespace, such as my-namespace.servicebus.windows.net",
    "AZURE_OPENAI_ENDPOINT": "the account's endpoint, such as https://my-account.openai.azure.com",
    "prices": "the price of a million tokens, 0 if nothing is charged",
    "models": 'the models and their deployments, such as {"gpt-5.4-mini": ["my-deployment"]}, or passthrough',
}
