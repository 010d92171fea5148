"""Where the CPU of a job goes: py-spy's samples of the worker at 256 in flight, by component.

A sample belongs to the innermost frame that is of a component, so what that calls in the standard library counts as
its own.
"""

import re
import shutil
import signal
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.contenders import Load, Run, make_config, measure, started, until_done
from benchmarks.processes import BenchmarkFailed, child, clean_environment, embedded_azure
from benchmarks.report import describe_disturbance, table
from benchmarks.traffic import collect, connect, submit

SLOTS, JOBS, SAMPLES_A_SECOND = 256, 5_000, 250
SHOWN = 0.003
"""Share of the samples below which a row says nothing."""

Stack = Sequence[str]
"""From the outermost frame to the innermost, as `name (file:line)`."""

OWN = "our own code"
THREADS = "name look-ups in threads"
LOOP = "event loop with TLS (uvloop)"
COMPONENTS: Sequence[tuple[str, str]] = (
    (r"tenacity/", "tenacity"),
    (r"openai/", "openai client"),
    (r"httpx2/|httpcore2/", "httpx2"),
    (r"(aiohttp|multidict|yarl|aiosignal|frozenlist|aiohappyeyeballs|propcache)/", "aiohttp"),
    (r"(azure/)?(identity|core)/|msal/|worker/azure/identity\.py", "tokens"),
    (r"prometheus_client/|logging/|worker/telemetry/", "metrics and logs"),
    (r"worker/azure/openai/transport\.py", "the bridge from httpx2 to aiohttp"),
    (r"worker/(?!app\.py|cli/|__main__\.py)", OWN),
)
"""The beginning of a file's name to its component; the first that fits."""
IN_A_THREAD = "_worker (concurrent/futures/thread.py:"
"""The frame of a pool's thread; with none within, it waits for work."""
SERVICE_BUS = r"(azure/)?servicebus/"
SERVICE_BUS_USES = (
    (r"\(worker/azure/servicebus/results_queue\.py:", "Service Bus: build and send results"),
    (r"_settle", "Service Bus: settle"),
    (r"_renew", "Service Bus: renew locks"),
)
RECEIVE = "Service Bus: receive, keep-alive, other reads of links"


async def profile_worker(folder: Path, share: float) -> str:
    """Raises BenchmarkFailed where there is no py-spy, or it may not look into the worker."""
    program = shutil.which("py-spy")
    if program is None:
        raise BenchmarkFailed("py-spy is not on the PATH; `make bench` brings it along, or: pip install py-spy")
    load = Load(slots=SLOTS, jobs=round(JOBS * share), config=make_config())
    plain = await measure("worker", folder / "plain", load)
    stacks = await sample(program, folder, load)
    return describe(plain, stacks)


async def sample(program: str, folder: Path, load: Load) -> Mapping[Stack, int]:
    """Submits once py-spy looks on."""
    out = folder / "worker.folded"
    async with (
        embedded_azure(folder / "profiled", load.config) as azure,
        connect(azure.environment("producer")) as client,
        started("worker", azure, load.slots) as worker,
    ):
        record = [program, "record", "--rate", str(SAMPLES_A_SECOND), "--format", "raw", "--output", str(out)]
        command = [*record, "--pid", str(worker.process.pid)]
        async with child(*command, environment=clean_environment(), says="Sampling", stop_by=signal.SIGINT):
            await submit(client, load.jobs)
            await until_done(worker.process, azure, load.jobs)
        await collect(client, load.jobs)
    return read_stacks(out.read_text().splitlines())


def read_stacks(lines: Iterable[str]) -> Mapping[Stack, int]:
    """`frame;frame;frame count` on each line. Threads that wait are left out."""
    stacks: Counter[Stack] = Counter()
    for line in lines:
        frames, _, count = line.rpartition(" ")
        stack = tuple(frames.split(";"))
        if not stack[-1].startswith(IN_A_THREAD):
            stacks[stack] += int(count)
    return stacks


def describe(plain: Run, stacks: Mapping[Stack, int]) -> str:
    """The shares are the profiler's, the ms those of the run without it."""
    total = sum(stacks.values())
    if not total:
        raise BenchmarkFailed("py-spy took no samples")
    components, modules = Counter[str](), Counter[str]()
    for stack, count in stacks.items():
        component = component_of(stack)
        components[component] += count
        if component == OWN:
            modules[f"`{_innermost(stack, 'worker/')}`"] += count
    return "\n\n".join(
        (
            f"{plain.results.count:,} jobs at {plain.slots} in flight, {total:,} samples; ms are the shares of the "
            f"{plain.cpu_ms_per_job:.2f} of a run without the profiler. {describe_disturbance([plain.others])}",
            table(("component", "share", "ms a job"), _rows(components, total, plain.cpu_ms_per_job)),
            "Our own code, by module:",
            table(("module", "share", "ms a job"), _rows(modules, total, plain.cpu_ms_per_job)),
        )
    )


def component_of(stack: Stack) -> str:
    if any(frame.startswith(IN_A_THREAD) for frame in stack):
        return THREADS
    for frame in reversed(stack):
        path = _path(frame)
        if re.match(SERVICE_BUS, path):
            return _use_of_service_bus(stack)
        for pattern, component in COMPONENTS:
            if re.match(pattern, path):
                return component
        if path == "worker/app.py" and re.match(r"tell|fan_out", frame):
            return OWN
    return LOOP


def _use_of_service_bus(stack: Stack) -> str:
    frames = ";".join(stack)
    return next((use for pattern, use in SERVICE_BUS_USES if re.search(pattern, frames)), RECEIVE)


def _path(frame: str) -> str:
    found = re.search(r"\(([^()]*):\d+\)$", frame)
    return found[1] if found else ""


def _innermost(stack: Stack, beginning: str) -> str:
    return next(_path(frame) for frame in reversed(stack) if _path(frame).startswith(beginning))


def _rows(counts: Counter[str], total: int, cpu_ms: float) -> Sequence[Sequence[str]]:
    return [
        (name, f"{count / total:.1%}", f"{cpu_ms * count / total:.2f}")
        for name, count in counts.most_common()
        if count / total >= SHOWN
    ]
