"""The supervisor of the embedded Azure: makes its keys, starts its four processes, tells what to do next.

It is also the local cluster: it holds the OIDC key, projects and rotates the service-account tokens. When a
process dies, the rest are stopped; when the supervisor dies, however it dies, the processes end by themselves.
"""

import asyncio
import json
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from embedded_azure.blob import faults as blob_faults
from embedded_azure.certificates import make_server_identity, make_signing_key, private_pem, public_pem
from embedded_azure.cluster import BINDING_TOKEN_FILE, LocalCluster
from embedded_azure.config import Config, Identity, default_config
from embedded_azure.entities_file import EntitiesError, put_entities
from embedded_azure.entra import faults as entra_faults
from embedded_azure.entra import identity_binding, imds
from embedded_azure.faults import Faults
from embedded_azure.openai import faults as openai_faults
from embedded_azure.servicebus.faults import control as servicebus_faults
from embedded_azure.state import StateDirectory, write_atomically
from embedded_azure.temporary import temporary_directory

SERVICES: Mapping[str, str] = {
    "servicebus": "embedded_azure.servicebus",
    "entra": "embedded_azure.entra",
    "openai": "embedded_azure.openai",
    "blob": "embedded_azure.blob",
}
Sink = Literal["blob", "queue"]
"""Where the results of the batches of a worker go."""

_START_PATIENCE = 60.0
_STOP_GRACE = 5.0
_HEADER = "# Written by the embedded Azure; replaced at its next start."


class LocalAzureError(Exception):
    """The embedded Azure cannot start or go on. The message is for the person at the terminal."""


class SetupError(LocalAzureError):
    """What was asked for cannot be done: nothing was started."""


class _StopAsked(Exception):
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoints:
    """Ports on loopback."""

    entra: int
    openai: int
    servicebus_tls: int
    servicebus_plain: int
    servicebus_https: int
    imds: int
    token_proxy: int
    blob: int


def run(
    write_env: Path | None,
    state: Path | None,
    config: Path | None,
    *,
    entities: Path | None = None,
    sink: Sink = "blob",
) -> int:
    """Run the embedded Azure until SIGTERM or SIGINT. Returns the exit code: 0, 1 (it broke), 2 (refused).

    `write_env` and its sibling `.producer` appear once everything is ready and go when it stops. `state` is kept;
    without one a temporary directory is used and removed. `sink` is where results go.
    `entities` is an entities file, which replaces those of the config.
    """
    try:
        described = load_config(config)
        if entities is not None:
            described = put_entities(described, entities)
        if write_env is not None:
            _check_environment_files(write_env, described)
        with _state_directory(state) as directory:
            supervisor = _Supervisor(described, directory, write_env, kept=state is not None, sink=sink)
            return asyncio.run(supervisor.run())
    except (SetupError, EntitiesError) as error:
        _say(f"aoai-worker local: {error}", error=True)
        return 2
    except LocalAzureError as error:
        _say(f"aoai-worker local: {error}", error=True)
        return 1


def load_config(path: Path | None) -> Config:
    """The config described by the file, or the demo's. Raises SetupError saying what is wrong with the file."""
    try:
        config = default_config() if path is None else Config.load(path)
        _check_faults(config)
    except OSError as error:
        raise SetupError(f"the config {path} cannot be read: {error.strerror}") from error
    except (ValidationError, ValueError) as error:
        raise SetupError(f"the config {path} does not describe an Azure: {error}") from error
    return config


def _check_faults(config: Config) -> None:
    """Raises ValueError. A key is a service, or `openai/<account>`."""
    kinds = {
        "entra": entra_faults.FAULTS,
        "openai": openai_faults.FAULTS,
        "servicebus": servicebus_faults.FAULTS,
        "blob": blob_faults.FAULTS,
    }
    known = {"deployment": {deployment.name for deployment in config.deployments}}
    for key, initial in config.faults.items():
        service = key.partition("/")[0]
        if service not in kinds:
            raise ValueError(f"faults of {key!r}: there are {', '.join(kinds)}")
        Faults(*kinds[service], initial=initial, known=known if service == "openai" else None)


