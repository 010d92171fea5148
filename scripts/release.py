"""Makes what a release publishes in dist/ and tries it: `make release-check`, and the release workflow by it.

    python -m scripts.release [TAG]

TAG is v and the version; without it, that of pyproject.toml.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from hatch_build import VARIABLE

ROOT = Path(__file__).resolve().parent.parent
CHART = ROOT / "charts/aoai-worker"
DIST = ROOT / "dist"
HELM = ROOT / ".venv-deploy/bin/helm4"
REGISTRY = ROOT / ".tools/debian/usr/bin/docker-registry"
ARM64 = [f"--platform=manylinux_2_{minor}_aarch64" for minor in (17, 28, 34)] + ["--platform=manylinux2014_aarch64"]
REGISTRY_PATIENCE = 30.0
SEMANTIC = r"\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?"
INSTALLED = "from importlib.metadata import version; print(version('{}'))"


class ReleaseFailed(Exception):
    """Says what failed and what to do about it."""


def main() -> int:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    tag = sys.argv[1] if len(sys.argv) > 1 else f"v{version}"
    changelog = (ROOT / "CHANGELOG.md").read_text()
    try:
        if problems := version_problems(tag, stated_versions(), changelog):
            raise ReleaseFailed("\n".join(problems))
        say(f"{tag}: every version agrees.")
        shutil.rmtree(DIST, ignore_errors=True)
        DIST.mkdir()
        (DIST / "notes.md").write_text(release_notes(changelog, version))
        make_wheels()
        for program in ("aoai-worker", "embedded-azure"):  # the names of their packages, too
            try_wheel(program, version)
        try_lock_on_arm64()
        try_chart(package_chart())
    except ReleaseFailed as failure:
        sys.stderr.write(f"release-check: {failure}\n")
        return 1
    say("NO SIGNATURE WAS MADE OR VERIFIED: the release workflow signs with cosign and GitHub's identity.")
    say("NO IMAGE WAS BUILT: make image builds and tests it for this machine.")
    return 0


def version_problems(tag: str, stated: Mapping[str, str], changelog: str) -> list[str]:
    """What keeps `tag` from being released, a sentence each. `stated` has places and the version each states."""
    version = tag.removeprefix("v")
    if not re.fullmatch(f"v{SEMANTIC}", tag):
        return [f"The tag is {tag!r}; it must be v and a semantic version, such as v1.2.0. Next: make another tag."]
    problems = [
        f"{place} states {found}, the tag {version}. Next: write {version} there, or make the tag v{found}."
        for place, found in stated.items()
        if found != version
    ]
    if not release_notes(changelog, version):
        problems.append(
            f"CHANGELOG.md has nothing under a heading '## [{version}] - YYYY-MM-DD'. "
            "Next: give the entries under Unreleased that heading."
        )
    return problems


def stated_versions() -> dict[str, str]:
    stated = {}
    for name in ("pyproject.toml", "embedded_azure/pyproject.toml"):
        stated[name] = tomllib.loads((ROOT / name).read_text())["project"]["version"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    stated |= {f"Chart.yaml's {key}": str(chart[key]) for key in ("version", "appVersion")}
    for path in sorted(ROOT.glob("k8s/overlays/*/kustomization.yaml")):
        for image in yaml.safe_load(path.read_text())["images"]:
            stated[str(path.relative_to(ROOT))] = str(image["newTag"])
    return stated


def release_notes(changelog: str, version: str) -> str:
    """The section of the changelog that is about `version`; empty where there is none."""
    heading = rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d\n(.*?)(?=^## \[|\Z)"
    found = re.search(heading, changelog, re.MULTILINE | re.DOTALL)
    return found[1].strip() if found else ""


def make_wheels() -> None:
    for folder in (ROOT, ROOT / "embedded_azure"):
        output_of(
            sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(DIST / "wheels"), folder=folder
        )


def try_wheel(program: str, version: str) -> None:
    """In an environment without anything else, outside the checkout: what is missing in a wheel fails there."""
    (wheel,) = (DIST / "wheels").glob(f"{program.replace('-', '_')}-*.whl")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        call(sys.executable, "-m", "venv", name)
        python = str(folder / "bin/python")
        pip = [python, "-m", "pip", "--disable-pip-version-check"]
        call(*pip, "install", "--quiet", str(wheel))
        output_of(*pip, "check")
        found = output_of(python, "-c", INSTALLED.format(program), folder=folder).strip()
        if found != version:
            raise ReleaseFailed(f"{wheel.name} says that it is {found}, not {version}. Next: read its METADATA.")
        output_of(str(folder / "bin" / program), "--help", folder=folder)
    say(f"{wheel.relative_to(ROOT)} can be installed alone, and {program} starts.")


def try_lock_on_arm64() -> None:
    """The arm64 image takes wheels only; one that is missing would stop the release half-way."""
    with tempfile.TemporaryDirectory() as folder:
        call(
            sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--require-hashes",
            "--no-deps", "--only-binary=:all:", "--python-version=3.13", "--implementation=cp", *ARM64,
            "--dest", folder, "--requirement", str(ROOT / "requirements/runtime.txt"),
        )  # fmt: skip
    say("Every locked requirement has a wheel for arm64.")


def package_chart() -> Path:
    """With the links of the release, which come from AOAI_WORKER_PROJECT_URL as those of the wheels do."""
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copytree(CHART, Path(folder) / CHART.name)
        chart = yaml.safe_load((copy / "Chart.yaml").read_text())
        linked = with_links(chart, os.environ.get(VARIABLE, ""))
        (copy / "Chart.yaml").write_text(yaml.safe_dump(linked, sort_keys=False))
        call(str(HELM), "lint", "--strict", "--quiet", str(copy), "-f", str(CHART / "ci/default.yaml"))
        output_of(str(HELM), "package", str(copy), "-d", str(DIST))
    return DIST / f"{chart['name']}-{chart['version']}.tgz"


def with_links(chart: Mapping[str, Any], address: str) -> dict[str, Any]:
    """Chart.yaml with the project's address, or as it is where there is none."""
    if not (address := address.rstrip("/")):
        return dict(chart)
    return {
        **chart,
        "home": address,
        "sources": [f"{address}/tree/v{chart['version']}/charts/aoai-worker"],
        "icon": f"{address}/raw/v{chart['version']}/docs/icon.svg",
    }


