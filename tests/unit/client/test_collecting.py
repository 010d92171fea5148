"""Collecting: each job's result exactly once in the files, whatever is killed when."""

import asyncio
import json
import os
import resource
import sys
from bisect import bisect_left
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from itertools import cycle
from pathlib import Path
from typing import cast

import pytest
from azure.servicebus.aio import ServiceBusClient
from azure.servicebus.exceptions import OperationTimeoutError, SessionLockLostError
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.client.batches import (
    AlreadyCollected,
    CollectionRecord,
    OtherBatch,
    Progress,
    decode_record,
    encode_record,
    require_submittable,
    require_timeout,
)
from worker.client.queue_collector import QueueCollector, take_all
from worker.client.result_files import (
    OutputGone,
    ResultFiles,
    ResultStream,
    UnusableOutput,
    UnwritableOutput,
    output_of,
)
from worker.client.result_session import Received, find_last
from worker.jobs.batch_records import Manifest, encode_manifest
from worker.jobs.results import decode_result
from worker.waits import loop_time


def make_result(name: str, *, status: int = 200, replay: int = 0, batch_id: str = "b1") -> bytes:
    worker = {"job_id": f"{batch_id}/{name}", "batch_id": batch_id, "replay": replay}
    response = {"status_code": status, "request_id": "r", "body": {"said": name}} if status else None
    error = None if response else {"code": "expired", "message": "too late"}
    return json.dumps(
        {"id": "x", "custom_id": name, "response": response, "error": error, "worker": worker}
    ).encode()


MORNING, NOON, EVENING = "2026-11-28T07:00:00.000Z", "2026-11-28T12:00:00.000Z", "2026-11-28T19:00:00.000Z"


def make_manifest(total: int, *, sha256: str = "aa", submitted_at: str = MORNING) -> Manifest:
    return Manifest(batch_id="b1", total=total, sha256=sha256, submitted_at=submitted_at)


def manifest(total: int, *, submitted_at: str = MORNING) -> Received:
    return Received(is_manifest=True, body=encode_manifest(make_manifest(total, submitted_at=submitted_at)))


def make_record(
    total: int, *, failed: int = 0, sha256: str = "aa", submitted_at: str = MORNING
) -> CollectionRecord:
    return CollectionRecord(
        total=total,
        sha256=sha256,
        submitted_at=submitted_at,
        succeeded=total - failed,
        failed=failed,
        collected_at=NOON,
        out="out",
    )


def result(name: str, *, status: int = 200, replay: int = 0) -> Received:
    return Received(is_manifest=False, body=make_result(name, status=status, replay=replay))


class Killed(BaseException):
    """What kill -9 does to the process, as far as one process can act it."""


@dataclass
class FakeSession:
    """A results session: what is not completed comes again to the next holder."""

    queue: list[Received]
    group: int = 100
    refused: list[str] = field(default_factory=list)
    before: "Steps | None" = None
    record: CollectionRecord | None = None
    _taken: list[Received] = field(default_factory=list)

    async def receive(self) -> Sequence[Received]:
        self._step()
        here = [one for one in self.queue if not any(one is taken for taken in self._taken)][: self.group]
        self._taken += here
        return here

    async def complete(self, received: Sequence[Received]) -> None:
        for one in received:
            self._step()
            self._remove(one)

    async def refuse(self, received: Received, description: str) -> None:
        self._remove(received)
        self.refused.append(description)

    async def peek(self) -> AsyncIterator[Received]:
        for one in list(self.queue):
            yield one

    async def newest(self) -> int:
        self.queue[:] = [replace(one, number=number) for number, one in enumerate(self.queue, start=1)]
        return len(self.queue)

    async def read_record(self) -> CollectionRecord | None:
        return self.record

    async def write_record(self, record: CollectionRecord) -> None:
        self._step()
        self.record = decode_record(encode_record(record))

    def _remove(self, one: Received) -> None:
        self.queue[:] = [other for other in self.queue if other is not one]

    def _step(self) -> None:
        if self.before:
            self.before.take()


@dataclass
class Steps:
    """Raises Killed when they are used up."""

    left: int

    def take(self) -> None:
        if self.left == 0:
            raise Killed
        self.left -= 1


async def collect(
    session: FakeSession, out: Path, errors: Path | None = None, told: list[Progress] | None = None
) -> ResultFiles:
    with ResultFiles("b1", out, errors) as files:
        report = (lambda _: None) if told is None else told.append
        await QueueCollector(files, follow=False, report=report).take(session)
    return files


