"""Whatever crashes, stops, lapses or is sent again, no job is lost, or paid twice without a reason.

And the explorer sees each mistake that one could make in the order of the steps.
"""

import pytest

from tests.model.explorer import Explored, Violation, explore
from tests.model.protocol import JobProtocol, Protocol, World


def explored(protocol: Protocol) -> Explored[World] | Violation:
    job = JobProtocol(protocol)
    return explore(World(), job.steps, always=job.always, at_rest=job.at_rest)


def test_no_history_loses_a_job_or_pays_for_it_twice_without_a_fault_between_call_and_write() -> None:
    found = explored(Protocol())
    assert isinstance(found, Explored), found
    worlds = found.before
    assert any(world.results >= {(0, "error"), (1, "answer")} for world in worlds), "a retry's answer was reached"
    assert any(world.calls[0] > 1 for world in worlds), "so was a job that is paid twice"


@pytest.mark.parametrize(
    ("protocol", "what"),
    [
        (Protocol(work=("look", "call", "complete", "write")), "is lost"),
        (Protocol(sort=("complete", "send on")), "is lost"),
        (Protocol(sweep=("complete", "write error")), "is lost"),
        (Protocol(replay_has_its_own_id=False), "is lost"),
        (Protocol(work=("call", "write", "complete")), "was paid"),
        (Protocol(detects_duplicates=False), "was paid"),
        (Protocol(sorted_copy_says_look=False), "was paid"),
        (Protocol(resubmission_says_look=False), "was paid"),
        (Protocol(stop_tells_of_writes=False), "was paid"),
    ],
)
def test_a_protocol_with_a_mistake_is_found_out(protocol: Protocol, what: str) -> None:
    found = explored(protocol)
    assert isinstance(found, Violation)
    assert what in found.what, found
