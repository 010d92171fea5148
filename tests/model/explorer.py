"""Every state that a protocol can come to, breadth first: what breaks comes with the shortest way to it."""

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

S = TypeVar("S", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Step(Generic[S]):
    """`is_fault`: nothing makes it happen, so nothing may wait for it."""

    name: str
    to: S
    is_fault: bool = False


@dataclass(frozen=True, slots=True)
class Violation:
    """The names of the steps that lead to it are the shortest there are."""

    what: str
    way: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join([self.what, *(f"  {number}. {step}" for number, step in enumerate(self.way, start=1))])


@dataclass(slots=True)
class Explored(Generic[S]):
    """`before`: of each state but the first one from which it was reached, and by which step."""

    before: dict[S, tuple[S, str] | None] = field(default_factory=dict)
    onward: dict[S, list[S]] = field(default_factory=dict)
    """Where a state leads to without a fault."""

    def way_to(self, state: S) -> tuple[str, ...]:
        names: list[str] = []
        while reached := self.before[state]:
            state, name = reached
            names.append(name)
        return tuple(reversed(names))


def explore(
    first: S,
    steps: Callable[[S], Iterable[Step[S]]],
    *,
    always: Callable[[S], str | None],
    at_rest: Callable[[S], str | None],
) -> Explored[S] | Violation:
    """The first state where `always` says what is wrong; or one at rest, where only faults can happen, of which
    `at_rest` says it; or one from which no state at rest can be reached without a fault. Else all states."""
    explored: Explored[S] = Explored({first: None})
    todo = deque([first])
    while todo:
        state = todo.popleft()
        following = list(steps(state))
        explored.onward[state] = [step.to for step in following if not step.is_fault]
        wrong = always(state) or (at_rest(state) if not explored.onward[state] else None)
        if wrong:
            return Violation(wrong, explored.way_to(state))
        for step in following:
            if step.to not in explored.before:
                explored.before[step.to] = (state, step.name)
                todo.append(step.to)
    resting = _that_come_to_rest(explored.onward)
    for state in explored.before:
        if state not in resting:
            return Violation("it never comes to rest", explored.way_to(state))
    return explored


def _that_come_to_rest(onward: Mapping[S, list[S]]) -> set[S]:
    backward: dict[S, list[S]] = {}
    for state, following in onward.items():
        for one in following:
            backward.setdefault(one, []).append(state)
    found = {state for state, following in onward.items() if not following}
    todo = deque(found)
    while todo:
        for state in backward.get(todo.popleft(), []):
            if state not in found:
                found.add(state)
                todo.append(state)
    return found
