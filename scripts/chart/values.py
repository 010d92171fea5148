"""Reads values.yaml together with its comments: each value's description, and what narrows its type."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """One key of values.yaml. `children` only where the chart itself says which keys there are."""

    path: tuple[str, ...]
    description: str
    constraint: dict[str, Any]
    default: Any
    children: tuple["Value", ...]
    is_config: bool


def read_values(text: str) -> tuple[Value, ...]:
    """Raises ValueError, naming the line, where a key has no comment."""
    return tuple(_children(yaml.compose(text, yaml.SafeLoader), text.splitlines(), ()))


def flatten(values: tuple[Value, ...]) -> Iterator[Value]:
    for value in values:
        if value.children:
            yield from flatten(value.children)
        else:
            yield value


def _children(node: Any, lines: list[str], path: tuple[str, ...]) -> Iterator[Value]:
    for key, content in node.value:
        yield _read_value(key, content, lines, (*path, key.value))


def _read_value(key: Any, content: Any, lines: list[str], path: tuple[str, ...]) -> Value:
    comment = _comment_above(lines, key.start_mark.line)
    constraint: dict[str, Any] = {}
    for line in comment:
        if line.startswith("@schema "):
            constraint.update(json.loads(line.removeprefix("@schema ")))
    description = " ".join(line for line in comment if not line.startswith("@"))
    is_section = isinstance(content, yaml.MappingNode) and bool(content.value) and not constraint
    if not description and not is_section:
        raise ValueError(
            f"values.yaml line {key.start_mark.line + 1}: {'.'.join(path)} has no comment; describe it"
        )
    return Value(
        path=path,
        description=description,
        constraint=constraint,
        default=_construct(content),
        children=tuple(_children(content, lines, path)) if is_section else (),
        is_config="@config" in comment,
    )


def _construct(node: Any) -> Any:
    return yaml.safe_load(yaml.serialize(node))


def _comment_above(lines: list[str], line: int) -> list[str]:
    comment: list[str] = []
    while line > 0 and lines[line - 1].lstrip().startswith("#"):
        line -= 1
        comment.insert(0, lines[line].lstrip().removeprefix("#").strip())
    return comment
