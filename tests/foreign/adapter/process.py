"""One embedded Azure for one foreign test: a real process with the entities that the test's decorators ask for.

It runs in the harness's own environment, which knows nothing of this project: the process is started by a command,
told its config as a JSON file, and found by the port it announces. The namespace's real name leads there.
"""

import json
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMESPACE = "local"
SUFFIX = ".servicebus.windows.net"
HOST = f"{NAMESPACE}{SUFFIX}"
KEY_NAME = "RootManageSharedAccessKey"
KEY = "Zm9yZWlnbi10ZXN0cy1vZi1zZXJ2aWNlLWJ1cw=="

_ports: dict[int, int] = {}
_resolve = socket.getaddrinfo


def python_of_the_service() -> str:
    return os.environ["FOREIGN_SERVICE_PYTHON"]


def keys() -> Path:
    """The state directory with the keys that every process of this run uses."""
    return Path(os.environ["FOREIGN_KEYS"])


def owners_token() -> str:
    return (keys() / "owner.jwt").read_text()


def lead_the_name_home() -> None:
    """Resolves the namespace's name to the process of the present test, as DNS would."""

    def resolve(host: Any, port: Any, *rest: Any, **options: Any) -> Any:
        if host == HOST and port in _ports:
            return _resolve("127.0.0.1", _ports[port], *rest, **options)
        return _resolve(host, port, *rest, **options)

    socket.getaddrinfo = resolve


@contextmanager
def running(entities: dict[str, Any]) -> Iterator[None]:
    """The embedded Service Bus with `entities` (fields of its Config), until the block ends."""
    with tempfile.TemporaryDirectory(prefix="foreign-test-") as folder:
        state = Path(folder, "state")
        shutil.copytree(keys(), state)
        config = json.loads((state / "config.json").read_text())
        (state / "config.json").write_text(json.dumps({**config, **entities}))
        process = subprocess.Popen(
            [python_of_the_service(), "-m", "embedded_azure.servicebus", "--state", str(state)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=os.environ["FOREIGN_SERVICE_ROOT"],
        )
        try:
            assert process.stdout is not None
            announced = json.loads(process.stdout.readline())
            _ports.update({5671: announced["tls_port"], 443: announced.get("https_port", announced["tls_port"])})
            yield
        finally:
            process.kill()
            process.communicate()
            _ports.clear()
