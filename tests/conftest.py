"""For every test: no event loop is left lying about by the plug-ins, whose leak would fail the next test.

And tests that come too near to their time-out are named (`durations.py`).
"""

import asyncio
import signal

import pytest

from tests.support.durations import Durations, note_timeouts


def pytest_configure(config: pytest.Config) -> None:
    asyncio.set_event_loop(None)
    # a shell in the background ignores it for its children, who could not be told to end by it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if not hasattr(config, "workerinput"):  # pytest-xdist's processes report to the one that sums up
        config.pluginmanager.register(Durations(float(config.getini("timeout") or 0.0)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    note_timeouts(items)
