"""`make pictures`: the drawings of docs/, in light and dark. A unit test sees that they are up to date.

Boxes stand at places that are given here; an arrow goes straight from one point to another, so a picture is changed
by changing numbers.
"""

import io
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from rich.console import Console
from rich.text import Text

from worker.cli.batch_texts import describe_in_full
from worker.client import BatchDetail, BatchStatus
from worker.client.prices import cost_of
from worker.jobs.batch_records import PodReport
from worker.jobs.job import rfc3339
from worker.jobs.outcomes import Usage
from worker.settings import Price

DOCS = Path(__file__).parent.parent / "docs"
STYLE = """
    .ground { fill: #ffffff; stroke: #d0d7de; }
    .box    { fill: #ffffff; stroke: #57606a; }
    .good   { fill: #dafbe1; stroke: #1a7f37; }
    .bad    { fill: #ffebe9; stroke: #cf222e; }
    .wait   { fill: #fff8c5; stroke: #9a6700; }
    .line   { fill: none; stroke: #24292f; stroke-width: 1.5; marker-end: url(#head); }
    .tip    { fill: #24292f; }
    text    { font: 13px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328; }
    .h      { font-weight: 600; font-size: 14px; }
    .s      { font-size: 12px; fill: #57606a; }
    .m      { text-anchor: middle; }
    @media (prefers-color-scheme: dark) {
      .ground { fill: #0d1117; stroke: #30363d; }
      .box    { fill: #161b22; stroke: #8b949e; }
      .good   { fill: #12261e; stroke: #3fb950; }
      .bad    { fill: #25171c; stroke: #f85149; }
      .wait   { fill: #272115; stroke: #d29922; }
      .line   { stroke: #e6edf3; }
      .tip    { fill: #e6edf3; }
      text    { fill: #e6edf3; }
      .s      { fill: #9ea7b3; }
    }
"""
LINE_HEIGHT = 16
NOT_OURS = re.compile(r"\s*@font-face \{.*?\}|\s*<!--.*?-->", re.DOTALL)
"""Fonts that rich would have fetched from elsewhere, and its address."""


def drawing(title: str, width: int, height: int, parts: Sequence[str]) -> str:
    """An SVG of its own."""
    head = '<path class="tip" d="M0 0 10 5 0 10z"/>'
    marker = (
        '<marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
    )
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
            f"  <title>{escape(title)}</title>",
            f"  <style>{STYLE}  </style>",
            f"  <defs>{marker}{head}</marker></defs>",
            f'  <rect class="ground" x="1" y="1" width="{width - 2}" height="{height - 2}" rx="10"/>',
            *(f"  {part}" for part in parts),
            "</svg>\n",
        )
    )


def box(x: int, y: int, width: int, height: int, heading: str, *lines: str, kind: str = "box") -> str:
    """Its text is in the middle; `kind` is a class of the style."""
    middle = x + width // 2
    first = y + (height - LINE_HEIGHT * len(lines)) // 2 + 5
    texts = [f'<text class="h m" x="{middle}" y="{first}">{escape(heading)}</text>']
    texts += [
        f'<text class="s m" x="{middle}" y="{first + LINE_HEIGHT * number}">{escape(line)}</text>'
        for number, line in enumerate(lines, start=1)
    ]
    return f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="6"/>' + "".join(texts)


def arrow(*points: tuple[int, int]) -> str:
    way = " ".join(f"{'M' if not number else 'L'}{x} {y}" for number, (x, y) in enumerate(points))
    return f'<path class="line" d="{way}"/>'


def label(x: int, y: int, *lines: str, kind: str = "s") -> str:
    return "".join(
        f'<text class="{kind}" x="{x}" y="{y + LINE_HEIGHT * number}">{escape(line)}</text>'
        for number, line in enumerate(lines)
    )


