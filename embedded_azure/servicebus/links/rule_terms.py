"""Rules as they travel: the maps in which a client describes one, and the described lists in which it reads them.

Names, codes and positions are those of "AMQP 1.0 in Azure Service Bus: request-response-based operations".
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Final

from embedded_azure.amqp.codec import Described, Timestamp, ULong
from embedded_azure.config import CorrelationSpec, RuleSpec
from embedded_azure.servicebus.broker.messages import ARGUMENT_ERROR, BrokerError
from embedded_azure.servicebus.broker.rules import Rule

_RULE: Final = ULong(0x13700000004)
_NO_ACTION: Final = ULong(0x13700000005)
_SQL_ACTION: Final = ULong(0x13700000006)
_SQL_FILTER: Final = ULong(0x1370000006)
_TRUE_FILTER: Final = ULong(0x1370000007)
_FALSE_FILTER: Final = ULong(0x1370000008)
_CORRELATION_FILTER: Final = ULong(0x1370000009)
_CORRELATION_FIELDS: Final = tuple(each.name for each in fields(CorrelationSpec) if each.name != "properties")
"""In the order of the list; on the wire with hyphens, before the map of application properties."""


def read_rule(name: str, description: Mapping[Any, Any]) -> RuleSpec:
    """Raises argument-error for what describes no rule that there can be."""
    found = description.get("sql-rule-action")
    expression = found.get("expression") if isinstance(found, dict) else None
    action = expression if isinstance(expression, str) and expression else None
    match description:
        case {"sql-filter": {"expression": str() as expression}}:
            return RuleSpec(name=name, sql=expression, action=action)
        case {"correlation-filter": dict() as correlation}:
            return RuleSpec(name=name, correlation=_read_correlation(name, correlation), action=action)
    raise BrokerError(
        ARGUMENT_ERROR,
        f"the description of rule {name!r} needs 'sql-filter' with a text as 'expression', or 'correlation-filter'",
    )


def _read_correlation(name: str, found: Mapping[Any, Any]) -> CorrelationSpec:
    texts = {field: found.get(field.replace("_", "-")) for field in _CORRELATION_FIELDS}
    properties = found.get("properties") or {}
    values = [value for value in texts.values() if value is not None]
    if not isinstance(properties, dict) or not all(isinstance(value, str) for value in (*values, *properties)):
        raise BrokerError(ARGUMENT_ERROR, f"the correlation filter of rule {name!r} has a field of a wrong type")
    plain = {
        key: value if isinstance(value, str | int | float) else str(value) for key, value in properties.items()
    }
    return CorrelationSpec(**texts, properties=plain)


def describe_rule(rule: Rule) -> Described:
    return Described(
        _RULE,
        [
            _describe_filter(rule.spec),
            Described(_SQL_ACTION, [rule.spec.action]) if rule.spec.action else Described(_NO_ACTION, []),
            rule.name,
            Timestamp(int(rule.created_at * 1000)),
        ],
    )


def _describe_filter(spec: RuleSpec) -> Described:
    if spec.correlation is not None:
        values = [getattr(spec.correlation, field) for field in _CORRELATION_FIELDS]
        return Described(_CORRELATION_FILTER, [*values, dict(spec.correlation.properties)])
    match spec.sql:
        case None | "1=1":
            return Described(_TRUE_FILTER, [])
        case "1=0":
            return Described(_FALSE_FILTER, [])
        case expression:
            return Described(_SQL_FILTER, [expression])
