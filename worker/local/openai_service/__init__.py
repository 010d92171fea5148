"""The embedded Azure OpenAI: one account's data plane over TLS, keyless, with quotas and faults.

Read `app.py` (HTTP, who may call), then `account.py` (what happens to a call), then the pure parts: `operations.py`
(what can be called), a module for each (`chat.py`, `responses.py`, `completions.py`, `embeddings.py`: requests and
documents, over `bodies.py` and `answers.py`), `quota.py`, `phrases.py` (faults asked for by a prompt) and
`refusals.py` (error bodies).
It is not called `openai`, so that nobody mistakes it for the client library.
"""
