"""The Grafana dashboard as code: `make dashboard` writes charts/aoai-worker/files/dashboard.json from it.

What is shown is in dashboard_panels.py; here it becomes panels, variables and a layout.
"""

import sys
from collections.abc import Iterable
from pathlib import Path

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    GraphThresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    GridPos,
    Threshold,
    ThresholdsMode,
    VariableRefresh,
    VariableSort,
)

from scripts.dashboard_panels import OF_RELEASE, ROWS, STATS, Panel, Query, Row, Stat

OUTPUT = Path(__file__).resolve().parent.parent / "charts" / "aoai-worker" / "files" / "dashboard.json"
WIDTH = 24
STAT_HEIGHT = 4
PANEL_HEIGHT = 8
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")

VARIABLES = (
    ("cluster", "Cluster", "label_values(aoai_worker_build_info, cluster)"),
    ("namespace", "Namespace", 'label_values(aoai_worker_build_info{cluster=~"$cluster"}, namespace)'),
    ("queue", "Queue", f"label_values(aoai_worker_jobs_received_total{{{OF_RELEASE}}}, queue)"),
    ("deployment", "Deployment", f"label_values(aoai_worker_calls_total{{{OF_RELEASE}}}, deployment)"),
    ("pod", "Pod", f"label_values(aoai_worker_build_info{{{OF_RELEASE}}}, pod)"),
)
VERSIONS = f"count by (version) (aoai_worker_build_info{{{OF_RELEASE}}})"
NEW_VERSION = f"{VERSIONS} unless {VERSIONS.replace('})', '} offset 5m)')}"


def main() -> int:
    OUTPUT.write_text(render())
    return 0


def render() -> str:
    """The dashboard's JSON, the same at every call."""
    built = (
        dashboard.Dashboard("aoai-worker")
        .uid("aoai-worker")
        .description("Throughput, latency, quota, identity and Service Bus of aoai-worker.")
        .tags(["aoai-worker", "azure-openai", "service-bus"])
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .time("now-1h", "now")
        .refresh("30s")
        .timezone("browser")
        .readonly()
    )
    built.with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    built.with_variable(
        dashboard.TextBoxVariable("release")
        .label("Release")
        .description("Name of the Deployment; the chart sets it to the release's full name.")
        .default_value("aoai-worker")
    )
    built.annotation(
        dashboard.AnnotationQuery()
        .name("Deploys")
        .datasource(SOURCE)
        .enable(True)
        .icon_color("blue")
        .expr(NEW_VERSION)
    )
    for name, label, query in VARIABLES:
        built.with_variable(variable(name, label, query))
    add_stats(built)
    add_rows(built)
    return JSONEncoder(sort_keys=True, indent=2).encode(built.build()) + "\n"


def variable(name: str, label: str, query: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .query(query)
        .datasource(SOURCE)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current({"text": "All", "value": "$__all"})
    )


def add_stats(built: dashboard.Dashboard) -> None:
    width = WIDTH // len(STATS)
    for place, one in enumerate(STATS):
        built.with_panel(draw_stat(one).grid_pos(GridPos(h=STAT_HEIGHT, w=width, x=place * width, y=0)))


def add_rows(built: dashboard.Dashboard) -> None:
    top = STAT_HEIGHT
    for row in ROWS:
        built.with_row(dashboard.Row(row.title).grid_pos(GridPos(h=1, w=WIDTH, x=0, y=top)))
        top = add_panels(built, row, top + 1)


def add_panels(built: dashboard.Dashboard, row: Row, top: int) -> int:
    """Lays the panels out so that each line is filled; returns where the next row begins."""
    for first in range(0, len(row.panels), row.columns):
        line = row.panels[first : first + row.columns]
        width = WIDTH // len(line)
        for column, panel in enumerate(line):
            built.with_panel(draw(panel).grid_pos(GridPos(h=PANEL_HEIGHT, w=width, x=column * width, y=top)))
        top += PANEL_HEIGHT
    return top


def draw(panel: Panel) -> timeseries.Panel:
    drawn = (
        timeseries.Panel()
        .title(panel.title)
        .description(panel.description)
        .datasource(SOURCE)
        .unit(panel.unit)
        .min(0)
        .line_width(1)
        .fill_opacity(25 if panel.stacked else 0)
        .show_points(VisibilityMode.NEVER)
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
        .legend(legend())
    )
    if panel.maximum is not None:
        drawn.max(panel.maximum)
    if panel.stacked:
        drawn.stacking(common.StackingConfig().mode(StackingMode.NORMAL))
    if panel.warn_below is not None:
        drawn.thresholds(thresholds([("red", None), ("transparent", panel.warn_below)]))
        drawn.thresholds_style(common.GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.AREA))
    for query in targets(panel.queries):
        drawn.with_target(query)
    return drawn


def draw_stat(one: Stat) -> stat.Panel:
    drawn = (
        stat.Panel()
        .title(one.title)
        .description(one.description)
        .datasource(SOURCE)
        .unit(one.unit)
        .no_value(one.without)
        .thresholds(thresholds(one.steps))
        .color_mode(BigValueColorMode.VALUE)
        .graph_mode(BigValueGraphMode.AREA)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    )
    if one.decimals is not None:
        drawn.decimals(one.decimals)
    for query in targets((Query(one.expression, one.title),)):
        drawn.with_target(query)
    return drawn


def legend() -> common.VizLegendOptions:
    shown = common.VizLegendOptions().show_legend(True).calcs(["lastNotNull", "max"])
    shown.sort_by("Max").sort_desc(True)  # few of many series fit under a graph
    return shown.display_mode(LegendDisplayMode.TABLE).placement(LegendPlacement.BOTTOM)


def thresholds(steps: Iterable[tuple[str, float | None]]) -> dashboard.ThresholdsConfig:
    made = [Threshold(color=color, value=value) for color, value in steps]
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(made)


def targets(queries: Iterable[Query]) -> Iterable[prometheus.Dataquery]:
    for letter, query in zip("ABCDEFGH", queries, strict=False):
        made = prometheus.Dataquery().expr(query.expression).legend_format(query.legend)
        yield made.ref_id(letter).range().datasource(SOURCE)


if __name__ == "__main__":
    sys.exit(main())
