"""No batch is larger on the wire than the queue takes, whatever is in it. The SDK's own encoder is the oracle."""

import tracemalloc
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from azure.servicebus import ServiceBusMessage, ServiceBusMessageBatch
from azure.servicebus._pyamqp._encode import encode_payload
from azure.servicebus._pyamqp.message import BatchMessage
from azure.servicebus.amqp import AmqpAnnotatedMessage
from hypothesis import example, given, settings
from hypothesis import strategies as st

from worker.azure.servicebus.packing import MOST_MESSAGES, Packed, largest_body, pack
from worker.client.batch_files import FileJob
from worker.client.submission import Stamp, job_message
from worker.jobs.job import MAX_ID_LENGTH

Message = ServiceBusMessage | AmqpAnnotatedMessage
STANDARD = 262_144
PREMIUM = 1_048_576


class Sender:
    """Makes batches as the SDK's sender to a queue of that limit does."""

    def __init__(self, limit: int) -> None:
        self._limit = limit

    async def create_message_batch(self, max_size_in_bytes: int | None = None) -> ServiceBusMessageBatch:
        assert max_size_in_bytes is None or max_size_in_bytes <= self._limit
        return ServiceBusMessageBatch(max_size_in_bytes=max_size_in_bytes or self._limit)


def size_on_the_wire(batch: ServiceBusMessageBatch) -> int:
    return len(encode_payload(bytearray(), BatchMessage(*batch._message)))


async def each(messages: Iterable[Message]) -> AsyncIterator[Message]:
    for message in messages:
        yield message


async def pack_all(messages: Sequence[Message], limit: int) -> tuple[list[Packed[Message]], list[Message]]:
    refused: list[Message] = []
    packed = pack(Sender(limit), each(messages), lambda one: one, lambda one, _: refused.append(one))
    return [one async for one in packed], refused


def make_job(number: int, size: int, *, custom_id: int, batch_id: int, fields: bool = True) -> AmqpAnnotatedMessage:
    """A job with ids of these lengths; with `fields`, everything that a job's message can have."""
    stamp = Stamp(
        batch_id="b" * batch_id,
        time_to_live=timedelta(days=14) if fields else None,
        deadline=datetime(2030, 1, 1, tzinfo=UTC) if fields else None,
    )
    return job_message(FileJob(f"{number}-".ljust(custom_id, "c"), "m", b"x" * size), None, stamp)


def assert_packed(messages: Sequence[Message], packed: Sequence[Packed[Message]], limit: int) -> None:
    assert [message for one in packed for message in one.entries] == list(messages)
    for one in packed:
        assert 0 < len(one.batch) == len(one.entries) <= MOST_MESSAGES
        assert size_on_the_wire(one.batch) <= limit


LINES = st.tuples(st.one_of(st.integers(0, 1_500), st.integers(0, 90_000)), st.integers(1, 100))


@settings(max_examples=60, deadline=None)
@given(
    limit=st.sampled_from([STANDARD, PREMIUM, 2_000]),
    lines=st.lists(LINES, min_size=1, max_size=30),
    batch_id=st.integers(1, 48),
    fields=st.booleans(),
    repeated=st.integers(1, 8),
)
@example(limit=STANDARD, lines=[(970, 8)], batch_id=8, fields=False, repeated=900)
async def test_no_batch_exceeds_the_limit_as_it_is_encoded(
    limit: int, lines: list[tuple[int, int]], batch_id: int, fields: bool, repeated: int
) -> None:
    lines = lines * repeated
    messages: list[Message] = [
        make_job(number, size, custom_id=custom_id, batch_id=batch_id, fields=fields)
        for number, (size, custom_id) in enumerate(lines)
    ]
    packed, refused = await pack_all(messages, limit)
    assert_packed([message for message in messages if message not in refused], packed, limit)
    largest = await largest_body(Sender(limit))
    assert all(len(b"".join(message.body)) > largest for message in refused)


@pytest.mark.parametrize("limit", [STANDARD, PREMIUM])
@pytest.mark.parametrize("batch_id", [1, 8, 27, 48])
async def test_the_largest_line_fits_with_any_ids_and_one_more_byte_is_still_within_the_limit(
    limit: int, batch_id: int
) -> None:
    largest = await largest_body(Sender(limit))
    for custom_id in (1, 7, 8, 63, 64, MAX_ID_LENGTH - batch_id - 1):
        message = make_job(0, largest, custom_id=custom_id, batch_id=batch_id)
        packed, refused = await pack_all([message], limit)
        assert not refused
        assert_packed([message], packed, limit)


