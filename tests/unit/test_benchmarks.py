"""What the benchmarks make of what they have measured."""

import pytest

from benchmarks import quota_live
from benchmarks.cpu_profile import component_of, read_stacks
from benchmarks.jobs import MAX_TOKENS
from benchmarks.parts import describe as describe_parts
from benchmarks.processes import BenchmarkFailed
from benchmarks.quota_clients import bodies
from benchmarks.report import at_least, at_most, replace_block, table, wrapped
from benchmarks.sorting import Look, Worked, describe

DOCUMENT = "# Numbers\n\n<!-- pairs -->\n\nold\n\n<!-- /pairs -->\n\n<!-- locks -->\n<!-- /locks -->\n"


def test_a_result_replaces_the_block_of_its_name_and_nothing_else() -> None:
    replaced = replace_block(DOCUMENT, "pairs", "new")
    assert replaced == DOCUMENT.replace("old", "new")
    assert replace_block(replaced, "pairs", "new") == replaced


def test_an_empty_block_is_filled() -> None:
    filled = replace_block(DOCUMENT, "locks", "2,000\n")
    assert filled.endswith("<!-- locks -->\n\n2,000\n\n<!-- /locks -->\n")


def test_a_result_without_a_block_is_not_lost_silently() -> None:
    with pytest.raises(BenchmarkFailed, match="has no block <!-- memory -->"):
        replace_block(DOCUMENT, "memory", "flat")


def test_a_target_says_by_how_much_it_is_missed() -> None:
    assert at_most("CPU", 1.3, 1.3, "ms") == "- CPU: 1.3 ms; target at most 1.3: reached"
    assert at_most("CPU", 1.56, 1.3, "ms") == "- CPU: 1.56 ms; target at most 1.3: **missed**, by 20%"
    assert at_most("locks lost", 1, 0, "locks") == "- locks lost: 1 locks; target at most 0: **missed**"
    assert at_least("speed", 2.5, 2.5, "times") == "- speed: 2.5 times; target at least 2.5: reached"
    assert at_least("speed", 2.0, 2.5, "times") == "- speed: 2 times; target at least 2.5: **missed**, by 20%"


def test_what_sorting_costs_is_what_a_sorted_job_takes_above_one_sent_straight() -> None:
    looks = [
        Look(seconds=done / 2_000, done=done, cpu_ms=100 + 0.25 * done, rss_mib=100 + done / 1_000, locks_lost=0)
        for done in range(0, 10_001, 500)
    ]
    direct, through = Worked(cpu_ms_per_job=1.5, others=3), Worked(cpu_ms_per_job=1.75, others=2)
    told = describe(direct, through, looks, 701)
    assert "| only sorted | 0.25 |" in told
    assert "| 6,000 | 60% | 106.0 |" in told
    assert "- CPU of a sorted job above one sent straight: 0.25 ms; target at most 0.35: reached" in told
    assert "- sorted by one pod: 2,000 jobs/s; target at least 1,500: reached" in told
    assert "- RSS at 100 %, of that at 20 %: 1.078 times; target at most 1.05: **missed**, by 3%" in told


def test_the_share_of_a_quota_is_that_of_the_whole_calls_that_fit_into_its_minutes() -> None:
    first = quota_live.Look(admitted=1_000, refused=40, prompt_tokens=510.0)
    fit = 5 * 169  # calls of 710 tokens into 5 minutes of 120,000
    last = quota_live.Look(admitted=1_000 + fit, refused=40 + fit, prompt_tokens=510.0)
    assert quota_live.use_of(first, last, 5) == quota_live.Use(used=100.0, refused=50.0)


def test_a_client_that_calls_nobody_uses_nothing() -> None:
    look = quota_live.Look(admitted=7, refused=7, prompt_tokens=510.0)
    assert quota_live.use_of(look, look, 5) == quota_live.Use(used=0.0, refused=0.0)


def test_a_call_in_flight_has_been_charged() -> None:
    stats = {
        "by_status": {"200": 10, "429": 3},
        "in_flight": 2,
        "answers": {"a": 1, "b": 10},
        "tokens": {"prompt": 5_500, "completion": 2_200},
    }
    assert quota_live.look_at(stats) == quota_live.Look(admitted=12, refused=3, prompt_tokens=500.0)
    assert quota_live.look_at({**stats, "by_status": {}, "in_flight": 0, "answers": {}}).admitted == 0


def test_the_first_minute_begins_after_the_whole_warm_up() -> None:
    assert quota_live.first_minute(600.0, 59.0) == 660.0
    assert quota_live.first_minute(600.0, 60.0) == 720.0, "its first look would be before the warm-up is over"
    assert quota_live.first_minute(601.0, 90.0) == 720.0


