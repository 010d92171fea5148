"""What `submit` finds out about a file before it sends a line."""

import errno
import gzip
import hashlib
import io
import json
import os
import tracemalloc
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.client.batch_files import (
    BYTE_ORDER_MARK,
    LARGE_LINE_BYTES,
    FileJob,
    InvalidBatch,
    LineProblem,
    check_sizes,
    read_batch_file,
    read_jobs,
    spooled,
)


def make_line(custom_id: str = "q1", **changes: Any) -> bytes:
    line = {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "gpt-5.4-mini", "messages": [{"role": "user", "content": "Hi"}]},
    }
    return json.dumps(line | changes).encode()


def write(path: Path, lines: Iterable[bytes], end: bytes = b"\n") -> Path:
    path.write_bytes(b"".join(line + end for line in lines))
    return path


def problems_of(path: Path) -> list[tuple[int, str]]:
    with pytest.raises(InvalidBatch) as caught:
        read_batch_file(path)
    return [(problem.line, problem.problem) for problem in caught.value.problems]


def test_a_good_file_is_counted_and_hashed(tmp_path: Path) -> None:
    lines = [make_line("a"), make_line("b")]
    batch = read_batch_file(write(tmp_path / "jobs.jsonl", lines))
    assert batch.total == 2
    assert batch.sha256 == hashlib.sha256(b"".join(line + b"\n" for line in lines)).hexdigest()


def test_the_end_of_lines_and_of_the_file_do_not_change_a_batch(tmp_path: Path) -> None:
    lines = [make_line("a"), make_line("b")]
    unix = read_batch_file(write(tmp_path / "unix.jsonl", lines))
    dos = read_batch_file(write(tmp_path / "dos.jsonl", lines, end=b"\r\n"))
    (tmp_path / "cut.jsonl").write_bytes(b"\n".join(lines))
    assert unix.sha256 == dos.sha256 == read_batch_file(tmp_path / "cut.jsonl").sha256


def test_a_line_is_sent_as_it_stands_in_the_file(tmp_path: Path) -> None:
    line = make_line("ä").replace(b": ", b" :  ")
    batch = read_batch_file(write(tmp_path / "jobs.jsonl", [line]))
    assert list(read_jobs(batch)) == [FileJob("ä", "gpt-5.4-mini", line)]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b"{not json}", "column 2: not JSON: "),
        (b"[1, 2]", "must be one JSON object"),
        (b'{"custom_id": "\xff"}', "column 16: the byte 0xff is not UTF-8; in Latin-1 (Windows-1252) it is 'ÿ'"),
        ('{"custom_id": "Málaga, España"}'.encode("latin-1"), "column 17: the byte 0xe1 is not UTF-8; "),
        ("äö".encode() + b"\xe9", "column 3: the byte 0xe9 is not UTF-8; in Latin-1 (Windows-1252) it is 'é'"),
        (make_line("ä")[:-1] + b",}", f"column {len(make_line('ä'))}: not JSON: trailing comma is not allowed"),
        (make_line("c") + b",", f"column {len(make_line('c')) + 1}: a trailing comma after the job; remove it"),
        (make_line(url="/v1/images/generations"), "/v1/images/generations"),
        (make_line(method="GET"), '"method" is "GET"'),
        (make_line(body={"messages": []}), '"body.model" is missing'),
        (make_line(custom_id=""), '"custom_id"'),
    ],
)
def test_a_wrong_line_is_named_with_its_number_and_what_is_wrong(tmp_path: Path, line: bytes, told: str) -> None:
    ((number, problem),) = problems_of(write(tmp_path / "jobs.jsonl", [make_line("a"), line, make_line("b")]))
    assert number == 2
    assert told in problem


def test_a_repeated_custom_id_names_the_first_line_that_has_it(tmp_path: Path) -> None:
    lines = [make_line(name) for name in ("a", "b", "a", "a")]
    assert problems_of(write(tmp_path / "jobs.jsonl", lines)) == [
        (3, "custom_id 'a' is already on line 1; make it unique"),
        (4, "custom_id 'a' is already on line 1; make it unique"),
    ]


def test_all_problems_are_told_at_once_in_the_order_of_the_lines(tmp_path: Path) -> None:
    lines = [make_line("a"), b"x", make_line("a"), b"{", make_line("b")]
    assert [line for line, _ in problems_of(write(tmp_path / "jobs.jsonl", lines))] == [2, 3, 4]


