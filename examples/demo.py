"""A real batch through the worker on an embedded Azure, start to end: what `make demo` runs.

It starts what one would start in three terminals, with the environment a pod has and nothing else of yours:

    aoai-worker local --write-env FILE      Entra, Service Bus and Azure OpenAI on this machine
    aoai-worker run                         the worker
    aoai-worker submit, then collect        the producer

Then it checks the results against what README.md says must come out, and tells where they lie.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from check_chat import WrongResults, check, working_seconds
from prometheus_client.parser import text_string_to_metric_families

from embedded_azure.models import LARGE, SMALL

HERE = Path(__file__).parent
BATCH = HERE / "chat.jsonl"
OUTPUT = Path("demo-output")
COMMAND = (sys.executable, "-m", "worker")
MODELS = {model: [model] for model in (SMALL, LARGE)}
SOME_JOBS_FAILED = 4
"""How collect ends when the batch is complete and has failed jobs, as the example has on purpose."""
PATIENCE = 60.0
Found = TypeVar("Found")


class DemoFailed(Exception):
    """The first argument says what; a second is the log that may say why."""


def main() -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop as at Ctrl-C: everything that was started
    try:
        run_demo(time.monotonic())
    except (DemoFailed, WrongResults) as failure:
        reason, *logs = failure.args
        say(f"\nThe demo failed: {reason}")
        for log in logs:
            say(f"The end of {log}:", *log.read_text().splitlines()[-20:])
        return 1
    except KeyboardInterrupt:
        say("\nInterrupted; everything is stopped.")
        return 130
    return 0


def run_demo(began: float) -> None:
    OUTPUT.mkdir(exist_ok=True)
    out, errors, env_file = OUTPUT / "chat.out.jsonl", OUTPUT / "chat.err.jsonl", OUTPUT / "azure.env"
    for old in OUTPUT.glob("chat.*"):
        old.unlink()
    with running("azure", "local", "--write-env", str(env_file), env=clean_environment()) as azure:
        azure.wait_for("its environment", lambda: env_file.exists() or None)
        producer = clean_environment() | read_environment(env_file.with_name(f"{env_file.name}.producer"))
        with running("worker", "run", env=worker_environment(env_file)) as worker:
            port = worker.wait_for("its port", lambda: serving_port(worker.log))
            worker.wait_for("readiness", lambda: fetch(f"http://127.0.0.1:{port}/readyz"))
            say(f"An embedded Azure and a worker run, {time.monotonic() - began:.1f} s after the start.")
            batch_id = call("submit", os.path.relpath(BATCH), env=producer, beside=[azure, worker]).strip()
            where = ("-o", str(out), "--errors", str(errors))
            follow = ("collect", batch_id, *where, "--follow")
            call(*follow, env=producer, beside=[azure, worker], expected=SOME_JOBS_FAILED)
            kinds = check(BATCH, [out, errors])
            metrics = fetch(f"http://127.0.0.1:{port}/metrics") or ""
    report(kinds, working_seconds([out, errors]), metrics, out, errors)


def report(kinds: Counter[str], seconds: float, metrics: str, out: Path, errors: Path) -> None:
    jobs, calls = kinds.total(), total(metrics, "calls")
    throttled, failed = total(metrics, "calls", status="429"), total(metrics, "calls", status="503")
    say(
        f"\nEach of {jobs} jobs has exactly one result, and each is what examples/README.md says:",
        *(f"  {count:>4}  {kind}" for kind, count in kinds.most_common()),
        f"\n  {jobs / seconds:.0f} jobs/s: {seconds:.1f} s from the first job's start to the last one's end",
        f"  {calls:.0f} calls to Azure OpenAI; {throttled:.0f} throttled, {failed:.0f} failed and tried again",
        f"  {total(metrics, 'token_refreshes', outcome='ok'):.0f} tokens fetched from Entra, no key anywhere",
        f"\nAnswers: {out}\nErrors:  {errors}\nLogs:    {OUTPUT}/azure.log, {OUTPUT}/worker.log",
        "\nNext:",
        f"  head -1 {out} | python3 -m json.tool     look at an answer",
        "  .venv/bin/aoai-worker local      keep an Azure running; it says how to go on from there",
        "  docs/tutorial.md                 the same step by step, in three terminals",
    )


def total(metrics: str, name: str, **labels: str) -> float:
    """The sum of a counter of the worker over all its series that have these labels."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(metrics)
        for sample in family.samples
        if sample.name == f"aoai_worker_{name}_total" and labels.items() <= sample.labels.items()
    )


