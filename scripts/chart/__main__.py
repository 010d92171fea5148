"""Writes every derived file of the chart; `make chart`."""

from pathlib import Path

from scripts.chart.alerts import render_alerts
from scripts.chart.manifests import render_base
from scripts.chart.readme import render_readme
from scripts.chart.schema import render_schema

ROOT = Path(__file__).parents[2]


def main() -> None:
    """The schema first: Helm checks values by it when the manifests are made."""
    chart = ROOT / "charts/aoai-worker"
    (chart / "values.schema.json").write_text(render_schema(), encoding="utf-8")
    (chart / "README.md").write_text(render_readme(), encoding="utf-8")
    base = ROOT / "k8s/base"
    for old in base.glob("*.yaml"):
        old.unlink()
    for name, content in render_base().items():
        (base / name).write_text(content, encoding="utf-8")
    (ROOT / "k8s/azure/alerts.bicep").write_text(render_alerts(), encoding="utf-8")


if __name__ == "__main__":
    main()
