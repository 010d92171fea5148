"""What lies beside a batch's results, written and read again, and which results of retries are awaited."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.jobs.batch_records import (
    FIRST_RETRY,
    LAST_RETRY,
    BatchRecords,
    Cancellation,
    PodReport,
    Retry,
    decode_cancellation,
    decode_report,
    decode_retry,
    encode_cancellation,
    encode_report,
    encode_retry,
)

KEYS = st.frozensets(st.binary(min_size=16, max_size=16), max_size=20)
NUMBERS = st.integers(FIRST_RETRY, LAST_RETRY)
TEXTS = st.text(max_size=20)
THEN = "2026-11-29T04:00:00.000Z"


@given(retry=st.builds(Retry, number=NUMBERS, retried_at=st.just(THEN), keys=KEYS))
def test_a_retry_is_read_as_it_was_written(retry: Retry) -> None:
    assert decode_retry(encode_retry(retry)) == retry


@given(
    report=st.builds(
        PodReport,
        pod=TEXTS,
        at=st.floats(0, 4e9),
        running=st.dictionaries(TEXTS, st.integers(0, 4_096), max_size=5),
        waits=st.dictionaries(TEXTS, TEXTS, max_size=5),
    )
)
def test_a_report_is_read_as_it_was_written(report: PodReport) -> None:
    assert decode_report(encode_report(report)) == report


def test_a_cancellation_is_read_as_it_was_written() -> None:
    cancellation = Cancellation(replay=1_000, cancelled_at=THEN)
    assert decode_cancellation(encode_cancellation(cancellation)) == cancellation


@pytest.mark.parametrize("decode", [decode_cancellation, decode_report, decode_retry])
@pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b"null", b'{"number": 1, "retried_at": "", "keys": "no hex"}'])
def test_what_is_no_record_is_refused_as_a_value(decode: object, raw: bytes) -> None:
    assert callable(decode)
    with pytest.raises(ValueError, match=r"not (a|the)|unexpected|input|empty|Expecting"):
        decode(raw)


def test_of_a_job_that_was_sent_again_twice_the_latest_is_awaited_and_of_a_cancelled_retry_nothing() -> None:
    a, b, c = (b"a" * 16, b"b" * 16, b"c" * 16)
    first = Retry(number=1_000, retried_at=THEN, keys=frozenset({a, b}))
    second = Retry(number=1_001, retried_at=THEN, keys=frozenset({b, c}))
    records = BatchRecords(retries=(second, first))
    assert records.awaited() == {a: 1_000, b: 1_001, c: 1_001}
    assert records.latest_replay == 1_001
    for held, awaited in ((999, 3), (1_000, 2), (1_001, 0)):
        cancelled = BatchRecords(None, Cancellation(replay=held, cancelled_at=THEN), (first, second))
        assert len(cancelled.awaited()) == awaited
    assert BatchRecords().latest_replay == 999, "a cancellation takes in the replays of dead letters"
