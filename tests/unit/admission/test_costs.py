"""How many bytes an answer takes, guessed from its job."""

import math
from typing import Any

import orjson
import pytest

from embedded_azure.openai.embeddings import embed
from worker.admission.costs import FRAME, answer_bytes, estimate
from worker.jobs.job import Envelope, Job, decode


def job(url: str, model: str = "m", **body: Any) -> Job:
    line = {"custom_id": "a", "method": "POST", "url": url, "body": {"model": model, **body}}
    envelope = Envelope(body=orjson.dumps(line), queue="q", sequence_number=1, enqueued_at=0.0, properties={})
    return decode(envelope, max_age=60)


def guess(url: str, model: str = "m", **body: Any) -> int:
    asked = job(url, model, **body)
    return answer_bytes(asked, estimate(asked))


@pytest.mark.parametrize("dimensions", [64, 256, 1_536])
@pytest.mark.parametrize("inputs", [1, 3, 37])
def test_embeddings_are_guessed_to_a_tenth(inputs: int, dimensions: int) -> None:
    numbers = [
        {"object": "embedding", "index": index, "embedding": embed(f"text {index}", dimensions).tolist()}
        for index in range(inputs)
    ]
    size = len(orjson.dumps({"object": "list", "data": numbers, "model": "m", "usage": {"prompt_tokens": 1}}))
    texts = [f"text {index}" for index in range(inputs)]
    assert guess("/v1/embeddings", input=texts, dimensions=dimensions) - FRAME == pytest.approx(size, rel=0.15)


def test_what_is_not_said_is_the_models() -> None:
    small, large = guess("/v1/embeddings", "small", input="x"), guess("/v1/embeddings", "e-3-large", input="x")
    assert large - FRAME == pytest.approx(2 * (small - FRAME), rel=0.01)
    assert guess("/v1/embeddings", input=[1, 2, 3]) == guess("/v1/embeddings", input="x") == small
    assert guess("/v1/embeddings", input=[[1, 2], [3]]) - FRAME == 2 * (small - FRAME)
    assert guess("/v1/embeddings", input="x", encoding_format="base64") < small / 3


@pytest.mark.parametrize("nonsense", [None, "many", -1, 0, 1.5, True, math.pi, 10**9, {}, []])
def test_what_the_service_will_refuse_is_guessed_as_if_it_were_not_there(nonsense: object) -> None:
    assert guess("/v1/embeddings", input="x", dimensions=nonsense) == guess("/v1/embeddings", input="x")
    assert guess("/v1/chat/completions", n=nonsense, max_tokens=9) <= FRAME + 128 * 9 * 6


def test_a_text_is_as_long_as_its_limit_but_a_limit_far_up_is_not_believed() -> None:
    assert guess("/v1/chat/completions", max_tokens=100) == FRAME + 600
    assert guess("/v1/chat/completions", max_tokens=100, n=3) == FRAME + 1_800
    assert guess("/v1/responses", max_output_tokens=16_000) == FRAME + 6 * 1_024
    assert guess("/v1/chat/completions") < FRAME + 2_000


def test_reasoning_takes_tokens_and_no_bytes_of_an_answer() -> None:
    assert guess("/v1/chat/completions", "gpt-5.4", reasoning_effort="xhigh") == guess("/v1/chat/completions")
