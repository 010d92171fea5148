"""`python -m worker` is `aoai-worker`: signals first, then the command line with all that it imports."""

import signal
import sys


def end_at_once(*_: object) -> None:
    """End with exit code 0, however often the signal comes before the interpreter has ended."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(0)


def main() -> None:
    if sys.argv[1:2] == ["run"]:
        # Importing takes half a second. The kernel ignores a signal that the first process of a container has no
        # handler for, so a pod deleted in that time would live on until it is killed. Nothing is held yet.
        signal.signal(signal.SIGTERM, end_at_once)
    try:
        from worker.cli import main as command_line

        command_line()
    except KeyboardInterrupt:  # before a command has begun; a traceback through a library would look like a fault
        sys.exit(130)


if __name__ == "__main__":
    main()
