"""Provisioned throughput: a bucket that leaks at the rate that was bought, and refuses while it is over-full.

As Azure's documentation has it: a request is admitted while the utilisation is at most 100 %, and raises it by what
it is estimated to cost; when it ends, the estimate is replaced by what it did cost; the whole goes down
continuously. So bursts get through, and a large request may fill the bucket far beyond the brim. Pure, as
`quota.py`. How many seconds of throughput fill the bucket Azure does not say; here it is a minute of them.
"""

from collections.abc import Callable

from embedded_azure.openai.quota import Estimate, Exceeded

_BUCKET_SECONDS = 60.0


class ProvisionedThroughput:
    """`units` of `tokens_per_unit` input tokens a minute each; a token of an answer costs `output_weight` of them.

    `clock` is in seconds and never goes back.
    """

    def __init__(
        self, *, units: int, tokens_per_unit: int, output_weight: float, clock: Callable[[], float]
    ) -> None:
        self._rate = units * tokens_per_unit / 60.0
        self._capacity = self._rate * _BUCKET_SECONDS
        self._output_weight = output_weight
        self._clock = clock
        self._level = 0.0
        self._leaked_at = clock()

    @property
    def utilisation(self) -> float:
        """1.0 is full; it may be more."""
        self._leak()
        return self._level / self._capacity

    def admit(self, estimate: Estimate) -> Exceeded | None:
        """Charge one request. None: admitted."""
        if self.utilisation > 1.0:
            return Exceeded(kind="provisioned", retry_after=(self._level - self._capacity) / self._rate)
        self._level += self._cost(estimate.prompt, estimate.answer)
        return None

    def correct(self, estimate: Estimate, prompt: int, answer: int) -> None:
        """Put what an admitted request has really cost in place of what it was estimated to."""
        self._leak()
        difference = self._cost(prompt, answer) - self._cost(estimate.prompt, estimate.answer)
        self._level = max(0.0, self._level + difference)

    def headers(self) -> dict[str, str]:
        """The utilisation in per cent, in place of the headers of a standard deployment."""
        return {"azure-openai-deployment-utilization": f"{100 * self.utilisation:.1f}%"}

    def _cost(self, prompt: int, answer: int) -> float:
        return prompt + self._output_weight * answer

    def _leak(self) -> None:
        now = self._clock()
        self._level = max(0.0, self._level - (now - self._leaked_at) * self._rate)
        self._leaked_at = now
