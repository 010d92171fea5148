"""One file with jobs of every operation, submitted and collected: each has one result, and the right one."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from embedded_azure.config import Deployment, default_config
from embedded_azure.models import EMBEDDINGS, INSTRUCT, SMALL
from tests.support.processes import azure, command, config_for_tests, results_in, worker

CHAT, VECTORS = SMALL, EMBEDDINGS
DEPLOYMENTS = (
    Deployment(name=CHAT, model=CHAT),
    Deployment(name=INSTRUCT, model=INSTRUCT, kind="completions"),
    Deployment(name=VECTORS, model=VECTORS, kind="embeddings"),
)
MODELS = json.dumps({name: [name] for name in (CHAT, INSTRUCT, VECTORS)})
ROUNDS = 10


def question(number: int) -> str:
    return f"What is {number} + {number}?"


def jobs_of(number: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """By custom_id: the url and the body."""
    asked = question(number)
    messages = [{"role": "user", "content": asked}]
    return {
        f"chat-{number}": ("/v1/chat/completions", {"model": CHAT, "messages": messages}),
        f"response-{number}": ("/v1/responses", {"model": CHAT, "input": asked}),
        f"completion-{number}": ("/v1/completions", {"model": INSTRUCT, "prompt": asked}),
        f"embedding-{number}": ("/v1/embeddings", {"model": VECTORS, "input": asked, "dimensions": 8}),
    }


def write_mixed_batch(path: Path) -> Path:
    with path.open("w") as file:
        for number in range(ROUNDS):
            for custom_id, (url, body) in jobs_of(number).items():
                # every other round as Azure's own documentation writes it
                form = url.removeprefix("/v1") if number % 2 else url
                line = {"custom_id": custom_id, "method": "POST", "url": form, "body": body}
                file.write(json.dumps(line) + "\n")
    return path


def said_in(kind: str, body: dict[str, Any]) -> str:
    match kind:
        case "chat":
            return str(body["choices"][0]["message"]["content"])
        case "response":
            return str(body["output"][-1]["content"][0]["text"])
        case _:
            return str(body["choices"][0]["text"])


async def test_a_file_that_mixes_all_operations_has_one_right_result_each(tmp_path: Path) -> None:
    config = replace(config_for_tests(), deployments=DEPLOYMENTS, queues=default_config().queues)
    batch = write_mixed_batch(tmp_path / "in.jsonl")
    async with azure(tmp_path, config) as cloud, worker(cloud, models=MODELS, responses_store="true"):
        code, output = await command(cloud, "submit", str(batch), "--batch", "mixed")
        assert code == 0, output
        code, output = await command(cloud, "collect", "mixed", "-o", str(tmp_path / "out.jsonl"), "--follow")
        assert code == 0, output
        stats = await cloud.control("/local/stats")
    results = results_in(tmp_path / "out.jsonl")
    wanted = [custom_id for number in range(ROUNDS) for custom_id in jobs_of(number)]
    assert sorted(result["custom_id"] for result in results) == sorted(wanted)
    assert stats["answered_more_than_once"] == 0, "an answer was paid for twice"
    vectors = set()
    for result in results:
        kind, _, number = result["custom_id"].partition("-")
        assert result["response"]["status_code"] == 200
        body = result["response"]["body"]
        assert result["worker"]["usage"]["prompt"] > 0
        if kind == "embedding":
            vectors.add(tuple(body["data"][0]["embedding"]))
        else:
            assert said_in(kind, body).startswith(f"{number} + {number} = {2 * int(number)} "), result
        if kind == "response":
            assert body["store"] is True, "the setting has not reached the adapter"
    assert len(vectors) == ROUNDS