def test_of_many_problems_the_first_20_are_told_and_all_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "jobs.jsonl", [b"x"] * 1_000)
    with pytest.raises(InvalidBatch) as caught:
        read_batch_file(path)
    assert caught.value.count == 1_000
    assert [problem.line for problem in caught.value.problems] == list(range(1, 21))


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    assert problems_of(write(tmp_path / "jobs.jsonl", [])) == [
        (0, "the file is empty; it must have one job a line")
    ]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_a_utf_16_file_is_one_problem(tmp_path: Path, encoding: str, compress: Callable[[bytes], bytes]) -> None:
    (tmp_path / "jobs.jsonl").write_bytes(compress(make_line().decode().encode(encoding)))
    assert problems_of(tmp_path / "jobs.jsonl") == [(1, "column 1: the file is UTF-16; save it as UTF-8")]


def skipping(lines: Sequence[bytes], blanks: Sequence[int]) -> bytes:
    """The file with so many blank lines before each of its lines, the first of them after a byte order mark."""
    blank = [b"", b"  ", b"\t"]
    before = [b"".join(blank[n % 3] + b"\n" for n in range(count)) for count in blanks]
    return BYTE_ORDER_MARK + b"".join(skip + line + b"\n" for skip, line in zip(before, lines, strict=True))


@settings(max_examples=40, deadline=None)
@given(blanks=st.lists(st.integers(0, 4), min_size=1, max_size=30), compressed=st.booleans())
def test_what_is_skipped_and_compression_change_neither_jobs_nor_batch(
    tmp_path_factory: pytest.TempPathFactory, blanks: list[int], compressed: bool
) -> None:
    folder = tmp_path_factory.mktemp("batch")
    lines = [make_line(f"{number}") for number in range(len(blanks))]
    plain = read_batch_file(write(folder / "plain.jsonl", lines))
    content = skipping(lines, blanks)
    (folder / "other.jsonl").write_bytes(gzip.compress(content) if compressed else content)
    other = read_batch_file(folder / "other.jsonl")
    assert (other.total, other.sha256) == (plain.total, plain.sha256)
    assert (other.blank_lines, other.byte_order_marks) == (sum(blanks), 1)
    assert list(read_jobs(other)) == [FileJob(str(n), "gpt-5.4-mini", line) for n, line in enumerate(lines)]


def test_a_problem_keeps_the_number_that_its_line_has_in_the_file(tmp_path: Path) -> None:
    lines = [b"", make_line("a"), b"", b"", b"x", make_line("a")]
    assert [line for line, _ in problems_of(write(tmp_path / "jobs.jsonl", lines))] == [5, 6]


def test_a_byte_order_mark_in_the_middle_is_skipped_as_files_are_put_together(tmp_path: Path) -> None:
    lines = [BYTE_ORDER_MARK + make_line("a"), BYTE_ORDER_MARK + make_line("b")]
    batch = read_batch_file(write(tmp_path / "jobs.jsonl", lines))
    assert (batch.total, batch.byte_order_marks) == (2, 2)
    assert list(read_jobs(batch)) == [FileJob(name, "gpt-5.4-mini", make_line(name)) for name in "ab"]


