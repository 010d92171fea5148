"""The embedded Azure: Service Bus, Entra and Azure OpenAI as separate local processes.

It imports nothing else of `worker`, so it cannot share the worker's bugs, and is left out of the production
image. `config.py` says what exists in this Azure; `supervisor.py` starts it.
"""
