"""One call's way through one deployment: read, meet the faults that are set, be charged, be answered.

What a call meets first decides: the operation, a broken connection, a status on demand, a throttle on demand, the
quota, and then what its own prompt asks for (`phrases.py`).
"""

import asyncio
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from embedded_azure.faults import NO_FAULT, AnswerFault, Faults
from embedded_azure.http_faults import hang
from embedded_azure.openai.answers import Made, Stamp
from embedded_azure.openai.counters import Counters
from embedded_azure.openai.deployments import ServedDeployment, retry_headers
from embedded_azure.openai.endings import body_fault_of, ending_of, throttled_ending
from embedded_azure.openai.faults import (
    DeploymentBodyFault,
    DeploymentConnectionFault,
    QuotaCutFault,
    StreamFault,
    ThrottleFault,
)
from embedded_azure.openai.operations import Operation, Request
from embedded_azure.openai.phrases import NO_WISH, GrantedFailures, Wish, read_wish
from embedded_azure.openai.quota import Estimate
from embedded_azure.openai.refusals import (
    Refused,
    failed,
    operation_not_supported,
)
from embedded_azure.openai.sending import Reply, Streamed, Whole
from embedded_azure.openai.streams import StreamOptions

_SHORTEST_PAUSE = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What all calls of an account have in common. `clock` dates the answers."""

    faults: Faults
    counters: Counters
    failures: GrantedFailures
    clock: Callable[[], float]


@dataclass(slots=True)
class _Bill:
    """What an admitted call was charged, and what it has cost."""

    estimate: Estimate
    prompt: int
    answer: int = 0


@dataclass(slots=True)
class Attempt:
    """A call to `served`. Serve it once, and settle it when its answer is out."""

    shared: Shared
    served: ServedDeployment
    operation: Operation
    body: dict[str, Any]
    api_version: str
    _bill: _Bill | None = field(default=None, init=False)

    async def serve(self) -> Reply:
        """Raises Refused."""
        spec, faults = self.served.spec, self.shared.faults
        if self.operation.kind != spec.kind:
            raise operation_not_supported(self.operation.name, spec.model)
        request = self.operation.read(self.body, spec.model)
        if (dropped := faults.take(DeploymentConnectionFault, deployment=spec.name)) is not None:
            return dropped
        await self._meet_fault()
        try:
            self._charge(request)
        except Refused as refused:
            if request.stream is None or not self.operation.throttles_in_stream:
                raise
            return self._throttle_in_stream(request, refused)
        return await self._answer(request, read_wish(request.text))

    def settle(self) -> None:
        """Tell the quota what the call has cost, where it was admitted."""
        if self._bill is not None:
            self.served.allowance.correct(self._bill.estimate, self._bill.prompt, self._bill.answer)

    async def _meet_fault(self) -> None:
        fault = self.shared.faults.take(AnswerFault, deployment=self.served.spec.name) or NO_FAULT
        if fault.latency:
            await asyncio.sleep(fault.latency)
        if fault.status == 429:
            pause = _pause_of(fault)
            raise self._throttle(pause, fault.headers())
        if fault.status is not None:
            raise failed(fault.status, fault.headers())

    def _charge(self, request: Request) -> None:
        served, faults, counters = self.served, self.shared.faults, self.shared.counters
        cut = faults.take(QuotaCutFault, deployment=served.spec.name)
        served.cut_quota(1.0 if cut is None else cut.factor)
        if (fault := faults.take(ThrottleFault, deployment=served.spec.name)) is not None:
            counters.throttled[fault.reason] += 1
            raise served.refuse_on_demand(fault, self.operation.throttled_as, self.api_version)
        estimate = served.estimate(request.prompt_tokens, request.max_tokens, request.choices)
        if exceeded := served.allowance.admit(estimate):
            counters.throttled[exceeded.kind] += 1
            raise served.refuse(exceeded, self.operation.throttled_as, self.api_version)
        self._bill = _Bill(estimate, request.prompt_tokens)

    def _throttle_in_stream(self, request: Request, refused: Refused) -> Streamed:
        """As Azure tells a stream of responses: status 200, the refusal's headers, and the refusal as an event."""
        document = request.answer(NO_WISH, self._stamp()).document
        pieces, ending = throttled_ending(self.operation, document)
        return Streamed(pieces=pieces, headers=refused.headers, ending=ending)

    async def _answer(self, request: Request, wish: Wish) -> Reply:
        if wish.hang:
            await hang()
        first, per_token = self.served.draw_times()
        await asyncio.sleep(first)
        wish = self._grant_failure(request, wish)
        if wish.filter_prompt:
            raise self.operation.filtered(is_bare=wish.is_bare)
        if request.stream is not None:
            return self._stream(request, request.stream, wish, per_token)
        made = self._make(request, wish)
        if per_token and made.tokens:
            await asyncio.sleep(per_token * made.tokens)
        fault = self.shared.faults.take(DeploymentBodyFault, deployment=self.served.spec.name)
        body = orjson.dumps(made.document)
        return Whole(body=body, headers=self._headers(), fault=fault or body_fault_of(wish, len(body)))

    def _stream(self, request: Request, options: StreamOptions, wish: Wish, per_token: float) -> Streamed:
        place = self.served.spec.name
        fault: StreamFault | DeploymentBodyFault | None = self.shared.faults.take(StreamFault, deployment=place)
        if isinstance(fault, StreamFault) and fault.how == "filter":
            wish, fault = replace(wish, filter_answer=True, filter_after=fault.after), None
        fault = fault or self.shared.faults.take(DeploymentBodyFault, deployment=place)
        document = self._make(request, wish).document
        assert self.operation.pieces is not None, "an operation that reads `stream` has pieces"
        pieces = self.operation.pieces(document, options, self.served.spec.tokens_per_event)
        kept, ending = ending_of(self.operation, document, pieces, fault or wish)
        return Streamed(pieces=kept, headers=self._headers(), seconds_per_token=per_token, ending=ending)

    def _make(self, request: Request, wish: Wish) -> Made:
        made = request.answer(wish, self._stamp())
        self.shared.counters.paid(request, made.tokens)
        if self._bill is not None:
            self._bill.answer = made.tokens
        return made

    def _throttle(self, pause: float, headers: Mapping[str, str]) -> Refused:
        return self.served.throttle("call", self.operation.throttled_as, self.api_version, pause, headers)

    def _stamp(self) -> Stamp:
        return Stamp(identifier=uuid.uuid4().hex, created=int(self.shared.clock()), model=self.served.spec.model)

    def _headers(self) -> dict[str, str]:
        return {"x-ms-deployment-name": self.served.spec.name, **self.served.allowance.headers()}

    def _grant_failure(self, request: Request, wish: Wish) -> Wish:
        """Fail as `wish` asks, and count it where it asks for so many times only. Returns what is left of it."""
        if wish.status is None and wish.breaks is None:
            return wish
        if not self.shared.failures.grants(request.digest, wish.times):
            return replace(wish, status=None, breaks=None)
        if wish.status == 429:
            raise self._throttle(_SHORTEST_PAUSE, retry_headers(_SHORTEST_PAUSE))
        if wish.status is not None:
            raise failed(wish.status)
        if wish.breaks == "fail" and request.stream is None:
            raise failed(500)
        return wish


def _pause_of(fault: AnswerFault) -> float:
    if fault.retry_after_ms is not None:
        return fault.retry_after_ms / 1_000
    return _SHORTEST_PAUSE if fault.retry_after is None else fault.retry_after
