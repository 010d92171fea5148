"""Embeddings: a vector of unit length that is a function of its input alone.

As with the real third-generation models, `dimensions` takes the beginning of the whole vector and stretches
it to unit length again.
"""

import base64
import hashlib
import math
import sys
from array import array
from dataclasses import dataclass
from typing import Any

import orjson

from embedded_azure.openai import parameters
from embedded_azure.openai.answers import Made, Stamp
from embedded_azure.openai.bodies import (
    count_tokens,
    digest_of,
    is_tokens,
    parse_count,
    parse_model,
    refuse_unknown,
    wrong_value,
)
from embedded_azure.openai.phrases import Wish
from embedded_azure.openai.refusals import Refused, invalid_request

_DIMENSIONS = {"text-embedding-3-large": 3_072}
_USUAL_DIMENSIONS = 1_536
_MOST_INPUTS = 2_048
_MOST_TOKENS = 8_192
_ENCODINGS = frozenset({"float", "base64"})


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingsRequest:
    """Vectors to make, one of each input: a string, or an array of tokens."""

    inputs: tuple[str | list[int], ...]
    digest: str
    prompt_tokens: int
    dimensions: int
    base64: bool
    stream: None = None
    choices: int = 0
    max_tokens: int | None = None

    @property
    def text(self) -> str:
        return "\n".join(one for one in self.inputs if isinstance(one, str))

    def answer(self, _wish: Wish, stamp: Stamp) -> Made:
        document = {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": self._encode(one)}
                for index, one in enumerate(self.inputs)
            ],
            "model": stamp.model,
            "usage": {"prompt_tokens": self.prompt_tokens, "total_tokens": self.prompt_tokens},
        }
        return Made(document=document, tokens=0)

    def _encode(self, one: str | list[int]) -> str | list[float]:
        vector = embed(one, self.dimensions)
        if not self.base64:
            return vector.tolist()
        if sys.byteorder == "big":
            vector.byteswap()
        return base64.b64encode(vector.tobytes()).decode()


def embed(one: str | list[int], dimensions: int) -> "array[float]":
    """So many floats of single precision, of unit length together; equal inputs have equal vectors."""
    noise = array("i", hashlib.shake_256(orjson.dumps(one)).digest(4 * dimensions))
    # odd numbers, as a vector of nothing but zeros could not be stretched
    values = [2 * number + 1 for number in noise]
    length = math.hypot(*values)
    return array("f", [value / length for value in values])


def read_embeddings(body: dict[str, Any], model: str) -> EmbeddingsRequest:
    """`model` decides what dimensions there are. Raises Refused with status 400, in the service's words."""
    refuse_unknown(body, parameters.EMBEDDINGS)
    parse_model(body)
    inputs = _parse_inputs(body.get("input"))
    encoding = body.get("encoding_format")
    if encoding is not None and (not isinstance(encoding, str) or encoding not in _ENCODINGS):
        raise wrong_value("encoding_format", encoding, _ENCODINGS)
    return EmbeddingsRequest(
        inputs=tuple(inputs),
        digest=digest_of({"input": inputs}),
        prompt_tokens=sum(map(_tokens, inputs)),
        dimensions=_parse_dimensions(body, model),
        base64=encoding == "base64",
    )


def _parse_inputs(given: object) -> list[str | list[int]]:
    inputs: list[str | list[int]]
    # a batch is refused for an empty text in it, and an empty text by itself is not: so the service has it
    if isinstance(given, str) or is_tokens(given):
        inputs = [given]
    elif isinstance(given, list) and given and all(map(_is_input, given)):
        inputs = given
    else:
        raise _invalid_input()
    if len(inputs) > _MOST_INPUTS:
        raise _too_many(len(inputs))
    if (longest := max(map(_tokens, inputs))) > _MOST_TOKENS:
        raise _too_long(longest)
    return inputs


def _is_input(one: object) -> bool:
    return (isinstance(one, str) and one != "") or is_tokens(one)


def _tokens(one: str | list[int]) -> int:
    return count_tokens(one) if isinstance(one, str) else len(one)


def _parse_dimensions(body: dict[str, Any], model: str) -> int:
    whole = _DIMENSIONS.get(model, _USUAL_DIMENSIONS)
    return parse_count(body, "dimensions", most=whole) or whole


def _invalid_input() -> Refused:
    """It names neither the parameter nor what is wrong with it; so does the service's."""
    return invalid_request(
        "'$.input' is invalid. Please check the API reference: https://platform.openai.com/docs/api-reference."
    )


def _too_many(inputs: int) -> Refused:
    return invalid_request(
        f"Invalid 'input': array too long. Expected an array with maximum length {_MOST_INPUTS}, but got an array "
        f"with length {inputs} instead.",
        "input",
        "array_above_max_length",
    )


def _too_long(tokens: int) -> Refused:
    return invalid_request(
        f"This model's maximum context length is {_MOST_TOKENS} tokens, however you requested {tokens} tokens "
        f"({tokens} in your prompt; 0 for the completion). Please reduce your prompt; or completion length."
    )
