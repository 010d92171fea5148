"""The product itself before this Azure, as processes: `check`, and a batch from `submit` to `collect`.

What the contract tests promise of the adapters is seen here from outside: each job is answered once and each result
is written once. The contract tests themselves reach into the embedded Azure and cannot meet another.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from tests.azure.openai import OUTPUT_TOKENS, UNKNOWN_DEPLOYMENT
from tests.azure.probing import Exchange, Observation, Target, decide
from tests.support.processes import process, results_in

JOBS = 5
"""Of each batch."""
_ONE_EACH = {f"q-{number}": 1 for number in range(JOBS)}
_KEPT = 4_000
"""Characters of a command's output, the last ones."""


async def check(target: Target) -> Observation:
    code, output = await _command(_environment(target), "check")
    return decide(code == 0, _exchange("aoai-worker check", code, output), seen=f"exit code {code}")


async def check_of_absent_deployment(target: Target) -> Observation:
    models = {"AOAI_WORKER_MODELS": json.dumps({"probe": [UNKNOWN_DEPLOYMENT]})}
    code, output = await _command({**_environment(target), **models}, "check")
    is_named = any("DeploymentNotFound" in line or "does not exist" in line for line in output.splitlines())
    seen = f"exit code {code}, {'says' if is_named else 'does not say'} that it does not exist"
    return decide(code == 1 and is_named, _exchange("check of an absent deployment", code, output), seen=seen)


async def batch_to_queue(target: Target) -> Observation:
    return await _batch(target, "queue")


async def batch_to_blob(target: Target) -> Observation:
    return await _batch(target, "blob")


async def _batch(target: Target, sink: str) -> Observation:
    """A worker runs while a batch is submitted and collected."""
    environment = {**_environment(target), "AOAI_WORKER_SINK": sink}
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "in.jsonl", Path(folder) / "out.jsonl"
        source.write_text("".join(map(_line, _ONE_EACH)), encoding="utf-8")
        listens = {"AOAI_WORKER_HTTP_HOST": "127.0.0.1", "AOAI_WORKER_HTTP_PORT": "0"}
        async with process("-m", "worker", "run", environment={**environment, **listens}) as worker:
            batch = f"probe-{sink}-{Path(folder).name}".lower().replace("_", "-")
            submitted, said = await _command(environment, "submit", str(source), "--batch", batch)
            collected = ("collect", batch, "-o", str(out), "--follow", "--timeout", "60")
            code, output = await _command(environment, *collected)
            log = worker.output
        results = results_in(out) if out.exists() else []
    counts = Counter(result["custom_id"] for result in results)
    answered = [result for result in results if result["response"]["status_code"] == 200]
    is_so = (submitted, code, len(answered)) == (0, 0, JOBS) and counts == _ONE_EACH
    exchange = _exchange(f"a batch to the {sink} sink", code, "\n".join([said, output, "" if is_so else log]))
    return decide(is_so, exchange, seen=f"{len(answered)} of {JOBS} answered, {counts.total()} results")


def _line(custom_id: str) -> str:
    body = {
        "model": "probe",
        "messages": [{"role": "user", "content": "Say: yes"}],
        "max_completion_tokens": OUTPUT_TOKENS,
    }
    line = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}
    return json.dumps(line) + "\n"


def _environment(target: Target) -> dict[str, str]:
    return {**target.worker_environment, "AOAI_WORKER_MODELS": json.dumps({"probe": [target.deployment]})}


async def _command(environment: Mapping[str, str], *arguments: str) -> tuple[int, str]:
    async with process("-m", "worker", *arguments, environment=environment) as running:
        code = await running.ended()
        return code, running.output


def _exchange(asked: str, code: int, output: str) -> Exchange:
    return Exchange(asked=asked, status=code, headers={}, body=output[-_KEPT:])
