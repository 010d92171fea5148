"""A real Prometheus that scrapes what it is given, evaluates the project's rules, and answers queries."""

import asyncio
import socket
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from aiohttp import ClientError, ClientSession

from scripts.chart.rules import read_rules
from tests.monitoring.expressions import NAMESPACE

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ROOT / ".tools" / "debian" / "usr" / "bin"
PROGRAM, PROMTOOL = PROGRAMS / "prometheus", PROGRAMS / "promtool"
PATIENCE = 30.0


def promtool(*arguments: str, stdin: str = "") -> tuple[int, str]:
    """Its exit code and all it printed."""
    done = subprocess.run(
        [PROMTOOL, *arguments], input=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return done.returncode, done.stdout


def write_rules(folder: Path, fullname: str) -> Path:
    """The rules of one release as Prometheus reads them from a file."""
    file = folder / f"{fullname}.yaml"
    file.write_text(yaml.safe_dump({"groups": read_rules(NAMESPACE, fullname)}))
    return file


@dataclass(frozen=True)
class Target:
    """A port on this machine, and the labels that Kubernetes discovery would give it."""

    port: int
    labels: dict[str, str]


@dataclass(frozen=True)
class Prometheus:
    url: str

    async def query(self, expression: str) -> list[dict[str, Any]]:
        """The series of an instant query. Raises AssertionError with Prometheus's own words if it is refused."""
        url = f"{self.url}/api/v1/query"
        async with ClientSession() as session, session.post(url, data={"query": expression}) as answer:
            body = await answer.json()
        assert body["status"] == "success", f"{expression}: {body.get('error')}"
        return list(body["data"]["result"])

    async def rules(self) -> list[dict[str, Any]]:
        """Every rule with the time and the error of its last evaluation."""
        async with ClientSession() as session, session.get(f"{self.url}/api/v1/rules") as answer:
            body = await answer.json()
        return [rule for group in body["data"]["groups"] for rule in group["rules"]]

    async def has(self, expression: str) -> bool:
        return bool(await self.query(expression))


@asynccontextmanager
async def prometheus(folder: Path, targets: Sequence[Target], *, interval: str = "1s") -> AsyncIterator[Prometheus]:
    file, port = write_configuration(folder, targets, interval), free_port()
    with (folder / "prometheus.log").open("wb") as log:
        child = await asyncio.create_subprocess_exec(
            PROGRAM,
            f"--config.file={file}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--web.cors.origin=.*",
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        started = Prometheus(f"http://127.0.0.1:{port}")
        await _ready(started, child)
        yield started
    finally:
        if child.returncode is None:
            child.terminate()
        await child.wait()


def write_configuration(folder: Path, targets: Sequence[Target], interval: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_rules(folder, "aoai-worker")
    file = folder / "prometheus.yaml"
    file.write_text(yaml.safe_dump(configuration(targets, interval)))
    return file


def configuration(targets: Sequence[Target], interval: str) -> dict[str, Any]:
    static = [{"targets": [f"127.0.0.1:{target.port}"], "labels": target.labels} for target in targets]
    return {
        "global": {"scrape_interval": interval, "evaluation_interval": interval},
        "rule_files": ["aoai-worker.yaml"],
        "scrape_configs": [{"job_name": "pods", "honor_labels": True, "static_configs": static}],
    }


async def _ready(started: Prometheus, child: asyncio.subprocess.Process) -> None:
    async with asyncio.timeout(PATIENCE), ClientSession() as session:
        while True:
            assert child.returncode is None, "Prometheus ended; its log is beside its configuration"
            try:
                async with session.get(f"{started.url}/-/ready") as answer:
                    if answer.status == 200:
                        return
            except ClientError:
                pass
            await asyncio.sleep(0.1)  # it tells nobody when its port is open


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