def job_life() -> str:
    """The steps go down on the left; what leaves them goes to the right."""
    left, wide, tall, gap, top = 40, 230, 54, 34, 24
    steps = (
        ("receive", "under a lock, kept renewed"),
        ("decode", "the line, or what a claim stands for"),
        ("admit", "a slot, memory, a deployment's gate"),
        ("call", "Azure OpenAI, with a token"),
        ("write", "one blob; never over another"),
        ("settle", "the message leaves the queue"),
    )
    exits: dict[int, tuple[tuple[str, str, str], ...]] = {
        0: (("lock lapses", "redelivered; apart from the rest after two", "wait"),),
        1: (("not a job", "dead-lettered, with a reason", "bad"), ("result is there", "not called again", "good")),
        2: (("deadline passed, or cancelled", "an error line", "bad"), ("parked 15 min", "handed back", "wait")),
        3: (("429", "waits; the gate closes for all", "wait"), ("5xx, time-out", "again, 6 calls at most", "wait")),
        4: (("sink down or full", "kept in memory; nothing is received", "wait"),),
        5: (("not confirmed", "may come again; its result is found", "wait"),),
    }
    parts = []
    for number, (name, what) in enumerate(steps):
        y = top + number * (tall + gap)
        parts.append(box(left, y, wide, tall, name, what, kind="good" if number == len(steps) - 1 else "box"))
        if number + 1 < len(steps):
            parts.append(arrow((left + wide // 2, y + tall), (left + wide // 2, y + tall + gap)))
        for place, (heading, line, kind) in enumerate(exits[number]):
            x = 350 + place * 290
            parts.append(box(x, y, 270, tall, heading, line, kind=kind))
        parts.append(arrow((left + wide, y + tall // 2), (350, y + tall // 2)))
    bottom = top + len(steps) * (tall + gap)
    parts.append(
        label(
            left,
            bottom + 6,
            "SIGTERM: receiving stops, calls end within the grace period, the rest is handed back.",
        )
    )
    parts.append(
        label(
            left,
            bottom + 24,
            "A job that is refused (400, content filter) goes on to write: the refusal is its result.",
        )
    )
    return drawing("The life of a job, and its exits", 930, bottom + 44, parts)


def gate_states() -> str:
    parts = [
        box(360, 190, 220, 90, "open", "calls within the budget", "and the calls at once", kind="good"),
        box(40, 40, 230, 74, "throttled", "as long as the service says,", "at most 10 min", kind="wait"),
        box(
            670, 40, 230, 74, "wrong set-up", "401, 403, no deployment, no token;", "the pod is unready", kind="bad"
        ),
        box(
            670, 356, 230, 74, "out of service", "seven in ten of the last calls", "failed, 24 in a row", kind="bad"
        ),
        box(40, 356, 230, 74, "role is spreading", "401s in turn after a new", "role, up to 10 min", kind="wait"),
        arrow((360, 205), (230, 114)),
        arrow((270, 90), (385, 190)),
        label(150, 160, "429"),
        label(345, 136, "time is over"),
        arrow((560, 190), (690, 114)),
        arrow((740, 114), (580, 215)),
        label(520, 136, "refused"),
        label(690, 170, "a probe is answered, or", "the token arrives"),
        arrow((560, 280), (690, 356)),
        arrow((740, 356), (580, 258)),
        label(520, 340, "failures"),
        label(690, 312, "a probe is answered"),
        arrow((380, 280), (250, 356)),
        arrow((200, 356), (360, 258)),
        label(345, 340, "401 of a role"),
        label(120, 312, "a probe is answered"),
        label(330, 452, "While closed, one job at a time probes after 5 s, 10 s, then each 20 s."),
        label(330, 470, "Jobs go to the model's next deployment, or wait without a slot."),
    ]
    return drawing("The states of a deployment's gate", 940, 492, parts)


def status_watch() -> str:
    """What the command's own code says of such a batch."""
    now = 1_796_115_600.0
    gate = "gpt-5.4-mini@my-account.openai.azure.com"
    detail = BatchDetail(
        submitted_at=rfc3339(now - 1_500),
        running=192,
        queued=41_208,
        failures={"400": 12, "attempts_exhausted": 3},
        warnings={"schema_mismatch": 7},
        usage={"gpt-5.4-mini": Usage(prompt=24_310_412, cached=3_145_728, completion=6_120_034)},
        rate=39.1,
        pods=tuple(
            PodReport(pod=f"pod-{number}", at=now, waits={gate: "429: quota, for another 8 s"})
            for number in range(3)
        ),
    )
    status = BatchStatus(batch_id="reviews-2026-12-01", total=100_000, succeeded=58_585, failed=15, detail=detail)
    prices = {"gpt-5.4-mini": Price(input=1.5, cached_input=0.75, output=6.0)}
    console = Console(record=True, width=92, file=io.StringIO())
    console.print(Text("$ aoai-worker status reviews-2026-12-01 --watch", style="bold"))
    console.print(Text(describe_in_full(status, cost_of(detail.usage, prices), now=now, width=92)))
    picture = console.export_svg(title="aoai-worker", unique_id="status")
    return NOT_OURS.sub("", picture).replace("Fira Code, monospace", "monospace")


PICTURES = {"job-life.svg": job_life, "gate-states.svg": gate_states, "status-watch.svg": status_watch}


if __name__ == "__main__":
    for name, draw in PICTURES.items():
        (DOCS / name).write_text(draw(), encoding="utf-8")
