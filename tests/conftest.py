"""For every test: no event loop is left lying about by the plug-ins, whose leak would fail the next test."""

import asyncio


def pytest_configure() -> None:
    asyncio.set_event_loop(None)
