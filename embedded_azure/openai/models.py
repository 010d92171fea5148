"""What the stand-in knows of models: how much they read and write, and which of them reason before they answer.

The figures are those of Azure's model page; a model that is not listed is taken for one of the gpt-4o family.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """`context` and `output` are in tokens. A reasoning model refuses `max_tokens` and any `temperature` but 1."""

    context: int = 128_000
    output: int = 16_384
    reasons: bool = False


_USUAL = Model()
_BY_PREFIX = {
    "gpt-35-turbo-instruct": Model(context=4_097, output=4_097),
    "gpt-35-turbo": Model(context=16_385, output=4_096),
    "gpt-4": Model(context=8_192, output=8_192),
    "gpt-4-32k": Model(context=32_768, output=32_768),
    "gpt-4-turbo": Model(output=4_096),
    "gpt-4o": _USUAL,
    "gpt-4.1": Model(context=1_047_576, output=32_768),
    "gpt-5": Model(context=400_000, output=128_000, reasons=True),
    "o1": Model(context=200_000, output=100_000, reasons=True),
    "o3": Model(context=200_000, output=100_000, reasons=True),
    "o4": Model(context=200_000, output=100_000, reasons=True),
    "text-embedding": Model(context=8_192, output=0),
}


def model_of(name: str) -> Model:
    """The model whose name is the longest beginning of `name`, which may go on with a version."""
    known = [prefix for prefix in _BY_PREFIX if name.startswith(prefix)]
    return _BY_PREFIX[max(known, key=len)] if known else _USUAL