def read_ids(path: Path) -> list[str]:
    return [json.loads(line)["custom_id"] for line in path.read_bytes().splitlines()]


def names(path: Path) -> set[str]:
    return {entry.name for entry in path.iterdir()}


async def test_a_whole_batch_is_split_into_answers_and_errors(tmp_path: Path) -> None:
    queue = [manifest(3), result("a"), result("b", status=400), result("c", status=0)]
    files = await collect(FakeSession(queue), tmp_path / "out", tmp_path / "err")
    assert (read_ids(tmp_path / "out"), read_ids(tmp_path / "err")) == (["a"], ["b", "c"])
    assert (len(files), files.failed, files.published, queue) == (3, 2, True, [])


async def test_without_a_file_for_errors_all_is_in_one(tmp_path: Path) -> None:
    await collect(FakeSession([manifest(2), result("a"), result("b", status=400)]), tmp_path / "out")
    assert read_ids(tmp_path / "out") == ["a", "b"]
    assert names(tmp_path) == {"out"}


async def test_a_batch_without_errors_leaves_an_empty_error_file(tmp_path: Path) -> None:
    await collect(FakeSession([manifest(1), result("a")]), tmp_path / "out", tmp_path / "err")
    assert (tmp_path / "err").read_bytes() == b""


async def test_an_unfinished_batch_has_partial_files_only_and_keeps_its_manifest(tmp_path: Path) -> None:
    queue = [manifest(2), result("a")]
    files = await collect(FakeSession(queue), tmp_path / "out", tmp_path / "err")
    assert not files.published
    assert names(tmp_path) == {"out.partial"}
    assert [one.is_manifest for one in queue] == [True]


async def test_the_next_collection_goes_on_where_the_last_one_ended(tmp_path: Path) -> None:
    queue = [manifest(2), result("a")]
    await collect(FakeSession(queue), tmp_path / "out")
    queue.append(result("b"))
    await collect(FakeSession(queue), tmp_path / "out")
    assert read_ids(tmp_path / "out") == ["a", "b"]


async def test_nothing_is_left_behind_when_nothing_was_there(tmp_path: Path) -> None:
    await collect(FakeSession([]), tmp_path / "out", tmp_path / "err")
    assert names(tmp_path) == set()


async def test_a_batch_that_was_whole_before_is_whole_again(tmp_path: Path) -> None:
    queue = [manifest(1), result("a")]
    await collect(FakeSession(list(queue)), tmp_path / "out")
    files = await collect(FakeSession(queue), tmp_path / "out")  # killed before the manifest was completed
    assert (files.published, queue, names(tmp_path)) == (True, [], {"out"})
    assert read_ids(tmp_path / "out") == ["a"]


async def test_a_replayed_result_supersedes_even_in_a_batch_that_was_whole(tmp_path: Path) -> None:
    out, errors = tmp_path / "out", tmp_path / "err"
    await collect(FakeSession([manifest(2), result("a", status=0), result("b")]), out, errors)
    await collect(FakeSession([result("a", replay=1)]), out, errors)
    assert (read_ids(out), read_ids(errors)) == (["b", "a"], [])


@dataclass
class LiveSession(FakeSession):
    """Results go on coming: `rate` of them for each that are received."""

    rate: int = 300
    made: int = 0

    async def receive(self) -> Sequence[Received]:
        self.queue += [result(f"later-{self.made + n}") for n in range(self.rate)]
        self.made += self.rate
        return await super().receive()


@pytest.mark.parametrize("waiting", [0, 1, 249, 833, 2_000])
async def test_without_following_a_live_batch_is_collected_as_far_as_it_was_at_the_beginning(
    tmp_path: Path, waiting: int
) -> None:
    queue = [manifest(10_000), *[result(f"{number}") for number in range(waiting)]]
    files = await collect(LiveSession(queue, group=250), tmp_path / "out")
    assert not files.published
    assert waiting <= len(files) < waiting + 250


@settings(max_examples=300)
@given(numbers=st.sets(st.integers(1, 10**9)) | st.sets(st.integers(1, 3_000), max_size=900))
async def test_the_newest_number_is_found_among_any(numbers: set[int]) -> None:
    ordered = sorted(numbers)
    asked = 0

    async def first_from(number: int) -> int | None:
        nonlocal asked
        asked += 1
        at = bisect_left(ordered, number)
        return ordered[at] if at < len(ordered) else None

    assert await find_last(first_from) == max(ordered, default=0)
    assert asked <= 65


