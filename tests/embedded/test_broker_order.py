"""The broker's orders against plain models, and that neither they nor duplicate histories grow for ever."""

from math import inf

from hypothesis import given
from hypothesis import strategies as st

from embedded_azure.servicebus.broker.duplicates import DuplicateHistory
from embedded_azure.servicebus.broker.messages import Message
from embedded_azure.servicebus.broker.order import Agenda, Backlog, Ledger


def numbered(number: int) -> Message:
    return Message(sections=None, size=0, sequence_number=number)


@given(st.lists(st.integers(min_value=-20, max_value=20), max_size=400), st.integers(-1, 30))
def test_a_ledger_lists_what_was_added_and_not_removed_in_order(steps: list[int], start: int) -> None:
    ledger, model, last = Ledger(), dict[int, Message](), 0
    for step in steps:
        if step >= 0:
            last += 1
            model[last] = numbered(last)
            ledger.add(model[last])
        elif (doomed := last + step) in model:
            assert ledger.remove(doomed) is model.pop(doomed)
    assert list(ledger.starting_at(start)) == [m for number, m in sorted(model.items()) if number >= start]
    assert len(ledger) == len(model)


@given(st.lists(st.tuples(st.sampled_from(["add", "discard", "pop"]), st.integers(0, 9)), max_size=300))
def test_a_backlog_pops_the_lowest_number_that_is_in_it(steps: list[tuple[str, int]]) -> None:
    backlog, model = Backlog(), set[int]()
    for step, number in steps:
        if step == "add" and number not in model:
            backlog.add(numbered(number))
            model.add(number)
        elif step == "discard":
            backlog.discard(numbered(number))
            model.discard(number)
        elif step == "pop":
            popped = backlog.pop()
            assert (popped.sequence_number if popped else None) == min(model, default=None)
            model.discard(min(model, default=-1))
        assert len(backlog) == len(model)


@given(
    st.lists(
        st.tuples(st.sampled_from(["put", "drop", "strike"]), st.integers(0, 5), st.integers(0, 20)), max_size=300
    )
)
def test_an_agenda_strikes_the_latest_time_of_each_key_in_order(steps: list[tuple[str, int, int]]) -> None:
    struck: list[tuple[int, float]] = []
    agenda = Agenda[int](lambda key, at: struck.append((key, at)))
    model: dict[int, float] = {}
    for step, key, at in steps:
        if step == "put":
            agenda.put(key, at)
            model[key] = at
        elif step == "drop":
            agenda.drop(key)
            model.pop(key, None)
        elif model and agenda.next_at() < inf:
            agenda.strike()
            key, time = struck[-1]
            assert model.pop(key) == time <= min(model.values(), default=inf)
        assert agenda.next_at() == min(model.values(), default=inf)
        assert len(agenda) == len(model)


def test_compaction_loses_nothing_and_keeps_the_order() -> None:
    ledger, backlog = Ledger(), Backlog()
    struck: list[int] = []
    agenda = Agenda[int](lambda key, at: struck.append(key))
    messages = [numbered(number) for number in range(1_000)]
    for message in messages:
        ledger.add(message)
        backlog.add(message)
        agenda.put(message.sequence_number, float(-message.sequence_number))
    for message in messages[::2] + messages[1:900:2]:
        ledger.remove(message.sequence_number)
        backlog.discard(message)
        agenda.drop(message.sequence_number)
    kept = messages[901::2]
    assert len(ledger._numbers) + len(backlog._heap) + len(agenda._heap) < 3 * (2 * len(kept) + 65)
    assert list(ledger.starting_at(0)) == kept
    assert [backlog.pop() for _ in kept] == kept
    while agenda.next_at() < inf:
        agenda.strike()
    assert struck == [message.sequence_number for message in reversed(kept)]


def test_a_hundred_thousand_passing_entries_leave_nothing_behind() -> None:
    ledger, backlog, agenda = Ledger(), Backlog(), Agenda[int](lambda key, at: None)
    history = DuplicateHistory(10.0)
    for number in range(100_000):
        message = numbered(number)
        ledger.add(message)
        backlog.add(message)
        agenda.put(number, float(-number))  # falling times: stale entries sink to the bottom
        agenda.put(number, float(number))
        assert history.number_of(f"id{number}", float(number)) is None
        history.remember(f"id{number}", number, float(number))
        ledger.remove(number)
        backlog.discard(message)
        agenda.drop(number)
    assert len(ledger._numbers) + len(backlog._heap) + len(agenda._heap) < 300
    assert len(history) == 10
