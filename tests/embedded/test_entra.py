"""Entra's decisions: who gets a token, and how each of the others is refused."""

import time
from dataclasses import replace

import jwt
import pytest

from embedded_azure.certificates import make_signing_key, private_pem, public_pem
from embedded_azure.cluster import LocalCluster
from embedded_azure.config import default_config
from embedded_azure.entra.refusals import TokenDenied
from embedded_azure.entra.service import RESOURCES, Entra
from embedded_azure.entra.tokens import AccessTokens, TokenIssuer, issuer_of

CONFIG = default_config()
WORKER = CONFIG.identity("worker")
STRANGER = CONFIG.identity("stranger")
ENTRA_KEY, CLUSTER_KEY, OTHER_KEY = make_signing_key(), make_signing_key(), make_signing_key()
NOW = 1_800_000_000.0
CLUSTER = LocalCluster(CLUSTER_KEY, CONFIG.issuer, 3_600.0, lambda: NOW)


def entra(now: float = NOW, lifetime: float = 86_400.0) -> Entra:
    issuer = TokenIssuer(private_pem(ENTRA_KEY), CONFIG.tenant_id, lifetime, lambda: now)
    return Entra(CONFIG, issuer, public_pem(CLUSTER_KEY), lambda: now)


def form(**changes: str | None) -> dict[str, str]:
    """A good request with `changes`; None leaves a parameter out."""
    fields: dict[str, str | None] = {
        "client_id": WORKER.client_id,
        "scope": "https://cognitiveservices.azure.com/.default",
        "grant_type": "client_credentials",
        "client_assertion": CLUSTER.sign_token(WORKER),
        "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
    }
    fields.update(changes)
    return {name: value for name, value in fields.items() if value is not None}


def denial(changes: dict[str, str | None], *, tenant: str = CONFIG.tenant_id, now: float = NOW) -> TokenDenied:
    with pytest.raises(TokenDenied) as denied:
        entra(now).grant(tenant, form(**changes))
    return denied.value


@pytest.mark.parametrize("resource", sorted(RESOURCES))
@pytest.mark.parametrize("slashes", ["/", "//"])
def test_the_projected_token_gets_an_access_token_for_every_known_resource(resource: str, slashes: str) -> None:
    answer = entra().grant(CONFIG.tenant_id, form(scope=f"{resource}{slashes}.default"))
    tokens = AccessTokens(public_pem(ENTRA_KEY), issuer_of(CONFIG.tenant_id), lambda: NOW)
    caller = tokens.verify(answer["access_token"], resource)
    assert (caller.object_id, caller.app_id) == (WORKER.object_id, WORKER.client_id)
    assert (answer["token_type"], answer["expires_in"], answer["refresh_in"]) == ("Bearer", 86_400, 43_200)


def test_a_short_lived_token_comes_without_refresh_in() -> None:
    assert "refresh_in" not in entra(lifetime=7_199.0).grant(CONFIG.tenant_id, form())


STRANGERS_CLUSTER = LocalCluster(OTHER_KEY, CONFIG.issuer, 3_600.0, lambda: NOW)
OTHER_ISSUER = LocalCluster(CLUSTER_KEY, "https://oidc.elsewhere/", 3_600.0, lambda: NOW)
HMAC = jwt.encode({"iss": CONFIG.issuer, "sub": WORKER.subject}, "s" * 64, algorithm="HS256")
UNSIGNED = jwt.encode({"iss": CONFIG.issuer, "sub": WORKER.subject}, "", algorithm="none")


