"""Children and what the kernel counts for them: an embedded Azure, the contenders, CPU and memory from /proc.

Every child is stopped at the end of its block, however the block ends.
"""

import asyncio
import json
import os
import shlex
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aiohttp import ClientSession

from embedded_azure.config import Config

START_PATIENCE = 40.0
STOP_PATIENCE = 15.0
TICK_MS = 1_000 / os.sysconf("SC_CLK_TCK")
LINES_KEPT = 40


class BenchmarkFailed(Exception):
    """What was measured means nothing. The message says what happened."""


def cpu_ms(pid: int) -> float:
    """User and system time of a process with all its threads, so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_MS


def peak_rss_mib(pid: int) -> float:
    return _status_mib(pid, "VmHWM:")


def rss_mib(pid: int) -> float:
    return _status_mib(pid, "VmRSS:")


def _status_mib(pid: int, field: str) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    [kib] = [line.split()[1] for line in lines if line.startswith(field)]
    return int(kib) / 1024


def family_cpu_ms(pid: int) -> float:
    """The CPU of a process and of its children."""
    return cpu_ms(pid) + sum(cpu_ms(child) for child in _children(pid))


def foreign_cpu_ms(*ours: int) -> float:
    """The CPU of the machine, so far, but for this process and the families of `ours`."""
    words = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    user, nice, system, _idle, _waiting, interrupts, soft_interrupts, stolen = map(int, words)
    busy = TICK_MS * (user + nice + system + interrupts + soft_interrupts + stolen)
    return busy - cpu_ms(os.getpid()) - sum(map(family_cpu_ms, ours))


def _children(pid: int) -> Iterator[int]:
    return map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())


class Child:
    """A process whose last lines are kept for the message of a failure."""

    def __init__(self, process: asyncio.subprocess.Process, stop_by: signal.Signals) -> None:
        self.process = process
        self._stop_by = stop_by
        self.pid = process.pid
        self._last_lines: deque[str] = deque(maxlen=LINES_KEPT)
        self._reading: asyncio.Task[None] | None = None

    async def printed(self, text: str) -> None:
        """Read until a line holds `text`. Raises BenchmarkFailed if it ends or hesitates."""
        try:
            async with asyncio.timeout(START_PATIENCE):
                while line := await self._read():
                    if text in line:
                        return
        except TimeoutError:
            raise BenchmarkFailed(f"never printed {text!r}:\n{self.last_words}") from None
        raise BenchmarkFailed(f"ended before it printed {text!r}:\n{self.last_words}")

    def keep_reading(self) -> None:
        """A full pipe would stop it."""
        self._reading = asyncio.get_running_loop().create_task(self._read_on())

    def require_alive(self) -> None:
        if self.process.returncode is not None:
            raise BenchmarkFailed(f"ended with {self.process.returncode}:\n{self.last_words}")

    @property
    def last_words(self) -> str:
        return "".join(self._last_lines)

    async def stop(self) -> None:
        """Ask it to end, and kill it if it does not."""
        if self.process.returncode is None:
            self.process.send_signal(self._stop_by)
        try:
            async with asyncio.timeout(STOP_PATIENCE):
                await self.process.wait()
        except TimeoutError:
            self.process.kill()
            await self.process.wait()
        finally:
            if self._reading is not None:
                self._reading.cancel()

    async def _read_on(self) -> None:
        while await self._read():
            pass

    async def _read(self) -> str:
        assert self.process.stdout is not None
        line = (await self.process.stdout.readline()).decode(errors="replace")
        self._last_lines.append(line)
        return line


@asynccontextmanager
async def child(
    *command: str, environment: Mapping[str, str], says: str, stop_by: signal.Signals = signal.SIGTERM
) -> AsyncIterator[Child]:
    """`command`, once it has printed `says`; asked to stop at the end, and killed if it does not."""
    process = await asyncio.create_subprocess_exec(
        *command,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        limit=1 << 20,
    )
    running = Child(process, stop_by)
    try:
        await running.printed(says)
        running.keep_reading()
        yield running
    finally:
        await running.stop()


async def output_of(module: str, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
    """What a module of ours prints, run to its end. Raises BenchmarkFailed, with its last words, where it fails."""
    command = [sys.executable, "-m", module, *arguments]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=pipe, stderr=pipe)
    try:
        printed, log = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise BenchmarkFailed(f"{module} ended with {process.returncode}: {log.decode()[-2_000:]}")
    return printed.decode().strip()


@dataclass(frozen=True, kw_only=True)
class Azure:
    """An embedded Azure that is ready. `state` holds the environments of its identities."""

    state: Path
    process: Child

    def environment(self, identity: str) -> dict[str, str]:
        """Of the pod of that identity."""
        return clean_environment() | read_exports(self.state / "env" / f"{identity}.env")

    async def model_stats(self) -> dict[str, Any]:
        async with ClientSession() as session, session.get(self._model("stats"), ssl=False) as answer:
            return dict(json.loads(await answer.read()))

    async def disturb_model(self, fault: Mapping[str, Any]) -> None:
        """Raises BenchmarkFailed where there is no such fault."""
        async with ClientSession() as session, session.put(self._model("faults"), json=fault, ssl=False) as answer:
            if answer.status != 200:
                raise BenchmarkFailed(f"the fault {fault} is refused: {await answer.text()}")

    def _model(self, page: str) -> str:
        return f"{self.environment('worker')['AZURE_OPENAI_ENDPOINT']}/local/{page}"

    def cpu_ms(self) -> float:
        """Of its three services and their supervisor."""
        return family_cpu_ms(self.process.pid)


@asynccontextmanager
async def embedded_azure(folder: Path, config: Config, *options: str) -> AsyncIterator[Azure]:
    """`folder` must not exist yet. `options` are more of `aoai-worker local`. Results go to a queue, as the
    textbook worker's do, unless `options` say otherwise."""
    where = [] if "--sink" in options else ["--sink", "queue"]
    arguments = ["--state", str(folder / "state"), "--config", str(_write_config(folder, config)), *where, *options]
    command = [sys.executable, "-m", "worker", "local", "--write-env", str(folder / "azure.env"), *arguments]
    async with child(*command, environment=clean_environment(), says="is ready") as process:
        yield Azure(state=folder / "state", process=process)


def _write_config(folder: Path, config: Config) -> Path:
    folder.mkdir()
    path = folder / "config.json"
    path.write_text(json.dumps(asdict(config)))
    return path


def clean_environment() -> dict[str, str]:
    """Nothing of this machine's Azure or settings."""
    strangers = ("AZURE_", "AOAI_", "OPENAI_")
    return {name: value for name, value in os.environ.items() if not name.startswith(strangers)}


def read_exports(path: Path) -> dict[str, str]:
    """The `export NAME=value` lines of an environment file."""
    lines = (shlex.split(line, comments=True) for line in path.read_text().splitlines())
    pairs = (words[1].partition("=") for words in lines if words[:1] == ["export"])
    return {name: value for name, _, value in pairs}
