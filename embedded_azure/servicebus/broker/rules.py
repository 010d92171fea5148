"""The rules of a subscription: which messages of its topic it takes."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Final, Protocol

from embedded_azure.config import CorrelationSpec, RuleSpec
from embedded_azure.servicebus.broker.messages import ARGUMENT_ERROR, NOT_FOUND, BrokerError
from embedded_azure.servicebus.broker.sql import SqlError, parse, parse_action
from embedded_azure.servicebus.broker.sql_tree import Assignment, Value
from embedded_azure.servicebus.broker.sql_values import Properties, evaluate, matches, same_kind

ALREADY_EXISTS: Final = "com.microsoft:entity-already-exists"
LONGEST_NAME: Final = 50
MOST_RULES: Final = 2_000
_SYSTEM: Final = {
    "correlation_id": "CorrelationId",
    "message_id": "MessageId",
    "to": "To",
    "reply_to": "ReplyTo",
    "label": "Label",
    "session_id": "SessionId",
    "reply_to_session_id": "ReplyToSessionId",
    "content_type": "ContentType",
}


class Filter(Protocol):
    def __call__(self, properties: Properties) -> bool:
        """Raises FilterError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """`created_at` in unix seconds."""

    spec: RuleSpec
    filter: Filter
    action: tuple[Assignment, ...]
    created_at: float

    @property
    def name(self) -> str:
        return self.spec.name


def compile_rule(spec: RuleSpec, created_at: float) -> Rule:
    """Raises argument-error for a name or a filter that cannot be."""
    if not spec.name or len(spec.name) > LONGEST_NAME or set(spec.name) & set("/\\?#@"):
        raise BrokerError(
            ARGUMENT_ERROR,
            f"a rule's name has 1 to {LONGEST_NAME} characters and none of / \\ ? # @; this is {spec.name[:80]!r}",
        )
    return Rule(spec=spec, filter=_compile(spec), action=_compile_action(spec), created_at=created_at)


def _compile_action(spec: RuleSpec) -> tuple[Assignment, ...]:
    try:
        return parse_action(spec.action or "", spec.action_parameters)
    except SqlError as error:
        raise BrokerError(ARGUMENT_ERROR, f"the action of rule {spec.name!r}: {error}") from error


def _compile(spec: RuleSpec) -> Filter:
    if spec.sql is not None and spec.correlation is not None:
        raise BrokerError(ARGUMENT_ERROR, f"rule {spec.name!r} has a SQL and a correlation filter; give it one")
    if spec.correlation is not None:
        return _correlation(spec.name, spec.correlation)
    if spec.sql is None:
        return lambda _properties: True
    try:
        node = parse(spec.sql, spec.parameters)
    except SqlError as error:
        raise BrokerError(ARGUMENT_ERROR, f"the SQL filter of rule {spec.name!r}: {error}") from error
    return lambda properties: matches(node, properties)


def _correlation(name: str, spec: CorrelationSpec) -> Filter:
    wanted = asdict(spec)
    user = wanted.pop("properties")
    system = {_SYSTEM[field]: value for field, value in wanted.items() if value is not None}
    if not system and not user:
        raise BrokerError(
            ARGUMENT_ERROR, f"the correlation filter of rule {name!r} asks for nothing; name a property"
        )

    def has_all(properties: Properties) -> bool:
        found = [(properties.system(field), value) for field, value in system.items()]
        found += [(properties.user(field), value) for field, value in user.items()]
        return all(same_kind(there, value) and there == value for there, value in found)

    return has_all


class Rules:
    """In the order they were added. A subscription without rules takes nothing."""

    def __init__(self, specs: Iterable[RuleSpec], clock: Callable[[], float]) -> None:
        """Raises what `add` raises."""
        self._clock = clock
        self._rules: dict[str, Rule] = {}
        for spec in specs:
            self.add(spec)

    def __len__(self) -> int:
        return len(self._rules)

    def list(self) -> tuple[Rule, ...]:
        return tuple(self._rules.values())

    def get(self, name: str) -> Rule:
        """Raises not-found."""
        rule = self._rules.get(name.casefold())
        if rule is None:
            names = ", ".join(rule.name for rule in self.list()) or "none"
            raise BrokerError(NOT_FOUND, f"there is no rule {name[:80]!r}; there are: {names}"[:500])
        return rule

    def add(self, spec: RuleSpec) -> Rule:
        """Raises argument-error, or entity-already-exists for a name that is taken."""
        if spec.name.casefold() in self._rules:
            raise BrokerError(ALREADY_EXISTS, f"there is a rule {spec.name!r} already; remove it first")
        if len(self._rules) >= MOST_RULES:
            raise BrokerError("amqp:resource-limit-exceeded", f"a subscription has at most {MOST_RULES:,} rules")
        rule = self._rules[spec.name.casefold()] = compile_rule(spec, self._clock())
        return rule

    def replace(self, spec: RuleSpec) -> Rule:
        """Raises not-found or argument-error."""
        created_at = self.get(spec.name).created_at
        rule = self._rules[spec.name.casefold()] = compile_rule(spec, created_at)
        return rule

    def remove(self, name: str) -> None:
        """Raises not-found."""
        del self._rules[self.get(name).name.casefold()]

    def match(self, properties: Properties) -> Sequence[dict[str, Value]]:
        """One copy of the message for all rules without an action that match, and one for each with an action: what
        each changes in the application properties. Raises FilterError if a rule cannot be evaluated."""
        # without actions the first rule that matches decides
        matching = (rule for rule in self._rules.values() if rule.filter(properties))
        if not any(rule.action for rule in self._rules.values()):
            return [{} for _ in islice(matching, 1)]
        found = [(rule, self._changes(rule, properties)) for rule in matching]
        plain = [changes for rule, changes in found if not rule.action][:1]
        return [*plain, *(changes for rule, changes in found if rule.action)]

    def _changes(self, rule: Rule, properties: Properties) -> dict[str, Value]:
        return {each.property.name: evaluate(each.value, properties) for each in rule.action}
