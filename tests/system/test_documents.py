"""The blocks of the documents run as a reader runs them, page by page, against one embedded Azure with one worker.

Commands are typed into a real shell, and programs run in processes of their own; az, kubectl and helm are stand-ins
that write down what they are asked for. What stands for a reader's own, such as BATCH or my-account, is filled in,
and the worker's probes are at a free port. A page's walk takes all of its blocks as arguments, so a new block fails
until somebody says how it runs.
"""

import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
import yaml
from azure.identity.aio import WorkloadIdentityCredential
from azure.servicebus import ServiceBusMessage, TransportType
from azure.servicebus.aio import ServiceBusClient
from azure.storage.blob.aio import ContainerClient

from embedded_azure.config import Config, Deployment, Role, RoleAssignment, default_config
from embedded_azure.openai.quota import Estimator, Quota
from tests.foreign.clients import JAVASCRIPT, node
from tests.support import stand_in
from tests.support.pages import DOCUMENTS, ROOT, blocks, broken_promises, filled, is_promql, read
from tests.support.processes import (
    Azure,
    Worker,
    azure,
    results_in,
    terminal,
    until,
    without_role,
    worker,
    write_batch,
)
from tests.support.stand_in import Rule
from worker.client.batches import decode_record, encode_record
from worker.jobs.claims import encode_claim, make_claim
from worker.settings import WorkerSettings

pytestmark = pytest.mark.asyncio(loop_scope="module")

NOT_RUN: Final = {
    ("README.md", "make demo     # a batch of 240 jobs"): "make test runs this test; test_readme.py runs the demo",
    ("CONTRIBUTING.md", "make unit                  tests/unit alone"): "a list of targets that run this test",
    ("CONTRIBUTING.md", "cosign verify ghcr.io/OWNER/aoai-worker:1.2.0"): "needs a release that was published",
    ("docs/azure-assumptions.md", "az login"): "needs a subscription, and makes resources that cost money",
    ("docs/benchmarks.md", "make bench "): "takes a quarter of an hour",
    (
        "docs/embedded-openai-entra.md",
        "AZURE_KUBERNETES_TOKEN_PROXY=",
    ): "variables with `...`; tests/embedded uses them",
}
"""Blocks, by the beginning of their first line, and why nobody runs them."""

ELSEWHERE: Final = {
    ("README.md", "text"): "tests/system/test_readme.py",
    ("docs/batches.md", "text"): "tests/unit/cli/test_batch_texts.py",
    ("docs/cli.md", "text"): "tests/unit/test_docs.py",
    ("docs/deploy.md", ""): "tests/chart/test_walk.py",
    ("docs/embedded-azure.md", ""): "tests/embedded/test_embedded_azure_page.py",
    ("docs/tutorial.md", ""): "tests/system/test_tutorial.py",
}
"""Blocks of a page, all or those of one language, and the test that runs them or compares them."""

SMALL, LARGE = "gpt-5.4-mini", "gpt-5.4"
MODELS = {SMALL: [{"name": SMALL, "tokens_per_minute": 300_000}], LARGE: [LARGE]}
DEAF = "deaf"
"""The worker's identity before it has the role to receive jobs."""
RECEIVER: Role = "Azure Service Bus Data Receiver"
PROGRAMS = ("az", "kubectl", "helm")


def config() -> Config:
    """The demo's Azure with what the pages name: two deployments of one model, a container of claims."""
    demo = default_config()
    deaf = replace(
        demo.identity("worker"),
        name=DEAF,
        client_id=_other(1),
        object_id=_other(2),
        subject=f"system:serviceaccount:default:{DEAF}",
    )
    same = tuple(
        replace(one, object_id=deaf.object_id)
        for one in demo.role_assignments
        if one.object_id == demo.identity("worker").object_id
    )
    claims = tuple(
        RoleAssignment(
            object_id=demo.identity(name).object_id, role="Storage Blob Data Contributor", scope="blob/claims"
        )
        for name in ("worker", "producer")
    )
    made = replace(
        demo,
        namespace="my-namespace.servicebus.windows.net",
        identities=(*demo.identities, deaf),
        role_assignments=(*demo.role_assignments, *same, *claims),
        containers=(*demo.containers, "claims"),
        deployments=tuple(
            Deployment(name=name, model=model, latency=0.02)
            for name, model in ((SMALL, SMALL), ("provisioned", SMALL), ("standard", SMALL), (LARGE, LARGE))
        ),
    )
    return without_role(made, DEAF, RECEIVER)