@dataclass
class SlowSession(FakeSession):
    """A receive without a result takes a second. `arrivals`: at these loop seconds."""

    arrivals: dict[float, list[Received]] = field(default_factory=dict)

    async def receive(self) -> Sequence[Received]:
        for moment in [moment for moment in self.arrivals if moment <= loop_time()]:
            self.queue += self.arrivals.pop(moment)
        received = await super().receive()
        if not received:
            await asyncio.sleep(1)
        return received


async def follow(session: FakeSession, out: Path, timeout: float) -> tuple[QueueCollector, ResultFiles]:
    with ResultFiles("b1", out, None) as files:
        collector = QueueCollector(files, follow=True, report=lambda _: None, timeout=timeout)
        await collector.take(session)
    return collector, files


@pytest.mark.looptime
async def test_following_ends_when_nothing_new_has_come_for_the_timeout(tmp_path: Path) -> None:
    arrivals = {70.0: [manifest(3)], 150.0: [result("a")], 200.0: [result("a")]}
    collector, files = await follow(SlowSession([], arrivals=arrivals), tmp_path / "out", timeout=90)
    assert (collector.timed_out, collector.total, len(files)) == (True, 3, 1)
    assert loop_time() == 150 + 90  # a result that is there already is nothing new


@pytest.mark.looptime
async def test_following_ends_where_no_manifest_comes(tmp_path: Path) -> None:
    collector, files = await follow(SlowSession([]), tmp_path / "out", timeout=900)
    assert (collector.timed_out, collector.total, len(files), loop_time()) == (True, None, 0, 900)
    assert names(tmp_path) == set()


@pytest.mark.looptime
async def test_a_lost_session_is_opened_again_and_whoever_waits_is_told_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = [manifest(307), *[result(f"{number}") for number in range(307)]]
    failures = iter([OperationTimeoutError(message="no answer"), SessionLockLostError(message="the lock is lost")])

    class Loses(FakeSession):
        async def receive(self) -> Sequence[Received]:
            if len(self._taken) > 100 and (failure := next(failures, None)):
                raise failure
            return await super().receive()

    @asynccontextmanager
    async def open_session(*_: object) -> AsyncIterator[FakeSession]:
        yield Loses(queue, group=61)

    monkeypatch.setattr("worker.client.queue_collector.open_session", open_session)
    waited_for: list[str] = []
    client = cast(ServiceBusClient, None)  # only the session would use it
    with ResultFiles("b1", tmp_path / "out", None) as files:
        collector = QueueCollector(files, follow=False, report=lambda _: None)
        await take_all(client, "results", "b1", collector, waited_for.append)
    assert (files.published, len(files), queue) == (True, 307, [])
    answer = "queue 'results' to answer about batch b1"
    assert waited_for == [
        answer,
        f"{answer}, again after 0.5 s; the last try failed: no answer",
        f"{answer}, again after 1 s; the last try failed: the lock is lost",
    ]


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan")])
def test_a_timeout_is_a_number_of_seconds_that_ends(timeout: float) -> None:
    with pytest.raises(ValueError, match="above 0, and not infinite"):
        require_timeout(timeout)


async def stream(session: FakeSession, descriptor: int) -> ResultStream:
    with ResultStream("b1", descriptor) as files:
        await QueueCollector(files, follow=False, report=lambda _: None).take(session)
    return files


async def test_standard_output_takes_each_job_once_and_a_superseding_result_after_it(tmp_path: Path) -> None:
    lines = [result(f"{number}") for number in range(833)]
    sent = [manifest(834), result("a", status=0), *lines[:400], *lines[:400], result("a"), *lines[400:]]
    session = FakeSession(sent, group=250)
    with (tmp_path / "redirected").open("wb") as file:
        files = await stream(session, file.fileno())
    assert (files.published, len(files), files.failed, session.queue) == (True, 834, 0, [])
    assert read_ids(tmp_path / "redirected") == [
        "a",
        *[f"{number}" for number in range(400)],
        "a",
        *[f"{number}" for number in range(400, 833)],
    ]
    assert session.record
    assert session.record.out == "standard output"


