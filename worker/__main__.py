"""`python -m worker` is `aoai-worker`: signals first, then the command line with all that it imports."""

import os
import signal
import sys
import threading


def end_at_once(*_: object) -> None:
    """End with exit code 0. Nothing is held yet, and SystemExit would be lost where a Ctrl-C is (below)."""
    os._exit(0)


def interrupt_again(lost: "sys.UnraisableHookArgs") -> None:
    """Python drops what is raised in a weakref's callback, which each import has: that Ctrl-C would be lost."""
    if lost.exc_type is not KeyboardInterrupt:
        sys.__unraisablehook__(lost)
        return
    # raised in here it would be dropped too
    again = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
    again.daemon = True
    again.start()


def main() -> None:
    sys.unraisablehook = interrupt_again
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
