"""What is found becomes a state, words and a command; nothing here talks to anybody."""

import asyncio
import base64
import json
import shlex
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from azure.core.exceptions import ClientAuthenticationError, HttpResponseError, ResourceNotFoundError
from hypothesis import given
from hypothesis import strategies as st

from tests.support.json_values import json_values
from worker.connections import Connections
from worker.errors import Cause, SourceUnavailable
from worker.flow.startup import Check, Container, Queue
from worker.interfaces import Target
from worker.operations.check.checks import PATIENCE, Examination, look_at_identity
from worker.operations.check.findings import Finding, Report, State, as_json, as_lines, print_table
from worker.operations.check.queue_settings import QueueSettings, judge, look, open_administration
from worker.operations.check.suggestions import (
    AUDIENCE,
    Principal,
    Refusing,
    create_queue,
    replace_queue,
    resource_of,
    shorten,
    suggest,
    suggest_token,
)
from worker.operations.check.token_identity import (
    TokenClaims,
    describe_access,
    describe_projected,
    read_claims,
    span,
)
from worker.roles import (
    BLOB_DATA_CONTRIBUTOR,
    OPENAI_USER,
    SERVICE_BUS_DATA_RECEIVER,
    SERVICE_BUS_DATA_SENDER,
    Role,
)
from worker.settings import WorkerSettings

JOBS = Queue(namespace="my-bus.servicebus.windows.net", name="jobs", with_sessions=False)
OF_A_MODEL = Queue(
    namespace="my-bus.servicebus.windows.net", name="jobs-gpt-5.4", with_sessions=False, is_sent_to=True
)
RESULTS = Queue(namespace="my-bus.servicebus.windows.net", name="results", with_sessions=True, is_sent_to=True)
MINI = Target(endpoint="https://my-account.openai.azure.com", deployment="mini")
CONTAINER = Container(url="https://mystore.blob.core.windows.net/results")
SOMEBODY = Principal(object_id="0d0d")
GOOD = QueueSettings(
    lock_duration=300,
    max_delivery_count=20,
    requires_session=False,
    requires_duplicate_detection=True,
    duplicate_detection_window=86_400,
    dead_lettering_on_expiration=True,
    enable_partitioning=False,
)
NOW = 1_800_000_000.0


def with_changes(**changes: Any) -> QueueSettings:
    values = {name: getattr(GOOD, name) for name in QueueSettings.__dataclass_fields__}
    return QueueSettings(**values | changes)


def token(**claims: Any) -> str:
    payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"eyJhbGciOiJub25lIn0.{payload}.c2lnbmF0dXJl"


def report(*states: State) -> Report:
    return Report(findings=[Finding(state=state, name="a", detail="b") for state in states])


# Findings


@pytest.mark.parametrize(
    ("states", "code", "strict"),
    [
        ([State.OK], 0, 0),
        ([State.OK, State.UNSEEN], 0, 0),
        ([State.UNSEEN, State.WARNING], 0, 1),
        ([State.WRONG, State.OK], 1, 1),
    ],
)
def test_the_worst_state_decides_the_exit_code(states: list[State], code: int, strict: int) -> None:
    assert report(*states).exit_code(strict=False) == code
    assert report(*states).exit_code(strict=True) == strict


def test_refused_settings_have_their_own_exit_code() -> None:
    refused = Report(findings=report(State.WRONG).findings, refused=True)
    assert refused.exit_code(strict=False) == 2


def test_the_documents_fields_are_those_that_are_promised() -> None:
    suggestion, cause = "az one\naz two", Cause.MISSING
    finding = Finding(state=State.WRONG, name="queue jobs", detail="gone", suggestion=suggestion, cause=cause)
    assert json.loads(as_json(Report(findings=[finding, Finding(state=State.OK, name="a", detail="b")]))) == {
        "state": "wrong",
        "findings": [
            {
                "state": "wrong",
                "name": "queue jobs",
                "detail": "gone",
                "suggestion": suggestion,
                "cause": "missing",
            },
            {"state": "ok", "name": "a", "detail": "b", "suggestion": None, "cause": None},
        ],
    }


