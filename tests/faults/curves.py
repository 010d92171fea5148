"""Curves as an SVG, one below the other, readable on a light page and on a dark one."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from statistics import fmean

WIDTH, HEIGHT, GAP, LEFT, TOP = 860, 110, 36, 64, 52
POINTS = 240
"""At most so many are drawn, each the mean of its neighbours."""

STYLE = """\
    .ground { fill: #ffffff; stroke: #d0d7de; }
    .axis   { stroke: #8c959f; stroke-width: 1; }
    .curve  { fill: none; stroke: #0969da; stroke-width: 1.6; }
    text    { font: 12px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328; }
    .title  { font-size: 15px; font-weight: 600; }
    .end    { text-anchor: end; }
    @media (prefers-color-scheme: dark) {
      .ground { fill: #0d1117; stroke: #30363d; }
      .axis   { stroke: #6e7681; }
      .curve  { stroke: #58a6ff; }
      text    { fill: #e6edf3; }
    }"""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """`x` rises; both have as many values, one at least."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


def draw(title: str, x_name: str, curves: Sequence[Curve]) -> str:
    height = TOP + len(curves) * (HEIGHT + GAP) + 16
    panels = [_panel(curve, TOP + number * (HEIGHT + GAP)) for number, curve in enumerate(curves)]
    total = LEFT + WIDTH + 24
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total} {height}" role="img" '
            f'aria-label="{escape(title)}">',
            f"  <style>\n{STYLE}\n  </style>",
            f'  <rect class="ground" x="0.5" y="0.5" width="{total - 1}" height="{height - 1}" rx="6"/>',
            f'  <text class="title" x="16" y="28">{escape(title)}</text>',
            *panels,
            f'  <text class="end" x="{LEFT + WIDTH}" y="{height - 12}">{escape(x_name)}</text>',
            "</svg>\n",
        ]
    )


def _panel(curve: Curve, top: int) -> str:
    """From 0 up, so that a small change looks small."""
    highest, furthest = max(*curve.y, 1.0) * 1.1, max(*curve.x, 1e-9)
    bottom = top + HEIGHT
    points = " ".join(
        f"{LEFT + x / furthest * WIDTH:.1f},{bottom - y / highest * HEIGHT:.1f}"
        for x, y in zip(_thinned(curve.x), _thinned(curve.y), strict=True)
    )
    return "\n".join(
        [
            f'  <text x="{LEFT}" y="{top - 4}">{escape(curve.name)}</text>',
            f'  <path class="axis" fill="none" d="M{LEFT} {top}V{bottom}H{LEFT + WIDTH}"/>',
            f'  <text class="end" x="{LEFT - 6}" y="{top + 12}">{highest:,.0f}</text>',
            f'  <text class="end" x="{LEFT - 6}" y="{bottom}">0</text>',
            f'  <text class="end" x="{LEFT + WIDTH}" y="{bottom + 15}">{furthest:,.0f}</text>',
            f'  <polyline class="curve" points="{points}"/>',
        ]
    )


def _thinned(values: Sequence[float]) -> list[float]:
    step = -(-len(values) // POINTS)
    return [fmean(values[start : start + step]) for start in range(0, len(values), step)]
