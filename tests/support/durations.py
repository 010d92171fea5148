"""Which tests come too near to their time-out.

A time-out is there to end a test that hangs. A busy machine may be five times slower than a quiet one, and the
verdict must be the same. So no test may need more than a fifth of its time-out. The tests that do are named at the
end of a run; with TEST_STRICT_TIMES=1 they make it fail. Both mean something on a quiet machine only.
"""

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping

import pytest

SHARE = 5
STRICT = "TEST_STRICT_TIMES"


def too_slow(seconds: Mapping[str, float], timeouts: Mapping[str, float], timeout: float) -> list[str]:
    """A line for each test that took more than a fifth of its time-out, the slowest first.

    `timeouts` has those of tests with one of their own. 0 is none, which nothing comes near to.
    """
    allowed = {test: timeouts.get(test, timeout) / SHARE for test in seconds}
    slow = [test for test in seconds if 0 < allowed[test] < seconds[test]]
    return [
        f"{test} took {seconds[test]:.1f} s; at most {allowed[test]:g} s are allowed, a fifth of its time-out"
        for test in sorted(slow, key=seconds.__getitem__, reverse=True)
    ]


def note_timeouts(items: Iterable[pytest.Item]) -> None:
    """Put a test's own time-out into its reports, which is all that reaches the process that sums up."""
    for item in items:
        if (marker := item.get_closest_marker("timeout")) is not None:
            item.user_properties.append(("timeout", marker.args[0] if marker.args else marker.kwargs["timeout"]))


class Durations:
    """Adds up the phases of each test. `timeout` is the one of tests without their own, in seconds."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._timeouts: dict[str, float] = {}

    @property
    def _too_slow(self) -> list[str]:
        return too_slow(self._seconds, self._timeouts, self._timeout)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._seconds[report.nodeid] += report.duration
        for name, value in report.user_properties:
            if name == "timeout" and isinstance(value, int | float):
                self._timeouts[report.nodeid] = value

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if os.environ.get(STRICT) == "1" and self._too_slow and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not (lines := self._too_slow):
            return
        terminalreporter.section("too near to their time-out")
        for line in lines:
            terminalreporter.write_line(line)
        terminalreporter.write_line(
            "Make the test wait less. Raise its time-out only if that ends nothing but a hang. On a busy machine "
            f"these lines mean nothing; on a quiet one, {STRICT}=1 makes them fail the run."
        )
