"""What a job will take, roughly: tokens of its deployment's quota, and bytes of memory for its answer.

Arithmetic only. Azure charges a request when it comes, by an estimate of its own; the bias that `budgets.py` learns
makes up for the error of ours. An answer is reserved before it is asked for and counted as it comes
(`memory.Reservation.grow`), so an estimate too low costs waits, and one too high lets fewer jobs run at once than
the memory bears.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from worker.jobs.job import Job, JobLine, JsonObject, Operation
from worker.jobs.reasoning import USUAL_EFFORT, effort_of

CHARACTERS_PER_TOKEN = 4
ASSUMED_ANSWER = 256
"""Tokens of an answer whose job names no limit. Azure's own figure is not published; the bias makes up for it."""
ASSUMED_REASONING = {"none": 0, "minimal": 64, "low": 256, "medium": 768, "high": 2_048, "xhigh": 4_096}
"""Tokens of reasoning before such an answer, by effort: assumed, not measured. A limit includes them, and Azure
charges the limit; what it charges where there is none is not published. The bias makes up for the difference."""
ASSUMED_ATTACHMENT = 1_000
"""Tokens of an image or a file within a prompt."""

BYTES_OF_NUMBER, BYTES_OF_BASE64 = 22, 5.4
"""Of one number of an embedding, as JSON or in base64."""
USUAL_DIMENSIONS, LARGE_DIMENSIONS = 1_536, 3_072
MOST_DIMENSIONS = 10_000
BYTES_OF_TOKEN = 6
MOST_TOKENS_ASSUMED = 1_024
"""Of each text: limits are often set far above what is then written."""
FRAME = 1_000
"""Bytes of an answer besides its texts or numbers."""

_LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")


@dataclass(frozen=True, slots=True)
class Cost:
    """Our estimate, in tokens, of what the service charges for a job when it comes."""

    prompt: int
    answer: int = 0
    reasoning: int = 0
    """Tokens of the answer's that are no text of it, where they are estimated apart."""

    @property
    def tokens(self) -> int:
        return self.prompt + self.answer + self.reasoning


def estimate(job: Job) -> Cost:
    return estimate_line(job.line)


def estimate_line(line: JobLine) -> Cost:
    """Four characters of the prompt to a token, and the longest answer that the job allows, as often as it asks.
    Without a limit a model that reasons takes more the harder it shall reason."""
    body = line.body
    prompt = _characters(body) // CHARACTERS_PER_TOKEN + 1
    if line.operation is Operation.EMBEDDINGS:
        return Cost(prompt)
    answers = max(1, _count(body, "n"), _count(body, "best_of"))
    if limit := next((limit for name in _LIMITS if (limit := _count(body, name))), 0):
        return Cost(prompt, limit * answers)
    effort = effort_of(line.model, body)
    reasoning = 0 if effort is None else ASSUMED_REASONING.get(effort, ASSUMED_REASONING[USUAL_EFFORT])
    return Cost(prompt, ASSUMED_ANSWER * answers, reasoning * answers)


def _count(body: Mapping[str, object], name: str) -> int:
    """What the service will refuse anyway counts as absent."""
    value = body.get(name)
    return value if type(value) is int and 0 < value < 10_000_000 else 0


def _characters(value: object) -> int:
    """Of every text, without the names of fields; a token given as a number is as long as one of text."""
    if isinstance(value, str):
        return ASSUMED_ATTACHMENT * CHARACTERS_PER_TOKEN if value.startswith("data:") else len(value)
    if isinstance(value, dict):
        return sum([_characters(part) for part in value.values()])
    if isinstance(value, list):
        if value and type(value[0]) is int:
            return CHARACTERS_PER_TOKEN * len(value)
        return sum([_characters(part) for part in value])
    return 0


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
