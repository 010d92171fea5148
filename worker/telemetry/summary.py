"""One line a minute that says how the work goes: how much was done, how fast, and what it waits for.

What happens to a single job is debug (`logs.py`); without this line a busy worker would be silent.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

from worker.admission.admission import Admission
from worker.interfaces import CallEnded, Event, JobEnded
from worker.jobs.outcomes import Answered, Failed, Refused
from worker.waits import loop_time

EVERY = 60.0
"""Seconds between two lines."""


@dataclass(slots=True)
class _Counts:
    done: int = 0
    failed: int = 0
    without_result: int = 0
    throttled_calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Summary:
    """An `Observer` that counts. `write` gets the fields of each line."""

    def __init__(self, write: Callable[[dict[str, Any]], None]) -> None:
        self._write = write
        self._counts = _Counts()
        self._since = loop_time()

    def __call__(self, event: Event) -> None:
        counts = self._counts
        match event:
            case JobEnded(outcome=Answered()):
                counts.done += 1
            case JobEnded(outcome=Refused() | Failed()):
                counts.done += 1
                counts.failed += 1
            case JobEnded():
                counts.without_result += 1
            case CallEnded(status=status, usage=usage):
                counts.throttled_calls += status == "429"
                if usage is not None:
                    counts.prompt_tokens += usage.prompt
                    counts.completion_tokens += usage.completion

    async def run(self, admission: Admission, waits_for: Callable[[], Mapping[str, str]]) -> None:
        """A line each minute until it is stopping; what comes then is for a last `tell`.

        `waits_for` says what is waited for at this moment: reason by what it concerns.
        """
        while not await admission.stopping(loop_time() + EVERY):
            self.tell(admission.state.in_flight, waits_for())

    def tell(self, in_flight: int = 0, waits_for: Mapping[str, str] = MappingProxyType({})) -> None:
        """Write what has come since the last line. An idle worker has nothing to tell."""
        now = loop_time()
        counts, seconds = self._counts, now - self._since
        self._counts, self._since = _Counts(), now
        if counts == _Counts() and not in_flight and not waits_for:
            return
        self._write(
            {
                "seconds": round(seconds, 1),
                **asdict(counts),
                "jobs_per_second": round(counts.done / seconds, 1) if seconds else 0.0,
                "in_flight": in_flight,
                "waits_for": dict(waits_for),
            }
        )
