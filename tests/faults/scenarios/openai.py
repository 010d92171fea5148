"""Azure OpenAI: every status, throttles, answers that break, come late or not at all, deployments that are down."""

import json
from dataclasses import replace

from embedded_azure.config import Config, Deployment
from tests.faults.scenario import MODEL, QUESTION, Scenario
from tests.faults.scenarios.disturbed import SLOTS, Sign, called, disturbed
from tests.faults.stage import Stage

STATUSES = range(400, 600)
SETUP_STATUSES = frozenset({401, 403, 404, 429})
"""What is about us and not about the job: it fails once here, and is answered then."""
BREAKS = 24
PRIMARY, SECONDARY = "primary", "secondary"
NEVER_ANSWERED = {"call_timeout": "3"}


def ask_for_status(number: int) -> str:
    question = QUESTION.format(number)
    if number % 2:
        return question
    status = STATUSES[number // 2]
    return f"{question} [[status:{status}{'x1' if status in SETUP_STATUSES else ''}]]"


async def just_run(stage: Stage) -> None:
    # with one attempt a quarter of the calls fail all the time: too few to take the deployment for down
    await stage.start(slots=str(SLOTS), attempts="1")


def two_deployments(config: Config) -> Config:
    return replace(
        config,
        deployments=tuple(
            Deployment(name=name, model=MODEL, latency=0.5, latency_sigma=0.0) for name in (PRIMARY, SECONDARY)
        ),
    )


def with_quota(config: Config) -> Config:
    """600 requests a minute, which Azure counts in windows of 10 s."""
    return replace(config, deployments=tuple(replace(one, requests_per_minute=600) for one in config.deployments))


SCENARIOS = (
    Scenario(
        name="openai every status",
        injected="a job for each status from 400 to 599, one that is answered beside each",
        inject=just_run,
        ask=ask_for_status,
        jobs=2 * len(STATUSES),
        statuses={
            f"q-{2 * number}": status for number, status in enumerate(STATUSES) if status not in SETUP_STATUSES
        },
        lock_duration=60.0,
        in_subset=False,
    ),
    disturbed(
        "openai 429 storm",
        "openai",
        {"kind": "answer", "status": 429, "retry_after": 1},
        seconds=5.0,
        sign=called(429),
    ),
    disturbed(
        "openai 429 storm without headers",
        "openai",
        {"kind": "answer", "status": 429},
        seconds=5.0,
        sign=called(429),
    ),
    disturbed(
        "openai 429 of the service's own",
        "openai",
        {"kind": "throttle", "reason": "capacity"},
        seconds=5.0,
        sign=called(429),
    ),
    disturbed(
        "openai never answers",
        "openai",
        {"kind": "connection", "how": "hang", "count": BREAKS},
        settings=NEVER_ANSWERED,
    ),
    disturbed("openai connections reset", "openai", {"kind": "connection", "how": "reset", "count": BREAKS}),
    disturbed("openai connections closed", "openai", {"kind": "connection", "how": "close", "count": BREAKS}),
    *[
        disturbed(
            f"openai answers {name}",
            "openai",
            {"kind": "body", "how": how, "count": BREAKS},
            settings=NEVER_ANSWERED,
            paid_twice=BREAKS,
        )
        for name, how in (
            ("hang half-way", "hang"),
            ("truncated", "cut"),
            ("malformed", "malformed"),
            ("by drops", "slow"),
        )
    ],
    *[
        disturbed(
            f"openai streams {name}",
            "openai",
            {"count": BREAKS, "after": 3, **fault},
            settings=NEVER_ANSWERED,
            paid_twice=BREAKS,
            extra={"stream": True},
        )
        for name, fault in (
            ("hang half-way", {"kind": "body", "how": "hang"}),
            ("cut half-way", {"kind": "body", "how": "cut"}),
            ("malformed", {"kind": "body", "how": "malformed"}),
            ("that fail half-way", {"kind": "stream", "how": "error"}),
            ("throttled half-way", {"kind": "stream", "how": "throttle"}),
        )
    ],
    disturbed(
        "openai answers of another type",
        "openai",
        {"kind": "headers", "headers": {"Content-Type": "text/html"}},
        seconds=3.0,
        injected="openai fault `headers`: the answers say text/html for 3 s",
    ),
    disturbed(
        "openai streams of another type",
        "openai",
        {"kind": "headers", "headers": {"Content-Type": "text/html"}, "count": BREAKS},
        injected=f"openai fault `headers`, {BREAKS} times: what should be a stream says text/html",
        paid_twice=BREAKS,
        extra={"stream": True},
    ),
    disturbed(
        "openai twenty times slower",
        "openai",
        {"kind": "answer", "latency": 2.0},
        latency=0.1,
        jobs=300,
        seconds=6.0,
        injected="openai fault `answer`: 2 s for answers that take 0.1 s, for 6 s",
    ),
    disturbed(
        "openai one of two deployments down",
        "openai",
        {"kind": "answer", "status": 503, "deployment": PRIMARY},
        seconds=5.0,
        sign=Sign(metric="aoai_worker_calls_total", at_least=10, labels={"deployment": SECONDARY, "status": "200"}),
        settings={"models": json.dumps({MODEL: [PRIMARY, SECONDARY]}), "attempts": "20"},
        configure=two_deployments,
    ),
    disturbed(
        "openai quota halved",
        "openai",
        {"kind": "quota_cut", "factor": 0.5},
        seconds=10.0,
        jobs=200,
        configure=with_quota,
        lock_duration=60.0,
    ),
    disturbed(
        "openai role removed",
        "openai",
        {"kind": "access", "how": "role"},
        seconds=5.0,
        sign=called(401),
        in_subset=True,
    ),
    disturbed(
        "openai role spreading", "openai", {"kind": "access", "how": "spreading"}, seconds=5.0, sign=called(401)
    ),
)