def test_pods_ask_different_questions_of_one_length() -> None:
    asked = [next(bodies(pod))["messages"][0]["content"] for pod in range(3)]
    assert len(set(asked)) == 3
    assert len(set(map(len, asked))) == 1
    assert asked[0].startswith(f"[[tokens:{MAX_TOKENS}]]")


def test_each_client_is_told_with_its_version_and_the_worker_by_its_targets() -> None:
    assert quota_live.client_of("warning: old\nready openai 3.54.0\n") == "openai 3.54.0"
    assert quota_live.client_of('{"event":"started"}\n') == "aoai-worker"
    uses = {name: quota_live.Use(used=99.3, refused=12.5) for name in quota_live.SETUPS} | {
        quota_live.WORKER: quota_live.Use(used=98.04, refused=0.5)
    }
    told = quota_live.describe(uses, {name: f"{name} 1.0" for name in quota_live.SETUPS}, 5, others=30)
    assert "| worker 1.0 | `tokens_per_minute`, `fleet_size` 3 | 98.0% | 0.50% |" in told
    assert "| openai 1.0 | default retries | 99.3% | 12.50% |" in told
    assert "- quota used by the worker: 98.04 %; target at least 97: reached" in told
    assert "- 429s of the worker: 0.5 %; target at most 1: reached" in told


def test_a_table_is_markdown() -> None:
    assert table(("what", "ms"), [("settle", "0.15")]) == "| what | ms |\n|---|---|\n| settle | 0.15 |"


MAIN = "run (worker/app.py:42)"


@pytest.mark.parametrize(
    ("stack", "component"),
    [
        ((MAIN, "run (uvloop/__init__.py:92)", "do_handshake (ssl.py:979)"), "event loop with TLS (uvloop)"),
        ((MAIN, "process (worker/flow/processor.py:80)", "loads (json/__init__.py:3)"), "our own code"),
        ((MAIN, "tell (worker/app.py:212)"), "our own code"),
        ((MAIN, "tell (worker/app.py:212)", "inc (prometheus_client/metrics.py:9)"), "metrics and logs"),
        (
            (MAIN, "post (openai/_base_client.py:1)", "send (worker/azure/openai/transport.py:80)"),
            "the bridge from httpx2 to aiohttp",
        ),
        (
            (MAIN, "__call__ (tenacity/asyncio.py:9)", "set_result (concurrent/futures/_base.py:549)"),
            "tenacity",
        ),
        (
            ("_worker (concurrent/futures/thread.py:83)", "getaddrinfo (socket.py:962)"),
            "name look-ups in threads",
        ),
        (
            (
                MAIN,
                "_ship (worker/azure/servicebus/results_queue.py:140)",
                "send (azure/servicebus/aio/_sender.py:3)",
            ),
            "Service Bus: build and send results",
        ),
        (
            (
                MAIN,
                "_settle_on_link (worker/azure/servicebus/links.py:120)",
                "encode (azure/servicebus/_pyamqp/_encode.py:3)",
            ),
            "Service Bus: settle",
        ),
        (
            (MAIN, "keep_alive (azure/servicebus/aio/_client.py:3)"),
            "Service Bus: receive, keep-alive, other reads of links",
        ),
    ],
)
def test_a_sample_belongs_to_the_innermost_component(stack: tuple[str, ...], component: str) -> None:
    assert component_of(stack) == component


def test_threads_that_wait_are_not_counted() -> None:
    waiting = "run (threading.py:982);_worker (concurrent/futures/thread.py:81) 76"
    assert read_stacks([waiting, f"{MAIN};a (b c.py:1) 3", f"{MAIN};a (b c.py:1) 2"]) == {(MAIN, "a (b c.py:1)"): 5}


def test_what_is_written_into_the_document_is_wrapped_but_for_its_tables() -> None:
    words = "so many words that no line takes them all, " * 5
    row = f"| {words} |"
    text = wrapped(f"{words}\n\n- {words}\n{row}")
    prose = [line for line in text.splitlines() if line != row]
    assert row in text.splitlines()
    assert max(map(len, prose)) <= 100
    assert " ".join(text.split()) == " ".join(f"{words} - {words} {row}".split())


def test_a_side_costs_what_its_run_takes_above_the_flow_between_fakes() -> None:
    runs = {"none": 0.3, "model": 1.0, "http": 0.5, "source": 0.7, "sink": 0.5, "all": 1.5}
    told = describe_parts({(name, 64): cpu for name, cpu in runs.items()}, 3)
    rows = [row for row in told.splitlines() if row.startswith("| ")]
    costs = [float(row.split(" | ")[1].strip(" |")) for row in rows[1:]]
    assert costs == [0.3, 0.7, 0.5, 0.4, 0.2, 1.6, 1.5]