async def test_what_a_closed_pipe_did_not_take_stays_in_the_queue() -> None:
    session = FakeSession([manifest(500), *[result(f"{number}") for number in range(500)]], group=97)
    reader, writer = os.pipe()
    os.close(reader)
    with pytest.raises(OutputGone, match="closed by the program that reads it"):
        await stream(session, writer)
    os.close(writer)
    assert len(session.queue) == 501


async def test_standard_output_takes_the_later_results_of_a_collected_batch_alone(tmp_path: Path) -> None:
    session = FakeSession([manifest(2), result("a", status=0), result("b")])
    await collect(session, tmp_path / "out")
    record = session.record
    session.queue.append(result("a", replay=1))
    with (tmp_path / "later").open("wb") as file:
        files = await stream(session, file.fileno())
    assert (read_ids(tmp_path / "later"), files.published, session.queue) == (["a"], True, [])
    assert session.record == record
    with pytest.raises(AlreadyCollected, match="Nothing is left"):
        await stream(session, 1)


@pytest.mark.parametrize(
    ("out", "errors"), [("-", "err"), ("/dev/stdout", "err"), ("out", "-"), ("out", "/dev/stdout")]
)
def test_standard_output_is_not_shared_with_a_file_for_errors(out: str, errors: str) -> None:
    with pytest.raises(UnusableOutput, match="without --errors"):
        output_of("b1", Path(out), Path(errors))


def test_a_standard_output_that_was_closed_is_refused_before_its_descriptor_is_anything_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(UnusableOutput, match="standard output is closed"):
        output_of("b1", Path("-"), None)


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file of this process grows beyond so many bytes: a full disk, as far as a test can have one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("room", [1, 20_011, 60_013])
async def test_a_full_disk_is_told_by_the_files_name_and_what_it_did_not_take_stays_in_the_queue(
    tmp_path: Path, room: int
) -> None:
    session = FakeSession([manifest(500), *[result(f"{number}") for number in range(500)]], group=97)
    told = r"/out\.partial cannot be written: File too large\. .*free disk space"
    with pytest.raises(UnwritableOutput, match=told), room_for(room):
        await collect(session, tmp_path / "out")
    written = (tmp_path / "out.partial").read_bytes()
    assert len(written) == room
    assert written.count(b"\n") + len(session.queue) >= 501  # what is settled is there
    files = await collect(session, tmp_path / "out")
    assert (files.published, session.queue) == (True, [])
    assert sorted(read_ids(tmp_path / "out")) == sorted(f"{number}" for number in range(500))


async def test_a_full_device_behind_standard_output_is_told_and_nothing_is_settled() -> None:
    session = FakeSession([manifest(500), *[result(f"{number}") for number in range(500)]], group=97)
    told = "standard output cannot be written: No space left on device"
    full = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(UnwritableOutput, match=told):
        await stream(session, full)
    os.close(full)
    assert len(session.queue) == 501


def test_a_folder_or_a_device_is_no_output_file(tmp_path: Path) -> None:
    for path in (tmp_path, Path(os.devnull)):
        with pytest.raises(UnusableOutput, match="not a regular file"):
            output_of("b1", path, None)


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    for out, errors in ((missing / "out", None), (tmp_path / "out", missing / "err")):
        with pytest.raises(UnusableOutput, match=f"there is no folder {missing}. Next: create it"):
            output_of("b1", out, errors)


async def test_collecting_again_what_is_collected_keeps_the_time_of_the_collection(tmp_path: Path) -> None:
    session = FakeSession([manifest(2), result("a"), result("b", status=400)])
    await collect(session, tmp_path / "out")
    assert session.record
    session.record = replace(session.record, collected_at=NOON)
    await collect(session, tmp_path / "out")
    assert session.record.collected_at == NOON
    session.queue.append(result("b", replay=1))
    await collect(session, tmp_path / "out")
    assert session.record.collected_at != NOON


async def test_a_whole_batch_leaves_a_record_before_its_manifest_is_completed(tmp_path: Path) -> None:
    class DiesBeforeTheManifest(FakeSession):
        async def complete(self, received: Sequence[Received]) -> None:
            if any(one.is_manifest for one in received):
                raise Killed
            await super().complete(received)

    session = DiesBeforeTheManifest([manifest(3), result("a"), result("b", status=400), result("c")])
    with pytest.raises(Killed):
        await collect(session, tmp_path / "out.jsonl", tmp_path / "err.jsonl")
    record = session.record
    assert record is not None
    assert (record.total, record.sha256, record.submitted_at) == (3, "aa", MORNING)
    assert (record.succeeded, record.failed, record.out) == (2, 1, "out.jsonl and err.jsonl")
    await collect(FakeSession(session.queue, record=record), tmp_path / "out.jsonl", tmp_path / "err.jsonl")
    assert session.queue == []


