"""Names of blobs, and which of a job's results counts."""

import hashlib
from collections.abc import Iterable
from itertools import permutations

from hypothesis import given
from hypothesis import strategies as st

from tests.support.blob_jobs import make_job
from worker.azure.blob.names import (
    ResultName,
    batch_folder,
    counting,
    job_prefix,
    manifest_name,
    parse_result_name,
    result_name,
)

BATCH_IDS = st.from_regex(r"[A-Za-z0-9._-]{1,48}", fullmatch=True)
REPLAYS = st.integers(0, 9_999)


def test_a_name_is_made_of_the_batch_and_a_hash_of_the_job() -> None:
    key = hashlib.sha256(b"b1/a").hexdigest()[:32]
    assert result_name("results", make_job(), failed=False) == f"results/b1/{key}.ok.json"
    assert result_name("x/y", make_job(replay=7), failed=True) == f"x/y/b1/{key}.r7.err.json"
    assert manifest_name("results", "b1") == "results/b1/manifest.json"


@given(batch_id=BATCH_IDS, job_id=st.text(min_size=1, max_size=128), replay=REPLAYS, failed=st.booleans())
def test_a_name_says_all_that_it_was_made_of(batch_id: str, job_id: str, replay: int, failed: bool) -> None:
    job = make_job(batch_id=batch_id, job_id=job_id, replay=replay)
    name = result_name("results", job, failed=failed)
    assert name.startswith(batch_folder("results", batch_id))
    assert name.startswith(job_prefix("results", job))
    key = hashlib.sha256(job_id.encode()).digest()[:16]
    assert parse_result_name(name) == ResultName(name=name, key=key, replay=replay, failed=failed)


@given(first=BATCH_IDS, second=BATCH_IDS)
def test_no_folder_is_inside_another_and_none_leads_elsewhere(first: str, second: str) -> None:
    one, other = batch_folder("results", first), batch_folder("results", second)
    assert one.startswith(other) == (first == second)
    assert one.count("/") == 2
    assert not one.endswith("./")


def test_what_is_not_a_result_has_no_name_of_one() -> None:
    key = "0" * 32
    for name in ("manifest.json", f"{key}.json", f"{key}.r0.ok.json", f"{key}.r01.ok.json", f"x{key}.ok.json", ""):
        assert parse_result_name(f"results/b1/{name}") is None


RESULTS = [(0, True), (0, False), (1, True), (2, False), (10, True)]


def parsed(names: Iterable[str]) -> list[ResultName]:
    return [result for name in names if (result := parse_result_name(name))]


def test_of_a_job_the_latest_replay_counts_and_of_it_the_answer_in_any_order() -> None:
    names = [result_name("p", make_job(replay=replay), failed=failed) for replay, failed in RESULTS]
    for count in range(1, len(names) + 1):
        expected = max(RESULTS[:count], key=lambda one: (one[0], not one[1]))
        for order in permutations(names[:count]):
            (found,) = counting(parsed(order))
            assert (found.replay, found.failed) == expected


def test_each_job_counts_once_and_what_is_no_result_does_not() -> None:
    names = [
        result_name("p", make_job(str(number)), failed=failed) for number in range(5) for failed in (True, False)
    ]
    found = list(counting(parsed(sorted([*names, "p/b1/manifest.json"]))))
    assert len(found) == 5
    assert not any(result.failed for result in found)
