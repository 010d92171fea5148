"""What the schema of the values accepts, renders to valid manifests and to settings that the worker takes."""

import json
from typing import Any

import kubernetes_validate
import pytest
from hypothesis import HealthCheck, Phase, assume, given
from hypothesis import settings as limits
from hypothesis_jsonschema import from_schema
from pydantic import ValidationError

from tests.chart.helm import CHART, RenderingFailed, render
from tests.chart.schemas import MINORS, crd_errors, is_custom
from worker.settings import WorkerSettings

SCHEMA = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))

TEMPLATES = (
    "extraContainers",
    "extraEnv",
    "extraEnvFrom",
    "extraVolumes",
    "extraVolumeMounts",
    "initContainers",
    "extraObjects",
)
"""Values whose texts are templates: what is no template cannot be rendered, whatever the schema says."""

OWN = {name: part for name, part in SCHEMA["properties"].items() if name not in TEMPLATES}
SOME = limits(
    max_examples=8,
    deadline=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),  # each example costs a run of Helm, and shrinking hundreds of them
    suppress_health_check=list(HealthCheck),
)

REFUSED = ("These values do not make a worker yet", "which is no alert")
"""How the chart refuses what contradicts itself; the schema cannot see that."""


def section(name: str) -> dict[str, Any]:
    return {**OWN[name], "definitions": SCHEMA["definitions"]}


@pytest.mark.parametrize("name", sorted(OWN.keys() - {"config", "global"}))
def test_what_the_schema_accepts_renders_to_valid_manifests(name: str) -> None:
    @SOME
    @given(value=from_schema(section(name), codec="ascii"))
    def renders(value: Any) -> None:
        try:
            objects = render("default", {name: value})
        except RenderingFailed as error:
            assume(not any(words in str(error) for words in REFUSED))
            raise
        for document in objects:
            if is_custom(document):
                assert list(crd_errors(document)) == []
            else:
                kubernetes_validate.validate(document, MINORS[0], strict=True)

    renders()


@limits(SOME, max_examples=300)
@given(value=from_schema(section("config"), codec="ascii"))
def test_what_the_schema_accepts_as_settings_the_worker_takes(value: dict[str, Any]) -> None:
    given_ = {name: part for name, part in value.items() if part is not None}
    defaults = {"models": {"m": ["d"]}, "servicebus_namespace": "n.example", "openai_endpoint": "https://a.example"}
    given_ |= {name: part for name, part in defaults.items() if not given_.get(name)}
    # settings that do not fit together, and a file that is not here
    given_.pop("queues", None)
    given_.pop("ca_file", None)
    if given_.get("sink", "blob") == "blob":
        given_.setdefault("blob_container", "https://a.example/results")
    try:
        WorkerSettings(**given_)
    except ValidationError as error:
        # two budgets for one deployment, or a model whose name cannot be part of a queue's: no schema can see these
        assume(not any(words in str(error) for words in ("as it is one quota", "Name its queue")))
        raise AssertionError(f"{given_}: {error}") from error
