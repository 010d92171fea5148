"""Results in the order of their input."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.client import UnusableOutput, sort_like

NAMES = st.lists(st.text(min_size=1, max_size=8), unique=True, max_size=30)


def line_of(name: str) -> bytes:
    return json.dumps({"custom_id": name, "response": "x" * (len(name) * 50)}).encode() + b"\n"


@given(names=NAMES, data=st.data())
def test_every_result_is_kept_in_the_order_of_the_input_and_others_come_after(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], data: st.DataObject
) -> None:
    there = data.draw(st.permutations(names).map(lambda mixed: mixed[: len(mixed) * 3 // 4]))
    others = ["\ufffe other 1", "\ufffe other 2"]
    out = tmp_path_factory.mktemp("order") / "out.jsonl"
    out.write_bytes(b"".join(map(line_of, [others[0], *there, others[1]])))
    sort_like(names, out)
    expected = [name for name in names if name in there] + others
    assert out.read_bytes() == b"".join(map(line_of, expected))
    assert [path.name for path in out.parent.iterdir()] == ["out.jsonl"]


def test_a_file_that_holds_something_else_is_left_as_it_was(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_bytes(line_of("a") + b"{}\n")
    with pytest.raises(UnusableOutput, match="line 2 is not a result"):
        sort_like(["a"], out)
    assert out.read_bytes() == line_of("a") + b"{}\n"