@pytest.mark.parametrize(("limit", "custom_id"), [(STANDARD, 1), (STANDARD, 36), (PREMIUM, 64), (PREMIUM, 79)])
async def test_a_batch_that_is_filled_to_the_last_byte_is_within_the_limit(limit: int, custom_id: int) -> None:
    """Lines of a few bytes more each time, so that one of these batches is full to the brim."""
    for more in range(5):
        half = limit // 2 - 600
        sizes = [half - 40 * custom_id // 10, half - 90 * more - 7, *range(3, 400, 3)] * 3
        messages: list[Message] = [
            make_job(number, size, custom_id=custom_id, batch_id=48, fields=False)
            for number, size in enumerate(sizes)
        ]
        packed, _ = await pack_all(messages, limit)
        assert len(packed) >= 3
        assert_packed(messages, packed, limit)


async def test_a_file_of_200_mb_is_packed_in_order() -> None:
    sizes = [1 + (number * 7_919) % 99_991 for number in range(4_200)]
    assert sum(sizes) > 200_000_000

    async def read() -> AsyncIterator[AmqpAnnotatedMessage]:
        for number, size in enumerate(sizes):
            yield make_job(number, size, custom_id=1 + number % 79, batch_id=1 + number % 48)

    seen = 0
    async for one in pack(Sender(STANDARD), read(), lambda message: message, _never):
        assert size_on_the_wire(one.batch) <= STANDARD
        for message in one.entries:
            assert message.properties
            assert str(message.properties.message_id).partition("/")[2].startswith(f"{seen}-"[: 1 + seen % 79])
            seen += 1
    assert seen == len(sizes)


def _never(message: AmqpAnnotatedMessage, allowed: int) -> None:
    raise AssertionError(f"{message} is refused, {allowed:,} bytes are allowed")


async def test_batches_are_full_before_the_next_is_begun() -> None:
    messages = [make_job(number, 900 + number % 317, custom_id=12, batch_id=10) for number in range(5_000)]
    packed, _ = await pack_all(messages, STANDARD)
    assert_packed(messages, packed, STANDARD)
    assert all(size_on_the_wire(one.batch) > STANDARD - 512 - 2_000 for one in packed[:-1])


async def test_a_batch_has_no_more_messages_than_the_service_takes() -> None:
    messages: list[Message] = [ServiceBusMessage(b"", message_id=str(number)) for number in range(10_001)]
    packed, _ = await pack_all(messages, PREMIUM)
    assert [len(one.entries) for one in packed] == [4_500, 4_500, 1_001]
    assert_packed(messages, packed, PREMIUM)


async def test_what_fits_no_batch_is_refused_alone_and_the_order_of_the_others_is_kept() -> None:
    messages = [make_job(number, size, custom_id=4, batch_id=4) for number, size in enumerate([9, 300_000, 10, 11])]
    packed, refused = await pack_all(messages, STANDARD)
    assert refused == [messages[1]]
    assert [one.entries for one in packed] == [[messages[0]], messages[2:]]


async def test_a_body_that_alone_is_too_large_is_refused_without_being_encoded() -> None:
    """A result of 60 MB would be there three times."""
    messages: list[Message] = [
        make_job(number, size, custom_id=9, batch_id=9) for number, size in enumerate((1_000, 7_000_001, 3))
    ]
    tracemalloc.start()
    try:
        packed, refused = await pack_all(messages, STANDARD)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert refused == [messages[1]]
    assert_packed([messages[0], messages[2]], packed, STANDARD)
    assert peak < 1_000_000


async def test_nothing_is_packed_into_nothing() -> None:
    assert await pack_all([], STANDARD) == ([], [])


async def test_results_with_sessions_and_the_longest_ids_fit_too() -> None:
    messages: list[Message] = [
        ServiceBusMessage(
            b"x" * (1_500 + number % 701),
            message_id=f"{number:-<128}",
            session_id="s" * 128,
            correlation_id="s" * 48,
            content_type="application/json",
        )
        for number in range(900)
    ]
    packed, _ = await pack_all(messages, STANDARD)
    assert len(packed) >= 6
    assert_packed(messages, packed, STANDARD)


def test_the_message_of_a_claim_tells_the_model_and_a_batch_sent_again_asks_for_its_results() -> None:
    job = FileJob("j", "gpt-5.4", b"{}")
    stamp = Stamp(batch_id="b", time_to_live=None, deadline=None, check_result=True)
    assert job_message(job, b"claim", stamp).application_properties == {"check-result": True, "model": "gpt-5.4"}
    assert job_message(job, None, replace(stamp, check_result=False)).application_properties is None
