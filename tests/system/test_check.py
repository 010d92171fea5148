"""`aoai-worker check` as a process with a pod's environment: what is wrong is named, with what fixes it."""

import json
import shlex
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from azure.core.credentials_async import AsyncTokenCredential
from azure.servicebus.aio.management import ServiceBusAdministrationClient

from embedded_azure.config import Config, Identity, RoleAssignment
from tests.support.processes import MODELS, Azure, azure, config_for_tests, process
from worker.environment import load
from worker.operations.check.checks import examine
from worker.operations.check.findings import Finding, State
from worker.roles import (
    BLOB_DATA_CONTRIBUTOR,
    OPENAI_USER,
    SERVICE_BUS_DATA_RECEIVER,
    SERVICE_BUS_DATA_SENDER,
    Role,
)
from worker.settings import ConnectionSettings, WorkerSettings

pytestmark = pytest.mark.asyncio(loop_scope="module")

GRANTS = (
    (SERVICE_BUS_DATA_RECEIVER, "servicebus/jobs"),
    (SERVICE_BUS_DATA_SENDER, "servicebus/results"),
    (OPENAI_USER, "openai"),
    (BLOB_DATA_CONTRIBUTOR, "blob/batches"),
)
"""What a worker needs, for one sink or the other; each of them lacks to an identity of its own."""
QUEUE_SINK = {"AOAI_WORKER_SINK": "queue"}


def identity_without(number: int, *, federated: bool = True) -> Identity:
    return Identity(
        name=f"lacks-{number}",
        client_id=f"6b0f6c1e-0000-4000-8000-00000000001{number}",
        object_id=f"0d0d0d0d-0000-4000-8000-00000000001{number}",
        subject=f"system:serviceaccount:default:lacks-{number}",
        federated=federated,
    )


def config_of_lacks() -> Config:
    config = config_for_tests()
    lacking = [identity_without(number) for number in range(len(GRANTS))]
    assignments: list[Any] = [
        RoleAssignment(object_id=identity.object_id, role=role.name, scope=scope)  # type: ignore[arg-type] # one of its names
        for lacks, identity in enumerate(lacking)
        for number, (role, scope) in enumerate(GRANTS)
        if number != lacks
    ]
    owner = identity_without(8)
    owns = RoleAssignment(object_id=owner.object_id, role="Azure Service Bus Data Owner", scope="servicebus")
    return replace(
        config,
        identities=(*config.identities, *lacking, owner, identity_without(9, federated=False)),
        role_assignments=(*config.role_assignments, *assignments, owns),
    )


@dataclass(frozen=True)
class Checked:
    code: int
    document: dict[str, Any]
    output: str

    def states(self) -> dict[str, str]:
        return {finding["name"]: finding["state"] for finding in self.document["findings"]}

    def wrong(self) -> dict[str, dict[str, Any]]:
        findings = self.document["findings"]
        return {finding["name"]: finding for finding in findings if finding["state"] == "wrong"}

    def command(self, name: str) -> list[str]:
        """The first suggestion of that finding, as a shell would take it apart."""
        return shlex.split(self.wrong()[name]["suggestion"].splitlines()[0])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cloud(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Azure]:
    async with azure(tmp_path_factory.mktemp("check"), config_of_lacks()) as running:
        yield running


async def run_check(cloud: Azure, *options: str, identity: str = "worker", **variables: str) -> tuple[int, str]:
    environment = cloud.environment(identity) | {"AOAI_WORKER_MODELS": MODELS} | variables
    async with process("-m", "worker", "check", *options, environment=environment) as running:
        code = await running.ended()
        return code, running.output


async def check(cloud: Azure, *options: str, identity: str = "worker", **variables: str) -> Checked:
    code, output = await run_check(cloud, "--json", *options, identity=identity, **variables)
    return Checked(code, json.loads(output), output)


def container_of(cloud: Azure) -> str:
    return cloud.environment()["AOAI_WORKER_BLOB_CONTAINER"]


