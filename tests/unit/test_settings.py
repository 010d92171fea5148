"""The settings: keyless or not at all, every problem at once, each with what would be right."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml
from azure.identity._constants import EnvironmentVariables

from worker.environment import CONNECTION_STRINGS, SMUGGLED_KEYS, load
from worker.errors import InvalidSettings
from worker.settings import PREFIX, ConnectionSettings, Deployment, ServiceBusSettings, WorkerSettings

KEY = "5-s3kret-value"

ENOUGH = {
    "AOAI_WORKER_SERVICEBUS_NAMESPACE": "my-namespace.servicebus.windows.net",
    "AOAI_WORKER_BLOB_CONTAINER": "https://mystore.blob.core.windows.net/results",
    "AZURE_OPENAI_ENDPOINT": "https://my-account.openai.azure.com",
    "AOAI_WORKER_MODELS": '{"gpt-5.4-mini": ["mini-1"]}',
}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment in which just enough is set."""
    for name in os.environ:
        if name.upper().startswith((PREFIX, "AZURE_", "OPENAI_")):
            monkeypatch.delenv(name)
    for name, value in ENOUGH.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def problems(kind: type[ServiceBusSettings] = WorkerSettings) -> tuple[str, ...]:
    with pytest.raises(InvalidSettings) as caught:
        load(kind)
    return caught.value.problems


def problem() -> str:
    (only,) = problems()
    return only


def write(path: Path, **settings: object) -> str:
    path.write_text(yaml.safe_dump(settings))
    return str(path)


def test_a_namespace_an_endpoint_and_a_model_are_enough(environment: pytest.MonkeyPatch) -> None:
    settings = load(WorkerSettings)
    assert settings.servicebus_namespace == "my-namespace.servicebus.windows.net"
    assert settings.openai_endpoint == "https://my-account.openai.azure.com"
    assert settings.models == {"gpt-5.4-mini": [Deployment(name="mini-1")]}
    assert settings.credential == "auto"


@pytest.mark.parametrize("kind", [WorkerSettings, ConnectionSettings])
@pytest.mark.parametrize("name", [*SMUGGLED_KEYS, *CONNECTION_STRINGS])
def test_a_key_in_the_environment_refuses_start_up_and_is_not_shown(
    environment: pytest.MonkeyPatch, kind: type[ConnectionSettings], name: str
) -> None:
    environment.setenv(name, f"Endpoint=sb://my-namespace.servicebus.windows.net/;SharedAccessKey={KEY}")
    (line,) = problems(kind)
    assert line.startswith(f"{name} is set")
    assert "Unset it" in line
    assert KEY not in line
    assert "my-namespace" not in line


@pytest.mark.parametrize("name", [*SMUGGLED_KEYS, *CONNECTION_STRINGS])
def test_an_empty_variable_holds_no_key(environment: pytest.MonkeyPatch, name: str) -> None:
    environment.setenv(name, "")
    assert load(WorkerSettings).slots == 64


@pytest.mark.parametrize("name", CONNECTION_STRINGS)
def test_the_development_emulators_connection_string_is_no_secret(
    environment: pytest.MonkeyPatch, name: str
) -> None:
    environment.setenv(name, "Endpoint=sb://localhost;SharedAccessKey=SAS_KEY_VALUE;UseDevelopmentEmulator=true;")
    assert load(WorkerSettings).slots == 64


