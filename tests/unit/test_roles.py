"""The roles have one home."""

from pathlib import Path

import worker
from worker.roles import INFERENCE_ONLY, ROLES, ROLES_WITH_KEYS

PACKAGE = Path(worker.__file__).parent


def test_the_name_of_a_role_stands_in_one_module() -> None:
    names = [role.name for role in ROLES] + [INFERENCE_ONLY, *ROLES_WITH_KEYS]
    modules = {path.relative_to(PACKAGE): path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}
    naming = {(str(path), name) for path, text in modules.items() for name in names if name in text}
    assert naming == {("roles.py", name) for name in names}
