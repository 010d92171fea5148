"""What the stand-in knows of models: how much they read and write, and which of them reason before they answer.

The figures are those of Azure's model page. A model that is not listed does not reason: so are most that Foundry
has from other makers, and tests name one `plain`.
"""

from dataclasses import dataclass

from embedded_azure.models import INSTRUCT


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """`context` and `output` are in tokens. A reasoning model refuses `max_tokens`, and while it reasons also
    `logprobs`, and any `temperature`, `top_p` or penalty but the default."""

    context: int = 128_000
    output: int = 16_384
    reasons: bool = False


_USUAL = Model()
_BY_PREFIX = {
    "gpt-5": Model(context=400_000, output=128_000, reasons=True),
    "text-embedding": Model(context=8_192, output=0),
    INSTRUCT: Model(context=4_097, output=4_097),
}


def model_of(name: str) -> Model:
    """The model whose name is the longest beginning of `name`, which may go on with a version."""
    known = [prefix for prefix in _BY_PREFIX if name.startswith(prefix)]
    return _BY_PREFIX[max(known, key=len)] if known else _USUAL