@pytest.mark.parametrize(
    ("changes", "code", "error", "status"),
    [
        ({"client_id": "nobody"}, 700016, "unauthorized_client", 400),
        ({"client_id": None}, 900144, "invalid_request", 400),
        ({"grant_type": None}, 900144, "invalid_request", 400),
        ({"grant_type": "password"}, 70003, "unsupported_grant_type", 400),
        ({"client_assertion": None}, 7000216, "invalid_client", 401),
        ({"client_assertion": None, "client_secret": "x"}, 7000215, "invalid_client", 401),
        ({"client_secret": "x"}, 7000215, "invalid_client", 401),
        ({"client_assertion_type": "urn:saml"}, 900144, "invalid_request", 400),
        ({"client_assertion": "not.a.token"}, 50027, "invalid_request", 400),
        ({"client_assertion": "\udcff"}, 50027, "invalid_request", 400),
        ({"client_assertion": HMAC}, 5002730, "invalid_request", 400),
        ({"client_assertion": UNSIGNED}, 5002730, "invalid_request", 400),
        ({"client_assertion": STRANGERS_CLUSTER.sign_token(WORKER)}, 700027, "invalid_client", 401),
        ({"client_assertion": OTHER_ISSUER.sign_token(WORKER)}, 700211, "invalid_client", 401),
        ({"client_assertion": CLUSTER.sign_token(STRANGER)}, 700213, "invalid_client", 401),
        ({"client_assertion": CLUSTER.sign_token(WORKER, "https://kubernetes")}, 700212, "invalid_client", 401),
        ({"scope": "https://graph.microsoft.com/.default"}, 500011, "invalid_resource", 400),
        ({"scope": "https://cognitiveservices.azure.com/read"}, 1002012, "invalid_scope", 400),
        ({"scope": "a/.default b/.default"}, 70011, "invalid_scope", 400),
        ({"scope": None}, 900144, "invalid_request", 400),
    ],
)
def test_every_other_request_is_refused_in_entras_words(
    changes: dict[str, str | None], code: int, error: str, status: int
) -> None:
    denied = denial(changes)
    assert (denied.code, denied.error, denied.status) == (code, error, status)


def test_an_unknown_tenant_is_refused_before_anything_else() -> None:
    denied = denial({"client_id": "nobody"}, tenant="72f988bf-0000-4000-8000-000000000000")
    assert (denied.code, denied.error, denied.status) == (90002, "invalid_request", 400)


@pytest.mark.parametrize("age", [-1.0, 3_600.0])
def test_an_assertion_counts_within_its_own_life_only(age: float) -> None:
    denied = denial({}, now=NOW + age)
    assert (denied.code, denied.error, denied.status) == (700024, "invalid_client", 401)


def test_an_assertion_counts_to_its_last_second() -> None:
    assert entra(NOW + 3_599.0).grant(CONFIG.tenant_id, form())["access_token"]


def test_the_leaked_ids_of_a_pod_open_nothing_without_its_projected_token() -> None:
    assert denial({"client_assertion": None, "client_assertion_type": None}).code == 7000216


def test_an_identity_cannot_use_the_token_of_another() -> None:
    assert denial({"client_id": STRANGER.client_id}).code == 700213


def test_a_refusal_has_the_document_of_entra() -> None:
    body = denial({"client_assertion": CLUSTER.sign_token(STRANGER)}).body(NOW)
    assert set(body) == {
        "error",
        "error_description",
        "error_codes",
        "timestamp",
        "trace_id",
        "correlation_id",
        "error_uri",
    }
    assert body["error_codes"] == [700213]
    assert body["error_description"].startswith("AADSTS700213: No matching federated identity record found")
    ending = f"Trace ID: {body['trace_id']} Correlation ID: {body['correlation_id']} Timestamp: {body['timestamp']}"
    assert body["error_description"].endswith(ending)


def test_grants_are_counted_by_identity_and_resource() -> None:
    tenant = entra()
    for _ in range(2):
        tenant.grant(CONFIG.tenant_id, form(scope="https://servicebus.azure.net//.default"))
    assert tenant.stats()["granted_by_identity"] == {"worker": {"https://servicebus.azure.net": 2}}


def test_a_fault_of_the_config_that_makes_no_sense_stops_the_start() -> None:
    config = replace(CONFIG, faults={"entra": {"latency": -1}})
    issuer = TokenIssuer(private_pem(ENTRA_KEY), CONFIG.tenant_id, 60.0, time.time)
    with pytest.raises(ValueError, match="latency"):
        Entra(config, issuer, public_pem(CLUSTER_KEY))
