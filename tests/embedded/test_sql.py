"""SQL filters: what parses, what each operator means, and that no text breaks the parser."""

import re
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedded_azure.servicebus.broker.sql import DEEPEST, KEYWORDS, LARGEST, LONGEST, SqlError, parse, parse_action
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
from embedded_azure.servicebus.broker.sql_values import FilterError, evaluate, matches, wildcard_match


class Asked:
    """A message with these properties; system properties are Label and SessionId."""

    def __init__(self, label: str | None = None, **user: Value) -> None:
        self.label = label
        self.values = user

    def system(self, name: str) -> Value:
        return {"label": self.label, "sessionid": None}[name.casefold()]

    def user(self, name: str) -> Value:
        return self.values.get(name.casefold())

    def has_user(self, name: str) -> bool:
        return name.casefold() in self.values


def value_of(text: str, **user: Value) -> Value:
    return evaluate(parse(text), Asked(label="order", **user))


@pytest.mark.parametrize(
    "text",
    [
        "1=1",
        "TRUE",
        "n = 7 AND region = 'eu'",
        "n = 8 or region in ('us', 'eu')",
        "not n = 8",
        "n <> 8 and n != 8",
        "n >= 7 and n <= 7 and n > 6.5 and n < 7.5",
        "sys.Label = 'order' and sys.label like 'ord%'",
        "user.region = 'eu' and [region] = 'eu' and \"region\" = 'eu'",
        "REGION = 'eu'",
        "[with space] = 'x' and [a]]b] = 1",
        "missing is null and region is not null",
        "exists(region) and not exists(missing)",
        "exists(sys.label) and not exists(sys.sessionid)",
        "region like 'e_' and region not like 'u%'",
        "percent like '100!%' escape '!' and region not like 'e!_' escape '!'",
        "region not in ('us', 'jp')",
        "n + 1 = 8 and n - 1 = 6 and n * 2 = 14 and n / 2 = 3 and n % 4 = 3",
        "n / 2.0 = 3.5 and -n = -7 and +n = 7 and -7 / 2 = -3 and -7 % 2 = -1",
        "2 + 3 * 4 = 14 and (2 + 3) * 4 = 20",
        "1.5E2 = 150 and .5 = 0.5",
        "property('re' + 'gion') = 'eu' and p('n') = 7",
        "newid() <> newid()",
        "flag = true and flag and not (flag = FALSE)",
        "'it''s' = 'it''s'",
        "missing = 1 or n = 7",
        "n = 1 or n = 2 or n = 7 and region = 'eu'",
    ],
)
def test_what_is_true_matches(text: str) -> None:
    spaced: dict[str, Value] = {"with space": "x", "a]b": 1}
    asked = Asked("order", n=7, region="eu", flag=True, percent="100%", **spaced)
    assert matches(parse(text), asked)


@pytest.mark.parametrize(
    "text",
    [
        "1=0",
        "n = 8",
        "missing = 1",
        "missing <> 1",
        "not missing = 1",
        "missing in (1, 2)",
        "missing not in (1, 2)",
        "missing like '%'",
        "missing not like '%'",
        "missing + 1 = 1",
        "n = NULL",
        "n <> NULL",
        "not (missing = 1 and n = 7)",
        "n = '7'",
        "n <> 'seven'",
        "region = 'EU'",
        "n in (1, null)",
        "n not in (1, null)",
    ],
)
def test_what_is_false_or_unknown_does_not(text: str) -> None:
    assert not matches(parse(text), Asked(n=7, region="eu"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("n / 0 = 1", "division by zero"),
        ("n % 0 = 1", "division by zero"),
        (f"{LARGEST} + 1 = 1", "64 bits"),
        ("region - 1 = 0", "cannot be calculated"),
        ("n like 'x'", "LIKE compares strings"),
        ("region like 'x' escape 'ab'", "one character"),
        ("flag < true", "no order"),
        ("n and flag", "neither true nor false"),
        ("sys.Nothing = 1", "no system property 'Nothing'"),
        ("property(n) = 1", "needs a name"),
    ],
)
def test_what_cannot_be_evaluated_is_an_error(text: str, told: str) -> None:
    with pytest.raises(FilterError, match=re.escape(told)):
        value_of(text, n=7, region="eu", flag=True)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "expected a value"),
        ("n =", "at character 4: expected a value, a property or '(', not the end"),
        ("n = 1 n", "at character 7: expected an operator or the end, not 'n'"),
        ("(n = 1", "expected ')'"),
        ("n in 1", "expected '('"),
        ("n is 1", "expected 'NULL'"),
        ("1 is null", "IS after a property"),
        ("n not = 1", "expected 'LIKE'"),
        ("exists(1)", "the name of a property"),
        ("sys. = 1", "the name of a property"),
        ("other.x = 1", "'other' is neither sys nor user"),
        ("now() = 1", "'now' is no function"),
        ("n = 'open", "starts nothing"),
        ("n = @p", "no value is given for @p"),
        (f"n = {LARGEST + 1}", "largest integer"),
        ("n = ٣", "digits 0 to 9"),
        ("(" * (DEEPEST + 1), "nested deeper"),
        ("n" * (LONGEST + 1), "at most 1,024"),
    ],
)
def test_what_does_not_parse_says_where_and_why(text: str, told: str) -> None:
    with pytest.raises(SqlError, match=re.escape(told)):
        parse(text)


# -- properties of the parser

