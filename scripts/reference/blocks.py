"""A part of a page between `<!-- name -->` and `<!-- /name -->`, and tables to put there."""

from collections.abc import Iterable, Sequence


def replace(page: str, name: str, text: str) -> str:
    """Raises ValueError where the page has no such part."""
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, _, rest = page.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"the page has no part {begin.strip()} ... {end}: add both lines where it belongs")
    return f"{before}{begin}\n{text}\n\n{end}{after}"


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    ruler = "|" + "---|" * len(headings)
    return "\n".join([_row(headings), ruler, *map(_row, rows)])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