async def test_an_unfinished_batch_leaves_no_record(tmp_path: Path) -> None:
    session = FakeSession([manifest(2), result("a")])
    await collect(session, tmp_path / "out")
    assert session.record is None


async def test_a_second_collector_is_told_when_and_where_to_the_batch_was_collected(tmp_path: Path) -> None:
    session = FakeSession([manifest(1), result("a")])
    await collect(session, tmp_path / "out")
    with pytest.raises(AlreadyCollected, match=r"collected at .* into out: 1 result \(1 succeeded, 0 failed\)"):
        await collect(session, tmp_path / "other")
    assert names(tmp_path) == {"out"}


@pytest.mark.parametrize("errors", [None, "another"])
async def test_a_batch_whose_errors_are_in_a_file_that_is_not_named_is_not_taken_for_one_without_errors(
    tmp_path: Path, errors: str | None
) -> None:
    results = [result(f"{number}", status=400 if number % 83 == 5 else 200) for number in range(307)]
    session = FakeSession([manifest(307), *results])
    await collect(session, tmp_path / "out", tmp_path / "err")
    record = session.record
    with pytest.raises(AlreadyCollected, match=r"into out and err: 307 results \(303 succeeded, 4 failed\)"):
        await collect(session, tmp_path / "out", tmp_path / errors if errors else None)
    assert session.record == record
    assert names(tmp_path) == {"out", "err"}
    files = await collect(session, tmp_path / "out", tmp_path / "err")
    assert (len(files), files.failed, files.published) == (307, 4, True)


async def test_a_later_result_is_left_to_the_files_of_its_batch_and_the_record_follows(tmp_path: Path) -> None:
    session = FakeSession([manifest(2), result("a", status=0), result("b")])
    await collect(session, tmp_path / "out", tmp_path / "err")
    session.queue.append(result("a", replay=1))
    with pytest.raises(AlreadyCollected, match="1 later result"):
        await collect(session, tmp_path / "other")
    assert len(session.queue) == 1
    await collect(session, tmp_path / "out", tmp_path / "err")
    assert (read_ids(tmp_path / "out"), read_ids(tmp_path / "err"), session.queue) == (["b", "a"], [], [])
    assert session.record
    assert (session.record.succeeded, session.record.failed) == (2, 0)


async def test_a_batch_submitted_anew_after_it_was_collected_is_collected_anew(tmp_path: Path) -> None:
    session = FakeSession([manifest(1), result("a")])
    await collect(session, tmp_path / "out")
    session.queue += [manifest(1, submitted_at=EVENING), result("a")]
    files = await collect(session, tmp_path / "other")
    assert (files.published, session.queue, read_ids(tmp_path / "other")) == (True, [], ["a"])
    assert session.record
    assert session.record.submitted_at == EVENING


@pytest.mark.parametrize("remembered", [True, False])
async def test_a_whole_file_of_an_earlier_submission_does_not_pass_for_a_later_batch_of_the_same_id(
    tmp_path: Path, remembered: bool
) -> None:
    session = FakeSession([manifest(37), *[result(f"{number}") for number in range(37)]])
    await collect(session, tmp_path / "out")
    # the queue may have been made anew in between
    record = session.record if remembered else None
    later = FakeSession([manifest(103, submitted_at=EVENING), result("a")], record=record)
    with pytest.raises(
        UnusableOutput, match=r"out holds 37 results of an earlier batch b1, not of the batch of 103 jobs"
    ):
        await collect(later, tmp_path / "out")
    assert len(later.queue) == 2
    assert len(read_ids(tmp_path / "out")) == 37