def prepare_state(state: StateDirectory, config: Config) -> LocalCluster:
    """Write everything the processes read, and the first projected token of every identity."""
    entra_key, cluster_key = make_signing_key(), make_signing_key()
    server = make_server_identity()
    audiences = dict.fromkeys(config.bound_identities, identity_binding.BINDING_AUDIENCE)
    cluster = LocalCluster(cluster_key, config.issuer, config.projected_token_lifetime, audiences=audiences)
    write_atomically(state.entra_private_key, private_pem(entra_key))
    write_atomically(state.entra_public_key, public_pem(entra_key))
    write_atomically(state.cluster_public_key, cluster.public_key_pem)
    write_atomically(state.ca, server.ca_pem)
    write_atomically(state.server_certificate, server.certificate_pem)
    write_atomically(state.server_key, server.key_pem)
    for identity in config.identities:
        cluster.project_token(identity, state.projected_volume(identity.name))
    config.save(state.config)
    return cluster


def pod_environment(
    config: Config, identity: Identity, state: StateDirectory, endpoints: Endpoints, *, sink: Sink = "blob"
) -> dict[str, str]:
    """What the webhook and the manifests give a pod of `identity`, and what suits a trial."""
    environment = {
        **_identity_environment(config, identity, state, endpoints),
        "AZURE_OPENAI_ENDPOINT": f"https://localhost:{endpoints.openai}",
        "AOAI_WORKER_CA_FILE": str(state.ca),
        "AOAI_WORKER_SERVICEBUS_NAMESPACE": config.namespace,
        "AOAI_WORKER_SERVICEBUS_ENDPOINT": f"localhost:{endpoints.servicebus_tls}",
        # nothing is rolled out here, so a worker need not wait for a model that it does not know
        "AOAI_WORKER_UNKNOWN_MODEL_PATIENCE": "0",
    }
    # a worker proves every container it is told of: one that it has no role on would keep it from starting
    has_role = config.containers and config.roles_of(identity.object_id, f"blob/{config.containers[0]}")
    if has_role or (config.containers and sink == "blob"):
        environment["AOAI_WORKER_BLOB_CONTAINER"] = _container_url(config, endpoints)
    if sink == "queue" or not config.containers:
        environment["AOAI_WORKER_SINK"] = "queue"
    return environment


def _container_url(config: Config, endpoints: Endpoints) -> str:
    """Of the first container, which is that of results and claims."""
    return f"https://localhost:{endpoints.blob}/{config.storage_account}/{config.containers[0]}"


def _identity_environment(
    config: Config, identity: Identity, state: StateDirectory, endpoints: Endpoints
) -> dict[str, str]:
    """Of the node's identity, of one with an identity binding, or of workload identity."""
    client = {"AZURE_CLIENT_ID": identity.client_id}
    if identity.name in config.node_identities:
        return {**client, **imds.environment(endpoints.imds), "AOAI_WORKER_CREDENTIAL": "managed"}
    workload = {
        **client,
        "AZURE_TENANT_ID": config.tenant_id,
        "AZURE_FEDERATED_TOKEN_FILE": str(state.projected_token(identity.name)),
        "AZURE_AUTHORITY_HOST": f"https://localhost:{endpoints.entra}/",
    }
    if identity.name not in config.bound_identities:
        return workload
    token = state.projected_token(identity.name).with_name(BINDING_TOKEN_FILE)
    proxy = identity_binding.environment(endpoints.token_proxy, state.ca)
    return {
        **workload,
        **proxy,
        "AZURE_FEDERATED_TOKEN_FILE": str(token),
        "AOAI_WORKER_ENABLE_AZURE_PROXY": "true",
    }


def shell_exports(environment: Mapping[str, str]) -> bytes:
    """Lines that any POSIX shell can source."""
    lines = [_HEADER, *(f"export {name}={shlex.quote(value)}" for name, value in environment.items())]
    return ("\n".join(lines) + "\n").encode()