words = st.from_regex(r"[A-Za-zé][A-Za-z0-9_]{0,8}", fullmatch=True).filter(
    lambda word: word.lower() not in KEYWORDS | {"sys", "user", "p", "property", "newid"}
)
delimited = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
properties = st.builds(Property, st.sampled_from(["sys", "user"]), words | delimited)
constants = st.builds(
    Constant,
    st.none()
    | st.booleans()
    | st.integers(0, LARGEST)
    | st.floats(0, 1e300, allow_nan=False).map(abs)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
)


def _larger(inner: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    several = st.lists(inner, min_size=2, max_size=3).map(tuple)
    rests = st.sampled_from(["+-", "*/%"]).flatmap(
        lambda operators: st.lists(st.tuples(st.sampled_from(operators), inner), min_size=1, max_size=3).map(tuple)
    )
    return st.one_of(
        st.builds(And, several),
        st.builds(Or, several),
        st.builds(Not, inner),
        st.builds(Negative, inner),
        st.builds(Chain, inner, rests),
        st.builds(Comparison, st.sampled_from(["=", "<>", "<", "<=", ">", ">="]), inner, inner),
        st.builds(In, inner, st.lists(inner, min_size=1, max_size=3).map(tuple)),
        st.builds(Like, inner, inner, st.none() | inner),
        st.builds(IsNull, properties),
        st.builds(Exists, properties),
        st.builds(Named, inner),
        st.just(NewId()),
    )


trees = st.recursive(constants | properties, _larger, max_leaves=12)


def text_of(node: Node) -> str:
    """The tree as text, every part in parentheses."""
    match node:
        case Constant(None):
            return "NULL"
        case Constant(bool() as value):
            return str(value)
        case Constant(str() as value):
            return "'" + value.replace("'", "''") + "'"
        case Constant(float() as value):
            return repr(value)
        case Constant(value):
            return str(value)
        case Property(scope, name):
            return f"{scope}.[{name.replace(']', ']]')}]"
        case Named(name):
            return f"property({part(name)})"
        case NewId():
            return "newid()"
        case Chain(first, rest):
            return part(first) + "".join(f" {operator} {part(operand)}" for operator, operand in rest)
        case Negative(of):
            return f"-{part(of)}"
        case Comparison(operator, left, right):
            return f"{part(left)}{operator}{part(right)}"
        case In(value, among):
            return f"{part(value)} IN ({', '.join(map(part, among))})"
        case Like(value, pattern, escape):
            return f"{part(value)} LIKE {part(pattern)}" + (f" escape {part(escape)}" if escape else "")
        case IsNull(asked):
            return f"{text_of(asked)} is null"
        case Exists(asked):
            return f"EXISTS ( {text_of(asked)} )"
        case Not(of):
            return f"NOT {part(of)}"
        case And(parts):
            return " and ".join(map(part, parts))
        case Or(parts):
            return " OR\n".join(map(part, parts))


def part(node: Node) -> str:
    return f"({text_of(node)})"


@given(trees)
def test_a_tree_written_down_is_read_back_as_it_was(tree: Node) -> None:
    text = text_of(tree)
    if len(text) <= LONGEST:
        assert parse(text) == tree


pieces = st.sampled_from(
    ["a", "sys.x", "1", "2.5", "'s'", *"(),=*-", "<>", "and", "or", "not", "in", "like", "is", "null"]
)


@given(st.text(max_size=60) | st.lists(pieces, max_size=30).map(" ".join))
def test_no_text_does_more_than_parse_or_be_refused(text: str) -> None:
    try:
        tree = parse(text)
    except SqlError:
        return
    try:
        value = evaluate(tree, Asked(a=1))
    except FilterError:
        return
    assert value is None or isinstance(value, str | int | float)


@given(trees)
def test_every_tree_has_a_value_or_an_error(tree: Node) -> None:
    with suppress(FilterError):
        evaluate(tree, Asked(a=1))


@given(st.text("ab_%!", max_size=8), st.text("ab_%", max_size=8))
def test_like_agrees_with_a_regular_expression(pattern: str, value: str) -> None:
    expected = re.fullmatch("".join({"_": ".", "%": ".*"}.get(c, re.escape(c)) for c in pattern), value, re.DOTALL)
    assert value_of("v like f", v=value, f=pattern) is (expected is not None)


def test_a_pattern_made_to_be_slow_is_not() -> None:
    assert not wildcard_match("a" * 2_000 + "b", ["many", "a"] * 100 + ["c"])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("SET sys.Label = 'x'", "system properties cannot be set"),
        ("SET a 1", "expected '='"),
        ("a = 1", "expected SET or REMOVE, not 'a'"),
        ("SET a = 1 SET b = 2", "expected ';' or the end"),
        ("SET a = @b", "no value is given for @b; given are: @by"),
    ],
)
def test_an_action_that_cannot_be_is_refused_by_the_place(text: str, told: str) -> None:
    with pytest.raises(SqlError, match=told):
        parse_action(text, {"@by": "rule"})


def test_a_parameter_stands_for_its_value_whatever_its_case() -> None:
    assert parse("n = @Most", {"@most": 7}) == parse("n = 7")
    assert parse("n = @most", {"MOST": 7}) == parse("n = 7")


def test_an_action_sets_and_removes() -> None:
    nothing = Constant(None)
    assert parse_action("set a = 1; REMOVE user.[b c];") == (
        Assignment(Property("user", "a"), Constant(1)),
        Assignment(Property("user", "b c"), nothing),
    )
    assert parse_action("") == ()
