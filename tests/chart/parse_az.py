"""Has the real az parse commands, and runs none: calls as JSON on standard input, refusals on standard output.

Runs in .venv-azure-cli, which has nothing but az.
"""

import contextlib
import io
import json
import sys
from collections.abc import Iterator

from azure.cli.core import get_default_cli
from knack.events import EVENT_INVOKER_POST_PARSE_ARGS


class Parsed(BaseException):
    """Ends az before it acts. Not an Exception, as az catches those."""


def stop(*_: object, **__: object) -> None:
    raise Parsed


def refusals(calls: list[list[str]]) -> Iterator[list[str]]:
    """What az says, after the call that it says it about."""
    cli = get_default_cli()
    cli.register_event(EVENT_INVOKER_POST_PARSE_ARGS, stop)
    for call in calls:
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            try:
                cli.invoke(call)
            except Parsed:
                continue
            except SystemExit:
                pass
        yield [" ".join(call), said.getvalue()]


json.dump(list(refusals(json.load(sys.stdin))), sys.stdout)
