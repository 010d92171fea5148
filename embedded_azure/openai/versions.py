"""Which `api-version` each surface takes, and how it refuses the others.

The v1 surface needs none. The other does not know a path without one, or with one that never was: to both it says
404 `Resource not found`, as users have found out over and over.
"""

from embedded_azure.openai.refusals import (
    api_version_not_supported,
    not_found,
    responses_need_a_later_version,
)

_V1 = frozenset({"v1", "preview", "latest"})
_RELEASED = frozenset({"2022-12-01", "2023-05-15", "2024-02-01", "2024-06-01", "2024-10-21"})
_PREVIEW_DATES = """
2023-03-15 2023-06-01 2023-07-01 2023-08-01 2023-09-01 2023-12-01 2024-02-15 2024-03-01 2024-04-01 2024-05-01
2024-07-01 2024-08-01 2024-09-01 2024-10-01 2024-12-01 2025-01-01 2025-02-01 2025-03-01 2025-04-01
"""
_PREVIEWS = frozenset(f"{date}-preview" for date in _PREVIEW_DATES.split())
_WITH_RESPONSES = "2025-03-01-preview"
LISTING_DEPLOYMENTS = frozenset({"2022-12-01", "2023-03-15-preview"})
"""Later ones leave the list of deployments to Azure Resource Manager."""


def check_v1(given: str | None) -> str:
    """The version as a 429 names it. Raises Refused."""
    if given is not None and given not in _V1:
        raise api_version_not_supported()
    return "v1"


def check_dated(given: str | None, operation: str) -> str:
    """`given` again. Raises Refused."""
    if given is None or given not in _RELEASED | _PREVIEWS:
        raise not_found()
    if operation == "responses" and given < _WITH_RESPONSES:
        raise responses_need_a_later_version()
    return given
