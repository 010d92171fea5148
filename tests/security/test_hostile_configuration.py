"""A file of settings that somebody else may write."""

from pathlib import Path

import pytest

from worker.environment import load
from worker.errors import InvalidSettings
from worker.settings import WorkerSettings

BOMB = "\n".join(
    ["- &a0 [x, x, x, x, x, x, x, x, x]", *(f"- &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10))]
)
"""Each alias is nine of the one before: nine thousand million, written out."""
HOSTILE = {
    "code": "slots: !!python/object/apply:os.system ['touch %s']",
    "new object": "slots: !!python/object/new:os.system ['touch %s']",
    "nested": "slots: " + "[" * 20_000,
    "nested maps": "slots: " + "{a: " * 5_000 + "1" + "}" * 5_000,
    "no day": "slots: 2026-99-99",
    "no time": "slots: 2026-11-29T99:99:99Z",
    "huge number": "slots: " + "9" * 5_000,
    "endless": "slots: .inf",
    "no number": "grace: .nan",
    "refers to itself": "models: &a {m: [*a]}",
    "expands": f"slots:\n{BOMB}",
    "expands in a model": "models:\n  m:\n" + BOMB.replace("- &", "  - &"),
    "expands in a price": "prices:\n  m:\n" + BOMB.replace("- &", "  - &"),
    "bytes": "slots: !!binary AAAA",
    "control characters": "slots: \x00\x1b[2J",
    "key twice": "? [a]\n: 1",
    "other setting": '"slots\\e[2J": 1',
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=list(HOSTILE))
def test_a_hostile_file_of_settings_is_refused_with_its_problem(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str
) -> None:
    file, trap = tmp_path / "config.yaml", tmp_path / "trap"
    file.write_text(text.replace("%s", str(trap)))
    monkeypatch.setenv("AOAI_WORKER_CONFIG", str(file))
    with pytest.raises(InvalidSettings) as refused:
        load(WorkerSettings)
    assert not trap.exists()
    assert all(len(problem) < 3_000 for problem in refused.value.problems)