def test_lines_show_what_mends_a_thing_below_it() -> None:
    finding = Finding(state=State.WRONG, name="queue jobs", detail="gone", suggestion="az one\naz two")
    assert list(as_lines(Report(findings=[finding]))) == [
        "wrong    queue jobs: gone",
        "           -> az one",
        "           -> az two",
        "1 wrong",
    ]


def test_a_command_is_shown_whole_on_a_narrow_terminal_and_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    command = create_queue(JOBS)
    findings = [Finding(state=State.WRONG, name=name, detail="[gone] " * 20, suggestion=command) for name in "ab"]
    print_table(Report(findings=findings))
    lines = capsys.readouterr().out.splitlines()
    assert lines.count(command) == 1
    assert "a, b" in lines
    assert any("[gone]" in line for line in lines), "brackets are no markup"


# Suggestions


PLACES: Sequence[tuple[Refusing, Role]] = (
    (JOBS, SERVICE_BUS_DATA_RECEIVER),
    (RESULTS, SERVICE_BUS_DATA_SENDER),
    (OF_A_MODEL, SERVICE_BUS_DATA_SENDER),
    (MINI, OPENAI_USER),
    (CONTAINER, BLOB_DATA_CONTRIBUTOR),
)
OF_QUEUES = (Cause.DISABLED, Cause.SESSIONS_REQUIRED)
"""What only a queue can be."""


@pytest.mark.parametrize("cause", Cause)
@pytest.mark.parametrize("place", [place for place, _ in PLACES])
def test_each_cause_has_a_suggestion_at_each_place(cause: Cause, place: Refusing) -> None:
    suggestion = suggest(cause, place, SOMEBODY)
    if cause in OF_QUEUES and not isinstance(place, Queue):
        assert suggestion is None
        return
    assert suggestion
    for line in suggestion.splitlines():
        assert not line.startswith("az") or shlex.split(line)


@pytest.mark.parametrize(("place", "role"), PLACES)
def test_a_missing_role_is_the_one_that_the_worker_needs_there(place: Refusing, role: Role) -> None:
    command = shlex.split(suggest(Cause.ROLE_MISSING, place, SOMEBODY) or "", comments=True)
    assert command[command.index("--role") + 1] == role.name


@pytest.mark.parametrize(
    ("cause", "beginnings"),
    [
        (Cause.ROLE_MISSING, ["az role assignment create", "# if it was assigned within", "# not Foundry User or"]),
        (
            Cause.ROLE_SPREADING,
            ["az role assignment create", "# if it was assigned within", "# not Foundry User or"],
        ),
        (Cause.FORBIDDEN, ["az role assignment create", "# if it is already assigned", "az cognitiveservices"]),
        (Cause.NETWORK_CLOSED, ["az cognitiveservices account show", "allow this network"]),
        (Cause.MISSING, ["az cognitiveservices account deployment list", "set one of these in AOAI_WORKER_MODELS"]),
        (Cause.WRONG_TENANT, ["az cognitiveservices account show", "AZURE_TENANT_ID must be the tenant"]),
        (Cause.TOKEN_REFUSED, ["az cognitiveservices account show", "AZURE_TENANT_ID must be the tenant"]),
        (Cause.UNREACHABLE, ["let this network reach https://my-account.openai.azure.com; check that"]),
        (Cause.NAME_NOT_RESOLVED, ["check the name in AZURE_OPENAI_ENDPOINT"]),
        (Cause.TLS_UNTRUSTED, ["set AOAI_WORKER_CA_FILE"]),
        (Cause.PROXY_REFUSED, ["HTTPS_PROXY"]),
        (Cause.WRONG_ENDPOINT, ["another service answers there"]),
    ],
)
def test_the_cause_of_a_refusal_decides_what_is_suggested(cause: Cause, beginnings: list[str]) -> None:
    lines = (suggest(cause, MINI, SOMEBODY) or "").splitlines()
    assert len(lines) == len(beginnings)
    for line, beginning in zip(lines, beginnings, strict=True):
        assert line.startswith(beginning)