def test_only_a_new_batch_or_one_that_is_still_to_be_collected_may_be_submitted() -> None:
    ours = make_manifest(5, submitted_at=EVENING)
    waiting = make_manifest(5)
    collected = make_record(5)
    assert require_submittable(ours, None, None) is None
    assert require_submittable(ours, waiting, None) == MORNING
    assert require_submittable(ours, make_manifest(5, submitted_at=NOON), collected) == NOON
    with pytest.raises(AlreadyCollected, match="another --batch"):
        require_submittable(ours, None, collected)
    with pytest.raises(AlreadyCollected):
        require_submittable(ours, waiting, collected)  # its collector died before it completed the manifest
    for other in (make_manifest(2), make_manifest(5, sha256="bb")):
        with pytest.raises(OtherBatch, match=rf"{MORNING}: {other.total} jobs"):
            require_submittable(ours, other, None)
    with pytest.raises(OtherBatch):
        require_submittable(ours, None, make_record(5, sha256="bb"))


@given(
    numbers=st.tuples(*[st.integers(0, 10**9)] * 3),
    texts=st.tuples(*[st.text(max_size=70)] * 3),
    out=st.text(max_size=600),
)
def test_a_record_is_small_and_reads_as_it_was_written(
    numbers: tuple[int, int, int], texts: tuple[str, str, str], out: str
) -> None:
    total, succeeded, failed = numbers
    sha256, submitted_at, collected_at = texts
    record = CollectionRecord(
        total=total,
        sha256=sha256,
        submitted_at=submitted_at,
        succeeded=succeeded,
        failed=failed,
        collected_at=collected_at,
        out=out,
    )
    raw = encode_record(record)
    assert decode_record(raw) == replace(record, out=out[:255])
    assert len(raw) < 6_000  # a quarter of a million of them fill a queue of 1 GB, at their very largest


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b"7", b'{"total": 1}', b'{"total": "x", "sha256": 1}'])
def test_another_programs_session_state_is_no_record(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r".*"):
        decode_record(raw)


async def test_an_older_replay_does_not_supersede(tmp_path: Path) -> None:
    queue = [manifest(1), result("a", replay=2), result("a", status=0, replay=1)]
    files = await collect(FakeSession(queue), tmp_path / "out", tmp_path / "err")
    assert (read_ids(tmp_path / "out"), files.failed, queue) == (["a"], 0, [])


@pytest.mark.parametrize("statuses", [(0, 200), (200, 0)], ids=["the error first", "the answer first"])
async def test_of_an_answer_and_an_error_of_one_job_the_answer_counts(
    tmp_path: Path, statuses: tuple[int, int]
) -> None:
    queue = [manifest(1), *[result("a", status=status) for status in statuses]]
    files = await collect(FakeSession(queue, group=1), tmp_path / "out", tmp_path / "err")
    await collect(FakeSession(queue), tmp_path / "out", tmp_path / "err")
    assert (read_ids(tmp_path / "out"), read_ids(tmp_path / "err")) == (["a"], [])
    assert (len(files), queue) == (1, [])


async def test_what_is_neither_result_nor_manifest_is_refused_and_does_not_stop_the_rest(
    tmp_path: Path,
) -> None:
    queue = [
        Received(is_manifest=True, body=b"no"),
        manifest(1),
        Received(is_manifest=False, body=b'{"worker": 1}'),
        result("a"),
    ]
    session = FakeSession(queue)
    await collect(session, tmp_path / "out")
    assert (len(session.refused), queue, read_ids(tmp_path / "out")) == (2, [], ["a"])


async def test_a_pretty_printed_result_becomes_one_line(tmp_path: Path) -> None:
    pretty = json.dumps(json.loads(make_result("a")), indent=1).replace("\n", "\r\n").encode()
    await collect(FakeSession([manifest(1), Received(is_manifest=False, body=pretty)]), tmp_path / "out")
    assert json.loads((tmp_path / "out").read_bytes()) == json.loads(make_result("a"))
    assert (tmp_path / "out").read_bytes().count(b"\n") == 1


async def test_progress_tells_the_total_once_the_manifest_has_come(tmp_path: Path) -> None:
    told: list[Progress] = []
    queue = [result("a"), manifest(2), result("b", status=500)]
    await collect(FakeSession(queue, group=1), tmp_path / "out", told=told)
    assert told == [
        Progress(done=1, total=None),
        Progress(done=1, total=2),
        Progress(done=2, total=2, failed=1),
    ]


async def test_a_torn_last_line_is_cut_off_and_collected_again(tmp_path: Path) -> None:
    (tmp_path / "out.partial").write_bytes(make_result("a") + b"\n" + make_result("b")[:20])
    await collect(FakeSession([manifest(2), result("b")]), tmp_path / "out")
    assert read_ids(tmp_path / "out") == ["a", "b"]


