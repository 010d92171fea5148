"""Entra's endpoints over HTTP: what is set on demand, what is odd, and what is garbage."""

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import jwt
import pytest
from aiohttp import ClientError, ClientSession, ClientTimeout
from aiohttp.test_utils import TestServer
from hypothesis import given, settings
from hypothesis import strategies as st

from embedded_azure.certificates import make_signing_key, private_pem, public_pem
from embedded_azure.cluster import LocalCluster
from embedded_azure.config import default_config
from embedded_azure.entra import identity_binding, imds
from embedded_azure.entra.identity_binding import PROXY_PATH, TokenProxy
from embedded_azure.entra.refusals import CODES
from embedded_azure.entra.service import Entra, build_app
from embedded_azure.entra.tokens import TokenIssuer

CONFIG = replace(default_config(), node_identities=("worker",), bound_identities=("worker",))
WORKER = CONFIG.identity("worker")
ENTRA_KEY, CLUSTER_KEY = make_signing_key(), make_signing_key()
CLUSTER = LocalCluster(CLUSTER_KEY, CONFIG.issuer, 3_600.0)
ISSUER = TokenIssuer(private_pem(ENTRA_KEY), CONFIG.tenant_id, 86_400.0)
TOKEN = f"/{CONFIG.tenant_id}/oauth2/v2.0/token"
IMDS = "/metadata/identity/oauth2/token"


def form(**changes: str) -> dict[str, str]:
    return {
        "client_id": WORKER.client_id,
        "scope": "https://cognitiveservices.azure.com/.default",
        "grant_type": "client_credentials",
        "client_assertion": CLUSTER.sign_token(WORKER),
        "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
        **changes,
    }


@asynccontextmanager
async def opened(app: Any) -> AsyncIterator[ClientSession]:
    server = TestServer(app)
    await server.start_server()
    try:
        async with ClientSession(server.make_url("/")) as session:
            yield session
    finally:
        await server.close()


def new_entra() -> Entra:
    return Entra(CONFIG, ISSUER, public_pem(CLUSTER_KEY))


def new_proxy() -> TokenProxy:
    return TokenProxy(CONFIG, ISSUER, public_pem(CLUSTER_KEY))


def new_imds() -> imds.InstanceMetadata:
    return imds.InstanceMetadata(CONFIG, new_entra())


async def ask(session: ClientSession, **changes: str) -> tuple[int, dict[str, Any]]:
    async with session.post(TOKEN, data=form(**changes)) as response:
        return response.status, await response.json()


@pytest.mark.parametrize("code", sorted(CODES))
async def test_every_refusal_comes_on_demand_with_its_document(code: int) -> None:
    async with opened(build_app(new_entra())) as session:
        async with session.put("/local/faults", json={"kind": "refusal", "code": code, "count": 1}) as response:
            assert response.status == 200
        status, document = await ask(session)
        assert (await ask(session))[0] == 200
    assert status in {400, 401, 429, 503}
    assert document["error_codes"] == [code]
    assert document["error_description"].startswith(f"AADSTS{code}: ")


async def test_a_refusal_that_entra_does_not_know_cannot_be_set() -> None:
    async with opened(build_app(new_entra())) as session:
        async with session.put("/local/faults", json={"kind": "refusal", "code": 1}) as response:
            problems = (await response.json())["problems"]
        assert (await ask(session))[0] == 200
    assert response.status == 400
    assert "700213" in problems[0]


async def test_a_fault_may_concern_one_application_only() -> None:
    entra = new_entra()
    entra.faults.set(json.dumps({"kind": "refusal", "client_id": WORKER.client_id}).encode())
    stranger = CONFIG.identity("stranger")
    async with opened(build_app(entra)) as session:
        assert (await ask(session))[0] == 401
        other = {"client_id": stranger.client_id, "client_assertion": CLUSTER.sign_token(stranger)}
        assert (await ask(session, **other))[0] == 200


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ({"lifetime": 60}, {"expires_in": 60, "refresh_in": None, "lives": 60}),
        ({"refresh_in": 5}, {"expires_in": 86_400, "refresh_in": 5, "lives": 86_400}),
        ({"refresh_in": 0}, {"expires_in": 86_400, "refresh_in": None, "lives": 86_400}),
        ({"lifetime": 60, "claims_lifetime": 9_000}, {"expires_in": 9_000, "refresh_in": 4_500, "lives": 60}),
    ],
)
async def test_a_token_may_be_odd_on_demand(fault: dict[str, Any], expected: dict[str, Any]) -> None:
    entra = new_entra()
    entra.faults.set(json.dumps({"kind": "token", **fault}).encode())
    async with opened(build_app(entra)) as session:
        _, document = await ask(session)
    claims = jwt.decode(document["access_token"], options={"verify_signature": False})
    got = {name: document.get(name) for name in ("expires_in", "refresh_in")}
    assert {**got, "lives": claims["exp"] - claims["iat"]} == expected