class Child:
    """A process that writes to a log of its own."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.name = name
        self.process = process
        self.log = log

    def wait_for(self, what: str, look: Callable[[], Found | None]) -> Found:
        until = time.monotonic() + PATIENCE
        while (found := look()) is None:
            self.require_alive()
            if time.monotonic() > until:
                raise DemoFailed(f"the {self.name} did not tell {what} within {PATIENCE:g} s", self.log)
            time.sleep(0.05)
        return found

    def require_alive(self) -> None:
        if self.process.poll() is not None:
            raise DemoFailed(f"the {self.name} ended with exit code {self.process.returncode}", self.log)


@contextmanager
def running(name: str, *arguments: str, env: Mapping[str, str]) -> Iterator[Child]:
    """The command in the background; at the end it is asked to stop, and must do so cleanly."""
    log = OUTPUT / f"{name}.log"
    with log.open("wb") as file:
        command = [*COMMAND, *arguments]  # in a session of its own, so that Ctrl-C reaches it through us only
        process = subprocess.Popen(command, env=env, stdout=file, stderr=file, start_new_session=True)
    try:
        yield Child(name, process, log)
        process.terminate()
        if code := process.wait(PATIENCE):
            raise DemoFailed(f"the {name} ended with exit code {code} when it was stopped", log)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(PATIENCE)


def call(*arguments: str, env: Mapping[str, str], beside: list[Child], expected: int = 0) -> str:
    """Run a command of the producer and return what it prints; its progress goes to the terminal."""
    say(f"$ aoai-worker {shlex.join(arguments)}")
    with subprocess.Popen([*COMMAND, *arguments], env=env, stdout=subprocess.PIPE, text=True) as process:
        try:
            while process.poll() is None:
                for child in beside:
                    child.require_alive()
                time.sleep(0.05)
        finally:
            process.terminate()
        printed = process.stdout.read() if process.stdout else ""
    if process.returncode != expected:
        raise DemoFailed(f"aoai-worker {arguments[0]} ended with exit code {process.returncode}")
    return printed


def clean_environment() -> dict[str, str]:
    return {name: os.environ[name] for name in ("PATH", "HOME", "TERM", "LANG") if name in os.environ}


def worker_environment(env_file: Path) -> dict[str, str]:
    models = {"AOAI_WORKER_MODELS": json.dumps(MODELS)}
    http = {"AOAI_WORKER_HTTP_HOST": "127.0.0.1", "AOAI_WORKER_HTTP_PORT": "0"}
    return clean_environment() | read_environment(env_file) | models | http


def read_environment(file: Path) -> dict[str, str]:
    words = shlex.split(file.read_text(), comments=True)
    return dict(word.split("=", 1) for word in words if "=" in word)


def serving_port(log: Path) -> int | None:
    for line in log.read_text().splitlines():
        if '"serving"' in line and line.endswith("}"):
            return int(json.loads(line)["port"])
    return None


def fetch(url: str) -> str | None:
    """The page, or None while it is not there or says that it is not ready."""
    try:
        with urllib.request.urlopen(url, timeout=5) as page:  # noqa: S310 - of the worker that runs here
            return str(page.read(), "utf-8")
    except OSError:
        return None


def say(*lines: str) -> None:
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