def _other(number: int) -> str:
    return f"00000000-0000-4000-8000-0000000000d{number}"


@dataclass(frozen=True)
class Reader:
    """Somebody in a checkout, with programs in `.venv` and stand-ins for those that need Azure or a cluster."""

    cloud: Azure
    worker: Worker
    folder: Path

    def environment(self, identity: str = "producer") -> dict[str, str]:
        path = f"{self.folder / 'stand-ins'}:{self.folder / '.venv/bin'}:{os.environ['PATH']}"
        return self.cloud.environment(identity) | {"PATH": path, "PYTHONPATH": str(ROOT)}

    async def types(
        self,
        commands: str,
        *,
        identity: str = "producer",
        program: str = "sh",
        fails: bool = False,
        **variables: str,
    ) -> str:
        """All that is printed. The shell ends at the first command that fails, which `fails` allows."""
        environment = self.environment(identity) | variables
        async with terminal(f"set -eu\n{commands}", self.folder, environment, program=program) as running:
            code = await running.ended()
        assert fails or code == 0, f"exit code {code} of\n{commands}\n{running.output}"
        return running.output

    async def submits(self, batch: str, ask: str = "What is {0} + {0}?") -> None:
        write_batch(self.folder / f"{batch}.jsonl", 3, ask=ask, models=(SMALL, LARGE))
        await self.types(f"aoai-worker submit {batch}.jsonl --batch {batch}")

    async def has_failed(self, batch: str) -> None:
        """A batch of three jobs, none of which the service has answered wholly, until it is complete."""
        await self.submits(batch, f"[[cut-after:5x3]] {batch}: What is {{0}} + {{0}}?")
        await self.types(f"aoai-worker status {batch} --watch")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Azure, Worker]]:
    settings = {"models": json.dumps(MODELS), "attempts": "3", "pod": "worker-0"}
    async with azure(tmp_path_factory.mktemp("azure"), config()) as cloud:
        claims = cloud.environment()["AOAI_WORKER_BLOB_CONTAINER"].replace("/batches", "/claims")
        async with worker(cloud, claims_container=claims, **settings) as pod:
            await pod.process.printed('"event":"started"')
            yield cloud, pod


