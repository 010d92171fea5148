"""`make azure`: make what the probes need, probe, write recordings and the page, delete it all.

A module of the tests and no command of the product: it needs rights that a worker must not have (to make resources
and to assign roles), the embedded Azure to compare with, and a checkout to write its recordings into.
"""

import argparse
import asyncio
import os
import secrets
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from pathlib import Path

from tests.azure import stand_in
from tests.azure.assumptions import ASSUMPTIONS
from tests.azure.embedded import embedded_target
from tests.azure.openai import MOST_CALLS, OUTPUT_TOKENS
from tests.azure.page import PAGE, embedded_words, make_page
from tests.azure.probing import Result, Target, doubted, run
from tests.azure.product import JOBS
from tests.azure.recordings import FOLDER, Source, compare, read_all, recording_of, write
from tests.azure.redaction import Redactor
from tests.azure.resources import AzureCli, Resources, ResourcesError, resources
from tests.azure.subscription import (
    NotNamed,
    Wanted,
    read_environment,
    resources_for,
    roles_have_spread,
    subscription_target,
)

Opened = AbstractAsyncContextManager[tuple[Target, Redactor]]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.azure", description=__doc__)
    parser.add_argument("--target", choices=("azure", "embedded"), default="azure")
    parser.add_argument("--yes", action="store_true", help="make resources that cost money")
    parser.add_argument("--page", type=Path, default=PAGE, help="where the page is written")
    parser.add_argument("--recordings", type=Path, default=FOLDER, help="where recordings of Azure are")
    given = parser.parse_args(arguments)
    try:
        if given.target == "azure" and not probe_azure(given.recordings, is_agreed=given.yes):
            return 2
    except NotNamed as error:
        say(str(error))
        return 2
    except ResourcesError as error:
        if isinstance(error.__context__, ResourcesError):  # what failed before the deletion did
            say(str(error.__context__))
        say(str(error))
        return 1
    return report(given.page, given.recordings)


def probe_azure(folder: Path, *, is_agreed: bool) -> bool:
    """False where nobody agreed to the cost. Raises NotNamed and ResourcesError."""
    wanted = read_environment(os.environ)
    say(cost_estimate(wanted))
    if not is_agreed:
        say("Nothing was made. `make azure YES=yes` goes on.")
        return False
    az = AzureCli(program="az", environment=os.environ)
    made = resources_for(wanted, az, secrets.token_hex(3))
    say(f"All is made in the resource group {made.group}. If this is killed, delete it:")
    say(f"  az group delete -n {made.group} --subscription {made.subscription}")
    for result in probe(az, made, lambda: subscription_target(wanted, made, az), "azure", folder):
        say(f"{result.name}: {result.observation.verdict}, {result.observation.seen}")
    say("So much for Azure. What the embedded Azure does follows.")
    say(f"Recordings are in {folder}. Read them before you commit them.")
    return True


def probe(
    az: AzureCli, made: Resources, open_target: Callable[[], Opened], source: Source, folder: Path
) -> list[Result]:
    """Make everything, probe, record into `folder`, and delete everything. Raises ResourcesError."""
    with resources(az, made):
        results = asyncio.run(probe_all(open_target))
        for result in results:  # before anything is deleted, which may fail
            write(recording_of(result, source, datetime.now(UTC).date()), folder)
    return results


def report(page: Path, folder: Path) -> int:
    """Run all against the embedded Azure, write the page, and say where the two differ. 1 where a probe failed."""
    with tempfile.TemporaryDirectory() as temporary:
        calls, embedded = run_embedded(Path(temporary))
    say(f"az (a stand-in): {len(calls)} commands")
    azure = read_all("azure", folder)
    page.write_text(make_page(azure, {result.name: result for result in embedded}), encoding="utf-8")
    for result in embedded:
        say(f"{result.name}: {embedded_words(result)}")
        if (recording := azure.get(result.name)) is not None:
            for difference in compare(recording, result):
                say(f"  the embedded Azure differs: {difference}")
    say(f"The page is {page}.")
    failed = [result.name for result in embedded if result.failure is not None]
    if failed:
        say(f"These probes failed, which is a fault of the kit: {', '.join(failed)}")
    return 1 if failed else 0


def run_embedded(folder: Path) -> tuple[list[list[str]], list[Result]]:
    """Every step of `probe_azure`, with a stand-in for az and the embedded Azure. Also what az was asked for.

    The recordings are in `folder`/recordings.
    """
    az, log = stand_in.make(folder)
    wanted = read_environment(stand_in.ENVIRONMENT)
    made = resources_for(wanted, az, "abc123")
    results = probe(az, made, lambda: embedded_target(folder), "embedded", folder / "recordings")
    return stand_in.calls(log), results


async def probe_all(open_target: Callable[[], Opened]) -> list[Result]:
    """The services side by side, and the probes of each one after the other, as they share its queue or quota."""
    async with open_target() as (target, redact):
        refused = await roles_have_spread(target, redact)
        if refused:
            say(f"Roles have not spread, or a first call fails otherwise: {', '.join(refused)}. Probing anyway.")

        async def probe_service(service: str) -> list[Result]:
            of_service = [assumption for assumption in ASSUMPTIONS if assumption.service == service]
            results = [await run(assumption.name, assumption.probe, target, redact) for assumption in of_service]
            is_doubtful = service in refused or (refused and service == "The product")
            return [doubted(result) for result in results] if is_doubtful else results

        services = dict.fromkeys(assumption.service for assumption in ASSUMPTIONS)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(probe_service(service)) for service in services]
        return [result for task in tasks for result in task.result()]


def cost_estimate(wanted: Wanted) -> str:
    """An estimate from above: every paid call is counted as if it were answered to the full."""
    calls = 2 * MOST_CALLS + 2 * JOBS + len(ASSUMPTIONS)
    model = wanted.model.name
    return (
        "This makes a Service Bus namespace (Standard, billed by the hour), a storage account, three Azure OpenAI\n"
        f"accounts with deployments of {model} (billed by token) and a managed identity in {wanted.location}, and\n"
        f"deletes them after about half an hour. At most {calls} short calls, {calls * OUTPUT_TOKENS:,} output\n"
        "tokens in all. Estimate: well below 1 USD. Prices were not looked up; see the Azure pricing calculator."
    )


def say(text: str) -> None:
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
