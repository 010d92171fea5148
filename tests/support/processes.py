"""Real processes: an embedded Azure, workers with a pod's environment, and the producer's command line."""

import asyncio
import json
import os
import re
import shlex
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from aiohttp import ClientSession

from embedded_azure.config import Config, Deployment, QueueSpec, RoleAssignment, default_config
from tests.support.patience import PATIENCE

Service = Literal["openai", "servicebus", "entra", "blob"]
MODELS = json.dumps({"gpt-5.4-mini": ["gpt-5.4-mini"]})


def config_for_tests(*, lock_duration: float = 60.0, latency: float = 0.2, **options: Any) -> Config:
    """The demo's Azure with one deployment, and locks short enough for a test to outlive."""
    config = default_config()
    return replace(
        config,
        queues=(
            QueueSpec(name="jobs", lock_duration=lock_duration),
            QueueSpec(name="results", requires_session=True),
        ),
        deployments=(Deployment(name="gpt-5.4-mini", model="gpt-5.4-mini", latency=latency),),
        **options,
    )


def without_role(config: Config, identity: str, role: str) -> Config:
    """The same config before somebody has assigned that role."""
    object_id = config.identity(identity).object_id

    def stays(assignment: RoleAssignment) -> bool:
        return (assignment.object_id, assignment.role) != (object_id, role)

    return replace(config, role_assignments=tuple(filter(stays, config.role_assignments)))


def clean_environment() -> dict[str, str]:
    """Nothing of this machine's Azure or settings: a pod has only what it is given."""
    strangers = ("AZURE_", "AOAI_", "OPENAI_")
    return {name: value for name, value in os.environ.items() if not name.startswith(strangers)}


def read_exports(path: Path) -> dict[str, str]:
    """The `export NAME=value` lines of an environment file."""
    lines = (shlex.split(line, comments=True) for line in path.read_text().splitlines())
    pairs = (words[1].partition("=") for words in lines if words[:1] == ["export"])
    return {name: value for name, _, value in pairs}


@dataclass(frozen=True)
class Azure:
    """An embedded Azure that is ready. `state` holds its keys and projected tokens."""

    state: Path
    config: Config
    servicebus: str
    """The https address of its Service Bus."""

    def environment(self, identity: str = "worker") -> dict[str, str]:
        return clean_environment() | read_exports(self.state / "env" / f"{identity}.env")

    def address(self, service: Service) -> str:
        """Of its control API."""
        environment = self.environment()
        match service:
            case "openai":
                return environment["AZURE_OPENAI_ENDPOINT"]
            case "servicebus":
                return self.servicebus
            case "entra":
                return environment["AZURE_AUTHORITY_HOST"].rstrip("/")
            case "blob":
                return f"https://{urlsplit(environment['AOAI_WORKER_BLOB_CONTAINER']).netloc}"

    async def control(
        self,
        path: str,
        document: Any = None,
        *,
        servicebus: bool = False,
        entra: bool = False,
        blob: bool = False,
        adds: bool = False,
    ) -> Any:
        """Ask or tell the embedded Azure OpenAI, its Service Bus, Entra or Blob storage, over its control API. A
        document that `adds` replaces nothing."""
        endpoint = self.address("servicebus" if servicebus else "entra" if entra else "blob" if blob else "openai")
        verb = "GET" if document is None else "POST" if adds else "PUT"
        async with (
            ClientSession() as session,
            session.request(verb, f"{endpoint}{path}", json=document, ssl=False) as answer,
        ):
            answer.raise_for_status()
            body = await answer.read()
            return json.loads(body) if body else None


@asynccontextmanager
async def azure(folder: Path, config: Config, *options: str) -> AsyncIterator[Azure]:
    config_file = folder / "wanted.json"
    config_file.write_text(json.dumps(asdict(config)))
    state = folder / "state"
    env = folder / "azure.env"
    arguments = ["--state", str(state), "--config", str(config_file), "--write-env", str(env), *options]
    async with process("-m", "worker", "local", *arguments, environment=clean_environment()) as running:
        await running.printed("is ready")
        address = re.search(r"https://\S+:\d+", await running.printed("administration and WebSockets"))
        assert address is not None
        yield Azure(state, config, address[0])


class Process:
    """A child whose output is read line by line, so that a test can wait for a line."""

    def __init__(self, child: asyncio.subprocess.Process) -> None:
        self.child = child
        self.lines: list[str] = []
        self._more = asyncio.Event()
        self._readers: list[asyncio.Task[None]] = []

    def read(self) -> None:
        streams = [stream for stream in (self.child.stdout, self.child.stderr) if stream]
        self._readers = [asyncio.get_running_loop().create_task(self._read(stream)) for stream in streams]

    async def _read(self, stream: asyncio.StreamReader) -> None:
        async for line in stream:
            self.lines.append(line.decode(errors="replace"))
            self._more.set()
        self._more.set()

    async def printed(self, text: str) -> str:
        """The first line with `text`; AssertionError with all it printed if it ends or hesitates."""
        try:
            async with asyncio.timeout(PATIENCE):
                while True:
                    for line in self.lines:
                        if text in line:
                            return line
                    assert not all(reader.done() for reader in self._readers), f"it ended:\n{self.output}"
                    self._more.clear()
                    await self._more.wait()
        except TimeoutError:
            raise AssertionError(f"never printed {text!r}:\n{self.output}") from None

    async def ended(self, within: float = PATIENCE) -> int:
        async with asyncio.timeout(within):
            code = await self.child.wait()
            await asyncio.gather(*self._readers)
        return code

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def events(self, name: str) -> list[dict[str, Any]]:
        """The log lines of that event."""
        logged = [json.loads(line) for line in self.lines if line.startswith("{")]
        return [line for line in logged if line.get("event") == name]