def projected_token(cloud: Azure) -> str:
    return Path(cloud.environment()["AZURE_FEDERATED_TOKEN_FILE"]).read_text()


async def test_where_all_is_right_nothing_is_wrong_and_the_exit_code_is_0(cloud: Azure) -> None:
    checked = await check(cloud, "--strict")
    assert checked.code == 0
    assert checked.document["state"] == "unseen"
    assert checked.states() == {
        "settings": "ok",
        "identity": "ok",
        "service-account token": "ok",
        "token for Azure OpenAI": "ok",
        "token for Service Bus": "ok",
        "token for Blob storage": "ok",
        f"results in {container_of(cloud)}": "ok",
        f"claims in {container_of(cloud)}": "ok",
        "queue jobs": "ok",
        "deployment gpt-5.4-mini": "ok",
        "settings of queue jobs": "unseen",
    }
    worker = cloud.config.identity("worker")
    assert worker.subject in checked.output
    assert worker.object_id in checked.output


async def test_nothing_is_paid_for(cloud: Azure) -> None:
    before = await cloud.control("/local/stats")
    assert (await check(cloud)).code == 0
    after = await cloud.control("/local/stats")
    assert after["tokens"] == before["tokens"]
    assert after["answers"] == before["answers"]


async def test_no_token_is_shown(cloud: Azure) -> None:
    projected = projected_token(cloud)
    for options in ((), ("--json",)):
        _, output = await run_check(cloud, *options)
        assert "eyJ" not in output, "every JSON Web Token begins so"
        assert projected.split(".")[1][:40] not in output


async def test_a_log_gets_a_line_for_each_thing(cloud: Azure) -> None:
    code, output = await run_check(cloud)
    assert code == 0
    assert "ok       queue jobs: exists without sessions; this identity may receive" in output.splitlines()
    assert output.splitlines()[-1] == "1 unseen, 10 ok"


@pytest.mark.parametrize(
    ("lacks", "names", "resource", "variables"),
    [
        (0, ["queue jobs"], "Microsoft.ServiceBus/namespaces/local/queues/jobs", {}),
        (1, ["queue results"], "Microsoft.ServiceBus/namespaces/local/queues/results", QUEUE_SINK),
        (2, ["deployment gpt-5.4-mini"], "Microsoft.CognitiveServices/accounts/<account>", {}),
        (3, ["results in {}", "claims in {}"], "blobServices/default/containers/batches", {}),
    ],
)
async def test_a_missing_role_is_named_with_the_command_that_gives_it(
    cloud: Azure, lacks: int, names: list[str], resource: str, variables: dict[str, str]
) -> None:
    checked = await check(cloud, identity=f"lacks-{lacks}", **variables)
    role: Role = GRANTS[lacks][0]
    assert checked.code == 1
    assert set(checked.wrong()) == {name.format(container_of(cloud)) for name in names}
    command = checked.command(names[0].format(container_of(cloud)))
    assert command[:4] == ["az", "role", "assignment", "create"]
    assert command[command.index("--assignee-object-id") + 1] == identity_without(lacks).object_id
    assert command[command.index("--role") + 1] == role.name
    assert command[command.index("--scope") + 1].endswith(f"/{resource}")


async def test_a_missing_queue_is_named_with_the_command_that_creates_it(cloud: Azure) -> None:
    checked = await check(cloud, AOAI_WORKER_JOBS_QUEUE="absent", AOAI_WORKER_RESULTS_QUEUE="gone", **QUEUE_SINK)
    assert checked.code == 1
    assert set(checked.wrong()) == {"queue absent", "queue gone"}
    command = checked.command("queue absent")
    assert command[:4] == ["az", "servicebus", "queue", "create"]
    assert command[command.index("-n") + 1] == "absent"
    assert "--enable-session" not in command
    assert "--enable-session" in checked.command("queue gone")
    assert "InvalidAudience" in checked.wrong()["queue gone"]["detail"], "as Azure says it to who has no role there"