async def test_errors_collected_before_a_file_for_them_was_named_move_there(tmp_path: Path) -> None:
    queue = [manifest(3), result("a"), result("b", status=400)]
    await collect(FakeSession(queue), tmp_path / "out")
    queue.append(result("c"))
    await collect(FakeSession(queue), tmp_path / "out", tmp_path / "err")
    assert (read_ids(tmp_path / "out"), read_ids(tmp_path / "err")) == (["a", "c"], ["b"])


async def test_an_empty_file_of_that_name_is_not_taken_for_a_whole_batch(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    queue = [manifest(2), result("a", status=400)]
    await collect(FakeSession(queue), tmp_path / "out", tmp_path / "err")
    files = await collect(FakeSession(queue), tmp_path / "out", tmp_path / "err")
    assert not files.published


@pytest.mark.parametrize("name", ["out", "out.partial"])
@pytest.mark.parametrize(
    ("content", "told"),
    [
        (make_result("a", batch_id="other") + b"\n", "holds results of batch other, not of b1"),
        (b"dear diary\n", "line 1 is not a result of a worker. It was left as it is. Next: move it away"),
        (b'{"custom_id": "a"}\n', "line 1 is not a result of a worker. It was left as it is. Next: move it away"),
    ],
)
async def test_a_file_of_something_else_is_left_alone(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnusableOutput, match=told):
        await collect(FakeSession([manifest(1), result("a")]), tmp_path / "out")
    assert (tmp_path / name).read_bytes() == content


async def test_two_collections_into_one_file_are_refused(tmp_path: Path) -> None:
    with ResultFiles("b1", tmp_path / "out", None), pytest.raises(UnusableOutput, match="another collect"):
        await collect(FakeSession([]), tmp_path / "out")


def remove(path: Path) -> None:
    path.unlink()


def replace_by_another(path: Path) -> None:
    path.with_name("other").write_bytes(b"")
    path.with_name("other").replace(path)


@pytest.mark.parametrize("happens", [remove, replace_by_another])
@pytest.mark.parametrize("round_of_loss", [1, 3])
async def test_results_whose_file_is_gone_stay_in_the_queue(
    tmp_path: Path, happens: Callable[[Path], None], round_of_loss: int
) -> None:
    queue = [manifest(833), *[result(f"{number}") for number in range(833)]]
    completed = 0

    class SessionWithAnIncident(FakeSession):
        rounds = 0

        async def receive(self) -> Sequence[Received]:
            received = await super().receive()
            self.rounds += 1
            if self.rounds == round_of_loss:
                happens(tmp_path / "out.partial")
            return received

        async def complete(self, received: Sequence[Received]) -> None:
            nonlocal completed
            completed += len(received)

    with pytest.raises(OutputGone, match=r"out\.partial was removed or replaced"):
        await collect(SessionWithAnIncident(queue, group=97), tmp_path / "out")
    assert completed == max(0, 97 * (round_of_loss - 1) - 1)  # one of the first group is the manifest


async def test_a_repeated_result_is_not_settled_either_when_its_file_is_gone(tmp_path: Path) -> None:
    with ResultFiles("b1", tmp_path / "out", None) as files:
        files.add([decode_result(make_result("a"))])
        (tmp_path / "out.partial").unlink()
        with pytest.raises(OutputGone):
            files.add([decode_result(make_result("a"))])


async def test_a_later_result_is_not_settled_when_the_published_file_is_gone(tmp_path: Path) -> None:
    with ResultFiles("b1", tmp_path / "out", None) as files:
        files.add([decode_result(make_result("a"))])
        files.publish()
        (tmp_path / "out").unlink()
        with pytest.raises(OutputGone):
            files.add([decode_result(make_result("b"))])


@pytest.mark.parametrize("left_over", [b"", make_result("b")[:20]], ids=["empty", "torn"])
async def test_a_partial_file_with_nothing_in_it_does_not_hide_the_whole_one(
    tmp_path: Path, left_over: bytes
) -> None:
    await collect(FakeSession([manifest(2), result("a"), result("b", status=0)]), tmp_path / "out")
    (tmp_path / "out.partial").write_bytes(left_over)
    files = await collect(FakeSession([result("b", replay=1)]), tmp_path / "out")
    assert (files.published, len(files), files.failed) == (True, 2, 0)
    assert (read_ids(tmp_path / "out"), names(tmp_path)) == (["a", "b"], {"out"})


def test_answers_and_errors_need_two_files(tmp_path: Path) -> None:
    with pytest.raises(UnusableOutput, match="name two files"):
        ResultFiles("b1", tmp_path / "out", tmp_path / "x" / ".." / "out")


@pytest.mark.parametrize(
    ("out", "errors"),
    [("o", "o.partial"), ("o.partial", "o"), ("o", "o.partial.new"), ("o", "x/../o.partial")],
)
def test_the_errors_have_no_name_that_the_answers_have_while_they_grow(
    tmp_path: Path, out: str, errors: str
) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(UnusableOutput, match="while it is written"):
        ResultFiles("b1", tmp_path / out, tmp_path / errors)


@contextmanager
def disk_that_dies(steps: Steps, synced: dict[int, int]) -> Iterator[None]:
    """Every fsync and every rename may be the last. `synced`: bytes that are surely on the disk, by inode."""
    fsync, replace = os.fsync, Path.replace

    def fsync_or_die(descriptor: int) -> None:
        steps.take()
        fsync(descriptor)
        found = os.fstat(descriptor)
        synced[found.st_ino] = found.st_size

    def replace_or_die(path: Path, target: Path) -> Path:
        steps.take()
        return replace(path, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync_or_die)
        patch.setattr(Path, "replace", replace_or_die)
        yield


def tear(folder: Path, synced: dict[int, int], shares: Iterator[float]) -> None:
    """Of what was not synced, any beginning is left."""
    for path in sorted(folder.iterdir()):
        found = path.stat()
        kept = min(synced.get(found.st_ino, 0), found.st_size)
        os.truncate(path, kept + int((found.st_size - kept) * next(shares)))


jobs_with_results = st.lists(
    st.tuples(st.sampled_from("abcdefgh"), st.sampled_from([200, 400, 0]), st.integers(0, 2)),
    min_size=1,
    max_size=14,
)


def rank(replay: int, status: int) -> tuple[int, bool]:
    return replay, status == 200


@settings(max_examples=150, deadline=None)
@given(
    sent=jobs_with_results,
    manifest_at=st.integers(0, 14),
    group=st.integers(1, 5),
    kills=st.lists(st.integers(0, 30), max_size=6),
    torn=st.lists(st.sampled_from([0.0, 0.3, 0.9, 1.0]), min_size=1, max_size=5),
)
async def test_each_job_is_collected_exactly_once_however_often_the_collector_is_killed(
    tmp_path_factory: pytest.TempPathFactory,
    sent: list[tuple[str, int, int]],
    manifest_at: int,
    group: int,
    kills: list[int],
    torn: list[float],
) -> None:
    folder = tmp_path_factory.mktemp("collect")
    out, errors = folder / "out", folder / "err"
    expected: dict[str, tuple[int, int]] = {}
    for name, status, replay in sent:
        if name not in expected or rank(replay, status) > rank(*expected[name]):
            expected[name] = (replay, status)
    queue = [result(name, status=status, replay=replay) for name, status, replay in sent]
    queue.insert(manifest_at, manifest(len(expected)))
    synced: dict[int, int] = {}
    record: CollectionRecord | None = None
    shares = cycle(torn)
    for kill in kills:
        steps = Steps(kill)
        session = FakeSession(queue, group=group, before=steps, record=record)
        try:
            with disk_that_dies(steps, synced):
                await collect(session, out, errors)
        except Killed:
            tear(folder, synced, shares)
            # what supersedes and comes later takes two renames to get into files that were whole
            superseded = len(sent) > len(expected)
            assert superseded or not out.exists() or len(read_ids(out) + read_ids(errors)) == len(expected)
        record = session.record
        assert record or any(one.is_manifest for one in queue), "nothing says how many results there are"
    for _ in range(2):  # the second takes what came after the first was whole
        session = FakeSession(queue, group=group, record=record)
        await collect(session, out, errors)
        record = session.record
    assert queue == []
    assert record
    assert (record.total, record.failed) == (len(expected), len(read_ids(errors)))
    assert sorted(read_ids(out)) == sorted(n for n, (_, status) in expected.items() if status == 200)
    assert sorted(read_ids(errors)) == sorted(n for n, (_, status) in expected.items() if status != 200)
