"""`make foreign`: clients that we did not write, against the embedded Azure; then the report. Read from `main`."""

import argparse
import asyncio
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.foreign.clients import Case, node, run_javascript, run_proton
from tests.foreign.python_tests import CACHE, FILES, ROOT, run_python
from tests.foreign.report import Result, Section, explained, put_section

REPORT: Final = ROOT / "docs" / "foreign-tests.md"

_PYTHON: Final = """\
The source distribution of azure-servicebus in the version that `requirements/` pins has live tests,
written for Azure. They run against the embedded Service Bus over TLS: each test with its own
process, and with the entities that the test's decorators ask for. Only the SDK's private test tools
are replaced ([tests/foreign/adapter](../tests/foreign/adapter)); the tests and the SDK are as
published. Delivery-ids are not checked (`strict_delivery_ids`), because some tests use one receiver
from several threads."""
_JAVASCRIPT: Final = """\
The packages are as published, in the versions of `tests/foreign/javascript/package-lock.json`; the
test cases are ours. They authenticate by workload identity: `DefaultAzureCredential` reads a pod's
environment variables and trusts the embedded Azure by `NODE_EXTRA_CA_CERTS`. rhea is a client of
plain AMQP 1.0; it uses SASL PLAIN with a key, or sends a bearer token to `$cbs`. `make test` runs
these cases too if Node.js is installed."""
_PROTON: Final = """\
Apache Qpid Proton is a client of plain AMQP 1.0 in C with a binding for Python. The package is as
published; [the cases](../tests/foreign/proton_cases.py) are ours. It uses SASL PLAIN with a key, or
sends a bearer token to `$cbs`. PyPI has only its source: it needs a C compiler and OpenSSL's
headers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """`run` returns what ran or was tested, with its version, and the results. It may raise RuntimeError."""

    title: str
    about: str
    run: Callable[[argparse.Namespace], tuple[str, list[Result]]]


def main() -> int:
    arguments = _arguments()
    results = [result for name in arguments.suites or SUITES for result in run_suite(SUITES[name], arguments)]
    return 1 if any(result.outcome == "failed" and not explained(result) for result in results) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.foreign.run", description=__doc__)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"of {', '.join(SUITES)} (default: all)")
    python = parser.add_argument_group("of the suite python")
    python.add_argument("--file", action="append", dest="files", help=f"of {' '.join(FILES)} (default: all)")
    python.add_argument("-k", dest="only", default="", help="run the tests that match, as pytest's -k does")
    python.add_argument("-n", dest="jobs", type=int, default=8, help="tests at a time; they mostly wait (8)")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.suites if name not in SUITES]
    if unknown:
        parser.error(f"no suite {unknown[0]!r}; there are {', '.join(SUITES)}")
    return arguments


def run_suite(suite: Suite, arguments: argparse.Namespace) -> list[Result]:
    """Writes the suite's section: into the page, or aside when only a part was asked for.

    A suite that cannot run is one failed result; its section stays as it was, and the other suites still run.
    """
    started = time.monotonic()
    try:
        ran, results = suite.run(arguments)
    except (RuntimeError, TimeoutError, subprocess.CalledProcessError) as error:
        reason = str(error) or type(error).__name__
        sys.stdout.write(f"{suite.title} was not run: {reason}\n")
        return [Result(file=suite.title, name="the suite", outcome="failed", reason=reason, seconds=0.0)]
    section = Section(
        title=suite.title, about=suite.about, ran=ran, results=results, seconds=time.monotonic() - started
    )
    whole = not (arguments.files or arguments.only)
    page = put_section(REPORT.read_text(), section, [each.title for each in SUITES.values()])
    (REPORT if whole else CACHE / "report.md").write_text(page)
    for result in results:
        if result.outcome != "passed":
            sys.stdout.write(
                f"{result.outcome}: {result.file}: {result.name}: {explained(result) or result.reason}\n"
            )
    sys.stdout.write(f"{suite.title}: {len(results)} results in {section.seconds:.0f} s.\n")
    sys.stdout.flush()
    return results


def _python(arguments: argparse.Namespace) -> tuple[str, list[Result]]:
    return run_python(arguments.files or (), arguments.only, arguments.jobs)


def _javascript(_arguments: argparse.Namespace) -> tuple[str, list[Result]]:
    subprocess.run([ROOT / "scripts" / "azurite"], check=True)
    results = _results(run_javascript)
    version = subprocess.run([str(node()), "--version"], check=True, capture_output=True, text=True).stdout
    return f"Node.js {version.strip().removeprefix('v')}", results


def _proton(_arguments: argparse.Namespace) -> tuple[str, list[Result]]:
    subprocess.run([ROOT / "scripts" / "tool-environment", "foreign"], check=True)
    return f"Python {platform.python_version()}", _results(run_proton)


def _results(run: Callable[[Path], Coroutine[Any, Any, list[Case]]]) -> list[Result]:
    with tempfile.TemporaryDirectory(prefix="foreign-clients-") as folder:
        return [case.result() for case in asyncio.run(run(Path(folder)))]


SUITES: Final = {
    "javascript": Suite(title="JavaScript", about=_JAVASCRIPT, run=_javascript),
    "proton": Suite(title="Apache Qpid Proton", about=_PROTON, run=_proton),
    "python": Suite(title="azure-servicebus for Python", about=_PYTHON, run=_python),
}


if __name__ == "__main__":
    sys.exit(main())