async def test_a_missing_deployment_is_named_with_the_command_that_lists_them(cloud: Azure) -> None:
    checked = await check(cloud, AOAI_WORKER_MODELS='{"gpt-5.4-mini": ["gpt-5.4-mini", "absent"]}')
    assert checked.code == 1
    assert set(checked.wrong()) == {"deployment absent"}
    assert checked.command("deployment absent")[:5] == ["az", "cognitiveservices", "account", "deployment", "list"]


@pytest.mark.parametrize(
    ("variables", "identity", "command"),
    [
        ({"AZURE_TENANT_ID": "11111111-0000-4000-8000-000000000000"}, "worker", "az identity list"),
        ({"AZURE_CLIENT_ID": "11111111-0000-4000-8000-000000000000"}, "worker", "az identity list"),
        ({}, "lacks-9", "az identity federated-credential create"),
    ],
)
async def test_without_a_token_what_it_opens_is_unseen_and_not_wrong(
    cloud: Azure, variables: dict[str, str], identity: str, command: str
) -> None:
    checked = await check(cloud, identity=identity, **variables)
    assert checked.code == 1
    services = ("Azure OpenAI", "Service Bus", "Blob storage")
    assert set(checked.wrong()) == {f"token for {service}" for service in services}
    assert checked.wrong()["token for Service Bus"]["suggestion"].startswith(command)
    assert checked.states()["queue jobs"] == "unseen"
    assert checked.states()["deployment gpt-5.4-mini"] == "unseen"


async def test_a_federated_credential_is_made_for_the_token_at_hand(cloud: Azure) -> None:
    command = (await check(cloud, identity="lacks-9")).command("token for Service Bus")
    assert command[command.index("--subject") + 1] == identity_without(9).subject
    assert command[command.index("--issuer") + 1] == cloud.config.issuer


async def test_a_missing_token_file_is_named(cloud: Azure, tmp_path: Path) -> None:
    path = tmp_path / "absent"
    checked = await check(cloud, AZURE_FEDERATED_TOKEN_FILE=str(path))
    assert checked.code == 1
    assert str(path) in checked.wrong()["service-account token"]["detail"]


async def test_a_key_in_the_environment_refuses_the_settings(cloud: Azure) -> None:
    checked = await check(cloud, AZURE_OPENAI_API_KEY="sk-never-shown", AOAI_WORKER_SLOTS="0")
    assert checked.code == 2
    assert checked.states() == {"settings": "wrong"}
    assert len(checked.document["findings"]) == 2, "every problem at once"
    assert "never-shown" not in checked.output


async def settings_of_queues(cloud: Azure, identity: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Finding]:
    """In this process, because no setting says where the embedded Azure's administration is."""

    def open_embedded(settings: ConnectionSettings, credential: AsyncTokenCredential) -> Any:
        host = urlsplit(cloud.servicebus).netloc
        return ServiceBusAdministrationClient(host, credential, connection_verify=str(settings.ca_file))

    for name, value in (cloud.environment(identity) | {"AOAI_WORKER_MODELS": MODELS} | QUEUE_SINK).items():
        monkeypatch.setenv(name, value)
    findings = await examine(load(WorkerSettings), administration=open_embedded)
    return {finding.name: finding for finding in findings if finding.name.startswith("settings of queue")}


async def test_who_may_manage_a_queue_is_told_how_it_is_set(cloud: Azure, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = await settings_of_queues(cloud, "lacks-8", monkeypatch)
    jobs, results = seen["settings of queue jobs"], seen["settings of queue results"]
    assert (jobs.state, results.state) == (State.WARNING, State.OK)
    assert jobs.detail.startswith("lockDuration is 60 s")
    assert results.detail.startswith("with sessions, locks of 300 s, 20 deliveries, duplicates detected for 24 h")


async def test_the_workers_own_roles_do_not_show_how_a_queue_is_set(
    cloud: Azure, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = await settings_of_queues(cloud, "worker", monkeypatch)
    assert {finding.state for finding in seen.values()} == {State.UNSEEN}
    assert {finding.detail for finding in seen.values()} == {"not visible to this identity, as it should be"}