class _Supervisor:
    def __init__(
        self,
        config: Config,
        state: StateDirectory,
        write_env: Path | None,
        *,
        kept: bool,
        sink: Sink,
    ) -> None:
        self._config = config
        self._state = state
        self._write_env = write_env
        self._kept = kept
        self._sink = sink
        self._started = time.monotonic()

    async def run(self) -> int:
        """Returns 0 when asked to stop. Raises LocalAzureError when a process dies or never gets ready."""
        stop = _stop_signal()
        self._remove_environment_files()
        cluster = self._prepare()
        broken: list[LocalAzureError] = []
        try:
            async with _running(self._state) as children:
                await self._attend(children, cluster, stop)
        except* _StopAsked:
            _say("The embedded Azure has stopped.")
        except* LocalAzureError as group:
            broken.append(_first(group))
        finally:
            self._remove_environment_files()
        if broken:
            raise broken[0]
        return 0

    def _prepare(self) -> LocalCluster:
        try:
            return prepare_state(self._state, self._config)
        except OSError as error:
            raise LocalAzureError(f"cannot write {error.filename}: {error.strerror}") from error

    async def _attend(self, children: Sequence["_Child"], cluster: LocalCluster, stop: asyncio.Event) -> None:
        volumes = {identity: self._state.projected_volume(identity.name) for identity in self._config.identities}
        async with asyncio.TaskGroup() as group:
            group.create_task(_raise_when(stop))
            for child in children:
                group.create_task(child.watch())
            group.create_task(cluster.rotate_tokens(volumes))
            group.create_task(self._open_when_ready(children))

    async def _open_when_ready(self, children: Sequence["_Child"]) -> None:
        try:
            async with asyncio.timeout(_START_PATIENCE):
                ports = {child.name: await child.ready for child in children}
        except TimeoutError:
            late = ", ".join(child.name for child in children if not child.ready.done())
            raise LocalAzureError(
                f"not ready after {_START_PATIENCE:g} s: {late}. Look for its messages above."
            ) from None
        endpoints = Endpoints(
            entra=ports["entra"]["port"],
            openai=ports["openai"]["port"],
            servicebus_tls=ports["servicebus"]["tls_port"],
            servicebus_plain=ports["servicebus"]["plain_port"],
            servicebus_https=ports["servicebus"]["https_port"],
            imds=ports["entra"]["imds_port"],
            token_proxy=ports["entra"]["token_proxy_port"],
            blob=ports["blob"]["port"],
        )
        self._write_environment_files(endpoints)
        _say(self._summary(endpoints))

    def _write_environment_files(self, endpoints: Endpoints) -> None:
        for identity in self._config.identities:
            pod = pod_environment(self._config, identity, self._state, endpoints, sink=self._sink)
            write_atomically(self._state.environment(identity.name), shell_exports(pod))
        if self._write_env is not None:
            # The worker's file comes last: whoever waits for it finds the other there.
            for name, path in reversed(_environment_files(self._write_env).items()):
                write_atomically(path, self._state.environment(name).read_bytes())

    def _remove_environment_files(self) -> None:
        """A file that names dead ports would only mislead."""
        if self._write_env is not None:
            for path in _environment_files(self._write_env).values():
                path.unlink(missing_ok=True)

    def _summary(self, endpoints: Endpoints) -> str:
        config = self._config
        queues = ", ".join(queue.name for queue in config.queues) or "none"
        topics = ", ".join(topic.name for topic in config.topics) or "none"
        deployments = ", ".join(deployment.name for deployment in config.deployments)
        return f"""\
The embedded Azure is ready, {time.monotonic() - self._started:.1f} s after its start.

  Service Bus    localhost:{endpoints.servicebus_tls} over TLS, localhost:{endpoints.servicebus_plain} without
                 https://localhost:{endpoints.servicebus_https}, administration and WebSockets
                 queues: {queues}; topics: {topics}
  Azure OpenAI   https://localhost:{endpoints.openai}
                 deployments: {deployments}
  Blob storage   {_container_url(config, endpoints)}
  Entra          https://localhost:{endpoints.entra}/{config.tenant_id}
  State          {self._state.root}{"" if self._kept else " (removed at the end)"}
  Faults         PUT /local/faults at each https address: docs/fault-injection.md

{self._next_steps()}

Ctrl-C stops it."""

    def _next_steps(self) -> str:
        lines = ["Next, each in a terminal of its own:", ""]
        for name, command in (
            ("worker", "AOAI_WORKER_MODELS=passthrough aoai-worker run"),
            ("producer", "aoai-worker submit FILE.jsonl"),
        ):
            path = shlex.quote(_sourced(self._environment_file(name)))
            lines.append(f"  . {path} && {command}")
        return "\n".join(lines)

    def _environment_file(self, identity: str) -> Path:
        if self._write_env is None:
            return self._state.environment(identity)
        return _environment_files(self._write_env)[identity]


