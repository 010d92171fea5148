"""What a batch will take of the quotas, roughly, before anything is sent or asked of Azure."""

from collections.abc import Mapping
from dataclasses import dataclass

from worker.admission.costs import estimate_line
from worker.client.batch_files import BatchFile, read_lines


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelTokens:
    """Of the jobs for one model, as the worker estimates before a call. `answer` includes reasoning."""

    jobs: int = 0
    prompt: int = 0
    answer: int = 0


def tokens_by_model(batch: BatchFile) -> Mapping[str, ModelTokens]:
    """Reads the file once more. Raises InvalidBatch if it has changed, or OSError."""
    found: dict[str, ModelTokens] = {}
    for job, _ in read_lines(batch):
        cost, sums = estimate_line(job), found.get(job.model, ModelTokens())
        found[job.model] = ModelTokens(
            jobs=sums.jobs + 1,
            prompt=sums.prompt + cost.prompt,
            answer=sums.answer + cost.answer + cost.reasoning,
        )
    return dict(sorted(found.items()))
