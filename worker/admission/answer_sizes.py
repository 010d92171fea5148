"""How many bytes a job's answer will take, roughly: what is reserved for it before it is asked for.

Arithmetic only. What turns out larger is counted as it comes (`intake.Slot.grow`), so an estimate too low costs
waits, and one too high lets fewer jobs run at once than the memory bears.
"""

from worker.admission.budgets import Cost
from worker.jobs.job import Job, JsonObject, Operation

BYTES_OF_NUMBER, BYTES_OF_BASE64 = 22, 5.4
"""Of one number of an embedding, as JSON or in base64."""
USUAL_DIMENSIONS, LARGE_DIMENSIONS = 1_536, 3_072
MOST_DIMENSIONS = 10_000
BYTES_OF_TOKEN = 6
MOST_TOKENS_ASSUMED = 1_024
"""Of each text: limits are often set far above what is then written."""
FRAME = 1_000
"""Bytes of an answer besides its texts or numbers."""


def answer_bytes(job: Job, cost: Cost) -> int:
    """`cost`: the job's estimate in tokens."""
    if job.line.operation is Operation.EMBEDDINGS:
        return FRAME + _embeddings(job.line.body, job.line.model)
    several = job.line.body.get("n")
    texts = min(several, 128) if type(several) is int and several > 0 else 1
    return FRAME + BYTES_OF_TOKEN * min(cost.answer, texts * MOST_TOKENS_ASSUMED)


def _embeddings(body: JsonObject, model: str) -> int:
    given, asked = body.get("input"), body.get("dimensions")
    # a list of numbers is one input, a text in tokens
    inputs = len(given) if isinstance(given, list) and given and type(given[0]) is not int else 1
    usual = LARGE_DIMENSIONS if "large" in model else USUAL_DIMENSIONS
    dimensions = asked if type(asked) is int and 0 < asked <= MOST_DIMENSIONS else usual
    bytes_of_one = BYTES_OF_BASE64 if body.get("encoding_format") == "base64" else BYTES_OF_NUMBER
    return int(inputs * (dimensions * bytes_of_one + 60))
