"""The command `aoai-worker`. Each group of commands is a module; `main` runs them."""

from worker.cli.commands import app, main

__all__ = ["app", "main"]
