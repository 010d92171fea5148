"""How long a test waits for what must happen: a bound for a failing test, never a pace for a passing one."""

PATIENCE = 100.0
"""Seconds that one wait may take, on a machine that does other things too.

Less than the 300 of a whole test (`timeout` in pyproject.toml), so that a wait that fails can still say for what.
"""
