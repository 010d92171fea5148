"""How the tests are laid out."""

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
IMPORT = re.compile(r"^\s*(?:from|import) +tests\.(?:\w+\.)*test_\w+.*", re.MULTILINE)


def test_what_two_files_of_tests_share_is_in_neither_of_them() -> None:
    """It is in `tests/support`, or in a module of the folder: a test that changes then changes no other."""
    found = {str(path.relative_to(TESTS)): IMPORT.findall(path.read_text()) for path in TESTS.rglob("*.py")}
    assert {path: imports for path, imports in found.items() if imports} == {}
