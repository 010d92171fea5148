"""The Azure OpenAI account: its deployments, who may call them, and what happens to a call.

Everything that a call changes is here (quota, faults, counters); nothing here knows HTTP beyond header names.
"""

import asyncio
import math
import random
import time
import uuid
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import orjson

from worker.local.faults import Fault, Faults
from worker.local.openai_service.answers import Stamp
from worker.local.openai_service.bodies import parse_body, parse_model
from worker.local.openai_service.operations import Operation, Request
from worker.local.openai_service.phrases import Wish, read_wish
from worker.local.openai_service.quota import Quota
from worker.local.openai_service.refusals import (
    Refused,
    bad_token,
    failed,
    invalid_request,
    keys_disabled,
    lacks_data_action,
    no_credential,
    no_such_deployment,
    operation_not_supported,
    prompt_filtered,
    throttled,
)
from worker.local.tokens import AccessTokens, Caller, TokenRefused
from worker.local.world import Deployment, World

AUDIENCES = ("https://cognitiveservices.azure.com", "https://ai.azure.com")
ROLE = "Cognitive Services OpenAI User"

ABANDONED = 499
"""Stands in the counters for a call whose client gave up."""

# Azure's figure for a request without max_tokens is not published.
_ASSUMED_ANSWER_TOKENS = 16
_MOST_DIGESTS = 200_000
_MOST_FAILING_PROMPTS = 10_000
_SHORTEST_PAUSE = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A response that is not a refusal: 200 with `body`, which a fault may have broken."""

    body: bytes
    headers: Mapping[str, str]


class Counters:
    """What the account has been asked. Bounded: prompts beyond the first 200,000 are counted together."""

    def __init__(self) -> None:
        self.by_deployment: Counter[tuple[str, int]] = Counter()
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.in_flight = 0
        self.peak = 0
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
            "in_flight": self.in_flight,
            "concurrent_peak": self.peak,
            "tokens": {"prompt": self.prompt_tokens, "completion": self.completion_tokens},
            "answers": dict(self.answers),
            "answers_not_listed": self.answers_not_listed,
            "answered_more_than_once": sum(1 for count in self.answers.values() if count > 1),
        }


class _ServedDeployment:
    """A deployment with its quota and its own stream of latencies."""

    def __init__(self, spec: Deployment, clock: Callable[[], float]) -> None:
        self.spec = spec
        self.quota = Quota(spec.requests_per_minute, spec.tokens_per_minute, clock)
        self._random = random.Random(spec.seed)

    def draw_latency(self) -> float:
        """Seconds: log-normal around the median. The n-th call of two equal worlds takes equally long."""
        return self.spec.latency * math.exp(self.spec.latency_sigma * self._random.gauss(0.0, 1.0))


class Account:
    """The data plane of one account with local authentication disabled."""

    def __init__(
        self,
        world: World,
        tokens: AccessTokens,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` dates the answers, `monotonic` turns the quota's windows. Raises ValueError for a bad fault."""
        self._tokens = tokens
        self._clock = clock
        self._users = frozenset(
            identity.object_id
            for identity in world.identities
            if ROLE in world.roles_of(identity.object_id, "openai")
        )
        self._deployments = {spec.name: _ServedDeployment(spec, monotonic) for spec in world.deployments}
        self._failures: OrderedDict[str, int] = OrderedDict()
        self.faults = Faults(world.faults.get("openai"), self._deployments.keys())
        self.counters = Counters()

    def authenticate(self, headers: Mapping[str, str]) -> Caller:
        """Whom the bearer token speaks for. Raises Refused (401, or 403 for a key, even beside a token)."""
        if "api-key" in headers:
            raise keys_disabled()
        scheme, _, token = headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise no_credential()
        return self._verify(token.strip())

    def authorize(self, caller: Caller, operation: Operation) -> None:
        """Raises Refused (401) unless `caller` holds the role "Cognitive Services OpenAI User"."""
        if caller.object_id not in self._users:
            raise lacks_data_action(caller.object_id, operation.action, operation.description)

    async def perform(
        self, operation: Operation, deployment: str | None, api_version: str, document: bytes
    ) -> Reply:
        """Answer one request. `deployment` None: the body's `model` names it. Raises Refused."""
        async with self._counted(deployment) as call:
            body = parse_body(document)
            if deployment is None:
                call.deployment = _required_model(body)
            # a request is routed before it is validated: an unknown deployment is 404 whatever else is wrong
            served = self._find(call.deployment)
            if operation.kind != served.spec.kind:
                raise operation_not_supported(operation.name, served.spec.model)
            request = operation.read(body, served.spec.model)
            course = _Course(served, operation, api_version)
            await self._meet_fault(course)
            self._charge(course, request)
            reply = await self._answer(course, request, read_wish(request.text))
            call.status = 200
            return reply

    @asynccontextmanager
    async def _counted(self, deployment: str | None) -> AsyncIterator["_Call"]:
        call = _Call(deployment or "")
        self.counters.begin()
        try:
            yield call
        except Refused as refused:
            call.status = refused.status
            raise
        finally:
            known = call.deployment if call.deployment in self._deployments else "(unknown)"
            self.counters.end(known, call.status)

    def _verify(self, token: str) -> Caller:
        refusal: TokenRefused | None = None
        for audience in AUDIENCES:
            try:
                return self._tokens.verify(token, audience)
            except TokenRefused as error:
                refusal = refusal or error
        raise bad_token(refusal.reason if refusal else "") from refusal

    def _find(self, name: str) -> _ServedDeployment:
        try:
            return self._deployments[name]
        except KeyError:
            raise no_such_deployment() from None

    async def _meet_fault(self, course: "_Course") -> None:
        fault = self.faults.take(course.served.spec.name)
        if fault.latency:
            await asyncio.sleep(fault.latency)
        if fault.status == 429:
            raise course.throttled("call", _pause_of(fault), fault.headers())
        if fault.status is not None:
            raise failed(fault.status, fault.headers())

    def _charge(self, course: "_Course", request: Request) -> None:
        quota = course.served.quota
        estimate = request.prompt_tokens + request.choices * (request.max_tokens or _ASSUMED_ANSWER_TOKENS)
        if exceeded := quota.admit(estimate):
            headers = {**_retry_headers(exceeded.retry_after), **quota.headers()}
            raise course.throttled(exceeded.kind, exceeded.retry_after, headers)

    async def _answer(self, course: "_Course", request: Request, wish: Wish) -> Reply:
        if wish.hang:
            await asyncio.get_running_loop().create_future()
        served = course.served
        await asyncio.sleep(served.draw_latency())
        self._grant_failure(course, request, wish)
        if wish.filter_prompt:
            raise prompt_filtered()
        stamp = Stamp(identifier=uuid.uuid4().hex, created=int(self._clock()), model=served.spec.model)
        made = request.answer(wish, stamp)
        self.counters.paid(request, made.tokens)
        body = orjson.dumps(made.document)
        headers = {"x-ms-deployment-name": served.spec.name, **served.quota.headers()}
        return Reply(body=body[: len(body) // 2] if wish.malformed else body, headers=headers)

    def _grant_failure(self, course: "_Course", request: Request, wish: Wish) -> None:
        """Fail as `wish` asks, and count it where it asks for so many times only."""
        if wish.status is None:
            return
        if wish.times is not None and not self._fails_once_more(request.digest, wish.times):
            return
        if wish.status == 429:
            raise course.throttled("call", _SHORTEST_PAUSE, _retry_headers(_SHORTEST_PAUSE))
        raise failed(wish.status)

    def _fails_once_more(self, digest: str, times: int) -> bool:
        so_far = self._failures.get(digest, 0)
        if so_far >= times:
            return False
        self._failures[digest] = so_far + 1
        if len(self._failures) > _MOST_FAILING_PROMPTS:
            self._failures.popitem(last=False)
        return True


@dataclass(frozen=True, slots=True)
class _Course:
    """What a call has been found to ask for."""

    served: _ServedDeployment
    operation: Operation
    api_version: str

    def throttled(self, kind: str, retry_after: float, headers: Mapping[str, str]) -> Refused:
        return throttled(self.operation.throttled_as, kind, self.api_version, retry_after, headers)


@dataclass(slots=True)
class _Call:
    deployment: str
    status: int = ABANDONED


def _required_model(body: dict[str, Any]) -> str:
    model = parse_model(body)
    if not model:
        raise invalid_request("you must provide a model parameter")
    return model


def _pause_of(fault: Fault) -> float:
    if fault.retry_after_ms is not None:
        return fault.retry_after_ms / 1_000
    return _SHORTEST_PAUSE if fault.retry_after is None else fault.retry_after


def _retry_headers(seconds: float) -> dict[str, str]:
    return {"retry-after": str(math.ceil(seconds)), "retry-after-ms": str(math.ceil(seconds * 1_000))}
