"""The language of SQL filters: text to a tree. What a tree means for a message is in sql_values.py.

The grammar is the one Azure documents for subscription rules ("Subscription Rule SQL Filter Syntax"), with its
predicates and expressions in one hierarchy: OR, AND, NOT, comparisons, sums, products, signs. A filter has at most
1,024 characters, so a tree is small; its depth is bounded too.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from embedded_azure.servicebus.broker.sql_tree import (
    And,
    Assignment,
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

LONGEST: Final = 1_024
DEEPEST: Final = 50
LARGEST: Final = (1 << 63) - 1
"""Integers are those of 64 bits, as in Service Bus."""


class SqlError(Exception):
    """The text is no filter. The message says where and what was expected."""


_TOKEN = re.compile(
    r"""\s*(?:
      (?P<string>'(?:[^']|'')*')
    | (?P<delimited>\[(?:[^\]]|\]\])*\]|"(?:[^"]|"")*")
    | (?P<number>\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)
    | (?P<word>[^\W\d_]\w*)
    | (?P<parameter>@[^\W\d]\w*)
    | (?P<operator><>|!=|<=|>=|[=<>+\-*/%(),.;])
    | (?P<end>$)
    )""",
    re.VERBOSE,
)
KEYWORDS: Final = frozenset(("and", "or", "not", "in", "like", "escape", "is", "null", "exists", "true", "false"))
_COMPARISONS: Final = frozenset(("=", "<>", "!=", "<", "<=", ">", ">="))


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    at: int

    def __str__(self) -> str:
        return "the end" if self.kind == "end" else repr(self.text)


NOTHING: Final[Mapping[str, Value]] = MappingProxyType({})


def parse(text: str, parameters: Mapping[str, Value] = NOTHING) -> Node:
    """`parameters` are what `@name` stands for, by name without the @. Raises SqlError."""
    return _parser(text, parameters).whole()


def parse_action(text: str, parameters: Mapping[str, Value] = NOTHING) -> tuple[Assignment, ...]:
    """`SET name = expression` and `REMOVE name`, with semicolons between them. Raises SqlError."""
    return _parser(text, parameters).action()


def _parser(text: str, parameters: Mapping[str, Value]) -> "_Parser":
    if len(text) > LONGEST:
        raise SqlError(f"a filter or an action has at most {LONGEST:,} characters, this one has {len(text):,}")
    named = {name.removeprefix("@").casefold(): value for name, value in parameters.items()}
    return _Parser(list(_tokens(text)), named)


def _tokens(text: str) -> Iterator[_Token]:
    at = 0
    while True:
        match = _TOKEN.match(text, at)
        if match is None:
            raise SqlError(
                f"at character {at + 1}: {text[at:].strip()[:20]!r} starts nothing that a filter may hold"
            )
        kind = str(match.lastgroup)
        word, start = match.group(kind), match.start(kind)
        if kind == "word" and word.lower() in KEYWORDS:
            kind, word = "keyword", word.lower()
        yield _Token(kind, word, start + 1)
        if kind == "end":
            return
        at = match.end()


class _Parser:
    """Recursive descent: one method for each level, weakest operator first."""

    def __init__(self, tokens: list[_Token], parameters: Mapping[str, Value]) -> None:
        self._tokens = tokens
        self._parameters = parameters
        self._at = 0
        self._depth = 0

    def whole(self) -> Node:
        node = self._or()
        if self._next.kind != "end":
            raise self._unexpected("an operator or the end")
        return node

    def action(self) -> tuple[Assignment, ...]:
        found = []
        while self._next.kind != "end":
            found.append(self._assignment())
            if not self._took("operator", ";") and self._next.kind != "end":
                raise self._unexpected("';' or the end")
        return tuple(found)

    def _assignment(self) -> Assignment:
        verb = self._take()
        if verb.kind != "word" or verb.text.lower() not in ("set", "remove"):
            raise SqlError(f"at character {verb.at}: expected SET or REMOVE, not {verb}")
        at = self._next.at
        target = self._property(self._name_of_property())
        if target.scope == "sys":
            raise SqlError(f"at character {at}: system properties cannot be set here; user properties can")
        if verb.text.lower() == "remove":
            return Assignment(target, Constant(None))
        self._need("operator", "=")
        return Assignment(target, self._or())

    def _or(self) -> Node:
        found = [self._and()]
        while self._took("keyword", "or"):
            found.append(self._and())
        return found[0] if len(found) == 1 else Or(tuple(found))

    def _and(self) -> Node:
        found = [self._not()]
        while self._took("keyword", "and"):
            found.append(self._not())
        return found[0] if len(found) == 1 else And(tuple(found))

    def _not(self) -> Node:
        if self._took("keyword", "not"):
            return Not(self._deeper(self._not))
        return self._comparison()

    def _comparison(self) -> Node:
        left = self._sum()
        if self._next.kind == "operator" and self._next.text in _COMPARISONS:
            operator = self._take().text
            return Comparison("<>" if operator == "!=" else operator, left, self._sum())
        if self._took("keyword", "is"):
            return self._is_null(left)
        if self._took("keyword", "not"):
            return Not(self._membership(left))
        if self._next.kind == "keyword" and self._next.text in ("in", "like"):
            return self._membership(left)
        return left

    def _is_null(self, left: Node) -> Node:
        if not isinstance(left, Property):
            raise self._unexpected("IS after a property only; something else")
        negated = self._took("keyword", "not")
        self._need("keyword", "null")
        return Not(IsNull(left)) if negated else IsNull(left)

    def _membership(self, left: Node) -> Node:
        if self._took("keyword", "in"):
            return In(left, self._list())
        self._need("keyword", "like")
        pattern = self._sum()
        return Like(left, pattern, self._sum() if self._took("keyword", "escape") else None)

    def _list(self) -> tuple[Node, ...]:
        self._need("operator", "(")
        found = [self._deeper(self._sum)]
        while self._took("operator", ","):
            found.append(self._deeper(self._sum))
        self._need("operator", ")")
        return tuple(found)

    def _sum(self) -> Node:
        return self._chain(self._product, "+-")

    def _product(self) -> Node:
        return self._chain(self._sign, "*/%")

    def _chain(self, operand: Callable[[], Node], operators: str) -> Node:
        first = operand()
        rest = []
        while self._next.kind == "operator" and self._next.text in operators:
            operator = self._take().text
            rest.append((operator, operand()))
        return Chain(first, tuple(rest)) if rest else first

    def _sign(self) -> Node:
        if self._took("operator", "-"):
            return Negative(self._deeper(self._sign))
        if self._took("operator", "+"):
            return self._deeper(self._sign)
        return self._primary()

    def _primary(self) -> Node:
        before = self._at
        token = self._take()
        match token.kind, token.text:
            case "string", text:
                return Constant(text[1:-1].replace("''", "'"))
            case "number", text:
                return Constant(_number(text, token.at))
            case "keyword", ("true" | "false" | "null") as word:
                return Constant({"true": True, "false": False, "null": None}[word])
            case "keyword", "exists":
                return self._exists()
            case "parameter", name:
                return self._parameter(name, token.at)
            case "operator", "(":
                inside = self._deeper(self._or)
                self._need("operator", ")")
                return inside
            case (("word" | "delimited"), _):
                return self._property_or_function(token)
        self._at = before
        raise self._unexpected("a value, a property or '('")

    def _parameter(self, name: str, at: int) -> Constant:
        known = name.removeprefix("@").casefold()
        if known not in self._parameters:
            given = ", ".join(f"@{each}" for each in self._parameters) or "none"
            raise SqlError(f"at character {at}: no value is given for {name}; given are: {given}")
        return Constant(self._parameters[known])

    def _exists(self) -> Node:
        self._need("operator", "(")
        found = self._property(self._name_of_property())
        self._need("operator", ")")
        return Exists(found)

    def _property_or_function(self, token: _Token) -> Node:
        if token.kind == "word" and self._took("operator", "("):
            return self._function(token)
        return self._property(token)

    def _function(self, token: _Token) -> Node:
        match token.text.lower():
            case "newid":
                self._need("operator", ")")
                return NewId()
            case "property" | "p":
                name = self._deeper(self._sum)
                self._need("operator", ")")
                return Named(name)
        raise SqlError(f"at character {token.at}: {token.text!r} is no function; newid, property and p are")

    def _property(self, token: _Token) -> Property:
        if not self._took("operator", "."):
            return Property("user", _name(token))
        name = self._name_of_property()
        match token.text.lower():
            case "sys":
                return Property("sys", _name(name))
            case "user":
                return Property("user", _name(name))
        raise SqlError(f"at character {token.at}: the scope {token.text!r} is neither sys nor user")

    def _name_of_property(self) -> _Token:
        if self._next.kind not in ("word", "delimited"):
            raise self._unexpected("the name of a property")
        return self._take()

    # Tokens

    @property
    def _next(self) -> _Token:
        return self._tokens[self._at]

    def _take(self) -> _Token:
        token = self._tokens[self._at]
        self._at = min(self._at + 1, len(self._tokens) - 1)
        return token

    def _took(self, kind: str, text: str) -> bool:
        if (self._next.kind, self._next.text) != (kind, text):
            return False
        self._take()
        return True

    def _need(self, kind: str, text: str) -> None:
        if not self._took(kind, text):
            raise self._unexpected(repr(text.upper()))

    def _deeper(self, parse_inner: Callable[[], Node]) -> Node:
        self._depth += 1
        if self._depth > DEEPEST:
            raise SqlError(f"at character {self._next.at}: nested deeper than {DEEPEST} levels")
        node = parse_inner()
        self._depth -= 1
        return node

    def _unexpected(self, expected: str) -> SqlError:
        return SqlError(f"at character {self._next.at}: expected {expected}, not {self._next}")


def _name(token: _Token) -> str:
    if token.kind == "word":
        return token.text
    closing = token.text[-1]
    return token.text[1:-1].replace(closing * 2, closing)


def _number(text: str, at: int) -> int | float:
    if not text.isascii():
        raise SqlError(f"at character {at}: {text!r} is not written with the digits 0 to 9")
    if not text.isdigit():
        return float(text)
    number = int(text)
    if number > LARGEST:
        raise SqlError(f"at character {at}: {text} is larger than {LARGEST}, the largest integer there is")
    return number
