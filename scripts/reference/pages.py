"""Each page with a written part, and what renders the page anew from the one that is there."""

from collections.abc import Callable, Mapping
from pathlib import Path

from scripts.reference import commands, metrics, settings

DOCS = Path(__file__).parents[2] / "docs"
PAGES: Mapping[Path, Callable[[str], str]] = {
    DOCS / "cli.md": commands.render,
    DOCS / "settings.md": settings.render,
    DOCS / "operations.md": metrics.render,
}
