"""The tree of a SQL filter. sql.py makes it out of text, sql_values.py says what it means for a message."""

from dataclasses import dataclass
from typing import Literal

Value = str | int | float | bool | None
"""None is SQL's NULL and the value of a property that is not there: unknown."""


@dataclass(frozen=True, slots=True)
class Constant:
    value: Value


@dataclass(frozen=True, slots=True)
class Property:
    """`sys.Label`, `user.region` or `region`. Names are compared without regard to case."""

    scope: Literal["sys", "user"]
    name: str


@dataclass(frozen=True, slots=True)
class Named:
    """`property(<expression>)`: the user property of that name."""

    name: "Node"


@dataclass(frozen=True, slots=True)
class NewId:
    """`newid()`: a new GUID at every evaluation."""


@dataclass(frozen=True, slots=True)
class Chain:
    """Sums or products from left to right: `first`, then operators with their operands."""

    first: "Node"
    rest: tuple[tuple[str, "Node"], ...]


@dataclass(frozen=True, slots=True)
class Negative:
    of: "Node"


@dataclass(frozen=True, slots=True)
class Comparison:
    """`operator` is one of = <> < <= > >=; `!=` is read as `<>`."""

    operator: str
    left: "Node"
    right: "Node"


@dataclass(frozen=True, slots=True)
class In:
    value: "Node"
    among: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Like:
    value: "Node"
    pattern: "Node"
    escape: "Node | None" = None


@dataclass(frozen=True, slots=True)
class IsNull:
    property: Property


@dataclass(frozen=True, slots=True)
class Exists:
    property: Property


@dataclass(frozen=True, slots=True)
class Not:
    of: "Node"


@dataclass(frozen=True, slots=True)
class And:
    all: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Or:
    any: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Assignment:
    """Of an action: what the user property becomes; NULL removes it."""

    property: Property
    value: "Node"


Node = (
    Constant
    | Property
    | Named
    | NewId
    | Chain
    | Negative
    | Comparison
    | In
    | Like
    | IsNull
    | Exists
    | Not
    | And
    | Or
)