@pytest.fixture
def reader(running: tuple[Azure, Worker], tmp_path: Path) -> Reader:
    for name in ("examples", "charts"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    stand_in.install(tmp_path / "stand-ins", PROGRAMS, [])
    return Reader(*running, tmp_path)


async def readme(reader: Reader, install: str) -> None:
    (reader.folder / "my-values.yaml").touch()
    await reader.types(install)
    calls = [call for call in stand_in.calls(reader.folder / "stand-ins") if call[0] == "helm"]
    assert [call[1] for call in calls[-2:]] == ["install", "test"]
    files = [word for word in calls[-2] if "/" in word or word.endswith(".yaml")]
    assert files
    assert all((reader.folder / file).exists() for file in files)


async def cancel_and_retry(reader: Reader, cancel: str, retry: str) -> None:
    write_batch(reader.folder / "mistake.jsonl", 3)
    await reader.types("aoai-worker submit mistake.jsonl --batch mistake --at 1h")
    assert "3 jobs will not be called" in await reader.types(filled(cancel, {"BATCH": "mistake"}))
    assert "mistake: cancelled, " in await reader.types("aoai-worker status mistake")
    await reader.has_failed("flaky")
    said = await reader.types(filled(retry, {"BATCH": "flaky", "FILE": "flaky.jsonl"}))
    assert "attempts_exhausted: 3" in said
    assert "3 jobs sent again" in said
    assert "flaky: complete, 3 results (3 succeeded, 0 failed) in out.jsonl and err.jsonl" in said


async def failures(reader: Reader, find_out: str) -> None:
    await reader.has_failed("unlucky")
    said = await reader.types(filled(find_out, {"BATCH": "unlucky", "FILE": "unlucky.jsonl"}))
    assert "attempts_exhausted: 3" in said
    assert "3 jobs sent again" in said


async def large_jobs(reader: Reader, submit: str) -> None:
    write_batch(reader.folder / "large.jsonl", 1, ask="What is {0} + {0}? " + "x" * 300_000)
    container = reader.environment()["AOAI_WORKER_BLOB_CONTAINER"]
    account = container.rpartition("/")[0]
    commands = filled(submit, {"https://my-account.blob.core.windows.net": account})
    collect = 'aoai-worker collect "$(aoai-worker list --limit 1 | tail -n 1 | cut -d " " -f 1)" -o large-out.jsonl'
    await reader.types(f"{commands}{collect} --follow")
    (result,) = results_in(reader.folder / "large-out.jsonl")
    assert result["response"]["status_code"] == 200
    assert any(name.startswith("claims/") for name in await names_of_blobs(reader, "claims"))


async def models(reader: Reader, check: str, name_the_queues: str) -> None:
    said = await reader.types(check, identity="worker")
    checked = [f"queue {name}: " for name in ("jobs", f"jobs-{SMALL}", f"jobs-{LARGE}")]
    checked += [f"deployment {name}: " for name in ("provisioned", "standard", LARGE)]
    assert [name for name in checked if not re.search(rf"(?m)^ok +{re.escape(name)}", said)] == []
    before = await reader.worker.metric("aoai_worker_jobs_sorted_total")
    write_batch(reader.folder / "straight.jsonl", 3, models=(SMALL, LARGE))
    submit = "aoai-worker submit straight.jsonl --batch straight"
    await reader.types(f"{name_the_queues}{submit}\naoai-worker collect straight -o straight-out.jsonl --follow")
    assert await reader.worker.metric("aoai_worker_jobs_sorted_total") == before


async def own_azure(reader: Reader, commands: str) -> None:
    environment = reader.environment("worker") | {
        "AOAI_WORKER_HTTP_HOST": "127.0.0.1",
        "AOAI_WORKER_HTTP_PORT": "0",
    }
    places = {
        "https://my-account.blob.core.windows.net/results": environment["AOAI_WORKER_BLOB_CONTAINER"],
        "https://my-account.openai.azure.com": environment["AZURE_OPENAI_ENDPOINT"],
        "my-deployment": SMALL,
    }
    async with terminal(f"set -e\n{filled(commands, places)}", reader.folder, environment) as running:
        await running.printed('"event":"started"')
        os.killpg(running.child.pid, signal.SIGINT)
        await running.printed('"event":"stopped"')
    assert "AOAI_WORKER_SERVICEBUS_NAMESPACE" in running.output
    assert re.search(r"(?m)^ok +queue jobs: ", running.output)


async def clients(reader: Reader, python: str, javascript: str) -> None:
    (reader.folder / "script.py").write_text(python)
    await reader.types("python script.py")
    assert len(results_in(reader.folder / "script-out.jsonl")) == 240
    if (found := node()) is None:
        pytest.skip("NOT RUN: the program in JavaScript; Node.js 20 or newer is missing on this machine")
    assert (JAVASCRIPT / "node_modules" / ".installed").is_file(), "Next: run scripts/azurite"
    (reader.folder / "node_modules").symlink_to(JAVASCRIPT / "node_modules")
    (reader.folder / "send.mjs").write_text(javascript)
    ports = {
        "my-namespace.servicebus.windows.net": port_of(
            f"//{reader.environment()['AOAI_WORKER_SERVICEBUS_ENDPOINT']}"
        ),
        "login.microsoftonline.com": port_of(reader.cloud.address("entra")),
    }
    ca = reader.environment()["AOAI_WORKER_CA_FILE"]
    await reader.types(
        f"{found} --import {JAVASCRIPT / 'public_names.mjs'} send.mjs",
        PLACES=json.dumps(ports),
        NODE_EXTRA_CA_CERTS=ca,
    )

    async def has_its_result() -> bool:
        return "1 result (1 succeeded, 0 failed)" in await reader.types("aoai-worker status from-js", fails=True)

    await until(has_its_result)


async def batches(reader: Reader) -> None:
    """Its blocks are what is printed; the commands are in its first table."""
    table = re.findall(r"\| `(aoai-worker [^`]+)` \|", read("docs/batches.md"))
    assert len(table) == 8
    write_batch(reader.folder / "INPUT.jsonl", 3, ask="batches: What is {0} + {0}?")
    submit, *others = (line.replace("FILE", "INPUT.jsonl").replace("BATCH", "shown") for line in table)
    said = await reader.types("\n".join([f"{submit} --batch shown", "aoai-worker status shown --watch", *others]))
    assert "shown: complete, 3 results (3 succeeded, 0 failed) in OUT.jsonl" in said
    results = results_in(reader.folder / "OUT.jsonl")
    assert [result["custom_id"] for result in results] == ["q-0", "q-1", "q-2"]


async def cli(reader: Reader, collect: str) -> None:
    write_batch(reader.folder / "partly.jsonl", 2, models=(SMALL, "gpt-unlisted"))
    await reader.types("aoai-worker submit partly.jsonl --batch partly")
    said = await reader.types(f"batch=partly\n{collect}")
    assert "partly: complete, 2 results (1 succeeded, 1 failed) in out.jsonl and err.jsonl" in said


async def job_format(
    reader: Reader,
    job: str,
    claim: str,
    answer: str,
    refusal: str,
    error: str,
    worker_block: str,
    layout: str,
    manifest: str,
    record: str,
) -> None:
    examples = read("examples/chat.jsonl").splitlines()
    ids = ("negative-max-tokens-1", "unlisted-model-1", "recovers-2")
    lines = [line for line in examples if json.loads(line)["custom_id"] in ids]
    (reader.folder / "reviews.jsonl").write_text("".join([job, *(f"{line}\n" for line in lines)]))
    await reader.types(
        "aoai-worker submit reviews.jsonl --batch reviews\n"
        "aoai-worker collect reviews -o reviews-out.jsonl --follow || [ $? -eq 4 ]"
    )
    printed = (reader.folder / "reviews-out.jsonl").read_text().splitlines()
    for promised in (answer, refusal, error):
        (line,) = [line for line in printed if json.loads(line)["custom_id"] in promised.partition("response")[0]]
        assert pattern_of(promised).fullmatch(alike(line)), f"{promised}\n{line}"
    (recovered,) = [line for line in printed if '"recovers-2"' in line]
    assert pattern_of(worker_block).search(alike(recovered)), f"{worker_block}\n{recovered}"
    shown = json.loads(claim)["claim"]
    assert alike(claim) == alike(encode_claim(make_claim(shown["url"], b"x", etag=shown["etag"])).decode())
    assert json.loads(encode_record(decode_record(record.encode()))) == json.loads(record)
    names = await names_of_blobs(reader, "batches")
    kinds = [layout_pattern(line.split()[0]) for line in layout.splitlines()]
    assert [name for name in names if not any(kind.fullmatch(name) for kind in kinds)] == []
    ours = [name for name in names if name.startswith(("results/reviews/", "results/~fleet/"))]
    assert [kind.pattern for kind in (*kinds[:2], kinds[3], kinds[-1]) if not any(map(kind.fullmatch, ours))] == []
    async with container_of(reader, "batches") as container:
        written = await (await container.download_blob("results/reviews/manifest.json")).readall()
    assert alike(manifest.replace("shown", "reviews")) == alike(written.decode())


async def operations(reader: Reader, statez: str, check: str) -> None:
    _, shown = await reader.worker.get("/statez")
    state = json.loads(shown)
    state["unknown_models"].clear()  # its names are those of other pages' jobs
    assert keys_of(state) == keys_of(json.loads(statez))
    said = await reader.types(
        "unset AOAI_WORKER_BLOB_CONTAINER\naoai-worker check",
        identity=DEAF,
        fails=True,
        AOAI_WORKER_MODELS=json.dumps({SMALL: ["standard"]}),
        AOAI_WORKER_SINK="queue",
    )
    ours = {"my-bus": "my-namespace", "0d0d0d0d-0000-4000-8000-000000000001": _other(2)}
    assert broken_promises(filled(check, ours), said) == [], said


async def settings(reader: Reader, file: str) -> None:
    (reader.folder / "settings.yaml").write_text(file)
    only = "env -i PATH=$PATH PYTHONPATH=$PYTHONPATH AOAI_WORKER_CONFIG=settings.yaml"
    said = await reader.types(f"{only} aoai-worker settings")
    for name, value in yaml.safe_load(file).items():
        variable = WorkerSettings.model_fields[name].validation_alias or f"AOAI_WORKER_{name.upper()}"
        shown = "" if name == "models" else re.escape(str(value))
        assert re.search(rf"(?m)^{variable} +file +{shown}", said), said


async def fault_injection(reader: Reader, inject: str) -> None:
    places = f"STATE={reader.cloud.state} PORT={port_of(reader.cloud.servicebus)}\n"
    clear = "\ncurl -s --cacert $ca -X DELETE https://localhost:$PORT/local/faults"
    said = await reader.types(f"{places}{inject.replace('curl ', 'curl -s ')}{clear}")
    assert '"refuse"' in said
    assert '"slow"' in said


async def embedded_openai(_: Reader, quota: str) -> None:
    names: dict[str, Any] = {
        "Quota": Quota,
        "Estimator": Estimator,
        "now": 0.0,
        "prompt_tokens": 9,
        "max_tokens": 9,
    }
    exec(quota, names)  # noqa: S102 - it takes what stands around it for given, so it is no program of its own
    assert names["exceeded"] is None
    assert names["quota"].headers()["x-ratelimit-limit-tokens"] == "50000"


async def runbooks(reader: Reader, variables: str, *looks: str) -> None:
    """kubectl shows the log of the real worker; what is run in a pod by it is then run here."""
    await send_garbage(reader)
    write_batch(reader.folder / "unlisted.jsonl", 1, models=("gpt-unlisted",))
    await reader.types("aoai-worker submit unlisted.jsonl --batch unlisted\naoai-worker status unlisted --watch")
    await until(lambda: has_logged(reader, "dead_lettered"))
    log = reader.worker.process.output.replace("\\", r"\\")
    stand_ins = reader.folder / "stand-ins"
    rules = [
        Rule(r"get pods .*-o name", "pod/aoai-worker-1"),
        Rule("--query id", "/ids/bus"),
        Rule("logs", log),
        Rule("get sa", "azure.workload.identity/client-id: 1"),
    ]
    stand_in.install(stand_ins, (*PROGRAMS, "aoai-worker"), rules)
    commands = [line for block in looks for line in block.replace("\\\n", " ").splitlines() if not is_promql(line)]
    commands += re.findall(r"`((?:az|kubectl|helm|curl|aoai-worker) [^`]+)`", read("docs/runbooks.md"))
    script = "\n".join([variables, *(command.replace("\n", " ") for command in commands), "wait"])
    try:
        said = await reader.types(
            script.replace("localhost:9090", f"127.0.0.1:{reader.worker.port}"), program="bash"
        )
    finally:
        (stand_ins / "aoai-worker").unlink()
    for found in ('"event":"job_ended"', '"outcome":"dead_lettered"', '"reasons":', '"in_flight_bytes":'):
        assert found in said
    letter = (await reader.types("aoai-worker dlq list", identity="worker")).split()[0]
    in_pods = {" ".join(call[call.index("--") + 1 :]) for call in stand_in.calls(stand_ins) if "exec" in call}
    assert in_pods
    for command in sorted(in_pods):
        here = command.replace(" 17", f" {letter}")
        await reader.types(here, identity="worker", AOAI_WORKER_MODELS=json.dumps(MODELS))


WALKS: Final[Mapping[str, Callable[..., Awaitable[None]]]] = {
    "README.md": readme,
    "docs/batches.md": batches,
    "docs/cli.md": cli,
    "docs/embedded-openai-entra.md": embedded_openai,
    "docs/fault-injection.md": fault_injection,
    "docs/howto/cancel-and-retry.md": cancel_and_retry,
    "docs/howto/clients.md": clients,
    "docs/howto/failures.md": failures,
    "docs/howto/large-jobs.md": large_jobs,
    "docs/howto/models.md": models,
    "docs/howto/own-azure.md": own_azure,
    "docs/job-format.md": job_format,
    "docs/operations.md": operations,
    "docs/runbooks.md": runbooks,
    "docs/settings.md": settings,
}
"""What a reader does with the blocks of a page, in their order."""


def to_run(page: str) -> list[str]:
    return [
        block.text
        for block in blocks(page)
        if (page, block.language) not in ELSEWHERE
        and (page, "") not in ELSEWHERE
        and not any(page == of and block.first_line.startswith(start) for of, start in NOT_RUN)
    ]


@pytest.mark.parametrize("page", WALKS)
async def test_the_blocks_of_a_page_run_as_they_stand_there(page: str, reader: Reader) -> None:
    await WALKS[page](reader, *to_run(page))


async def test_the_messages_that_make_an_alert_fire_are_dead_lettered_and_then_discarded(reader: Reader) -> None:
    """Of docs/deploy.md: the program with the embedded namespace's address, and the commands that clean up."""
    page = read("docs/deploy.md")
    program = re.findall(r"(?ms)^cat >not_jobs\.py <<'PYTHON'\n(.*?)^PYTHON$", page)[0]
    clean_up = re.findall(r"(?m)^aoai-worker dlq .*$", page)
    place = (
        f'custom_endpoint_address="sb://{reader.environment()["AOAI_WORKER_SERVICEBUS_ENDPOINT"]}", '
        f'connection_verify="{reader.environment()["AOAI_WORKER_CA_FILE"]}", transport_type=TransportType.Amqp'
    )
    program = filled(program, {"Credential())": f"Credential(), {place})"})
    (reader.folder / "not_jobs.py").write_text(f"from azure.servicebus import TransportType\n{program}")
    async with credential_of(reader.environment()) as credential:
        token = await credential.get_token("https://servicebus.azure.net/.default")
    login = json.dumps({"accessToken": token.token, "expires_on": token.expires_on})
    stand_in.install(reader.folder / "stand-ins", PROGRAMS, [Rule("get-access-token", login)])
    before = await dead_lettered(reader)
    await reader.types("python not_jobs.py 1\npython not_jobs.py 10")
    await until(lambda: has_dead_lettered(reader, before + 11))
    said = await reader.types("\n".join(clean_up), identity="worker")
    assert said.count('"reason": "InvalidJson"') >= 11
    assert said.rstrip().endswith("No dead letters in queue jobs.")


async def dead_lettered(reader: Reader) -> float:
    return await reader.worker.metric(
        "aoai_worker_jobs_total", queue="jobs", deployment="none", outcome="dead_lettered"
    )


async def has_dead_lettered(reader: Reader, count: float) -> bool:
    return await dead_lettered(reader) == count


async def test_every_page_with_blocks_has_a_walk() -> None:
    assert {page for page in DOCUMENTS if to_run(page)} - WALKS.keys() == set()


async def test_what_is_not_run_here_is_still_in_the_documents() -> None:
    found = {(page, block.language, block.first_line) for page in DOCUMENTS for block in blocks(page)}
    for page, start in NOT_RUN:
        assert any(page == of and first.startswith(start) for of, _, first in found), (page, start)
    for (page, language), test in ELSEWHERE.items():
        assert any(page == of and language in ("", one) for of, one, _ in found), (page, language)
        assert (ROOT / test).is_file()


def port_of(address: str) -> int:
    port = urlsplit(address).port
    assert port is not None
    return port


def keys_of(value: Any) -> Any:
    """The shape of a JSON document: of a list that of its items, of `null` or an object nothing but its keys."""
    if isinstance(value, dict):
        return {name: keys_of(one) for name, one in value.items() if one is not None}
    if isinstance(value, list):
        return [keys_of(value[0])] if value else []
    return ""


def alike(text: str) -> str:
    """Without what differs from run to run: times, hosts, hex digits and numbers."""
    text = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME", text.strip())
    text = re.sub(r"(?<![0-9a-z])(?=[0-9a-f-]*\d)[0-9a-f]{4,}(-[0-9a-f]{4,})*(?![0-9a-z])", "0", text)
    return re.sub(r"-?\d+(\.\d+)?", "0", text)


def pattern_of(promised: str) -> re.Pattern[str]:
    """`...` stands for anything."""
    return re.compile(re.sub(r"(\\ )?\\\.\\\.\\\.(\\ )?", ".*", re.escape(alike(promised))))


def layout_pattern(name: str) -> re.Pattern[str]:
    text = re.escape(name).replace("<prefix>", "results").replace("<key>", "[0-9a-f]{32}").replace("<n>", r"\d+")
    return re.compile(re.sub(r"<\w+>", "[^/]+", text))


async def has_logged(reader: Reader, word: str) -> bool:
    return word in reader.worker.process.output


def credential_of(environment: Mapping[str, str]) -> WorkloadIdentityCredential:
    return WorkloadIdentityCredential(
        tenant_id=environment["AZURE_TENANT_ID"],
        client_id=environment["AZURE_CLIENT_ID"],
        token_file_path=environment["AZURE_FEDERATED_TOKEN_FILE"],
        authority=environment["AZURE_AUTHORITY_HOST"],
        disable_instance_discovery=True,
        connection_verify=environment["AOAI_WORKER_CA_FILE"],
    )


@asynccontextmanager
async def container_of(reader: Reader, name: str) -> AsyncIterator[ContainerClient]:
    environment = reader.environment()
    url = environment["AOAI_WORKER_BLOB_CONTAINER"].replace("/batches", f"/{name}")
    async with (
        credential_of(environment) as credential,
        ContainerClient.from_container_url(
            url, credential, connection_verify=environment["AOAI_WORKER_CA_FILE"]
        ) as container,
    ):
        yield container


async def names_of_blobs(reader: Reader, name: str) -> list[str]:
    async with container_of(reader, name) as container:
        return [blob.name async for blob in container.list_blobs()]


async def send_garbage(reader: Reader) -> None:
    """To the entry queue, which dead-letters it."""
    environment = reader.environment()
    async with (
        credential_of(environment) as credential,
        ServiceBusClient(
            environment["AOAI_WORKER_SERVICEBUS_NAMESPACE"],
            credential,
            custom_endpoint_address=f"sb://{environment['AOAI_WORKER_SERVICEBUS_ENDPOINT']}",
            transport_type=TransportType.Amqp,
            connection_verify=environment["AOAI_WORKER_CA_FILE"],
        ) as client,
        client.get_queue_sender("jobs") as sender,
    ):
        await sender.send_messages(ServiceBusMessage("no job"))
