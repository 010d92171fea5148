"""A real subscription as a target: what the environment names, and the addresses of what was made in it."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from aiohttp import ClientSession
from azure.identity.aio import AzureCliCredential

from tests.azure import blob, openai, servicebus
from tests.azure.probing import Probe, Provisioned, Target, Verdict, run
from tests.azure.redaction import Redactor
from tests.azure.resources import (
    ACCOUNTS,
    CLOSED_CONTAINER,
    CLOSED_QUEUE,
    CONTAINER,
    DEPLOYMENT,
    ISSUER,
    JOBS_QUEUE,
    QUEUE,
    REASONING_DEPLOYMENT,
    RESULTS_QUEUE,
    SMALL_DEPLOYMENT,
    SUBJECT,
    AzureCli,
    Model,
    Resources,
)

SPREADING = 900.0
"""Seconds that a role may take to reach all of Azure; it is said to be 5 to 10 minutes."""
_BETWEEN_LOOKS = 20.0
_LOCATION = "swedencentral"
REQUIRED = {
    "AZURE_SUBSCRIPTION_ID": "the subscription to make everything in",
    "AOAI_PROBE_MODEL": "a chat model with quota, as `az cognitiveservices model list` names it",
    "AOAI_PROBE_MODEL_VERSION": "its version",
}
OPTIONAL = {
    "AOAI_PROBE_LOCATION": f"a region, {_LOCATION} unless given",
    "AOAI_PROBE_SKU": "of the deployments, GlobalStandard unless given",
    "AOAI_PROBE_PRINCIPAL": "the object id of the service principal that is logged in, where no user is",
    "AOAI_PROBE_REASONING_MODEL": "a model that reasons; it may be the same",
    "AOAI_PROBE_REASONING_MODEL_VERSION": "its version",
    "AOAI_PROBE_PROVISIONED_ENDPOINT": "of an account with a provisioned deployment on which you have a role",
    "AOAI_PROBE_PROVISIONED_DEPLOYMENT": "that deployment, with spillover",
}


class NotNamed(Exception):
    """The environment does not name what is needed. The message is for the person at the terminal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the environment asks for."""

    subscription: str
    location: str
    model: Model
    reasoning: Model | None
    provisioned: Provisioned | None
    service_principal: str | None
    """Object id of who is logged in, where that is no user."""


def read_environment(environment: Mapping[str, str]) -> Wanted:
    """Raises NotNamed listing every variable that is missing."""
    missing = [f"  {name}: {what}" for name, what in REQUIRED.items() if not environment.get(name)]
    if missing:
        optional = [f"  {name}: {what}" for name, what in OPTIONAL.items()]
        raise NotNamed(
            "\n".join(
                [
                    "`make azure` needs a subscription. Log in with `az login`, and set:",
                    *missing,
                    "You may also set:",
                    *optional,
                    "`make azure TARGET=embedded` needs none: it runs against the embedded Azure.",
                ]
            )
        )
    sku = environment.get("AOAI_PROBE_SKU", "GlobalStandard")
    endpoint, deployment = (
        environment.get(f"AOAI_PROBE_PROVISIONED_{part}", "") for part in ("ENDPOINT", "DEPLOYMENT")
    )
    return Wanted(
        subscription=environment["AZURE_SUBSCRIPTION_ID"],
        location=environment.get("AOAI_PROBE_LOCATION", _LOCATION),
        model=_model(environment, "AOAI_PROBE_MODEL", sku),
        reasoning=_model(environment, "AOAI_PROBE_REASONING_MODEL", sku)
        if environment.get("AOAI_PROBE_REASONING_MODEL")
        else None,
        provisioned=Provisioned(endpoint=endpoint.rstrip("/"), deployment=deployment)
        if endpoint and deployment
        else None,
        service_principal=environment.get("AOAI_PROBE_PRINCIPAL"),
    )


def _model(environment: Mapping[str, str], name: str, sku: str) -> Model:
    return Model(name=environment[name], version=environment.get(f"{name}_VERSION", ""), sku=sku)


def resources_for(wanted: Wanted, az: AzureCli, run: str) -> Resources:
    """Asks az who is logged in, unless a service principal was named. Raises ResourcesError."""
    asks = ("ad", "signed-in-user", "show", "--query", "id", "-o", "tsv")
    return Resources(
        subscription=wanted.subscription,
        location=wanted.location,
        run=run,
        model=wanted.model,
        reasoning=wanted.reasoning,
        principal=wanted.service_principal or az.run(asks),
        principal_type="ServicePrincipal" if wanted.service_principal else "User",
    )


@asynccontextmanager
async def subscription_target(
    wanted: Wanted, made: Resources, az: AzureCli
) -> AsyncIterator[tuple[Target, Redactor]]:
    """Raises ResourcesError where az does not tell what is needed."""
    tenant = az.run(("account", "show", "--query", "tenantId", "-o", "tsv"), subscription=made.subscription)
    client_id = az.run(
        ("identity", "show", "-g", made.group, "-n", made.identity, "--query", "clientId", "-o", "tsv"),
        subscription=made.subscription,
    )
    async with AzureCliCredential(tenant_id=tenant) as credential, ClientSession() as session:
        target = _target(wanted, made, session, credential, tenant, client_id)
        projected = os.environ.get("AZURE_FEDERATED_TOKEN_FILE")
        if projected and (pod_client := os.environ.get("AZURE_CLIENT_ID")):
            target = replace(target, assertion_file=Path(projected), client_id=pod_client)
        yield target, Redactor(secrets(made, tenant, target.client_id, wanted.provisioned))


def _target(
    wanted: Wanted,
    made: Resources,
    session: ClientSession,
    credential: AzureCliCredential,
    tenant: str,
    client_id: str,
) -> Target:
    endpoints = {kind: f"https://{made.account(kind)}.openai.azure.com" for kind in ACCOUNTS}
    containers = f"https://{made.storage}.blob.core.windows.net"
    return Target(
        session=session,
        credential=credential,
        openai=endpoints["open"],
        closed_openai=endpoints["closed"],
        private_openai=endpoints["private"],
        deployment=DEPLOYMENT,
        small_deployment=SMALL_DEPLOYMENT,
        reasoning_deployment=None if made.reasoning is None else REASONING_DEPLOYMENT,
        provisioned=wanted.provisioned,
        namespace=f"{made.namespace}.servicebus.windows.net",
        servicebus_endpoint=None,
        queue=QUEUE,
        closed_queue=CLOSED_QUEUE,
        container=f"{containers}/{CONTAINER}",
        closed_container=f"{containers}/{CLOSED_CONTAINER}",
        token_url=f"https://login.microsoftonline.com/{tenant}/oauth2/v2.0/token",
        client_id=client_id,
        issuer=ISSUER,
        subject=SUBJECT,
        assertion_file=None,
        worker_environment={
            **{name: value for name, value in os.environ.items() if not name.startswith(("AOAI_", "OPENAI_"))},
            "AZURE_OPENAI_ENDPOINT": endpoints["open"],
            "AOAI_WORKER_CREDENTIAL": "cli",
            "AOAI_WORKER_SERVICEBUS_NAMESPACE": f"{made.namespace}.servicebus.windows.net",
            "AOAI_WORKER_JOBS_QUEUE": JOBS_QUEUE,
            "AOAI_WORKER_RESULTS_QUEUE": RESULTS_QUEUE,
            "AOAI_WORKER_BLOB_CONTAINER": f"{containers}/{CONTAINER}",
        },
    )


def secrets(made: Resources, tenant: str, client_id: str, provisioned: Provisioned | None) -> dict[str, str]:
    """What must not be in a recording, by name; what has the shape of a secret goes anyway."""
    named = {
        tenant: "tenant",
        client_id: "client",
        made.subscription: "subscription",
        made.principal: "principal",
        made.group: "group",
        made.storage: "storage",
        **{made.account(kind): "account" for kind in ACCOUNTS},
    }
    if provisioned is not None:
        named |= {provisioned.endpoint: "endpoint", provisioned.deployment: "deployment"}
    return named


async def roles_have_spread(target: Target, redact: Redactor) -> Sequence[str]:
    """Wait until the first call of each service succeeds, SPREADING seconds at most. What still does not, by name.

    There is nothing to wait on but another look: Azure tells nobody that a role has arrived everywhere.
    """
    first: dict[str, Probe] = {
        "Azure OpenAI": openai.a_call_is_answered,
        "Service Bus": servicebus.first_delivery,
        "Blob storage": blob.put_if_absent,
    }
    deadline = time.monotonic() + SPREADING
    while True:
        results = [await run(name, probe, target, redact) for name, probe in first.items()]
        refused = [each.name for each in results if each.observation.verdict is not Verdict.CONFIRMED]
        if not refused or time.monotonic() > deadline:
            return refused
        await asyncio.sleep(_BETWEEN_LOOKS)
