"""`make fuzz`: libFuzzer looks for bytes on which a decoder of the worker raises another error than its own.

What it finds is written to a file `crash-*`. Its first byte names the decoder; the rest belongs into `HOSTILE` of
tests/unit/test_decoders.py.
"""

import sys
from pathlib import Path

import atheris  # type: ignore[import-untyped]  # in .venv-fuzz only

with atheris.instrument_imports(include=["worker"]):
    from tests.support.decoders import DECODERS

DECODER = tuple(DECODERS.values())


def feed(data: bytes) -> None:
    """The first byte says which decoder reads the rest."""
    if data:
        decoder = DECODER[data[0] % len(DECODER)]
        try:
            decoder.read(data[1:])
        except decoder.errors as error:
            str(error).encode()


if __name__ == "__main__":
    for number, decoder in enumerate(DECODER):
        (Path(sys.argv[-1]) / f"seed-{number}").write_bytes(bytes([number]) + decoder.valid)
    atheris.Setup(sys.argv, feed)
    atheris.Fuzz()
