"""Containers as strict as a hardened cluster runs them: read-only, without capabilities, with a memory limit."""

import asyncio
import json
import shutil
import signal
import subprocess
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.processes import MODELS, Azure, Process

HARDENED = (
    "--rm",
    "--network=host",
    "--read-only",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    "--memory=256m",
    "--pids-limit=128",
)


def run_once(image: str, *arguments: str, entrypoint: str | None = None) -> tuple[int, str]:
    """The exit code and all that was printed."""
    instead = [f"--entrypoint={entrypoint}"] if entrypoint else []
    command = ["docker", "run", *HARDENED, *instead, image, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60)
    return done.returncode, done.stdout


def configuration(image: str) -> dict[str, object]:
    found = subprocess.run(["docker", "image", "inspect", image], check=True, capture_output=True)
    configured: dict[str, object] = json.loads(found.stdout)[0]["Config"]
    return configured


def mount_of(azure: Azure, folder: Path) -> tuple[Path, dict[str, str]]:
    """What the webhook mounts and sets: the token and the authority, readable for any user, and the environment."""
    environment = {
        name: value
        for name, value in azure.environment("worker").items()
        if name.startswith(("AZURE_", "AOAI_WORKER_"))
    }
    folder.mkdir(exist_ok=True)
    for name in ("AZURE_FEDERATED_TOKEN_FILE", "AOAI_WORKER_CA_FILE"):
        copy = folder / name.lower()
        shutil.copyfile(environment[name], copy)
        copy.chmod(0o644)
        environment[name] = f"/var/run/azure/{copy.name}"
    folder.chmod(0o755)
    return folder, environment


@dataclass(frozen=True)
class Container:
    process: Process

    def terminate(self) -> None:
        """SIGTERM, which `docker run` hands on to the container's first process, as the kubelet would send it."""
        self.process.child.send_signal(signal.SIGTERM)


@asynccontextmanager
async def worker_container(image: str, azure: Azure, folder: Path, **settings: str) -> AsyncIterator[Container]:
    mount, environment = mount_of(azure, folder)
    environment |= {"AOAI_WORKER_MODELS": MODELS, "AOAI_WORKER_HTTP_PORT": "0"}
    environment |= {f"AOAI_WORKER_{name.upper()}": value for name, value in settings.items()}
    name = f"aoai-worker-{uuid.uuid4().hex[:12]}"
    child = await asyncio.create_subprocess_exec(
        *("docker", "run", *HARDENED, f"--name={name}", f"--volume={mount}:/var/run/azure:ro"),
        *_options(environment),
        image,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=1 << 20,
    )
    process = Process(child)
    process.read()
    try:
        yield Container(process)
    finally:
        if child.returncode is None:
            await asyncio.to_thread(subprocess.run, ["docker", "kill", name], capture_output=True)
        await process.ended()


def _options(environment: Mapping[str, str]) -> list[str]:
    return [f"--env={name}={value}" for name, value in environment.items()]