@pytest.mark.parametrize(
    ("cause", "place", "beginning"),
    [
        (Cause.MISSING, JOBS, "az servicebus queue create"),
        (Cause.TOKEN_REFUSED, JOBS, "az servicebus queue create"),
        (Cause.SESSIONS_REQUIRED, JOBS, "az servicebus queue show"),
        (Cause.DISABLED, JOBS, "az servicebus queue update"),
        (Cause.NETWORK_CLOSED, JOBS, "az servicebus namespace network-rule-set list"),
        (Cause.WRONG_TENANT, JOBS, "az resource list"),
        (
            Cause.UNREACHABLE,
            JOBS,
            "let this network reach my-bus.servicebus.windows.net on port 5671, bypassing any",
        ),
        (Cause.MISSING, CONTAINER, "az storage container create"),
        (Cause.NETWORK_CLOSED, CONTAINER, "az storage account show"),
        (Cause.TOKEN_REFUSED, CONTAINER, "az storage account show"),
        (Cause.UNREACHABLE, CONTAINER, "let this network reach https://mystore.blob.core.windows.net/results"),
    ],
)
def test_a_suggestion_is_about_the_place_that_refuses(cause: Cause, place: Refusing, beginning: str) -> None:
    assert (suggest(cause, place, SOMEBODY) or "").startswith(beginning)


def test_where_5671_is_closed_websockets_are_suggested() -> None:
    suggestion = suggest(Cause.UNREACHABLE, JOBS, SOMEBODY) or ""
    assert "port 5671, bypassing any proxy, or set AOAI_WORKER_SERVICEBUS_TRANSPORT=websockets" in suggestion


def test_where_nothing_tells_the_cause_nothing_is_suggested() -> None:
    assert suggest(None, MINI, SOMEBODY) is None


@pytest.mark.parametrize(
    ("place", "scope"),
    [
        (JOBS, "Microsoft.ServiceBus/namespaces/my-bus/queues/jobs"),
        (MINI, "Microsoft.CognitiveServices/accounts/my-account"),
        (CONTAINER, "Microsoft.Storage/storageAccounts/mystore/blobServices/default/containers/results"),
        (
            Container(url="https://localhost:10000/devstoreaccount1/results"),
            "Microsoft.Storage/storageAccounts/devstoreaccount1/blobServices/default/containers/results",
        ),
        (
            Target(endpoint="https://openai.example.com", deployment="mini"),
            "Microsoft.CognitiveServices/accounts/<account>",
        ),
    ],
)
def test_a_role_is_given_at_the_narrowest_scope(place: Refusing, scope: str) -> None:
    command = shlex.split(SOMEBODY.grant(OPENAI_USER, resource_of(place).scope))
    wanted = f"/subscriptions/<subscription>/resourceGroups/<resource-group>/providers/{scope}"
    assert command[command.index("--scope") + 1] == wanted


def test_a_queue_is_created_as_the_worker_needs_it() -> None:
    words = shlex.split(create_queue(RESULTS))
    assert words[words.index("--lock-duration") + 1] == "PT5M"
    assert words[words.index("--max-delivery-count") + 1] == "20"
    assert words[words.index("--duplicate-detection-history-time-window") + 1] == "P1D"
    assert words[words.index("--enable-session") + 1] == "true"


def test_a_person_is_given_a_role_as_a_user() -> None:
    assert "--assignee-principal-type User" in Principal(object_id="0d0d", is_user=True).grant(OPENAI_USER, "/s")


