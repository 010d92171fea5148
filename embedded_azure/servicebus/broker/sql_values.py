"""What a SQL filter means for a message: values, and the three truths true, false and unknown.

A property that is not there is unknown, and so is whatever is computed from it; only what is true matches. The
documentation has operators "follow C#", which compares no string with a number: here such a comparison is unknown.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Final, Protocol
from uuid import uuid4

from embedded_azure.servicebus.broker.sql import LARGEST
from embedded_azure.servicebus.broker.sql_tree import (
    And,
    Chain,
    Comparison,
    Constant,
    Exists,
    In,
    IsNull,
    Like,
    Named,
    Negative,
    NewId,
    Node,
    Not,
    Or,
    Property,
    Value,
)


class FilterError(Exception):
    """The filter cannot be evaluated for this message."""


class Properties(Protocol):
    """What a filter can ask of a message. Names are without regard to case."""

    def system(self, name: str) -> Value:
        """Raises KeyError for what is no system property."""

    def user(self, name: str) -> Value:
        """None when the message does not have it."""

    def has_user(self, name: str) -> bool: ...


def matches(node: Node, properties: Properties) -> bool:
    """Raises FilterError."""
    return evaluate(node, properties) is True


def evaluate(node: Node, of: Properties) -> Value:
    """Raises FilterError."""
    match node:
        case Constant(value):
            return value
        case Property():
            return _property(node, of)
        case Named(name):
            return _named(evaluate(name, of), of)
        case NewId():
            return str(uuid4())
        case Chain(first, rest):
            total = evaluate(first, of)
            for operator, operand in rest:
                total = _calculate(operator, total, evaluate(operand, of))
            return total
        case Negative(inner):
            return _calculate("-", 0, evaluate(inner, of))
        case Comparison(operator, left, right):
            return _compare(operator, evaluate(left, of), evaluate(right, of))
        case In(value, among):
            return _any(_compare("=", evaluate(value, of), evaluate(each, of)) for each in among)
        case Like(value, pattern, escape):
            return _like(evaluate(value, of), evaluate(pattern, of), evaluate(escape or Constant(None), of))
        case IsNull(asked):
            return _property(asked, of) is None
        case Exists(asked):
            return of.has_user(asked.name) if asked.scope == "user" else _property(asked, of) is not None
        case Not(inner):
            return _not(evaluate(inner, of))
        case And(parts):
            return _not(_any(_not(evaluate(part, of)) for part in parts))
        case Or(parts):
            return _any(evaluate(part, of) for part in parts)


def _property(asked: Property, of: Properties) -> Value:
    if asked.scope == "user":
        return of.user(asked.name)
    try:
        return of.system(asked.name)
    except KeyError:
        raise FilterError(f"messages have no system property {asked.name!r}") from None


def _named(name: Value, of: Properties) -> Value:
    if name is None:
        return None
    if not isinstance(name, str):
        raise FilterError(f"property() needs a name, not {name!r}")
    return of.user(name)


# The three truths


def _any(truths: Iterator[Value]) -> bool | None:
    unknown = False
    for truth in truths:
        if _truth(truth) is True:
            return True
        unknown = unknown or truth is None
    return None if unknown else False


def _not(truth: Value) -> bool | None:
    known = _truth(truth)
    return None if known is None else not known


def _truth(value: Value) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    raise FilterError(f"{value!r} is neither true nor false")


# Comparing and calculating


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def same_kind(left: Value, right: Value) -> bool:
    """Both are numbers, both strings or both booleans."""
    return type(left) is type(right) or (_is_number(left) and _is_number(right))


def _compare(operator: str, left: Value, right: Value) -> bool | None:
    if left is None or right is None or not same_kind(left, right):
        return None
    if isinstance(left, bool) and operator not in ("=", "<>"):
        raise FilterError(f"{left!r} and {right!r} have no order; = and <> compare them")
    return _COMPARISONS[operator](left, right)


_COMPARISONS: Final[Mapping[str, Callable[..., bool]]] = {
    "=": lambda left, right: left == right,
    "<>": lambda left, right: left != right,
    "<": lambda left, right: left < right,
    "<=": lambda left, right: left <= right,
    ">": lambda left, right: left > right,
    ">=": lambda left, right: left >= right,
}


def _calculate(operator: str, left: Value, right: Value) -> Value:
    if left is None or right is None:
        return None
    if operator == "+" and isinstance(left, str) and isinstance(right, str):
        return left + right
    if isinstance(left, bool | str) or isinstance(right, bool | str):
        raise FilterError(f"{left!r} {operator} {right!r} cannot be calculated")
    if isinstance(left, int) and isinstance(right, int):
        return _integer(operator, left, right)
    return _floating(operator, float(left), float(right))


def _integer(operator: str, left: int, right: int) -> int:
    if operator in "/%" and right == 0:
        raise FilterError(f"{left} {operator} 0: division by zero")
    quotient = 0 if right == 0 else abs(left) // abs(right) * (1 if (left < 0) == (right < 0) else -1)
    result = {
        "+": left + right,
        "-": left - right,
        "*": left * right,
        "/": quotient,  # towards zero, as in C#
        "%": left - quotient * right,
    }[operator]
    if not -LARGEST - 1 <= result <= LARGEST:
        raise FilterError(f"{left} {operator} {right} does not fit into 64 bits")
    return result


def _floating(operator: str, left: float, right: float) -> float:
    match operator:
        case "+":
            return left + right
        case "-":
            return left - right
        case "*":
            return left * right
        case "/":
            return left / right if right else left * math.copysign(math.inf, right)
        case _:
            return math.fmod(left, right) if right and math.isfinite(left) else math.nan


def _like(value: Value, pattern: Value, escape: Value) -> bool | None:
    if value is None or pattern is None:
        return None
    if not isinstance(value, str) or not isinstance(pattern, str):
        raise FilterError(f"LIKE compares strings, not {value!r} with {pattern!r}")
    if escape is not None and not (isinstance(escape, str) and len(escape) == 1):
        raise FilterError(f"ESCAPE needs one character, not {escape!r}")
    return wildcard_match(value, _wildcards(pattern, escape))


_ONE, _MANY = "one", "many"  # longer than the single characters they stand among


def _wildcards(pattern: str, escape: str | None) -> list[str]:
    """The pattern's characters, with `_` and `%` as `_ONE` and `_MANY` unless they are escaped."""
    found: list[str] = []
    characters = iter(pattern)
    for character in characters:
        if character == escape:
            found.append(next(characters, character))
        else:
            found.append({"_": _ONE, "%": _MANY}.get(character, character))
    return found


def wildcard_match(value: str, pattern: list[str]) -> bool:
    """Takes at most len(value) * len(pattern) steps, which a regular expression would not promise."""
    at = wanted = 0
    retry: tuple[int, int] | None = None  # the last _MANY, and where in `value` what follows it was tried
    while at < len(value):
        if wanted < len(pattern) and pattern[wanted] in (_ONE, value[at]):
            at, wanted = at + 1, wanted + 1
        elif wanted < len(pattern) and pattern[wanted] == _MANY:
            retry = (wanted, at)
            wanted += 1
        elif retry is not None:
            retry = (retry[0], retry[1] + 1)
            wanted, at = retry[0] + 1, retry[1]
        else:
            return False
    return all(each == _MANY for each in pattern[wanted:])
