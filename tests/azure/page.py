"""docs/azure-assumptions.md, from the assumptions, recordings of Azure and a run against the embedded Azure.

Pure: `make azure` writes what it returns, and a test holds the committed page to it.
"""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.azure.assumptions import ASSUMPTIONS, Assumption
from tests.azure.probing import Result, Verdict
from tests.azure.recordings import Recording

PAGE = Path(__file__).parents[2] / "docs" / "azure-assumptions.md"
_INTRODUCTION = """\
# What we assume of Azure

Written by `make azure`; do not edit it.

The authors of this project have not run it on a real Azure. Its tests run against the embedded
Azure, which follows Azure's documentation and output that others have pasted in public issues. This
page lists each assumption that we rely on by name. A probe decides each one.

- *Azure* is the verdict of a run against a real subscription. `unknown (never run)` means that the
  probe has not run there.
- *Embedded* is what the embedded Azure does. It says nothing about Azure.

With a subscription you can decide them in about half an hour:

```sh
az login
export AZURE_SUBSCRIPTION_ID=... AOAI_PROBE_MODEL=... AOAI_PROBE_MODEL_VERSION=...
make azure            # shows what it will create and what it costs
make azure YES=yes    # creates it, probes it, deletes it, and writes this page
```

You need the rights to create resources and to assign roles, as an Owner of the subscription has.
If a variable is missing, `make azure` lists all of them.

`make azure TARGET=embedded` runs the same against the embedded Azure, with a stand-in for `az`.
The recordings are in `tests/azure/recordings`. They contain no ids, tokens or host names; read them
before you publish them. `tests/embedded/test_azure_recordings.py` compares the embedded Azure
with them.
"""


def make_page(azure: Mapping[str, Recording], embedded: Mapping[str, Result]) -> str:
    parts = [_INTRODUCTION, *_counts(azure)]
    for service in dict.fromkeys(assumption.service for assumption in ASSUMPTIONS):
        of_service = [assumption for assumption in ASSUMPTIONS if assumption.service == service]
        parts += [f"## {service}\n", *_table(of_service, azure, embedded)]
        parts += [_entry(assumption, embedded.get(assumption.name)) for assumption in of_service]
    return "\n".join(parts)


def _counts(azure: Mapping[str, Recording]) -> Iterator[str]:
    if not azure:
        yield f"Azure has decided none of the {len(ASSUMPTIONS)} assumptions yet.\n"
        return
    decided = [azure[assumption.name].verdict for assumption in ASSUMPTIONS if assumption.name in azure]
    confirmed, refuted = (decided.count(verdict) for verdict in (Verdict.CONFIRMED, Verdict.REFUTED))
    yield (
        f"Of {len(ASSUMPTIONS)} assumptions Azure confirmed {confirmed} and refuted {refuted}; "
        f"{len(ASSUMPTIONS) - confirmed - refuted} are unknown.\n"
    )


def _table(
    assumptions: Sequence[Assumption], azure: Mapping[str, Recording], embedded: Mapping[str, Result]
) -> Iterator[str]:
    rows = [
        f"| `{name}` | {_azure(azure.get(name))} | {_embedded(embedded.get(name))} |"
        for name in (assumption.name for assumption in assumptions)
    ]
    yield "\n".join(["| assumption | Azure | Embedded |", "|---|---|---|", *rows]) + "\n"


def _azure(recording: Recording | None) -> str:
    if recording is None:
        return "unknown (never run)"
    return f"{recording.verdict} {recording.date}: {_cell(recording.seen)}"


def _embedded(result: Result | None) -> str:
    return "not run" if result is None else _cell(embedded_words(result))


def embedded_words(result: Result) -> str:
    """What the embedded Azure does, in words that nobody takes for a verdict on Azure."""
    note = {Verdict.CONFIRMED: "as assumed", Verdict.REFUTED: "not as assumed", Verdict.UNKNOWN: "undecided"}
    return f"{note[result.observation.verdict]}: {result.observation.seen}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _entry(assumption: Assumption, result: Result | None) -> str:
    lines = [
        f"**`{assumption.name}`.** {assumption.sentence}",
        f"- Relied on by: {assumption.relied_on}.",
        f"- Evidence: {assumption.evidence}.",
    ]
    if result is not None and result.observation.exchanges:
        asked = "; ".join(dict.fromkeys(exchange.asked for exchange in result.observation.exchanges))
        lines.append(f"- The probe: {asked}.")
    return "\n".join(_wrapped(line) for line in lines) + "\n"


def _wrapped(line: str) -> str:
    indent = "  " if line.startswith("- ") else ""
    return textwrap.fill(line, 100, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
