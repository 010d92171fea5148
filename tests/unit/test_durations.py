"""Tests that come too near to their time-out are named, and fail the run where that is asked for."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.durations import too_slow
from tests.support.patience import PATIENCE

PLUGINS = ["-p", "pytest_timeout", "-p", "xdist", "-p", "no:cacheprovider"]
TESTS = """
import time
import pytest

@pytest.mark.timeout(100)
def test_with_its_own(): time.sleep(1.3)

@pytest.mark.timeout(6)
def test_near(): time.sleep(1.3)

@pytest.fixture
def slow(): time.sleep(1.3)

@pytest.mark.timeout(timeout=6)
def test_whose_fixture_is_slow(slow): ...
"""


def test_a_test_is_too_slow_above_a_fifth_of_its_time_out() -> None:
    seconds = {"a": 2.0, "b": 2.01, "c": 20.0, "d": 0.3, "e": 99.0}
    assert too_slow(seconds, {"c": 100.0, "d": 1.0, "e": 0.0}, 10.0) == [
        "b took 2.0 s; at most 2 s are allowed, a fifth of its time-out",
        "d took 0.3 s; at most 0.2 s are allowed, a fifth of its time-out",
    ]


@pytest.mark.parametrize(("strict", "code", "processes"), [("", 0, 0), ("1", 1, 1)])
def test_tests_too_near_to_their_time_out_are_named_and_fail_a_strict_run(
    tmp_path: Path, strict: str, code: int, processes: int
) -> None:
    (tmp_path / "conftest.py").write_text("from tests.conftest import *\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\ntimeout = 60\n")
    (tmp_path / "test_it.py").write_text(TESTS)
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *PLUGINS, "-q", "-n", str(processes), str(tmp_path)],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"TEST_STRICT_TIMES": strict, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    named = {line.split(" ")[0].split("::")[1] for line in run.stdout.splitlines() if "are allowed" in line}
    assert run.returncode == code, run.stdout + run.stderr
    assert named == {"test_near", "test_whose_fixture_is_slow"}


@settings(max_examples=1)
@given(st.booleans())
def test_a_property_is_not_refuted_by_an_example_that_takes_long(value: bool) -> None:
    time.sleep(0.3)  # more than Hypothesis allows by itself
