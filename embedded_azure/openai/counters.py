"""What an account has been asked, and how it answered: the document of `/local/stats`."""

from collections import Counter
from typing import Any

from embedded_azure.openai.operations import Request

ABANDONED = 499
"""Stands in the counters for a call whose client gave up."""

_MOST_DIGESTS = 200_000


class Counters:
    """Bounded: prompts beyond the first 200,000 are counted together."""

    def __init__(self) -> None:
        self.by_deployment: Counter[tuple[str, int]] = Counter()
        self.throttled: Counter[str] = Counter()
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.in_flight = 0
        self.peak = 0
        self.streams = 0
        self.spilled = 0
        self.answers: Counter[str] = Counter()
        self.answers_not_listed = 0

    def begin(self) -> None:
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)

    def end(self, deployment: str, status: int) -> None:
        self.in_flight -= 1
        self.by_deployment[deployment, status] += 1

    def paid(self, request: Request, completion_tokens: int) -> None:
        """A 200 was made for `request`, whether or not the client still listens."""
        self.prompt_tokens += request.prompt_tokens
        self.completion_tokens += completion_tokens
        self.streams += request.stream is not None
        if request.digest in self.answers or len(self.answers) < _MOST_DIGESTS:
            self.answers[request.digest] += 1
        else:
            self.answers_not_listed += 1

    def document(self) -> dict[str, Any]:
        statuses: Counter[str] = Counter()
        deployments: dict[str, dict[str, int]] = {}
        for (deployment, status), count in self.by_deployment.items():
            statuses[str(status)] += count
            deployments.setdefault(deployment, {})[str(status)] = count
        return {
            "requests": statuses.total(),
            "by_status": dict(statuses),
            "by_deployment": deployments,
            "throttled": dict(self.throttled),
            "in_flight": self.in_flight,
            "concurrent_peak": self.peak,
            "streams": self.streams,
            "spilled": self.spilled,
            "tokens": {"prompt": self.prompt_tokens, "completion": self.completion_tokens},
            "answers": dict(self.answers),
            "answers_not_listed": self.answers_not_listed,
            "answered_more_than_once": sum(1 for count in self.answers.values() if count > 1),
        }
