"""The line of a job, without a library: clients that we measure in other environments send the same one."""

import json

JOB_BYTES = 2_048
MODELS = ("plain",)
"""The embedded Azure takes it for a model that does not reason, so an answer is as long as its job asks for."""
MAX_TOKENS = 200


def job_line(number: int, size: int = JOB_BYTES, model: str = MODELS[0], answer_tokens: int = 100) -> bytes:
    """A line of a Batch input file of `size` bytes that asks for an answer of so many tokens."""

    def line(padding: str) -> bytes:
        question = f"[[tokens:{answer_tokens}]] What is {number} + {number}? {padding}"
        body = {"model": model, "messages": [{"role": "user", "content": question}], "max_tokens": MAX_TOKENS}
        job = {"custom_id": f"q-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
        return json.dumps(job).encode()

    words = "the quick brown fox jumps over the lazy dog " * (size // 40)
    return line(words[: size - len(line(""))])
