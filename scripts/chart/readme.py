"""Writes the tables of values into the chart's README, between two marks."""

import json
from pathlib import Path
from typing import Any

from scripts.chart.schema import build_schema
from scripts.chart.values import Value, flatten, read_values

CHART = Path(__file__).parents[2] / "charts/aoai-worker"
BEGIN = "<!-- values: written by `make chart` -->"
END = "<!-- end of values -->"
LONGEST_DEFAULT = 60


def render_readme() -> str:
    text = (CHART / "README.md").read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    values = read_values((CHART / "values.yaml").read_text(encoding="utf-8"))
    return f"{before}{BEGIN}\n\n{_table(values)}\n{_config_table(values)}\n{END}{after}"


def _table(values: tuple[Value, ...]) -> str:
    rows = [_row(".".join(v.path), v.default, v.description) for v in flatten(values) if v.path[0] != "config"]
    return "| value | default | what it is |\n|---|---|---|\n" + "\n".join(rows) + "\n"


def _config_table(values: tuple[Value, ...]) -> str:
    """All settings, not only those to which the chart gives a default."""
    given = next(value.default for value in values if value.is_config)
    rows = []
    for name, schema in build_schema()["properties"]["config"]["properties"].items():
        default = given.get(name, schema.get("default"))
        rows.append(_row(f"config.{name}", default, schema["description"]))
    return "| worker setting | default | what it is |\n|---|---|---|\n" + "\n".join(rows) + "\n"


def _row(name: str, default: Any, description: str) -> str:
    shown = json.dumps(default, ensure_ascii=False)
    if len(shown) > LONGEST_DEFAULT:
        shown = "see values.yaml"
    # the settings' table links to other documents by paths that do not hold here
    text = description.replace("|", "\\|").replace("](", "](../../docs/")
    return f"| `{name}` | `{shown}` | {text} |"
