"""Writes every derived file of the chart; `make chart`."""

from pathlib import Path

from scripts.chart.alerts import render_alerts
from scripts.chart.manifests import render_base, render_monitoring
from scripts.chart.readme import render_readme
from scripts.chart.schema import render_schema

ROOT = Path(__file__).parents[2]


def main() -> None:
    """The schema first: Helm checks values by it when the manifests are made."""
    chart = ROOT / "charts/aoai-worker"
    (chart / "values.schema.json").write_text(render_schema(), encoding="utf-8")
    (chart / "README.md").write_text(render_readme(), encoding="utf-8")
    for folder, files in (("base", render_base()), ("components/monitoring", render_monitoring())):
        for old in (ROOT / "k8s" / folder).glob("*.yaml"):
            old.unlink()
        for name, content in files.items():
            (ROOT / "k8s" / folder / name).write_text(content, encoding="utf-8")
    (ROOT / "k8s/azure/alerts.bicep").write_text(render_alerts(), encoding="utf-8")


if __name__ == "__main__":
    main()
