"""The embedded Azure OpenAI: one account's data plane over TLS, keyless, with quotas and faults.

Read `app.py` (HTTP), `account.py` (who may call, and where a call goes), `calls.py` (what happens to it at its
deployment) and `sending.py` (how the answer goes out), then the pure parts: `operations.py` (what can be called),
a module for each (`chat.py`, `responses.py`, `completions.py`, `embeddings.py`: requests and documents, over
`bodies.py` and `answers.py`), `streams.py` and `response_events.py` (the same documents in pieces), `quota.py` and
`provisioned.py`, `phrases.py` and `faults.py` (what goes wrong, asked for by a prompt or a test) and `refusals.py`
(error bodies).
It is not called `openai`, so that nobody mistakes it for the client library.
"""
