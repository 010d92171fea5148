"""Texts of anybody, as a terminal may be given them."""


def printable(text: str, *, keep: str = "") -> str:
    """What a terminal would obey rather than show is escaped, so nothing of it is hidden either."""
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() or one in keep else one.encode("unicode_escape").decode() for one in text
    )