@pytest.mark.parametrize(
    ("code", "credential", "beginning"),
    [
        ("700213", "workload", "az identity federated-credential create"),
        ("7002137", "workload", "az identity federated-credential create"),
        ("7002138", "workload", "az identity federated-credential create"),
        ("70025", "workload", "az identity federated-credential create"),
        ("700016", "workload", "az identity list"),
        ("90002", "workload", "az identity list"),
        ("700024", "workload", "az aks show"),
        ("timeout", "workload", "check that the file"),
        ("none", "default", "check that the file"),
        ("other", "workload", "look up the AADSTS code"),
        ("none", "cli", "az login"),
        ("none", "managed", "az vmss identity assign"),
    ],
)
def test_the_code_of_a_refused_token_decides_what_is_suggested(code: str, credential: str, beginning: str) -> None:
    suggestion = suggest_token(code, credential=credential, client_id="c", issuer="https://i/", subject="s")
    assert suggestion.startswith(beginning)


@given(issuer=st.text(min_size=1), subject=st.text(min_size=1))
def test_what_a_token_claims_cannot_leave_its_quotes(issuer: str, subject: str) -> None:
    command = suggest_token("700213", credential="workload", client_id="c", issuer=issuer, subject=subject)
    words = shlex.split(command)
    assert words[words.index("--issuer") + 1] == issuer
    assert words[words.index("-n") + 1] == "aoai-worker"
    assert len(words) == 16


def test_a_detail_leaves_out_what_helps_nobody() -> None:
    service_bus = (
        "Unauthorized access. Error condition: amqp:unauthorized-access.: Error condition: amqp:unauthorized-access"
    )
    assert shorten(service_bus) == "Unauthorized access"
    entra = "Microsoft Entra ID error '(invalid_request) AADSTS90002: Gone. Trace ID: 1 Timestamp: 2'"
    assert shorten(entra) == "(invalid_request) AADSTS90002: Gone"
    assert shorten("...") == "..."


# Queues


def test_a_queue_as_it_should_be_is_ok() -> None:
    assert judge(JOBS, GOOD).state is State.OK
    assert judge(RESULTS, with_changes(requires_session=True)).state is State.OK


@pytest.mark.parametrize(
    ("changes", "state", "words", "verb"),
    [
        ({"lock_duration": 119}, State.WARNING, "lockDuration", "update"),
        ({"max_delivery_count": 10}, State.WARNING, "maxDeliveryCount", "update"),
        ({"duplicate_detection_window": 600}, State.WARNING, "HistoryTimeWindow", "update"),
        ({"dead_lettering_on_expiration": False}, State.WARNING, "deadLettering", "update"),
        ({"requires_duplicate_detection": False}, State.WARNING, "requiresDuplicateDetection", "show"),
        ({"requires_session": True}, State.WRONG, "requiresSession", "show"),
        ({"enable_partitioning": True}, State.WRONG, "enablePartitioning", "show"),
    ],
)
def test_each_setting_of_a_queue_is_judged(changes: dict[str, Any], state: State, words: str, verb: str) -> None:
    finding = judge(JOBS, with_changes(**changes))
    assert finding.state is state
    assert words in finding.detail
    assert (finding.suggestion or "").startswith(f"az servicebus queue {verb} ")


def test_a_queue_of_results_without_sessions_is_wrong() -> None:
    assert judge(RESULTS, GOOD).state is State.WRONG


@pytest.mark.parametrize(("queue", "what_to_do"), [(JOBS, "processed"), (RESULTS, "collected")])
def test_before_a_queue_is_replaced_its_messages_are_counted_and_their_loss_is_told(
    queue: Queue, what_to_do: str
) -> None:
    count, warning, delete, create = replace_queue(queue).splitlines()
    assert shlex.split(count)[:4] == ["az", "servicebus", "queue", "show"]
    assert shlex.split(count)[-2:] == ["--query", "countDetails"]
    assert warning.startswith("# deleting the queue deletes its messages")
    assert what_to_do in warning
    assert shlex.split(delete)[3] == "delete"
    assert shlex.split(create)[3] == "create"


def test_two_minutes_are_lock_enough() -> None:
    assert judge(JOBS, with_changes(lock_duration=120)).state is State.OK


def test_only_what_is_wrong_is_updated() -> None:
    words = shlex.split(judge(JOBS, with_changes(lock_duration=30)).suggestion or "")
    assert words[-2:] == ["--lock-duration", "PT5M"]
    assert "--max-delivery-count" not in words