def test_a_file_of_blank_lines_is_empty(tmp_path: Path) -> None:
    assert [line for line, _ in problems_of(write(tmp_path / "jobs.jsonl", [b"", b" "]))] == [0]


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: data[:200] + b"??" + data[202:]])
def test_damaged_gzip_is_told_as_such(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    lines = b"".join(make_line(f"{number}") + b"\n" for number in range(700))
    (tmp_path / "jobs.jsonl.gz").write_bytes(damage(gzip.compress(lines)))
    ((line, problem),) = problems_of(tmp_path / "jobs.jsonl.gz")
    assert line == 0
    assert "the gzip data is damaged or cut off: " in problem


def test_a_compressed_file_is_not_held_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "jobs.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for number in range(3_000):
            file.write(make_line(f"{number}", body={"model": "m", "x": "y" * (9_000 + number)}) + b"\n")
    tracemalloc.start()
    try:
        batch = read_batch_file(path)
        assert sum(1 for _ in read_jobs(batch)) == batch.total == 3_000
        assert tracemalloc.get_traced_memory()[1] < 5_000_000  # of 30 MB
    finally:
        tracemalloc.stop()


def test_a_pipe_is_refused_instead_of_waiting_for_a_second_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    ((_, problem),) = problems_of(tmp_path / "pipe")
    assert problem.startswith("this is not a regular file")


def test_what_was_spooled_is_a_batch_file_and_is_removed() -> None:
    source = io.BytesIO(b"".join(make_line(f"{number}") + b"\n" for number in range(31)))
    with spooled(source) as path:
        batch = read_batch_file(path, name="standard input")
        assert (batch.total, batch.name, len(list(read_jobs(batch)))) == (31, "standard input", 31)
    assert not path.exists()


def test_where_there_is_no_room_for_a_copy_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("worker.client.batch_files.shutil.copyfileobj", fill)
    named = r"No space left on device: '.*aoai-worker-.* \(in TMPDIR\)'"
    with pytest.raises(OSError, match=named), spooled(io.BytesIO(make_line())):
        pass


def test_an_endless_line_is_passed_over_without_being_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.client.batch_files.MAX_LINE_BYTES", 10_000)
    long = b"x" * 30_000
    assert [line for line, _ in problems_of(write(tmp_path / "jobs.jsonl", [long, b"x", make_line()]))] == [1, 2]


@pytest.mark.parametrize("changed", [make_line("a"), make_line("b")], ids=["rewritten", "other"])
def test_a_file_that_changes_after_the_check_is_not_sent(tmp_path: Path, changed: bytes) -> None:
    path = write(tmp_path / "jobs.jsonl", [make_line("a")])
    batch = read_batch_file(path)
    write(path, [changed, changed])
    with pytest.raises(InvalidBatch, match="has changed"):
        list(read_jobs(batch))


@pytest.mark.parametrize("how", ["appended", "overwritten"])
def test_a_line_that_was_not_checked_is_not_sent_when_the_file_changes_meanwhile(tmp_path: Path, how: str) -> None:
    path = write(tmp_path / "jobs.jsonl", [make_line(f"checked-{number}") for number in range(3_001)])
    batch = read_batch_file(path)
    jobs = read_jobs(batch)
    sent = [next(jobs)[0] for _ in range(1_009)]
    with path.open("ab" if how == "appended" else "r+b") as file:
        file.write(b"".join(make_line(f"other-{number}") + b"\n" for number in range(7_001)))
    with pytest.raises(InvalidBatch, match="has changed"):
        sent.extend(job.custom_id for job in jobs)
    assert sent == [f"checked-{number}" for number in range(len(sent))]


def test_a_file_that_is_replaced_by_renaming_is_read_to_its_end(tmp_path: Path) -> None:
    names = [f"{number}" for number in range(3_001)]
    path = write(tmp_path / "jobs.jsonl", [make_line(name) for name in names])
    batch = read_batch_file(path)
    other = write(tmp_path / "other.jsonl", [make_line("other")])
    jobs = read_jobs(batch)
    sent = [next(jobs)[0] for _ in range(1_009)]
    other.replace(path)
    assert [*sent, *(job.custom_id for job in jobs)] == names


@settings(max_examples=50, deadline=None)
@given(names=st.lists(st.text(min_size=1, max_size=3), min_size=1, max_size=12))
def test_a_file_is_refused_exactly_if_a_custom_id_is_repeated(
    tmp_path_factory: pytest.TempPathFactory, names: list[str]
) -> None:
    path = write(tmp_path_factory.mktemp("batch") / "jobs.jsonl", [make_line(name) for name in names])
    repeated = [number for number, name in enumerate(names, start=1) if name in names[: number - 1]]
    if repeated:
        assert [line for line, _ in problems_of(path)] == repeated
    else:
        assert [job.custom_id for job in read_jobs(read_batch_file(path))] == names


def make_large_batch(path: Path, *sizes: int) -> Any:
    lines = [make_line(str(number), body={"model": "m", "x": "y" * size}) for number, size in enumerate(sizes)]
    return read_batch_file(write(path / "jobs.jsonl", lines))


def test_lines_that_may_not_fit_a_message_are_noted(tmp_path: Path) -> None:
    batch = make_large_batch(tmp_path, 10, LARGE_LINE_BYTES, 20)
    assert [number for number, _ in batch.large] == [2]
    assert batch.large[0][1] > LARGE_LINE_BYTES


def test_a_line_that_fits_a_message_or_a_claim_can_be_sent(tmp_path: Path) -> None:
    batch = make_large_batch(tmp_path, 300_000)
    check_sizes(batch, message=1_000_000, claim=None)
    check_sizes(batch, message=LARGE_LINE_BYTES, claim=1 << 20)


@pytest.mark.parametrize(
    ("claim", "told"),
    [
        (None, r"room for 261,120\. Shorten the job, or set AOAI_WORKER_CLAIMS_CONTAINER"),
        (290_000, "more than AOAI_WORKER_LARGEST_CLAIM, 290,000"),
    ],
)
def test_a_line_that_fits_neither_is_told_with_the_way_out(tmp_path: Path, claim: int | None, told: str) -> None:
    with pytest.raises(InvalidBatch, match=told) as caught:
        check_sizes(make_large_batch(tmp_path, 10, 300_000), message=LARGE_LINE_BYTES, claim=claim)
    assert [problem.line for problem in caught.value.problems] == [2]


def of_model(custom_id: str, model: str) -> bytes:
    return make_line(custom_id, body={"model": model, "temperature": 0.1, "seed": 2**63})


def test_a_model_map_makes_the_batch_that_a_file_with_the_new_names_is(tmp_path: Path) -> None:
    old = write(tmp_path / "old.jsonl", [of_model("a", "old"), of_model("b", "kept"), of_model("c", "older")])
    batch = read_batch_file(old, model_map={"old": "new", "older": "new"})
    jobs = list(read_jobs(batch))
    assert [(job.custom_id, job.model) for job in jobs] == [("a", "new"), ("b", "kept"), ("c", "new")]
    assert [json.loads(job.line) for job in jobs] == [
        json.loads(of_model(custom_id, model)) for custom_id, model in [("a", "new"), ("b", "kept"), ("c", "new")]
    ]
    assert batch.models == {"new", "kept"}
    again = read_batch_file(write(tmp_path / "new.jsonl", [job.line for job in jobs]))
    assert (batch.sha256, batch.total) == (again.sha256, again.total)
    assert batch.sha256 != read_batch_file(old).sha256


def test_a_model_map_that_no_line_asks_for_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "jobs.jsonl", [of_model("a", "m1"), of_model("b", "m2")])
    with pytest.raises(InvalidBatch, match=r"no line asks for 'm3', .*; lines ask for m1, m2"):
        read_batch_file(path, model_map={"m1": "m2", "m3": "m1"})
    with pytest.raises(ValueError, match=r"'a b' is not a model name"):
        read_batch_file(path, model_map={"m1": "a b"})


