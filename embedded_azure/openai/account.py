"""An Azure OpenAI account: its deployments, who may call them, and what happens to a call.

Everything that a call changes is here (quota, faults, counters); nothing here knows HTTP beyond header names.
"""

import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from embedded_azure.config import DEFAULT_ACCOUNT, Config
from embedded_azure.entra.tokens import AccessTokens, Caller, TokenRefused, WrongTenant
from embedded_azure.faults import Faults
from embedded_azure.openai.bodies import parse_body, parse_model
from embedded_azure.openai.calls import Attempt, Shared
from embedded_azure.openai.counters import ABANDONED, Counters
from embedded_azure.openai.deployments import ServedDeployment, alter_headers
from embedded_azure.openai.faults import FAULTS, AccessFault, HeadersFault, NetworkFault
from embedded_azure.openai.operations import Operation
from embedded_azure.openai.phrases import GrantedFailures
from embedded_azure.openai.refusals import (
    Refused,
    access_not_spread,
    bad_token,
    firewall_closed,
    invalid_request,
    keys_disabled,
    lacks_data_action,
    no_credential,
    no_such_deployment,
    other_tenant,
    public_access_disabled,
)
from embedded_azure.openai.sending import Reply, Streamed, Whole

AUDIENCES = ("https://cognitiveservices.azure.com", "https://ai.azure.com")
"""Of the tokens that an account's own endpoint takes."""
PROJECT_AUDIENCES = ("https://ai.azure.com",)
"""Of those that the endpoint of a Foundry project takes."""
ROLE = "Cognitive Services OpenAI User"

_SPILLED = frozenset({400, 429, 500, 503})
"""What a provisioned deployment's answer must be for its spillover to be asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A call as it came. `deployment` None: the body's `model` names it. A header asks for `spillover_to`."""

    operation: Operation
    deployment: str | None
    api_version: str
    document: bytes
    spillover_to: str | None = None