class Observed(dict[str, str]):
    """An environment that remembers which variables were looked for."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        super().__init__(environment)
        self.sought: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        self.sought.add(name)
        return super().get(name, default)

    def __getitem__(self, name: str) -> str:
        self.sought.add(name)
        return super().__getitem__(name)


async def test_every_key_that_the_openai_client_seeks_in_the_environment_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    observed = Observed(os.environ)
    with monkeypatch.context() as patch:
        patch.setattr(os, "environ", observed)
        client = openai.AsyncOpenAI(base_url="https://localhost/openai/v1/", api_key="token")
    async with client:
        keys = {name for name in observed.sought if re.match("OPENAI_.*(KEY|HEADERS)", name)}
    assert "OPENAI_CUSTOM_HEADERS" in keys
    assert keys <= set(SMUGGLED_KEYS)


def test_every_secret_that_azure_identity_would_take_from_the_environment_is_refused() -> None:
    names = [
        *EnvironmentVariables.CLIENT_SECRET_VARS,
        *EnvironmentVariables.CERT_VARS,
        *EnvironmentVariables.USERNAME_PASSWORD_VARS,
        EnvironmentVariables.AZURE_CLIENT_CERTIFICATE_PASSWORD,
    ]
    assert {name for name in names if re.search("SECRET|CERTIFICATE|PASSWORD", name)} <= set(SMUGGLED_KEYS)


def test_no_setting_can_take_a_key() -> None:
    names = [*WorkerSettings.model_fields, *ConnectionSettings.model_fields, *Deployment.model_fields]
    aliases = [str(field.validation_alias) for field in WorkerSettings.model_fields.values()]
    for name in names + aliases:
        assert not re.search(r"(?i)key|secret|password|connection_?str|certificate|sas", name), name


@pytest.mark.parametrize(
    "name",
    [
        "AOAI_WORKER_API_KEY",
        "AOAI_WORKER_KEY",
        "AOAI_WORKER_OPENAI_API_KEY",
        "AOAI_WORKER_SERVICE_KEY",
        "AOAI_WORKER_SERVICE_PORT_KEY",
        "AOAI_WORKER_SERVICEBUS_SAS_KEY_VALUE",
        "aoai_worker_client_secret",
    ],
)
def test_an_unknown_setting_that_would_be_a_key_refuses_start_up_and_is_not_shown(
    environment: pytest.MonkeyPatch, name: str
) -> None:
    environment.setenv(name, KEY)
    assert problem().startswith(f"{name} is not a setting; ")
    assert KEY not in problem()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AOAI_WORKER_SERVICEBUS_NAMESPACE", f"Endpoint=sb://my.servicebus.windows.net/;SharedAccessKey={KEY}"),
        ("AOAI_WORKER_SERVICEBUS_NAMESPACE", f"my.servicebus.windows.net;SharedAccessKey={KEY}"),
        ("AZURE_OPENAI_ENDPOINT", f"https://my-account.openai.azure.com?api-key={KEY}"),
        ("AZURE_OPENAI_ENDPOINT", f"https://me:{KEY}@my-account.openai.azure.com"),
        ("AOAI_WORKER_MODELS", f'{{"m": [{{"name": "d", "api_key": "{KEY}"}}]}}'),
    ],
)
def test_a_key_in_the_wrong_setting_is_refused_and_not_shown(
    environment: pytest.MonkeyPatch, name: str, value: str
) -> None:
    environment.setenv(name, value)
    assert problem().startswith(name)
    assert KEY not in problem()


def test_everything_that_is_missing_is_told_at_once(environment: pytest.MonkeyPatch) -> None:
    for name in ENOUGH:
        environment.delenv(name)
    assert {line.split(" ")[0] for line in problems()} == set(ENOUGH)
    assert len(problems(ConnectionSettings)) == 2


def test_every_problem_is_told_at_once(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("OPENAI_API_KEY", KEY)
    environment.setenv("AOAI_WORKER_SLOT", "5")
    environment.setenv("AOAI_WORKER_SLOTS", "many")
    environment.setenv("AOAI_WORKER_MODELS", "{")
    environment.delenv("AZURE_OPENAI_ENDPOINT")
    environment.delenv("AOAI_WORKER_SERVICEBUS_NAMESPACE")
    named = [re.split(r"[ =]", line)[0] for line in problems()]
    assert sorted(named) == [
        "AOAI_WORKER_MODELS",
        "AOAI_WORKER_SERVICEBUS_NAMESPACE",
        "AOAI_WORKER_SLOT",
        "AOAI_WORKER_SLOTS",
        "AZURE_OPENAI_ENDPOINT",
        "OPENAI_API_KEY",
    ]


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("AOAI_WORKER_SERVICEBUS_NAMESPACE", "my-namespace", "a host name without scheme or path, such as"),
        ("AOAI_WORKER_SERVICEBUS_NAMESPACE", "sb://my.servicebus.windows.net", "a host name without scheme"),
        ("AOAI_WORKER_SERVICEBUS_NAMESPACE", "my.servicebus.windows.net/jobs", "a host name without scheme"),
        ("AOAI_WORKER_SERVICEBUS_ENDPOINT", "localhost", "host:port, such as private-endpoint.internal:5671"),
        ("AOAI_WORKER_SERVICEBUS_ENDPOINT", "localhost:", "host:port"),
        ("AOAI_WORKER_SERVICEBUS_ENDPOINT", ":5671", "host:port"),
        ("AOAI_WORKER_SERVICEBUS_ENDPOINT", "localhost:0", "host:port"),
        ("AOAI_WORKER_SERVICEBUS_ENDPOINT", "localhost:65536", "host:port"),
        ("AOAI_WORKER_SERVICEBUS_ENDPOINT", "localhost:\u00b2", "host:port"),
        ("AOAI_WORKER_SERVICEBUS_ENDPOINT", "amqps://localhost:5671", "host:port"),
        ("AOAI_WORKER_CA_FILE", "/nowhere/ca.pem", "a file that this process can read"),
        ("AOAI_WORKER_CA_FILE", "/", "a file that this process can read"),
        ("AOAI_WORKER_JOBS_QUEUE", "", "the name of a queue: 1 to 260"),
        ("AOAI_WORKER_JOBS_QUEUE", "my jobs", "the name of a queue: 1 to 260"),
        ("AOAI_WORKER_RESULTS_QUEUE", "q" * 261, "the name of a queue: 1 to 260"),
        ("AOAI_WORKER_CREDENTIAL", "robot", "'auto', 'workload', 'managed', 'cli' or 'default'"),
        ("AOAI_WORKER_ENABLE_AZURE_PROXY", "perhaps", "true or false"),
        ("AZURE_OPENAI_ENDPOINT", "http://my-account.openai.azure.com", "an https:// URL, such as https://"),
        ("AZURE_OPENAI_ENDPOINT", "my-account.openai.azure.com", "an https:// URL"),
        ("AZURE_OPENAI_ENDPOINT", "https://", "an https:// URL"),
        ("AZURE_OPENAI_ENDPOINT", "https://my account", "an https:// URL"),
        ("AOAI_WORKER_OPENAI_SCOPE", "https://ai.azure.com", "a scope, such as https://cognitiveservices"),
        ("AOAI_WORKER_OPENAI_SCOPE", "http://ai.azure.com/.default", "a scope, such as https://cognitiveservices"),
        ("AOAI_WORKER_MODELS", "pass-through", "passthrough, or JSON such as"),
        ("AOAI_WORKER_MODELS", "", "passthrough, or JSON such as"),
        ("AOAI_WORKER_SLOTS", "0", "greater than or equal to 1"),
        ("AOAI_WORKER_SLOTS", "4097", "less than or equal to 4096"),
        ("AOAI_WORKER_SLOTS", "many", "a whole number"),
        ("AOAI_WORKER_ATTEMPTS", "0", "greater than or equal to 1"),
        ("AOAI_WORKER_CALL_TIMEOUT", "ten", "a number"),
        ("AOAI_WORKER_CALL_TIMEOUT", "inf", "less than or equal to 3600"),
        ("AOAI_WORKER_MAX_AGE", "0", "greater than 0"),
        ("AOAI_WORKER_MAX_AGE", "inf", "a finite number"),
        ("AOAI_WORKER_PARKING", "nan", "a finite number"),
        ("AOAI_WORKER_GRACE", "-1", "greater than or equal to 0"),
        ("AOAI_WORKER_GRACE", "inf", "a finite number"),
        ("AOAI_WORKER_HTTP_PORT", "65536", "less than or equal to 65535"),
        ("AOAI_WORKER_LOG_LEVEL", "loud", "'debug', 'info', 'warning' or 'error'"),
    ],
)
def test_a_wrong_value_is_named_with_its_variable_and_what_is_allowed(
    environment: pytest.MonkeyPatch, name: str, value: str, allowed: str
) -> None:
    environment.setenv(name, value)
    line = problem()
    assert line.startswith(f"{name}={value[:100]!r}"[:100])
    assert f": must be {allowed}" in line


@pytest.mark.parametrize(
    ("models", "where", "allowed"),
    [
        ("{}", "={}", "at least one model"),
        ('["gpt-5.4-mini"]', "=['gpt-5.4-mini']", "passthrough, or JSON such as"),
        ('{"m": []}', "[m]=[]", "at least one deployment"),
        ('{"m": "d"}', "[m]='d'", 'a list of deployments, such as ["my-deployment"]'),
        ('{"m": [5]}', "[m][0]=5", "the name of a deployment"),
        ('{"m": ["d", ""]}', "[m][1][name]=''", "at least 1 character"),
        ('{"m": [{"name": "d", "region": "x"}]}', "[m][0][region]='x'", "left out; a deployment has a name and"),
        ('{"m": [{"name": "d", "endpoint": "http://x.y"}]}', "[m][0][endpoint]='http://x.y'", "an https:// URL"),
    ],
)
def test_a_wrong_model_is_named_with_its_place(
    environment: pytest.MonkeyPatch, models: str, where: str, allowed: str
) -> None:
    environment.setenv("AOAI_WORKER_MODELS", models)
    assert problem().startswith(f"AOAI_WORKER_MODELS{where}: must be ")
    assert allowed in problem()


def test_a_deployment_without_a_name_is_told_so(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("AOAI_WORKER_MODELS", '{"m": [{"endpoint": "https://x.y"}]}')
    assert problem().startswith("AOAI_WORKER_MODELS[m][0][name] is missing")


@pytest.mark.parametrize("name", ENOUGH)
def test_a_missing_setting_is_named_with_its_purpose(environment: pytest.MonkeyPatch, name: str) -> None:
    environment.delenv(name)
    assert problem().startswith(f"{name} is missing: the ")
    assert "such as" in problem()


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("AOAI_WORKER_SLOT", "did you mean AOAI_WORKER_SLOTS?"),
        ("AOAI_WORKER_CALL_TIME_OUT", "did you mean AOAI_WORKER_CALL_TIMEOUT?"),
        ("aoai_worker_atempts", "did you mean AOAI_WORKER_ATTEMPTS?"),
        ("AOAI_WORKER_HTPP_PORT", "did you mean AOAI_WORKER_HTTP_PORT?"),
        ("AOAI_WORKER_XYZZY", "docs/settings.md lists the settings."),
    ],
)
def test_a_mistyped_setting_is_told_what_was_meant(environment: pytest.MonkeyPatch, name: str, hint: str) -> None:
    environment.setenv(name, "5")
    assert problem() == f"{name} is not a setting; {hint}"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AOAI_WORKER_SERVICE_HOST", "10.0.0.7"),
        ("AOAI_WORKER_SERVICE_PORT", "9090"),
        ("AOAI_WORKER_SERVICE_PORT_METRICS", "9090"),
        ("AOAI_WORKER_PORT", "tcp://10.0.0.7:9090"),
        ("AOAI_WORKER_PORT_9090_TCP", "tcp://10.0.0.7:9090"),
        ("AOAI_WORKER_PORT_9090_TCP_PROTO", "tcp"),
        ("AOAI_WORKER_PORT_9090_TCP_PORT", "9090"),
        ("AOAI_WORKER_PORT_9090_TCP_ADDR", "10.0.0.7"),
        ("AOAI_WORKER_METRICS_SERVICE_HOST", "10.0.0.7"),
        ("AOAI_WORKER_METRICS_PORT", "tcp://10.0.0.7:9090"),
    ],
)
def test_what_kubernetes_sets_for_services_is_not_taken_for_settings(
    environment: pytest.MonkeyPatch, name: str, value: str
) -> None:
    environment.setenv(name, value)
    assert load(WorkerSettings).slots == 64


def test_models_may_be_passed_through(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("AOAI_WORKER_MODELS", "passthrough")
    assert load(WorkerSettings).models == "passthrough"


def test_a_deployment_may_be_elsewhere(environment: pytest.MonkeyPatch) -> None:
    environment.setenv(
        "AOAI_WORKER_MODELS", '{"m": ["d", {"name": "e", "endpoint": "https://b.openai.azure.com/"}]}'
    )
    elsewhere = Deployment(name="e", endpoint="https://b.openai.azure.com")
    assert load(WorkerSettings).models == {"m": [Deployment(name="d"), elsewhere]}


def test_one_deployment_has_one_budget_whichever_model_it_carries(environment: pytest.MonkeyPatch) -> None:
    elsewhere = {"name": "d", "endpoint": "https://other.openai.azure.com", "tokens_per_minute": 7}
    models: dict[str, list[Any]] = {
        "a": [{"name": "d", "tokens_per_minute": 5}],
        "b": [elsewhere, {"name": "d", "tokens_per_minute": 5}],
    }
    environment.setenv("AOAI_WORKER_MODELS", json.dumps(models))
    load(WorkerSettings)
    models["b"] = ["d"]
    environment.setenv("AOAI_WORKER_MODELS", json.dumps(models))
    assert problem() == (
        "AOAI_WORKER_MODELS: d at https://my-account.openai.azure.com has the budgets (5, None) and (None, None) "
        "(tokens and requests a minute): must be the same for all its models, as it is one quota"
    )


@pytest.mark.parametrize("ending", ["", "/", "/openai/v1", "/openai/v1/"])
def test_the_endpoint_may_be_pasted_as_the_portal_shows_it(environment: pytest.MonkeyPatch, ending: str) -> None:
    environment.setenv("AZURE_OPENAI_ENDPOINT", f"https://my-account.openai.azure.com{ending}")
    assert load(WorkerSettings).openai_endpoint == "https://my-account.openai.azure.com"


def test_the_endpoint_of_a_project_wants_the_scope_that_it_takes(environment: pytest.MonkeyPatch) -> None:
    project = "https://my-account.services.ai.azure.com/api/projects/batch"
    elsewhere = json.dumps({"m": ["d", {"name": "e", "endpoint": f"{project}/openai/v1"}]})
    for name, value in (("AOAI_WORKER_MODELS", elsewhere), ("AZURE_OPENAI_ENDPOINT", project)):
        with environment.context() as patched:
            patched.setenv(name, value)
            assert problem() == (
                "AOAI_WORKER_OPENAI_SCOPE is https://cognitiveservices.azure.com/.default: must be "
                f"https://ai.azure.com/.default, as {project} is the endpoint of a Foundry project, which accepts "
                "no other tokens. Set it, or use the account's endpoint"
            )
            patched.setenv("AOAI_WORKER_OPENAI_SCOPE", "https://ai.azure.com/.default")
            load(WorkerSettings)


def test_the_endpoint_may_be_a_gateway_with_a_path(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("AZURE_OPENAI_ENDPOINT", "https://gateway.azure-api.net/team-a")
    assert load(WorkerSettings).openai_endpoint == "https://gateway.azure-api.net/team-a"


def test_the_endpoint_has_two_names_of_which_azures_wins(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("AOAI_WORKER_OPENAI_ENDPOINT", "https://other.openai.azure.com")
    assert load(WorkerSettings).openai_endpoint == ENOUGH["AZURE_OPENAI_ENDPOINT"]
    environment.delenv("AZURE_OPENAI_ENDPOINT")
    assert load(WorkerSettings).openai_endpoint == "https://other.openai.azure.com"


def test_the_endpoint_is_not_taken_from_another_programs_variable(environment: pytest.MonkeyPatch) -> None:
    environment.delenv("AZURE_OPENAI_ENDPOINT")
    environment.setenv("OPENAI_ENDPOINT", "https://other.example.com")
    assert problem().startswith("AZURE_OPENAI_ENDPOINT is missing")


def test_an_endpoint_with_an_ipv6_address_is_one(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("AOAI_WORKER_SERVICEBUS_ENDPOINT", "[::1]:5671")
    assert load(WorkerSettings).servicebus_endpoint == "[::1]:5671"


def test_the_file_holds_every_setting_and_the_environment_wins(
    environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ENOUGH:
        environment.delenv(name)
    file = write(
        tmp_path / "settings.yaml",
        servicebus_namespace="file.servicebus.windows.net",
        openai_endpoint="https://file.openai.azure.com",
        sink="queue",
        models={"m": ["d"]},
        slots=7,
        attempts=3,
    )
    environment.setenv("AOAI_WORKER_CONFIG", file)
    environment.setenv("AOAI_WORKER_SLOTS", "9")
    environment.setenv("AZURE_OPENAI_ENDPOINT", "https://environment.openai.azure.com")
    settings = load(WorkerSettings)
    assert settings.servicebus_namespace == "file.servicebus.windows.net"
    assert settings.openai_endpoint == "https://environment.openai.azure.com"
    assert settings.models == {"m": [Deployment(name="d")]}
    assert (settings.slots, settings.attempts) == (9, 3)


def test_models_in_the_environment_replace_those_of_the_file(
    environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environment.setenv("AOAI_WORKER_CONFIG", write(tmp_path / "settings.yaml", models={"other": ["d"]}))
    settings = load(WorkerSettings)
    assert settings.models == {"gpt-5.4-mini": [Deployment(name="mini-1")]}


def test_a_wrong_value_in_the_file_is_told_as_in_the_environment(
    environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = write(tmp_path / "settings.yaml", openai_endpoint="http://x.y", slots=0, api_port=1)
    environment.setenv("AOAI_WORKER_CONFIG", file)
    assert problem().startswith(f"AOAI_WORKER_CONFIG={file}: no such setting: api_port; allowed are api_version, ")
    write(tmp_path / "settings.yaml", openai_endpoint="http://x.y", slots=0)
    environment.delenv("AZURE_OPENAI_ENDPOINT")
    assert [line.split(":")[0] for line in problems()] == ["AZURE_OPENAI_ENDPOINT='http", "AOAI_WORKER_SLOTS=0"]


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ("slots: [", "the file is not YAML: "),
        ("- slots", "the file must hold a mapping of settings, such as `slots: 64`"),
        ("", "the file must hold a mapping of settings"),
        ("api_key: abc", "no such setting: api_key; allowed are "),
        ("5: abc", "no such setting: 5; allowed are "),
        ("slots: \udcff", "the file is not YAML: "),
    ],
)
def test_a_file_that_cannot_be_used_is_told_with_its_path(
    environment: pytest.MonkeyPatch, tmp_path: Path, content: str, names: str
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_bytes(content.encode(errors="surrogateescape"))
    environment.setenv("AOAI_WORKER_CONFIG", str(file))
    environment.setenv("OPENAI_API_KEY", KEY)
    smuggled, told = problems()
    assert smuggled.startswith("OPENAI_API_KEY is set")
    assert told.startswith(f"AOAI_WORKER_CONFIG={file}: {names}")
    assert len(told.splitlines()) == 1
    assert "abc" not in told


def test_a_file_that_is_not_there_is_told_with_its_path(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment.setenv("AOAI_WORKER_CONFIG", str(tmp_path / "none.yaml"))
    assert (
        problem() == f"AOAI_WORKER_CONFIG={tmp_path}/none.yaml: the file cannot be read: No such file or directory"
    )


def test_producers_need_a_namespace_only(environment: pytest.MonkeyPatch) -> None:
    environment.delenv("AZURE_OPENAI_ENDPOINT")
    environment.delenv("AOAI_WORKER_MODELS")
    assert load(ConnectionSettings).jobs_queue == "jobs"


def test_dead_letters_can_be_looked_at_without_a_place_for_results(environment: pytest.MonkeyPatch) -> None:
    for name in ("AZURE_OPENAI_ENDPOINT", "AOAI_WORKER_MODELS", "AOAI_WORKER_BLOB_CONTAINER"):
        environment.delenv(name)
    assert load(ServiceBusSettings).jobs_queue == "jobs"
    assert problems(ConnectionSettings)[0].startswith("AOAI_WORKER_BLOB_CONTAINER is missing")


def test_settings_do_not_change_once_they_are_read(environment: pytest.MonkeyPatch) -> None:
    settings = load(WorkerSettings)
    with pytest.raises(ValueError, match="frozen"):
        setattr(settings, "slots", 5)  # noqa: B010 - mypy knows that it cannot be assigned


TWO_MODELS = '{"gpt-5.4-mini": ["mini"], "gpt-5.4": ["large"]}'


def test_with_one_model_its_queue_is_the_entry_queue_and_nothing_is_moved(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("AOAI_WORKER_JOBS_QUEUE", "work")
    settings = load(WorkerSettings)
    assert settings.queue_of_models == {"gpt-5.4-mini": "work"}
    assert settings.models_of_queues == {"work": None}
    assert not settings.sorts


def test_with_several_models_each_has_a_queue_that_is_named_after_it(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("AOAI_WORKER_MODELS", TWO_MODELS)
    settings = load(WorkerSettings)
    assert settings.queue_of_models == {"gpt-5.4-mini": "jobs-gpt-5.4-mini", "gpt-5.4": "jobs-gpt-5.4"}
    assert settings.models_of_queues == {
        "jobs-gpt-5.4-mini": frozenset({"gpt-5.4-mini"}),
        "jobs-gpt-5.4": frozenset({"gpt-5.4"}),
    }
    assert settings.sorts


def test_queues_may_be_named_in_part_as_lists_of_one_or_drained(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("AOAI_WORKER_MODELS", TWO_MODELS)
    environment.setenv("AOAI_WORKER_QUEUES", '{"new": ["gpt-5.4"], "old": "gpt-5.4", "retired": null}')
    settings = load(WorkerSettings)
    assert settings.queue_of_models == {"gpt-5.4-mini": "jobs-gpt-5.4-mini", "gpt-5.4": "new"}
    assert settings.models_of_queues == {
        "jobs-gpt-5.4-mini": frozenset({"gpt-5.4-mini"}),
        "new": frozenset({"gpt-5.4"}),
        "old": frozenset({"gpt-5.4"}),
        "retired": frozenset(),
    }


def test_one_model_whose_queue_is_named_otherwise_is_sorted_into_it(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("AOAI_WORKER_QUEUES", '{"jobs-mini": "gpt-5.4-mini", "jobs-old": null}')
    settings = load(WorkerSettings)
    assert settings.sorts
    environment.setenv("AOAI_WORKER_JOBS_QUEUE", "Jobs-Mini")
    assert not load(WorkerSettings).sorts


def test_a_producer_reads_which_queue_is_of_which_model(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("AOAI_WORKER_QUEUES", '{"new": "gpt-5.4", "old": "gpt-5.4", "retired": null}')
    assert load(ConnectionSettings).named_queues == {"gpt-5.4": "new"}


@pytest.mark.parametrize(
    ("models", "queues", "told"),
    [
        (
            TWO_MODELS,
            '{"q": ["gpt-5.4", "gpt-5.4-mini"]}',
            "QUEUES[q]=['gpt-5.4', 'gpt-5.4-mini']: must be one model",
        ),
        (TWO_MODELS, '{"q": []}', "QUEUES[q]=[]: must be one model"),
        (TWO_MODELS, '{"q": "gpt-5"}', "QUEUES[q]=gpt-5: must be one of AOAI_WORKER_MODELS"),
        (TWO_MODELS, '{"q": "gpt-5.4", "Q": "gpt-5.4-mini"}', "q and Q are one queue"),
        (TWO_MODELS, '{"jobs": "gpt-5.4"}', "must be another queue than AOAI_WORKER_JOBS_QUEUE"),
        (TWO_MODELS, '{"JOBS": null}', "must be another queue than AOAI_WORKER_JOBS_QUEUE"),
        (TWO_MODELS, '{"a queue": "gpt-5.4"}', "the name of a queue: 1 to 260 letters"),
        (TWO_MODELS, '{"JOBS-gpt-5.4": "gpt-5.4-mini"}', "must differ from other queues by more than case"),
        ('{"a": ["a"], "A": ["b"]}', None, "must differ from other queues by more than case"),
        ('{"org/x": ["a"], "b": ["b"]}', None, 'AOAI_WORKER_QUEUES={"jobs-2": "org/x"}'),
        ("passthrough", '{"q": "gpt-5.4"}', "QUEUES is set with AOAI_WORKER_MODELS=passthrough"),
    ],
)
def test_queues_that_cannot_be_are_refused_with_the_next_step(
    environment: pytest.MonkeyPatch, models: str, queues: str | None, told: str
) -> None:
    environment.setenv("AOAI_WORKER_MODELS", models)
    if queues is not None:
        environment.setenv("AOAI_WORKER_QUEUES", queues)
    with pytest.raises(InvalidSettings) as refused:
        load(WorkerSettings)
    assert told in str(refused.value)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (
            '{"m": {"input": -1, "output": 2}}',
            "AOAI_WORKER_PRICES[m][input]=-1: must be greater than or equal to 0",
        ),
        (
            '{"m": {"input": 1}}',
            "AOAI_WORKER_PRICES[m][output] is missing: the price of a million tokens, 0 if nothing",
        ),
        ('{"m": {"input": 1, "output": 2, "tax": 3}}', "AOAI_WORKER_PRICES[m][tax]=3: must be JSON such as"),
        ('{"m": 2}', "AOAI_WORKER_PRICES[m]=2: must be JSON such as"),
        ('{"m": {"input": "free", "output": 2}}', "AOAI_WORKER_PRICES[m][input]='free': must be a number"),
    ],
)
def test_a_price_that_is_none_is_named(environment: pytest.MonkeyPatch, value: str, told: str) -> None:
    environment.setenv("AOAI_WORKER_PRICES", value)
    (line,) = problems(ConnectionSettings)
    assert line.startswith(told)


def test_producers_read_the_file_of_the_worker(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ENOUGH:
        environment.delenv(name)
    file = write(
        tmp_path / "settings.yaml",
        servicebus_namespace="file.servicebus.windows.net",
        models={"m": ["d"]},
        sink="queue",
        jobs_queue="entry",
        results_queue="out",
    )
    environment.setenv("AOAI_WORKER_CONFIG", file)
    environment.setenv("AOAI_WORKER_RESULTS_QUEUE", "elsewhere")
    settings = load(ConnectionSettings)
    assert settings.servicebus_namespace == "file.servicebus.windows.net"
    assert (settings.jobs_queue, settings.results_queue) == ("entry", "elsewhere")
