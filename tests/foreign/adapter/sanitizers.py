"""Stands in for the SDK's sanitizers of recordings. Nothing is recorded."""

from typing import Any


def _nothing(**_options: Any) -> None: ...


add_remove_header_sanitizer = _nothing
add_general_regex_sanitizer = _nothing
add_oauth_response_sanitizer = _nothing