@asynccontextmanager
async def process(*arguments: str, environment: Mapping[str, str]) -> AsyncIterator[Process]:
    """Killed at the end of the block if it has not ended by itself."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=1 << 20,
    )
    running = Process(child)
    running.read()
    try:
        yield running
    finally:
        if child.returncode is None:
            child.send_signal(signal.SIGTERM)
            try:
                await running.ended()
            except TimeoutError:
                child.kill()
        await running.ended()


@asynccontextmanager
async def terminal(
    commands: str, folder: Path, environment: Mapping[str, str], *, program: str = "sh"
) -> AsyncIterator[Process]:
    """A shell that is given these lines, in a process group as the shell of a terminal has one."""
    child = await asyncio.create_subprocess_exec(
        *(program, "-c", commands),
        cwd=folder,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    running = Process(child)
    running.read()
    try:
        yield running
    finally:
        with suppress(ProcessLookupError):  # it has ended
            os.killpg(child.pid, signal.SIGINT)
        try:
            await running.ended()
        finally:
            if child.returncode is None:
                os.killpg(child.pid, signal.SIGKILL)


@dataclass
class Worker:
    process: Process
    port: int

    async def get(self, path: str) -> tuple[int, str]:
        async with ClientSession() as session, session.get(f"http://127.0.0.1:{self.port}{path}") as answer:
            return answer.status, await answer.text()

    async def metric(self, name: str, **labels: str) -> float:
        """The sum over all series of a metric, or over those with these labels."""
        _, text = await self.get("/metrics")
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        samples = [
            line
            for line in text.splitlines()
            if line.split("{")[0].split(" ")[0] == name and all(pair in line for pair in wanted)
        ]
        return sum(float(line.rsplit(" ", 1)[1]) for line in samples)


@asynccontextmanager
async def worker(
    azure: Azure, *, identity: str = "worker", module: str = "worker", **settings: str
) -> AsyncIterator[Worker]:
    """A worker that serves; `settings` are `slots="8"` for AOAI_WORKER_SLOTS=8. It may not be ready yet.

    `module` is what is started with the argument `run`."""
    wanted = {"models": MODELS, "http_host": "127.0.0.1", "http_port": "0", **settings}
    environment = azure.environment(identity) | {
        name if name.startswith(("OTEL_", "FAULTS_")) else f"AOAI_WORKER_{name.upper()}": value
        for name, value in wanted.items()
    }
    async with process("-m", module, "run", environment=environment) as running:
        line = await running.printed('"event":"serving"')
        yield Worker(running, json.loads(line)["port"])


async def until(reached: Callable[[], Awaitable[bool]]) -> None:
    """Look again and again: another process announces its progress by its metrics only."""
    async with asyncio.timeout(PATIENCE):
        while not await reached():
            await asyncio.sleep(0.05)


def has_answered(one: Worker, count: int) -> Callable[[], Awaitable[bool]]:
    async def reached() -> bool:
        return await one.metric("aoai_worker_jobs_total") >= count

    return reached


async def command(azure: Azure, *arguments: str, **variables: str) -> tuple[int, str]:
    """Run the producer's command line; its exit code and all it printed."""
    environment = azure.environment("producer") | variables
    async with process("-m", "worker", *arguments, environment=environment) as running:
        code = await running.ended()
        return code, running.output


def write_batch(
    path: Path,
    count: int,
    *,
    ask: str | Callable[[int], str] = "What is {0} + {0}?",
    models: Sequence[str] = ("gpt-5.4-mini",),
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """A Batch input file of different questions, to these models in turn; `extra` goes into each body."""
    with path.open("w") as file:
        for number in range(count):
            body = {
                "model": models[number % len(models)],
                "messages": [{"role": "user", "content": ask(number) if callable(ask) else ask.format(number)}],
                "reasoning_effort": "none",
                "max_completion_tokens": 64,
                **(extra or {}),
            }
            line = {"custom_id": f"q-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(line) + "\n")
    return path


def results_in(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_one_result_each(results: Sequence[Mapping[str, Any]], count: int) -> None:
    """Every job has one result, and it is the answer to that job's own question of `write_batch`."""
    times = Counter(result["custom_id"] for result in results)
    assert set(times) == {f"q-{number}" for number in range(count)}
    assert set(times.values()) == {1}
    wrong = [result for result in results if not is_right(result)]
    assert not wrong, f"not the answer to {wrong[0]['custom_id']}: {wrong[0]}"


def is_right(result: Mapping[str, Any]) -> bool:
    """Whether it is the answer to its job's own question of `write_batch`."""
    if result["response"] is None or result["response"]["status_code"] != 200:
        return False
    said = result["response"]["body"]["choices"][0]["message"]["content"]
    number = int(result["custom_id"].removeprefix("q-"))
    return f"{number} + {number} = {2 * number}" in said


def process_ids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def mentions(pid: int, word: object) -> bool:
    """True when one argument of the process is `word`."""
    try:
        return str(word).encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False


async def process_end(pid: int) -> None:
    loop = asyncio.get_running_loop()
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    ended = asyncio.Event()
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
