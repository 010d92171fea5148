"""Makes Azure Monitor's rule groups (Bicep) of the alerts that the chart carries for Prometheus."""

import re
from typing import Any

from scripts.chart.rules import read_rules

API = "Microsoft.AlertsManagement/prometheusRuleGroups@2023-03-01"
SEVERITIES = {"critical": 1, "warning": 2, "info": 4}
"""Of Azure Monitor: 0 is critical, 4 verbose; 0 is left to what a human declares."""

UNITS = {"s": ("T", "S"), "m": ("T", "M"), "h": ("T", "H"), "d": ("", "D")}

PARAMETERS = ("namespace", "fullname", "runbookBaseUrl")
"""What of the rules is a parameter of the Bicep. The thresholds are the chart's defaults."""

HEADER = """\
// The alerts of charts/aoai-worker/files/alerts.yaml for Azure's managed Prometheus, which reads no PrometheusRule.
// Written by `make chart`; change the rules there.

@description('Location of the rule groups: that of the Azure Monitor workspace.')
param location string = resourceGroup().location

@description('Resource id of the Azure Monitor workspace that holds the metrics.')
param workspaceResourceId string

@description('Resource id of the AKS cluster that the rules are about.')
param clusterResourceId string

@description('Resource ids of the action groups to notify.')
param actionGroupResourceIds array = []

@description('Namespace of the release in the cluster.')
param namespace string = 'aoai-worker'

@description('Name of the Deployment: the full name that the chart gives the release.')
param fullname string = 'aoai-worker'

@description('Where the runbooks are; each alert links to its section.')
param runbookBaseUrl string = 'docs/runbooks.md'

@description('Tags of the rule groups.')
param tags object = {}

var actions = [for id in actionGroupResourceIds: { actionGroupId: id }]
"""


def render_alerts() -> str:
    groups = read_rules(**{name: f"__{name}__" for name in PARAMETERS})
    return HEADER + "".join(_render_group(number, group) for number, group in enumerate(groups))


def iso_duration(text: str) -> str:
    """`1h30m`, as Prometheus writes it, as `PT1H30M`."""
    date, time = "", ""
    for amount, unit in re.findall(r"(\d+)([smhd])", text):
        place, letter = UNITS[unit]
        if place:
            time += f"{amount}{letter}"
        else:
            date += f"{amount}{letter}"
    return f"P{date}" + (f"T{time}" if time else "")


def _render_group(number: int, group: dict[str, Any]) -> str:
    rules = "".join(_render_rule(rule) for rule in group["rules"])
    return f"""
resource group{number} '{API}' = {{
  name: {_quote(group["name"])}
  location: location
  tags: tags
  properties: {{
    scopes: [
      workspaceResourceId
      clusterResourceId
    ]
    clusterName: last(split(clusterResourceId, '/'))
    enabled: true
    interval: {_quote(iso_duration(group.get("interval", "1m")))}
    rules: [
{rules}    ]
  }}
}}
"""


def _render_rule(rule: dict[str, Any]) -> str:
    lines = [f"{'record' if 'record' in rule else 'alert'}: {_quote(rule.get('record') or rule['alert'])}"]
    lines += [f"expression: {_quote(' '.join(str(rule['expr']).split()))}", "enabled: true"]
    if "alert" in rule:
        lines += [f"severity: {SEVERITIES[rule['labels']['severity']]}"]
        lines += [f"for: {_quote(iso_duration(rule['for']))}"] if "for" in rule else []
        lines += ["resolveConfiguration: {", "  autoResolved: true", "  timeToResolve: 'PT10M'", "}"]
        lines += ["actions: actions"]
    for mapping in ("labels", "annotations"):
        if rule.get(mapping):
            entries = [f"  {_key(name)}: {_quote(_one_line(value))}" for name, value in rule[mapping].items()]
            lines += [f"{mapping}: {{", *entries, "}"]
    return "".join(f"{' ' * 6}{line}\n" for line in ("{", *(f"  {line}" for line in lines), "}"))


def _one_line(text: str) -> str:
    return " ".join(str(text).split())


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z_]\w*", name) else _quote(name)


def _quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("${", "\\${")
    return "'" + re.sub("__([a-zA-Z]+)__", r"${\1}", escaped) + "'"
