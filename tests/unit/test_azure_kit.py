"""The parts of `make azure` that decide: the list, what is redacted, what is made, what must be named.

Out of scope: the probes, which meet the embedded Azure in tests/embedded/test_azure_recordings.py.
"""

import inspect
import re
import string
from collections import Counter
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.azure import blob, entra, openai, product, servicebus, stand_in
from tests.azure.__main__ import cost_estimate, main
from tests.azure.assumptions import ASSUMPTIONS
from tests.azure.page import make_page
from tests.azure.probing import Exchange, Observation, Result, Verdict, decide, doubted, run, undecided
from tests.azure.recordings import compare, differences, recording_of, shape
from tests.azure.redaction import PUBLIC_HOSTS, Redactor
from tests.azure.resources import AzureCli, Model, Resources, ResourcesError, creation, removal, resources
from tests.azure.subscription import NotNamed, read_environment, resources_for, subscription_target

ROOT = Path(__file__).parents[2]
MADE = Resources(
    subscription="11111111-2222-3333-4444-555555555555",
    location="somewhere",
    run="abc123",
    model=Model(name="a-model", version="1"),
    principal="22222222-2222-3333-4444-555555555555",
)


# The list


def test_every_assumption_is_listed_once_and_has_a_probe_of_its_own() -> None:
    for of in (Counter(each.name for each in ASSUMPTIONS), Counter(each.probe for each in ASSUMPTIONS)):
        assert [one for one, count in of.items() if count > 1] == []


def test_every_probe_belongs_to_an_assumption() -> None:
    probes = {
        function
        for module in (openai, servicebus, blob, entra, product)
        for name, function in inspect.getmembers(module, inspect.iscoroutinefunction)
        if function.__module__ == module.__name__
        and inspect.signature(function).return_annotation is Observation
        and not name.startswith("_")
    }
    assert probes == {assumption.probe for assumption in ASSUMPTIONS}


def test_what_relies_on_an_assumption_is_there() -> None:
    for assumption in ASSUMPTIONS:
        for path in re.findall(r"[\w/.-]+/[\w/.-]+\w", assumption.relied_on):
            assert (ROOT / path).exists(), f"{assumption.name}: {path}"


def test_without_a_run_nothing_is_said_of_azure() -> None:
    page = make_page({}, {})
    assert page.count("unknown (never run) |") == len(ASSUMPTIONS)
    assert "confirmed" not in page


async def test_a_probe_that_raises_is_unknown_and_hides_its_words() -> None:
    async def breaks(_target: object) -> Observation:
        raise ValueError("tenant contoso")

    result = await run("it", breaks, None, Redactor({"contoso": "tenant"}))  # type: ignore[arg-type]
    assert result.observation.verdict is Verdict.UNKNOWN
    assert result.observation.exchanges[0].body == "ValueError: tenant <tenant>"
    assert isinstance(result.failure, ValueError)


def test_what_is_not_so_is_refuted() -> None:
    assert decide(False, seen="otherwise").verdict is Verdict.REFUTED


def test_nothing_is_refuted_where_even_a_first_call_fails() -> None:
    refuted = doubted(Result(name="it", observation=decide(False, seen="exit code 1")))
    assert refuted.observation.verdict is Verdict.UNKNOWN
    assert refuted.observation.seen == "exit code 1; but the first call did not succeed either"
    confirmed = Result(name="it", observation=decide(True, seen="401"))
    assert doubted(confirmed) == confirmed


# Redaction

HEX = "0123456789abcdef"
WORDS = st.text(" .,;:'\"/()[]{}<>=&?#\n", max_size=5)


def hexadecimal(length: int) -> st.SearchStrategy[str]:
    return st.text(HEX, min_size=length, max_size=length)


IDS = st.uuids().flatmap(lambda one: st.sampled_from([str(one), str(one).upper(), one.hex]))
PARTS = st.text(string.ascii_letters + string.digits + "-_", min_size=12, max_size=80)
TOKENS = st.lists(PARTS, min_size=3, max_size=3).map(lambda parts: "eyJ" + ".".join(parts))
HOSTS = st.tuples(
    st.text(string.ascii_lowercase + string.digits, min_size=3, max_size=24),
    st.sampled_from(["openai.azure.com", "servicebus.windows.net", "blob.core.windows.net", "vault.azure.net"]),
).map(".".join)
ADDRESSES = st.ip_addresses(v=4).map(str)


