"""The tables of docs/settings.md, from the fields of the settings: type, bounds, default and docstring."""

import ast
import inspect
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from scripts.reference.blocks import replace, table
from worker.environment import CONNECTION_STRINGS, SMUGGLED_KEYS
from worker.settings import ConnectionSettings, ServiceBusSettings, Unit, WorkerSettings, variable_of

MADE_AT_START = {"pod": "host name"}
"""Settings whose default is made by a function, as the page names it."""


def render(page: str) -> str:
    shared = ConnectionSettings.model_fields
    page = replace(page, "producer", _table(name for name in WorkerSettings.model_fields if name in shared))
    page = replace(page, "worker", _table(name for name in WorkerSettings.model_fields if name not in shared))
    page = replace(page, "keys", _list(SMUGGLED_KEYS))
    return replace(page, "connection-strings", _list(CONNECTION_STRINGS))


@cache
def texts() -> Mapping[str, str]:
    """Each setting's docstring. pydantic could keep them, but at each start it would take 13 ms to find them."""
    found: dict[str, str] = {}
    for kind in (ServiceBusSettings, ConnectionSettings, WorkerSettings):
        (tree,) = ast.parse(inspect.getsource(kind)).body
        assert isinstance(tree, ast.ClassDef)
        for field, text in zip(tree.body, tree.body[1:], strict=False):
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str() as words)):
                    found[name] = " ".join(words.split())
    return found


def _table(names: Iterator[str]) -> str:
    return table(
        ("setting", "unit", "default", "what it is, and why the default"),
        (
            (f"`{variable_of(name)}`", _unit(field), _default(name, field), texts()[name])
            for name in names
            for field in [WorkerSettings.model_fields[name]]
        ),
    )


def _unit(field: FieldInfo) -> str:
    if get_origin(field.annotation) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(field.annotation))
    if field.annotation is bool:
        return "true, false"
    parts = [*field.metadata, *_parts(field.annotation)]
    unit = next((part.name for part in parts if isinstance(part, Unit)), "JSON" if dict in parts else None)
    if unit is None:
        raise ValueError(f"{field}: has no unit; annotate it, such as Annotated[int, Unit('jobs')]")
    return ", ".join(filter(None, (unit, _bounds(field))))


def _parts(annotation: Any) -> Iterator[Any]:
    yield get_origin(annotation) or annotation
    for part in (*get_args(annotation), *getattr(annotation, "__metadata__", ())):
        yield from _parts(part)


def _bounds(field: FieldInfo) -> str:
    bounds = {type(bound): bound for bound in field.metadata}
    at_least, above, at_most = (bounds.get(kind) for kind in (Ge, Gt, Le))
    if at_least and at_most:
        return f"{at_least.ge:,} to {at_most.le:,}"
    low = f"at least {at_least.ge:,}" if at_least else f"above {above.gt:,}" if above else ""
    return f"{low}, at most {at_most.le:,}" if at_most else low


def _default(name: str, field: FieldInfo) -> str:
    match field.default:
        case _ if field.default_factory is not None:
            return MADE_AT_START[name]
        case value if value is PydanticUndefined:
            return "required"
        case None:
            return "none"
        case bool() as value:
            return f"`{str(value).lower()}`"
        case float() as value:
            return f"`{value:g}`"
        case value:
            return f"`{value}`"


def _list(names: tuple[str, ...]) -> str:
    return "\n".join(f"- `{name}`" for name in names)
