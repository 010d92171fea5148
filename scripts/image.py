"""Builds the image, looks at it with other people's tools, and runs it: `make image`.

It uses the container engine that is there, or Debian's, unpacked and started for the time of the run, which needs
root. Base images that no registry gives are replaced by stand-ins of the same names (tests/image/stand_ins).
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEBIAN = ROOT / ".tools" / "debian" / "usr"
TOOLS = ROOT / ".venv-image" / "bin"
OUTPUT = ROOT / "image-output"
IMAGE = "aoai-worker:dev"
BASES = ("python:3.13-slim-trixie", "gcr.io/distroless/python3-debian13:nonroot")
MAX_MEGABYTES = 120
ENGINE_PATIENCE = 30.0

CHECKOV_SKIPS = {
    "CKV_DOCKER_2": "no HEALTHCHECK: Kubernetes ignores it, the chart has probes",
}
TRIVY_SKIPS = {
    "DS-0026": "no HEALTHCHECK: Kubernetes ignores it, the chart has probes",
}


class ImageFailed(Exception):
    """Says what failed and what to do about it."""


def main() -> int:
    try:
        with ExitStack() as stack:
            stack.enter_context(engine())
            OUTPUT.mkdir(exist_ok=True)
            provide_bases()
            build()
            check_size()
            archive = save()
            look_at_dockerfile()
            list_contents(archive)
            archive.unlink()
            run_tests()
    except ImageFailed as failure:
        sys.stderr.write(f"make image: {failure}\n")
        return 1
    return 0


@contextmanager
def engine() -> Iterator[None]:
    """Whatever DOCKER_HOST or the default socket offers, else Debian's own for as long as the block lasts."""
    if succeeds("docker", "info"):
        yield
        return
    if os.geteuid() != 0:
        raise ImageFailed(
            "no container engine answers (docker info), and only root can start Debian's.\n"
            "Next: start Docker, or set DOCKER_HOST, or run make image as root on Debian or Ubuntu."
        )
    unpack("docker.io", "containerd", "runc")
    os.environ["PATH"] = f"{DEBIAN / 'bin'}:{DEBIAN / 'sbin'}:{os.environ['PATH']}"
    with tempfile.TemporaryDirectory(prefix="aoai-worker-engine-") as folder, debian_engine(Path(folder)):
        yield


@contextmanager
def debian_engine(folder: Path) -> Iterator[None]:
    """Without a bridge and iptables, which a sandbox may not allow: containers use the host's network."""
    socket = f"unix://{folder}/docker.sock"
    options = ["--iptables=false", "--ip6tables=false", "--bridge=none", "--storage-driver=vfs"]
    places = ["--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec", "--pidfile", f"{folder}/pid"]
    log = folder / "log"
    with log.open("wb") as output:
        daemon = subprocess.Popen(["dockerd", *options, *places, "--host", socket], stdout=output, stderr=output)
    os.environ["DOCKER_HOST"] = socket
    try:
        wait_for_engine(daemon, log)
        yield
    finally:
        daemon.terminate()
        daemon.wait()
        unmount_below(folder)
        del os.environ["DOCKER_HOST"]


def wait_for_engine(daemon: "subprocess.Popen[bytes]", log: Path) -> None:
    until = time.monotonic() + ENGINE_PATIENCE
    while not succeeds("docker", "info"):
        if daemon.poll() is not None or time.monotonic() > until:
            raise ImageFailed(f"Debian's container engine did not start:\n{log.read_text()[-2_000:]}")
        time.sleep(0.2)


def unmount_below(folder: Path) -> None:
    """The engine leaves its network namespace mounted, and the folder could not be removed."""
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for mount in sorted((mount for mount in mounts if mount.startswith(f"{folder}/")), reverse=True):
        call("umount", mount)


def provide_bases() -> None:
    missing = [base for base in BASES if not succeeds("docker", "image", "inspect", base) and not pull(base)]
    if not missing:
        return
    say(f"No registry gives {' and '.join(missing)}: stand-ins are made from Debian packages, about 20 s.")
    if shutil.which("mmdebstrap") is None:
        unpack("mmdebstrap")
        os.environ["PATH"] = f"{DEBIAN / 'bin'}:{os.environ['PATH']}"
    call("tests/image/stand_ins", *BASES)


def pull(base: str) -> bool:
    try:
        return succeeds("docker", "pull", base, timeout=120)
    except subprocess.TimeoutExpired:
        return False