class _Child:
    """One process of the embedded Azure. `ready` resolves to the ports it announces."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self.process = process
        self.ready: asyncio.Future[dict[str, int]] = asyncio.get_running_loop().create_future()

    async def watch(self) -> None:
        """Listen to the process as long as it lives. Always ends by raising LocalAzureError."""
        stdout = self.process.stdout
        assert stdout is not None
        async for line in stdout:
            self._hear(line)
        code = await self.process.wait()
        raise LocalAzureError(
            f"{self.name} (process {self.process.pid}) ended with {_exit_words(code)}; the others were stopped. "
            "Its messages, if it left any, are above."
        )

    def _hear(self, line: bytes) -> None:
        ports = _announced_ports(self.name, line)
        if ports is not None and not self.ready.done():
            self.ready.set_result(ports)
        elif ports is None:
            _say(f"[{self.name}] {line.decode(errors='replace').rstrip()}", error=True)

    def hang_up(self) -> None:
        """Ask it to stop, by the end of its standard input."""
        stdin = self.process.stdin
        assert stdin is not None
        stdin.close()

    async def wait_or_kill(self) -> None:
        """Wait for the end; killed when it takes longer than the grace."""
        try:
            async with asyncio.timeout(_STOP_GRACE):
                await self.process.wait()
        except TimeoutError:
            self.process.kill()
            await self.process.wait()


@asynccontextmanager
async def _running(state: StateDirectory) -> AsyncIterator[list[_Child]]:
    children: list[_Child] = []
    try:
        for name, module in SERVICES.items():
            children.append(_Child(name, await _spawn(module, state)))
        yield children
    finally:
        for child in children:
            child.hang_up()
        await asyncio.gather(*(child.wait_or_kill() for child in children))


async def _spawn(module: str, state: StateDirectory) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        "--state",
        str(state.root),
        # Never written to: its end tells the child to stop, and comes even when this process dies by kill -9.
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        # Ctrl-C in the terminal reaches the supervisor alone, which then stops the children in order.
        start_new_session=True,
    )


def _announced_ports(service: str, line: bytes) -> dict[str, int] | None:
    try:
        document = json.loads(line)
    except ValueError:
        return None
    if not isinstance(document, dict) or document.pop("service", None) != service:
        return None
    return {name: port for name, port in document.items() if isinstance(port, int)}


def _stop_signal() -> asyncio.Event:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


async def _raise_when(stop: asyncio.Event) -> None:
    await stop.wait()
    raise _StopAsked


def _first(group: BaseExceptionGroup[LocalAzureError]) -> LocalAzureError:
    for error in group.exceptions:
        return _first(error) if isinstance(error, BaseExceptionGroup) else error
    raise AssertionError("an exception group is never empty")


@contextmanager
def _state_directory(given: Path | None) -> Iterator[StateDirectory]:
    """`given`, or a temporary directory that is removed at the end. Only its owner can look in."""
    with ExitStack() as stack:
        try:
            if given is None:
                root = stack.enter_context(temporary_directory())
            else:
                root = given.absolute()
                root.mkdir(mode=0o700, parents=True, exist_ok=True)
                _check_ours(root)
                root.chmod(0o700)
        except OSError as error:
            raise SetupError(f"the state directory {given or tempfile.gettempdir()}: {error.strerror}") from error
        yield StateDirectory(root)


def _check_ours(root: Path) -> None:
    if any(root.iterdir()) and not StateDirectory(root).config.exists():
        raise SetupError(
            f"the state directory {root} has files of somebody else in it. Name an empty or a new directory."
        )


def _environment_files(write_env: Path) -> dict[str, Path]:
    return {"worker": write_env, "producer": write_env.with_name(f"{write_env.name}.producer")}


def _check_environment_files(write_env: Path, config: Config) -> None:
    """Raises SetupError rather than overwrite a file that is not the embedded Azure's own."""
    for name, path in _environment_files(write_env).items():
        try:
            config.identity(name)
            first_line = path.read_text(errors="replace").partition("\n")[0] if path.exists() else _HEADER
        except KeyError as error:
            raise SetupError(f"--write-env needs the identity {name!r}: {error.args[0]}") from error
        except OSError as error:
            raise SetupError(
                f"--write-env {path}: {error.strerror}. Name a file in a directory of yours."
            ) from error
        if first_line != _HEADER:
            raise SetupError(
                f"--write-env {path}: the file exists and was not written by the embedded Azure. "
                "Name another file, or remove this one."
            )


def _exit_words(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _sourced(path: Path) -> str:
    """`.` searches PATH for a name without a slash."""
    return str(path) if "/" in str(path) else f"./{path}"


def _say(message: str, *, error: bool = False) -> None:
    stream = sys.stderr if error else sys.stdout
    # A reader that has gone (`| head`) is no reason to stop.
    with suppress(BrokenPipeError):
        stream.write(message + "\n")
        stream.flush()
