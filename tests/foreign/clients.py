"""Clients for other languages, and of plain AMQP 1.0: one embedded Azure, one process that runs the cases.

The process writes one JSON line for each case; this module starts it, bounds it and reads the lines.
"""

import asyncio
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from embedded_azure.config import Config, QueueSpec, RoleAssignment, SharedAccessRule, default_config
from embedded_azure.entra.tokens import TokenIssuer
from embedded_azure.servicebus.access import AUDIENCE
from embedded_azure.state import StateDirectory
from tests.foreign.report import Result
from tests.support.processes import Azure, azure

JAVASCRIPT: Final = Path(__file__).parent / "javascript"
PROTON: Final = Path(__file__).parents[2] / ".venv-foreign" / "bin" / "python"
PROTON_CASES: Final = Path(__file__).with_name("proton_cases.py")
MODULES: Final = ("identity", "openai", "storage_blob", "service_bus", "service_bus_administration", "rhea")
"""The modules of the cases for JavaScript."""
_KEY: Final = SharedAccessRule(name="RootManageSharedAccessKey", key="Zm9yZWlnbi1jbGllbnRzLW9mLXNlcnZpY2UtYnVz")
_PLAIN_QUEUES: Final = tuple(f"amqp-{number}" for number in range(1, 21))
"""One for each case of a client that cannot make a queue."""
_LONGEST_RUN: Final = 240.0
"""Seconds for all the cases of one process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What a process says of one case. `client` is the name of the package."""

    client: str
    version: str
    case: str
    outcome: str
    reason: str
    seconds: float

    def result(self) -> Result:
        return Result(
            file=f"{self.client} {self.version}",
            name=self.case,
            outcome=self.outcome,
            reason=self.reason,
            seconds=self.seconds,
        )


def clients_config() -> Config:
    """The demo's Azure with keys, in which the worker's identity may do everything."""
    config = default_config()
    owner = config.identity("worker").object_id
    roles = (
        RoleAssignment(object_id=owner, role="Azure Service Bus Data Owner", scope="servicebus"),
        RoleAssignment(object_id=owner, role="Storage Blob Data Contributor", scope="blob"),
    )
    return replace(
        config,
        role_assignments=(*config.role_assignments, *roles),
        shared_access_rules=(_KEY,),
        queues=(*config.queues, *(QueueSpec(name=name) for name in _PLAIN_QUEUES)),
    )


def node() -> str | None:
    """Node.js, if this machine has it."""
    return shutil.which("node")


def environment(running: Azure) -> dict[str, str]:
    """What a pod gets, and the addresses that it does not."""
    pod = running.environment("worker")
    container = pod["AOAI_WORKER_BLOB_CONTAINER"]
    return {
        **pod,
        "NODE_EXTRA_CA_CERTS": pod["AOAI_WORKER_CA_FILE"],
        "SERVICE_BUS_ADMINISTRATION": running.servicebus.removeprefix("https://"),
        "BLOB_ACCOUNT": container.rpartition("/")[0],
        "DEPLOYMENT": running.config.deployments[0].name,
        "KEY_NAME": _KEY.name,
        "KEY": _KEY.key,
        "PLAIN_QUEUES": " ".join(_PLAIN_QUEUES),
        "TOKEN": _token(running),
    }


def _token(running: Azure) -> str:
    """Of the worker's identity, for Service Bus."""
    config = running.config
    worker = config.identity("worker")
    issuer = TokenIssuer(StateDirectory(running.state).entra_private_key.read_bytes(), config.tenant_id, 3_600.0)
    return issuer.issue(audience=AUDIENCE, client_id=worker.client_id, object_id=worker.object_id)


async def run_javascript(folder: Path, modules: Sequence[str] = MODULES) -> list[Case]:
    """The cases of these modules against an embedded Azure with its state in `folder`. Raises RuntimeError."""
    found = node()
    if found is None:
        raise RuntimeError("Node.js 20 or newer is missing on this machine. Next: install it, and run again.")
    if not (JAVASCRIPT / "node_modules" / ".installed").is_file():
        raise RuntimeError(f"the packages of {JAVASCRIPT} are not installed. Next: run scripts/azurite")
    async with azure(folder, clients_config()) as running:
        return await _cases([found, str(JAVASCRIPT / "run.mjs"), *modules], environment(running))


async def run_proton(folder: Path) -> list[Case]:
    """The cases of Apache Qpid Proton against an embedded Azure with its state in `folder`. Raises RuntimeError."""
    if not PROTON.is_file():
        raise RuntimeError(f"{PROTON} is missing. Next: run scripts/tool-environment foreign")
    async with azure(folder, clients_config()) as running:
        return await _cases([str(PROTON), "-P", str(PROTON_CASES)], environment(running))


async def _cases(command: Sequence[str], variables: Mapping[str, str]) -> list[Case]:
    child = await asyncio.create_subprocess_exec(*command, env=variables, stdout=asyncio.subprocess.PIPE)
    try:
        async with asyncio.timeout(_LONGEST_RUN):
            said, _ = await child.communicate()
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    cases = [Case(**json.loads(line)) for line in said.splitlines()]
    if child.returncode or not cases:
        raise RuntimeError(f"{command[0]} ended with {child.returncode} after {len(cases)} cases; see above")
    return cases