def build() -> None:
    say("Building the image.")
    version, revision = version_of_project(), git_revision()
    arguments = ["--build-arg", f"VERSION={version}", "--build-arg", f"REVISION={revision}"]
    with package_index_secrets() as secrets:
        os.environ["DOCKER_BUILDKIT"] = "1"
        call("docker", "build", "--quiet", "--network", "host", *arguments, *secrets, "--tag", IMAGE, ".")


@contextmanager
def package_index_secrets() -> Iterator[list[str]]:
    """This machine's pip settings as build secrets: which index to ask, and which authority to trust."""
    settings = pip_settings()
    authority = settings.pop("cert", None)
    secrets = ["--secret", f"id=ca.crt,src={authority}"] if authority else []
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as file:
        if settings:
            file.write("[global]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items()))
            file.flush()
            secrets += ["--secret", f"id=pip.conf,src={file.name}"]
        yield secrets


def pip_settings() -> dict[str, str]:
    """Only what a build elsewhere on this network needs, too; the environment wins over files, as with pip."""
    wanted = ("index-url", "extra-index-url", "trusted-host", "cert")
    found: dict[str, str] = {}
    for line in sorted(output_of(sys.executable, "-m", "pip", "config", "list").splitlines(), reverse=True):
        key, _, value = line.partition("=")
        name = key.split(".", 1)[-1]
        if name in wanted and "file:" not in value:
            found.setdefault(name, value.strip("'"))
    return dict(sorted(found.items()))


def check_size() -> None:
    size = int(output_of("docker", "image", "inspect", "--format", "{{.Size}}", IMAGE)) / 1e6
    say(f"The image has {size:.0f} MB unpacked.")
    if size > MAX_MEGABYTES:
        raise ImageFailed(f"the image has {size:.0f} MB, more than the {MAX_MEGABYTES} MB it may have")


def save() -> Path:
    archive = OUTPUT / "image.tar"
    call("docker", "save", IMAGE, "--output", str(archive))
    return archive


def look_at_dockerfile() -> None:
    say("hadolint, trivy config and checkov look at the Dockerfile.")
    call(str(TOOLS / "hadolint"), "--failure-threshold", "style", "Dockerfile")
    with only_the_dockerfile() as folder:
        trivy = [str(TOOLS / "trivy"), "config", "--quiet", "--skip-check-update", "--skip-version-check"]
        ignored = Path(folder) / "trivyignore"
        ignored.write_text("".join(f"{check} # {reason}\n" for check, reason in TRIVY_SKIPS.items()))
        call(*trivy, "--exit-code", "1", "--ignorefile", str(ignored), folder)
        checkov = [str(TOOLS / "checkov"), "--quiet", "--compact", "--framework", "dockerfile", "--skip-download"]
        call(*checkov, "--skip-check", ",".join(CHECKOV_SKIPS), "--file", f"{folder}/Dockerfile")


@contextmanager
def only_the_dockerfile() -> Iterator[str]:
    """A folder with nothing else in it: the scanners would search the whole checkout, environments included."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(ROOT / "Dockerfile", folder)
        yield folder


def list_contents(archive: Path) -> None:
    sbom = OUTPUT / "sbom.spdx.json"
    os.environ["SYFT_CHECK_FOR_APP_UPDATE"] = "false"
    call(str(TOOLS / "syft"), "scan", f"docker-archive:{archive}", "--quiet", "--output", f"spdx-json={sbom}")
    names = {package["name"] for package in json.loads(sbom.read_text())["packages"]}
    if missing := {"aoai-worker", "openai", "azure-servicebus"} - names:
        raise ImageFailed(f"{sbom} does not list {', '.join(sorted(missing))}")
    say(f"{sbom.relative_to(ROOT)} lists {len(names)} packages.")


def run_tests() -> None:
    os.environ["AOAI_WORKER_IMAGE"] = IMAGE
    call(sys.executable, "-m", "pytest", "-q", "tests/image")


def version_of_project() -> str:
    from importlib.metadata import version

    return version("aoai-worker")


def git_revision() -> str:
    found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


def unpack(*packages: str) -> None:
    call("scripts/debian-tools", *packages)


def succeeds(*command: str, timeout: float | None = None) -> bool:
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, timeout=timeout).returncode == 0
    except FileNotFoundError:
        return False


def call(*command: str) -> None:
    """Raises ImageFailed when the command does not succeed; it has said why itself."""
    try:
        code = subprocess.run(command, cwd=ROOT).returncode
    except FileNotFoundError as error:
        raise ImageFailed(f"{error.filename} is not there") from error
    if code:
        raise ImageFailed(f"exit code {code} of: {' '.join(command)}")


def output_of(*command: str) -> str:
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