class Told:
    """A namespace's administration that answers as it is told to."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    async def get_queue(self, queue_name: str, /) -> Any:
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


def refused(status: int, kind: type[HttpResponseError] = HttpResponseError) -> HttpResponseError:
    error = kind(message="no")
    error.status_code = status
    return error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (refused(401, ClientAuthenticationError), "not visible to this identity"),
        (refused(403), "not visible to this identity"),
        (refused(500), "no"),
    ],
)
async def test_what_this_identity_cannot_see_is_unseen_with_the_command_that_shows_it(
    error: Exception, words: str
) -> None:
    finding = await look(Told(error), JOBS)
    assert finding.state is State.UNSEEN
    assert finding.detail.startswith(words)
    assert (finding.suggestion or "").startswith("az servicebus queue show")


async def test_a_queue_that_the_administration_misses_is_wrong() -> None:
    assert (await look(Told(ResourceNotFoundError("no")), JOBS)).state is State.WRONG


async def test_the_sdks_properties_are_read() -> None:
    properties = SimpleNamespace(
        lock_duration=timedelta(seconds=30),
        max_delivery_count=20,
        requires_session=False,
        requires_duplicate_detection=True,
        duplicate_detection_history_time_window=timedelta(days=1),
        dead_lettering_on_message_expiration=True,
        enable_partitioning=False,
    )
    finding = await look(Told(properties), JOBS)
    assert finding.detail == "lockDuration is 30 s; reconnecting needs at least 120 s"


# Identity


def test_claims_are_read_and_the_token_is_not_shown() -> None:
    given_token = token(iss="https://i/", sub="system:x", aud=[AUDIENCE], iat=NOW - 90, exp=NOW + 60)
    claims = read_claims(given_token)
    assert (claims.issuer, claims.subject, claims.expires_at) == ("https://i/", "system:x", NOW + 60)
    assert given_token.split(".")[1] not in describe_access(claims, NOW)


@given(st.text() | st.binary().map(lambda raw: f"a.{base64.urlsafe_b64encode(raw).decode()}.c"))
def test_whatever_stands_in_a_token_is_read_or_claims_nothing(text: str) -> None:
    assert isinstance(read_claims(text), TokenClaims)


CLAIMS = st.sampled_from(["iss", "sub", "aud", "oid", "iat", "exp", "scp"])


@given(st.dictionaries(CLAIMS, json_values))
def test_claims_of_any_type_can_be_described(claims: dict[str, Any]) -> None:
    assert describe_access(read_claims(token(**claims)), NOW).isprintable()


@pytest.mark.parametrize(
    ("content", "state", "words"),
    [
        (
            token(sub="s", iss="i", aud=[AUDIENCE], iat=NOW - 90, exp=NOW + 60),
            State.OK,
            "1 min old",
        ),
        (token(sub="s", aud=[AUDIENCE], exp=NOW - 7_200), State.WRONG, "expired 2 h 0 min ago"),
        (token(sub="s", aud=["other"], exp=NOW + 60), State.WRONG, "must be api://AzureADTokenExchange"),
        ("not a token", State.WRONG, "does not hold a JSON Web Token"),
        ("", State.WRONG, "does not hold a JSON Web Token"),
    ],
)
def test_the_projected_token_is_judged(tmp_path: Path, content: str, state: State, words: str) -> None:
    path = tmp_path / "token"
    path.write_text(content)
    finding = describe_projected(str(path), NOW, through_proxy=False)
    assert (finding.state, words in finding.detail) == (state, True), finding


def test_the_clusters_proxy_wants_another_audience(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(token(sub="s", aud=["api://AKSIdentityBinding"], exp=NOW + 60))
    assert describe_projected(str(path), NOW, through_proxy=True).state is State.OK


@pytest.mark.parametrize(("seconds", "words"), [(40, "40 s"), (720, "12 min"), (86_280, "23 h 58 min")])
def test_spans_have_two_units_at_most(seconds: float, words: str) -> None:
    assert span(seconds) == words


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> WorkerSettings:
    for name in ("AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AZURE_FEDERATED_TOKEN_FILE", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    return WorkerSettings(
        servicebus_namespace="my-bus.servicebus.windows.net",
        openai_endpoint="https://my-account.openai.azure.com",
        blob_container=CONTAINER.url,
        models="passthrough",
    )


def test_a_persons_login_is_fine_on_a_laptop_and_wrong_in_a_pod(
    settings: WorkerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [finding.state for finding in look_at_identity(settings, NOW)] == [State.OK]
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert [finding.state for finding in look_at_identity(settings, NOW)] == [State.WRONG]


def test_the_administration_is_not_guessed_where_the_endpoint_is_another(settings: WorkerSettings) -> None:
    elsewhere = settings.model_copy(update={"servicebus_endpoint": "localhost:5671"})
    assert open_administration(elsewhere, NoCredential()) is None


class NoCredential:
    async def get_token(self, *scopes: str, **options: Any) -> Any:
        raise AssertionError("nobody is to ask for a token")

    async def close(self) -> None: ...

    async def __aenter__(self) -> "NoCredential":
        return self

    async def __aexit__(self, *error: object) -> None: ...


class OneToken:
    async def bearer(self, scope: str) -> str:
        return token(aud=scope, exp=NOW)


async def never_answer(*_: object) -> None:
    await asyncio.Event().wait()


class NeverTells:
    get_queue = never_answer

    async def __aenter__(self) -> "NeverTells":
        return self

    async def __aexit__(self, *error: object) -> None: ...


def check(queue: str, prove: Callable[[], Awaitable[None]]) -> Check:
    place = Queue(namespace="my-bus.servicebus.windows.net", name=queue, with_sessions=False)
    return Check(what=f"queue {queue}", place=place, prove=prove)


async def test_words_in_a_detail_decide_nothing(settings: WorkerSettings) -> None:
    """A refusal may quote a firewall, a tenant and a 404; what is suggested is for its cause."""

    async def refuse() -> None:
        detail = "no 'Listen' claim. A firewall's address, the tenant and HTTP 404 stand here: could not be found"
        raise SourceUnavailable(detail, subject="queue 'jobs'", cause=Cause.ROLE_MISSING)

    async def fail() -> None:
        raise SourceUnavailable("a firewall could not be found: timed out", subject="queue 'jobs'")

    checks = [check("jobs", refuse), check("busy", fail)]
    azure = cast(Connections, SimpleNamespace(tokens=OneToken(), checks=checks))
    examination = Examination(settings, azure, PATIENCE)
    await examination.tokens()
    refused, failed, *_ = await examination.what_they_open(lambda settings, credential: None)
    assert refused.cause is Cause.ROLE_MISSING
    assert refused.detail.startswith("no 'Listen' claim"), "its name says already that it is the queue"
    assert (refused.suggestion or "").startswith("az role assignment create")
    assert (failed.cause, failed.suggestion) == (None, None)


@pytest.mark.looptime
async def test_what_never_answers_is_given_up_together_after_20_seconds(
    settings: WorkerSettings, looptime: int
) -> None:
    checks = [check(name, never_answer) for name in "ab"]
    azure = cast(Connections, SimpleNamespace(tokens=OneToken(), checks=checks))
    examination = Examination(settings, azure, PATIENCE)
    await examination.tokens()
    findings = await examination.what_they_open(lambda settings, credential: NeverTells())
    assert looptime == 20
    assert [finding.state for finding in findings] == [State.WRONG, State.WRONG, State.UNSEEN, State.UNSEEN]
    assert {finding.detail for finding in findings} == {"no answer within 20 s"}
    assert (findings[0].suggestion or "").startswith("let this network reach")


def test_a_missing_queue_of_a_model_is_created_as_the_entry_queue_is() -> None:
    suggestion = suggest(Cause.MISSING, OF_A_MODEL, SOMEBODY)
    assert suggestion is not None
    assert suggestion.replace("jobs-gpt-5.4", "jobs") == suggest(Cause.MISSING, JOBS, SOMEBODY)
