"""Rules of subscriptions as the administration API describes them, and back."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Final
from xml.etree.ElementTree import Element, SubElement

from embedded_azure.config import CorrelationSpec, RuleSpec
from embedded_azure.servicebus.administration.atom import (
    INSTANCE,
    SCHEMA,
    SERVICE_BUS,
    add_text,
    child_text,
    description_of,
)
from embedded_azure.servicebus.administration.values import read_bool, write_time
from embedded_azure.servicebus.broker.messages import ARGUMENT_ERROR, BrokerError
from embedded_azure.servicebus.broker.rules import Rule

_TYPE: Final = f"{{{INSTANCE}}}type"
_NEVER: Final = "1=0"
_CORRELATION: Final[Mapping[str, str]] = {
    "CorrelationId": "correlation_id",
    "MessageId": "message_id",
    "To": "to",
    "ReplyTo": "reply_to",
    "Label": "label",
    "SessionId": "session_id",
    "ReplyToSessionId": "reply_to_session_id",
    "ContentType": "content_type",
}
Plain = str | int | float | bool


class Moment(int):
    """A date: milliseconds since 1970, as an AMQP timestamp is decoded, so that the two compare."""


def read_rule(name: str, description: Element) -> RuleSpec:
    """Raises BrokerError for what there is no such rule of here."""
    spec = _read_filter(name, description)
    action = description.find(f"{{{SERVICE_BUS}}}Action")
    if action is None or _kind(action) != "SqlRuleAction":
        return spec
    return replace(spec, action=child_text(action, "SqlExpression"), action_parameters=_pairs(action, "Parameters"))


def _read_filter(name: str, description: Element) -> RuleSpec:
    given = description.find(f"{{{SERVICE_BUS}}}Filter")
    if given is None:
        raise BrokerError(ARGUMENT_ERROR, f"rule {name!r} has no Filter")
    match _kind(given):
        case "TrueFilter":
            return RuleSpec(name=name)
        case "FalseFilter":
            return RuleSpec(name=name, sql=_NEVER)
        case "SqlFilter":
            return _read_sql(name, given)
        case "CorrelationFilter":
            return RuleSpec(name=name, correlation=_read_correlation(given))
        case other:
            raise BrokerError(ARGUMENT_ERROR, f"rule {name!r} has a filter of type {other[:40]!r}")


def _kind(element: Element) -> str:
    return element.get(_TYPE, "").rpartition(":")[2]


def _read_sql(name: str, given: Element) -> RuleSpec:
    expression = child_text(given, "SqlExpression")
    if not expression:
        raise BrokerError(ARGUMENT_ERROR, f"the SQL filter of rule {name!r} has no SqlExpression")
    return RuleSpec(name=name, sql=expression, parameters=_pairs(given, "Parameters"))


def _pairs(parent: Element, name: str) -> dict[str, Plain]:
    found = parent.find(f"{{{SERVICE_BUS}}}{name}")
    return {} if found is None else dict(_read_pair(pair) for pair in found)


def _read_correlation(given: Element) -> CorrelationSpec:
    system = {field: child_text(given, name) or None for name, field in _CORRELATION.items()}
    return CorrelationSpec(**system, properties=_pairs(given, "Properties"))


def _read_pair(pair: Element) -> tuple[str, Plain]:
    key, value = child_text(pair, "Key"), pair.find(f"{{{SERVICE_BUS}}}Value")
    if not key or value is None:
        raise BrokerError(ARGUMENT_ERROR, "a property of a correlation filter has a Key and a Value")
    text, kind = value.text or "", _kind(value)
    try:
        match kind:
            case "string":
                return key, text
            case "int" | "long" | "short" | "byte":
                return key, int(text)
            case "double" | "float":
                return key, float(text)
            case "boolean":
                return key, read_bool(key, text)
            case "dateTime":
                return key, Moment(datetime.fromisoformat(text).timestamp() * 1000)
    except ValueError as error:
        raise BrokerError(ARGUMENT_ERROR, f"property {key[:80]!r}: {text[:80]!r} is no {kind}") from error
    raise BrokerError(ARGUMENT_ERROR, f"property {key[:80]!r} is of type {kind[:40]!r}, which is not offered here")


def describe_rule(rule: Rule) -> Element:
    element = description_of("RuleDescription", [_describe_filter(rule.spec)])
    element.append(_describe_action(rule.spec))
    add_text(element, "CreatedAt", write_time(rule.created_at))
    add_text(element, "Name", rule.name)
    return element


def _describe_action(spec: RuleSpec) -> Element:
    kind = "SqlRuleAction" if spec.action else "EmptyRuleAction"
    element = Element(f"{{{SERVICE_BUS}}}Action", {_TYPE: kind})
    if spec.action:
        add_text(element, "SqlExpression", spec.action)
        add_text(element, "CompatibilityLevel", 20)
        _add_pairs(element, "Parameters", spec.action_parameters)
    return element


def _describe_filter(spec: RuleSpec) -> Element:
    if spec.correlation is not None:
        return _describe_correlation(spec.correlation)
    kinds = {None: "TrueFilter", _NEVER: "FalseFilter"}
    element = Element(f"{{{SERVICE_BUS}}}Filter", {_TYPE: kinds.get(spec.sql, "SqlFilter")})
    add_text(element, "SqlExpression", spec.sql or "1=1")
    add_text(element, "CompatibilityLevel", 20)
    if spec.parameters:
        _add_pairs(element, "Parameters", spec.parameters)
    return element


def _describe_correlation(spec: CorrelationSpec) -> Element:
    element = Element(f"{{{SERVICE_BUS}}}Filter", {_TYPE: "CorrelationFilter"})
    for name, field in _CORRELATION.items():
        if (value := getattr(spec, field)) is not None:
            add_text(element, name, value)
    _add_pairs(element, "Properties", spec.properties)
    return element


def _add_pairs(element: Element, name: str, values: Mapping[str, Plain]) -> None:
    properties = SubElement(element, f"{{{SERVICE_BUS}}}{name}")
    for key, value in values.items():
        pair = SubElement(properties, f"{{{SERVICE_BUS}}}KeyValueOfstringanyType")
        add_text(pair, "Key", key)
        # ElementTree declares the prefixes of names, not those in values
        text = write_time(value / 1000) if isinstance(value, Moment) else value
        add_text(pair, "Value", text).attrib.update({_TYPE: f"d6p1:{_type_of(value)}", "xmlns:d6p1": SCHEMA})


def _type_of(value: Plain) -> str:
    match value:
        case bool():
            return "boolean"
        case Moment():
            return "dateTime"
        case int():
            return "int" if -(1 << 31) <= value < 1 << 31 else "long"
        case float():
            return "double"
        case _:
            return "string"