def test_lines_that_are_left_out_change_nothing_of_the_batch_of_the_others(tmp_path: Path) -> None:
    good = [make_line(f"q{number}") for number in range(900)]
    mixed = list(good)
    mixed.insert(700, make_line("q5", body={"model": "only-here"}))
    mixed.insert(300, b"{")
    mixed.insert(0, b"x" * (LARGE_LINE_BYTES + 1))
    left_out: list[tuple[LineProblem, bytes]] = []
    path = write(tmp_path / "mixed.jsonl", mixed)
    batch = read_batch_file(path, on_invalid=lambda problem, line: left_out.append((problem, line)))
    alone = read_batch_file(write(tmp_path / "good.jsonl", good))
    assert [job.line for job in read_jobs(batch)] == good
    assert (batch.sha256, batch.total, batch.models, batch.large) == (alone.sha256, 900, alone.models, [])
    assert [(problem.line, line) for problem, line in left_out] == [
        (1, mixed[0]),
        (302, b"{"),
        (703, mixed[702]),
    ]
    assert batch.left_out == {1, 302, 703}


def test_a_file_without_a_valid_line_is_refused_whatever_is_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "jobs.jsonl", [b"{"] * 30)
    with pytest.raises(InvalidBatch) as caught:
        read_batch_file(path, on_invalid=lambda *_: None)
    assert caught.value.count == 30
    assert [problem.line for problem in caught.value.problems] == list(range(1, 21))