@pytest.mark.parametrize("version", ["", "/v2.0"])
async def test_the_openid_configuration_leads_to_the_token_and_to_the_keys_that_verify_it(version: str) -> None:
    async with opened(build_app(new_entra())) as session:
        async with session.get(f"/{CONFIG.tenant_id}{version}/.well-known/openid-configuration") as response:
            found = await response.json()
        async with session.post(found["token_endpoint"], data=form()) as response:
            token = (await response.json())["access_token"]
        async with session.get(found["jwks_uri"]) as response:
            (key,) = (await response.json())["keys"]
    assert found["issuer"] == f"https://login.microsoftonline.com/{CONFIG.tenant_id}/v2.0"
    claims = jwt.decode(token, jwt.PyJWK(key), algorithms=["RS256"], audience="https://cognitiveservices.azure.com")
    assert claims["oid"] == WORKER.object_id


@pytest.mark.parametrize("path", ["v2.0/.well-known/openid-configuration", "discovery/v2.0/keys"])
async def test_an_unknown_tenant_has_no_openid_configuration(path: str) -> None:
    url = f"/11111111-0000-4000-8000-000000000000/{path}"
    async with opened(build_app(new_entra())) as session, session.get(url) as response:
        assert (response.status, (await response.json())["error_codes"]) == (400, [90002])


async def test_a_subject_in_another_case_is_refused_as_such() -> None:
    other = replace(WORKER, subject=WORKER.subject.upper())
    async with opened(build_app(new_entra())) as session:
        status, document = await ask(session, client_assertion=CLUSTER.sign_token(other))
    assert (status, document["error_codes"]) == (401, [7002138])
    assert "not with case-sensitive comparison" in document["error_description"]


async def test_imds_takes_a_trailing_slash() -> None:
    query = {"api-version": "2018-02-01", "resource": "https://cognitiveservices.azure.com"}
    async with opened(imds.build_app(new_imds())) as session:
        for path in (IMDS, f"{IMDS}/"):
            async with session.get(path, params=query, headers={"Metadata": "true"}) as response:
                assert response.status == 200


@pytest.mark.parametrize("skew", [-3_700, 3_700])
async def test_a_skewed_clock_refuses_good_assertions_and_its_document_shows_it(skew: int) -> None:
    entra = new_entra()
    entra.faults.set(json.dumps({"kind": "clock", "skew": skew}).encode())
    async with opened(build_app(entra)) as session:
        status, document = await ask(session)
    assert (status, document["error_codes"]) == (401, [700024])
    assert document["timestamp"][:4] == time.strftime("%Y", time.gmtime(time.time() + skew))


async def test_the_tokens_of_a_skewed_clock_are_dated_by_it() -> None:
    entra = new_entra()
    entra.faults.set(b'{"kind": "clock", "skew": 600}')
    async with opened(build_app(entra)) as session:
        _, document = await ask(session)
    claims = jwt.decode(document["access_token"], options={"verify_signature": False})
    assert claims["nbf"] - time.time() > 500


async def test_a_body_may_be_cut_and_a_connection_lost() -> None:
    entra = new_entra()
    async with opened(build_app(entra)) as session:
        entra.faults.set(b'[{"kind": "body", "how": "cut", "count": 1}, {"kind": "connection", "count": 1}]')
        for _ in range(2):
            with pytest.raises(ClientError):
                await ask(session)
        assert (await ask(session))[0] == 200


async def test_a_hang_lasts_as_long_as_the_client_waits() -> None:
    entra = new_entra()
    entra.faults.set(b'{"kind": "connection", "how": "hang"}')
    async with opened(build_app(entra)) as session:
        with pytest.raises(TimeoutError):
            await session.post(TOKEN, data=form(), timeout=ClientTimeout(total=0.05))


async def test_a_tenant_that_is_no_name_at_all_has_a_refusal_of_its_own() -> None:
    async with opened(build_app(new_entra())) as session:
        codes = []
        for tenant in ("nonsense", "contoso.com"):
            async with session.post(f"/{tenant}/oauth2/v2.0/token", data=form()) as response:
                codes += (await response.json())["error_codes"]
    assert codes == [900023, 90002]


async def test_the_proxy_serves_the_bound_with_the_token_of_the_binding_alone() -> None:
    bound = CLUSTER.sign_token(WORKER, identity_binding.BINDING_AUDIENCE)
    async with opened(identity_binding.build_proxy_app(new_proxy())) as session:
        statuses = []
        for changes in (
            {"client_assertion": bound},
            {},
            {"client_assertion": bound, "client_id": CONFIG.identity("producer").client_id},
        ):
            async with session.post(f"{PROXY_PATH}{TOKEN}", data=form(**changes)) as response:
                statuses.append(response.status)
    assert statuses == [200, 401, 403]