def try_chart(package: Path) -> None:
    """To a registry and back."""
    with registry() as address, tempfile.TemporaryDirectory() as folder:
        place = f"oci://{address}/charts"
        output_of(str(HELM), "push", str(package), place, "--plain-http")
        options = ["--version", package.stem.removeprefix(f"{CHART.name}-"), "--plain-http", "-d", folder]
        output_of(str(HELM), "pull", f"{place}/{CHART.name}", *options)
        pulled = Path(folder) / package.name
        if digest(pulled) != digest(package):
            raise ReleaseFailed(f"the registry gave another {package.name} than it was given")
        output_of(str(HELM), "template", "aoai-worker", str(pulled), "-f", str(CHART / "ci/default.yaml"))
    say(f"{package.relative_to(ROOT)} went to a registry and came back, and can be installed.")


@contextmanager
def registry() -> Iterator[str]:
    """The address of Debian's docker-registry, for as long as the block lasts."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "version": 0.1,
            "storage": {"filesystem": {"rootdirectory": folder}},
            "http": {"addr": "127.0.0.1:0"},
        }
        (file := Path(folder) / "config.yml").write_text(yaml.safe_dump(settings))
        output = (Path(folder) / "log").open("wb")
        with output, subprocess.Popen([REGISTRY, "serve", file], stdout=output, stderr=subprocess.PIPE) as process:
            try:
                yield listening_address(process)
            finally:
                process.terminate()


def listening_address(process: "subprocess.Popen[bytes]") -> str:
    assert process.stderr is not None
    said = []
    watch = threading.Timer(REGISTRY_PATIENCE, process.kill)
    watch.start()
    try:
        for line in process.stderr:
            said.append(line.decode())
            if found := re.search(r"listening on (127\.0\.0\.1:\d+)", said[-1]):
                return found[1]
    finally:
        watch.cancel()
    raise ReleaseFailed(f"docker-registry did not start:\n{''.join(said[-10:])}")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def call(*command: str, folder: Path = ROOT) -> None:
    if code := subprocess.run(command, cwd=folder).returncode:
        raise ReleaseFailed(f"exit code {code} of: {' '.join(command)}")


def output_of(*command: str, folder: Path = ROOT) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise ReleaseFailed(f"exit code {done.returncode} of: {' '.join(command)}\n{done.stderr}")
    return done.stdout


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