@given(WORDS, st.one_of(IDS, TOKENS, HOSTS, ADDRESSES), WORDS)
def test_ids_tokens_hosts_and_addresses_go_wherever_they_stand(before: str, secret: str, after: str) -> None:
    assert secret not in Redactor({}).text(before + secret + after)
    assert secret not in str(Redactor({}).value({"a": [{secret: f"({secret})"}]}))


@given(st.text(string.ascii_letters + "-", min_size=3, max_size=20), WORDS, WORDS)
def test_what_the_kit_knows_goes_in_any_case_of_letters(name: str, before: str, after: str) -> None:
    redact = Redactor({name: "0"})
    assert name.casefold() not in redact.text(f"{before}{name.upper()}{after}{name.lower()}").casefold()


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("Trace ID: 0f0f0f0f-1111-2222-3333-444444444444", "Trace ID: <id>"),
        ("sig=abc%3D&se=2026", "sig=<secret>&se=2026"),
        ("/subscriptions/x/resourceGroups/mine/providers", "/subscriptions/x/resourceGroups/<group>/providers"),
        ('File "/home/somebody/worker/app.py", line 3', 'File "/home/<user>/worker/app.py", line 3'),
        ("for somebody@contoso.onmicrosoft.com.", "for <mailbox>."),
        ("from 20.1.2.3 or fe80:0:0:0:1:2:3:4", "from <ip> or <ip>"),
        ("https://localhost:4711/a", "https://<host>/a"),
        ("0123456789abcdefABCDEF+/0123456789abcdef==", "<opaque>"),
    ],
)
def test_what_has_the_shape_of_a_secret_goes(text: str, redacted: str) -> None:
    assert Redactor({}).text(text) == redacted


@pytest.mark.parametrize(
    "text",
    [
        *(f"audience is incorrect (https://{host})" for host in sorted(PUBLIC_HOSTS)),
        "AADSTS700016: Timestamp: 2026-11-29 04:00:00Z",
        "Microsoft.CognitiveServices/accounts/OpenAI/deployments/chat/completions/action",
        "Idle timeout: 00:10:00. Error code : 50009",
    ],
)
def test_what_says_which_refusal_it_was_stays(text: str) -> None:
    assert Redactor({}).text(text) == text


def test_a_token_in_a_document_goes_by_its_name() -> None:
    assert Redactor({}).value({"access_token": "opaque", "expires_in": 5}) == {
        "access_token": "<token>",
        "expires_in": 5,
    }


def test_a_shape_has_names_and_kinds_only() -> None:
    document = {"error": {"code": None, "details": [{"a": 1}, {"b": 2}]}, "n": 1.5, "is": True}
    assert shape(document) == {
        "error": {"code": "NoneType", "details": [{"a": "number"}]},
        "is": "bool",
        "n": "number",
    }


# Comparison

REFUSAL = Exchange(
    asked="a chat",
    status=401,
    code="PermissionDenied",
    headers={"content-type": "application/json"},
    body={"error": {"code": "PermissionDenied", "message": "words"}},
)


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        (replace(REFUSAL, status=403), "status"),
        (replace(REFUSAL, code="AccessDenied"), "code"),
        (replace(REFUSAL, headers={}), "headers"),
        (replace(REFUSAL, body={"statusCode": 401}), "body"),
    ],
)
def test_another_status_code_header_or_shape_is_a_difference(changed: Exchange, what: str) -> None:
    (difference,) = differences([changed], [REFUSAL])
    assert difference.startswith(f"a chat: {what} ")


def test_other_words_are_no_difference() -> None:
    reworded = replace(REFUSAL, body={"error": {"code": "PermissionDenied", "message": "other words"}})
    assert [*differences([reworded], [REFUSAL])] == []


def test_what_decided_nothing_in_azure_is_not_compared() -> None:
    here = Result(name="it", observation=decide(True, REFUSAL))
    there = recording_of(
        Result(name="it", observation=undecided("no such deployment")), "azure", date(2026, 11, 29)
    )
    assert [*compare(there, here)] == []
    assert [*compare(replace(there, verdict=Verdict.REFUTED), here)] == ["0 exchanges there, 1 here"]


def test_a_missing_exchange_is_a_difference() -> None:
    assert [*differences([], [REFUSAL])] == ["0 exchanges there, 1 here"]


# What is made


def test_local_authentication_is_off_on_all_that_is_made() -> None:
    commands = [" ".join(command) for command in creation(MADE)]
    assert sum("disableLocalAuth=true" in command for command in commands) == 3
    assert sum("--disable-local-auth true" in command for command in commands) == 1
    assert sum("--allow-shared-key-access false" in command for command in commands) == 1