class Account:
    """The data plane of one account with local authentication disabled."""

    def __init__(
        self,
        config: Config,
        tokens: AccessTokens,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        name: str = DEFAULT_ACCOUNT,
    ) -> None:
        """`clock` dates the answers, `monotonic` turns the quota's windows. Raises ValueError for a bad fault."""
        self.name = name
        self._tokens = tokens
        self._users = frozenset(
            identity.object_id
            for identity in config.identities
            if ROLE in config.roles_of(identity.object_id, f"openai/{name}")
        )
        self.deployments = {
            spec.name: ServedDeployment(spec, monotonic) for spec in config.deployments if spec.account == name
        }
        faults = config.faults.get("openai" if name == DEFAULT_ACCOUNT else f"openai/{name}")
        self.faults = Faults(*FAULTS, initial=faults, known={"deployment": self.deployments.keys()})
        self.counters = Counters()
        self._spreading = count()
        self._shared = Shared(faults=self.faults, counters=self.counters, failures=GrantedFailures(), clock=clock)

    def authenticate(self, headers: Mapping[str, str], audiences: Sequence[str] = AUDIENCES) -> Caller:
        """Whom the bearer token speaks for. Raises Refused: 401; 400 for another tenant's token; 403 for a closed
        network, and for a key, even beside a token."""
        if (closed := self.faults.take(NetworkFault)) is not None:
            raise firewall_closed() if closed.how == "firewall" else public_access_disabled()
        if "api-key" in headers:
            raise keys_disabled()
        scheme, _, token = headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise no_credential()
        return self._verify(token.strip(), audiences)

    def authorize(self, caller: Caller, action: str, description: str) -> None:
        """Raises Refused (401) unless `caller` holds the role "Cognitive Services OpenAI User"."""
        if (fault := self.faults.take(AccessFault)) is not None:
            raise self._refuse_access(fault, lacks_data_action(caller.object_id, action, description))
        if caller.object_id not in self._users:
            raise lacks_data_action(caller.object_id, action, description)

    @asynccontextmanager
    async def answer(self, question: Question) -> AsyncIterator[Reply]:
        """What to send for `question`; the call lasts until the context is left. Raises Refused."""
        async with self._counted(question.deployment) as call:
            body = parse_body(question.document)
            if question.deployment is None:
                call.deployment = _required_model(body)
            # a request is routed before it is validated: an unknown deployment is 404 whatever else is wrong
            attempt = Attempt(
                self._shared, self._find(call.deployment), question.operation, body, question.api_version
            )
            reply, attempt = await self._serve_or_spill(attempt, question.spillover_to)
            yield self._altered(reply, call.deployment)
            call.status = 200
            attempt.settle()

    @asynccontextmanager
    async def _counted(self, deployment: str | None) -> AsyncIterator["_Call"]:
        call = _Call(deployment or "")
        self.counters.begin()
        try:
            yield call
        except Refused as refused:
            call.status = refused.status
            refused.headers = self._alter(refused.headers, call.deployment)
            raise
        finally:
            known = call.deployment if call.deployment in self.deployments else "(unknown)"
            self.counters.end(known, call.status)

    def _refuse_access(self, fault: AccessFault, missing: Refused) -> Refused:
        match fault.how:
            case "role":
                return missing
            case "spreading":
                return access_not_spread() if next(self._spreading) % 2 else missing
            case "token":
                return bad_token("on demand", AUDIENCES[0])
            case "tenant":
                return other_tenant("00000000-0000-0000-0000-000000000000")

    def _verify(self, token: str, audiences: Sequence[str]) -> Caller:
        refusal: TokenRefused | None = None
        for audience in audiences:
            try:
                return self._tokens.verify(token, audience)
            except WrongTenant as error:
                raise other_tenant(error.tenant) from error
            except TokenRefused as error:
                refusal = refusal or error
        raise bad_token(refusal.reason if refusal else "", audiences[0]) from refusal

    def _find(self, name: str) -> ServedDeployment:
        try:
            return self.deployments[name]
        except KeyError:
            raise no_such_deployment() from None

    def _altered(self, reply: Reply, deployment: str) -> Reply:
        if isinstance(reply, Whole | Streamed):
            return replace(reply, headers=self._alter(reply.headers, deployment))
        return reply

    def _alter(self, headers: Mapping[str, str], deployment: str) -> Mapping[str, str]:
        fault = self.faults.take(HeadersFault, deployment=deployment)
        return headers if fault is None else alter_headers(headers, fault.headers)

    async def _serve_or_spill(self, attempt: Attempt, asked: str | None) -> tuple[Reply, Attempt]:
        """Answer from the deployment that was asked, or from the one it spills over to."""
        try:
            return await attempt.serve(), attempt
        except Refused as refused:
            target = self._spillover_of(attempt, asked)
            if target is None or refused.status not in _SPILLED:
                raise
            first = refused
        self.counters.spilled += 1
        spilled = replace(attempt, served=target)
        try:
            reply = await spilled.serve()
        except Refused as second:
            # the provisioned deployment's own answer is what the caller gets
            first.headers = {**first.headers, "x-ms-spillover-error": str(second.status)}
            raise first from second
        if isinstance(reply, Whole | Streamed):
            mark = {"x-ms-spillover-from-deployment": attempt.served.spec.name}
            reply = replace(reply, headers={**reply.headers, **mark})
        return reply, spilled

    def _spillover_of(self, attempt: Attempt, asked: str | None) -> ServedDeployment | None:
        """Responses never spill over, nor does anything to a deployment that is not there."""
        if not attempt.served.is_provisioned or attempt.operation.name == "responses":
            return None
        return self.deployments.get(asked or attempt.served.spec.spillover_to or "")


@dataclass(slots=True)
class _Call:
    deployment: str
    status: int = ABANDONED


def _required_model(body: dict[str, Any]) -> str:
    model = parse_model(body)
    if not model:
        raise invalid_request("you must provide a model parameter")
    return model