async def test_imds_of_a_node_without_identities_knows_nobody() -> None:
    metadata = imds.InstanceMetadata(default_config(), new_entra())
    query = {"api-version": "2018-02-01", "resource": "https://ai.azure.com"}
    async with (
        opened(imds.build_app(metadata)) as session,
        session.get(IMDS, params=query, headers={"Metadata": "true"}) as response,
    ):
        assert (response.status, (await response.json())["error_description"]) == (400, "Identity not found")


async def test_the_only_identity_of_a_node_need_not_be_named() -> None:
    query = {"api-version": "2018-02-01", "resource": "https://ai.azure.com"}
    async with (
        opened(imds.build_app(new_imds())) as session,
        session.get(IMDS, params=query, headers={"Metadata": "true"}) as response,
    ):
        document = await response.json()
    assert document["client_id"] == WORKER.client_id
    assert document["expires_in"] == "86400"
    assert int(document["expires_on"]) - int(document["not_before"]) == 86_400


# Garbage

NAMES = st.sampled_from(["client_id", "scope", "grant_type", "client_assertion", "client_assertion_type", "x"])
GOOD = form()
VALUES = st.sampled_from(sorted(GOOD.values())) | st.text(max_size=30)
CLAIMS = st.dictionaries(
    st.sampled_from(["iss", "sub", "aud", "exp", "nbf"]),
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=9)
    | st.lists(st.text(max_size=9), max_size=2)
    | st.sampled_from([CONFIG.issuer, WORKER.subject, "api://AzureADTokenExchange"]),
)


@settings(deadline=None, max_examples=40)
@given(st.dictionaries(NAMES, VALUES), st.binary(max_size=60), st.text(max_size=20), st.booleans())
async def test_a_garbage_request_is_refused_by_entra_and_never_crashes_it(
    fields: dict[str, str], raw: bytes, content_type: str, is_raw: bool
) -> None:
    headers = (
        {"Content-Type": "".join(c for c in content_type if c.isascii() and c.isprintable())} if is_raw else {}
    )
    async with (
        opened(build_app(new_entra())) as session,
        session.post(TOKEN, data=raw if is_raw else fields, headers=headers) as response,
    ):
        assert 400 <= response.status < 500 or fields.items() >= GOOD.items()
        assert (await response.json())["error_codes"]


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data",
        "multipart/form-data; boundary=x",
        "application/x-www-form-urlencoded; charset=nonsense",
        "application/x-www-form-urlencoded; charset=utf-16",
        "application/json",
    ],
)
async def test_a_form_that_is_none_lacks_its_parameters(content_type: str) -> None:
    async with (
        opened(build_app(new_entra())) as session,
        session.post(TOKEN, data=b"\xff\xfe=&--x\r\n", headers={"Content-Type": content_type}) as response,
    ):
        assert (response.status, (await response.json())["error_codes"]) == (400, [900144])


async def test_a_form_beyond_all_measure_is_refused() -> None:
    async with (
        opened(build_app(new_entra())) as session,
        session.post(TOKEN, data={"client_id": "x" * 70_000}) as response,
    ):
        assert response.status == 413


@settings(deadline=None, max_examples=60)
@given(CLAIMS)
async def test_any_signed_claims_are_granted_or_refused(claims: dict[str, Any]) -> None:
    claims = {**jwt.decode(form()["client_assertion"], options={"verify_signature": False}), **claims}
    # not `jwt.encode`, which would refuse what it is meant to carry
    signed = jwt.PyJWS().encode(json.dumps(claims).encode(), CLUSTER_KEY, algorithm="RS256")
    async with opened(build_app(new_entra())) as session:
        status, document = await ask(session, client_assertion=signed)
    assert status in {200, 400, 401}
    assert ("access_token" in document) == (status == 200)


@settings(deadline=None, max_examples=40)
@given(
    st.dictionaries(
        st.sampled_from(["api-version", "resource", "client_id", "object_id", "msi_res_id"]),
        st.sampled_from(["2018-02-01", "https://ai.azure.com", WORKER.client_id]) | st.text(max_size=20),
    ),
    st.sampled_from(["true", "TRUE", "false", ""]),
)
async def test_a_garbage_request_is_refused_by_imds_and_never_crashes_it(
    query: dict[str, str], header: str
) -> None:
    async with (
        opened(imds.build_app(new_imds())) as session,
        session.get(IMDS, params=query, headers={"Metadata": header}) as response,
    ):
        assert response.status in {200, 400}
        assert ("access_token" in await response.json()) == (response.status == 200)