def test_no_role_is_given_on_what_is_called_closed_nor_above_it() -> None:
    scopes = [command[-1] for command in creation(MADE) if command[:3] == ("role", "assignment", "create")]
    assert len(scopes) == 8
    assert all("/providers/" in scope and not scope.endswith("closed") for scope in scopes)
    assert [scope for scope in scopes if scope.endswith((MADE.namespace, MADE.storage))] == []


def test_all_is_made_in_one_resource_group_which_is_deleted() -> None:
    for command in creation(MADE):
        assert MADE.group in " ".join(command)
    assert next(removal(MADE)) == ("group", "delete", "-n", MADE.group, "--yes")


FAILS_AT = """#!/bin/sh
printf '%s\\037' "$@" >>"$AZ_LOG"
printf '\\036' >>"$AZ_LOG"
case "$*" in *"servicebus namespace create"*) echo "no quota" >&2; exit 1 ;; esac
"""


def test_what_was_made_is_deleted_when_the_rest_cannot_be_made(tmp_path: Path) -> None:
    az, log = stand_in.make(tmp_path)
    Path(az.program).write_text(FAILS_AT)
    with (
        pytest.raises(ResourcesError, match="az servicebus namespace create -g failed: no quota"),
        resources(az, MADE),
    ):
        pytest.fail("not all of it was made")
    assert ["group", "delete", "-n", MADE.group, "--yes"] == stand_in.calls(log)[-4][:5]


def test_why_it_could_not_be_made_is_told_even_where_it_cannot_be_deleted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "az"
    program.write_text('#!/bin/sh\ncase "$*" in *signed-in*) echo me ;; *) echo "not $2" >&2; exit 1 ;; esac\n')
    program.chmod(0o755)
    for name, value in stand_in.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert main(["--yes"]) == 1
    said = capsys.readouterr().out
    assert "az group create -n aoai-worker-probes-" in said
    assert "failed: not create" in said
    assert "failed: not delete" in said


def test_a_service_principal_is_not_looked_for_as_a_user(tmp_path: Path) -> None:
    az, log = stand_in.make(tmp_path)
    made = resources_for(read_environment({**stand_in.ENVIRONMENT, "AOAI_PROBE_PRINCIPAL": "x"}), az, "abc123")
    assert (made.principal, made.principal_type) == ("x", "ServicePrincipal")
    assert not log.exists()


def test_a_missing_az_is_named(tmp_path: Path) -> None:
    az = AzureCli(program=str(tmp_path / "az"), environment={})
    with pytest.raises(ResourcesError, match="Install the Azure CLI"):
        az.run(("account", "show"))


# What must be named and agreed to


def test_without_a_subscription_it_says_what_to_set(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in stand_in.ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    assert main([]) == 2
    said = capsys.readouterr().out
    assert all(name in said for name in stand_in.ENVIRONMENT)
    assert "make azure TARGET=embedded" in said


def test_nothing_is_made_until_somebody_agrees_to_the_cost(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in stand_in.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", "")  # where az would be looked for
    assert main([]) == 2
    said = capsys.readouterr().out
    assert cost_estimate(read_environment(stand_in.ENVIRONMENT)) in said
    assert "Nothing was made" in said


async def test_the_addresses_are_those_of_what_was_made(tmp_path: Path) -> None:
    az, log = stand_in.make(tmp_path)
    async with subscription_target(read_environment(stand_in.ENVIRONMENT), MADE, az) as (target, redact):
        assert target.openai == "https://aoai-probes-open-abc123.openai.azure.com"
        assert target.namespace == "aoai-worker-probes-abc123.servicebus.windows.net"
        assert target.container == "https://aoaiprobesabc123.blob.core.windows.net/probes"
        assert target.token_url == "https://login.microsoftonline.com/value/oauth2/v2.0/token"
        for secret in (MADE.group, MADE.storage, MADE.subscription, MADE.principal, MADE.account("closed")):
            assert secret not in redact.text(f"of {secret}.")
    assert all(call[-2:] == ["--subscription", MADE.subscription] for call in stand_in.calls(log))


def test_only_what_is_missing_is_asked_for() -> None:
    with pytest.raises(NotNamed) as caught:
        read_environment({**stand_in.ENVIRONMENT, "AOAI_PROBE_MODEL_VERSION": ""})
    assert "AOAI_PROBE_MODEL_VERSION: its version" in str(caught.value)
    assert "AZURE_SUBSCRIPTION_ID:" not in str(caught.value)
