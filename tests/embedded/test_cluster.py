"""The local cluster: service-account tokens, projected and rotated as the kubelet does."""

import asyncio
from pathlib import Path
from typing import Any

import jwt
import pytest

from embedded_azure.certificates import make_signing_key
from embedded_azure.cluster import LocalCluster, swap_payload
from embedded_azure.config import default_config

KEY = make_signing_key()
WORKER = default_config().identity("worker")


def cluster(lifetime: float = 3_600.0, now: float = 1_000_000.0) -> LocalCluster:
    return LocalCluster(KEY, "https://oidc.local/", lifetime, lambda: now)


def claims_of(token: str) -> dict[str, Any]:
    return jwt.decode(token, options={"verify_signature": False})


def test_a_projected_token_says_what_kubernetes_says() -> None:
    claims = claims_of(cluster().sign_token(WORKER))
    assert claims["aud"] == ["api://AzureADTokenExchange"]
    assert claims["iss"] == "https://oidc.local/"
    assert claims["sub"] == "system:serviceaccount:default:aoai-worker"
    assert (claims["iat"], claims["exp"]) == (1_000_000, 1_003_600)
    assert claims["kubernetes.io"]["namespace"] == "default"
    assert claims["kubernetes.io"]["serviceaccount"]["name"] == "aoai-worker"


def test_a_token_verifies_with_the_clusters_public_key() -> None:
    token = LocalCluster(KEY, "https://oidc.local/", 3_600.0).sign_token(WORKER)
    claims = jwt.decode(
        token, cluster().public_key_pem, algorithms=["RS256"], audience="api://AzureADTokenExchange"
    )
    assert claims["sub"] == WORKER.subject


def test_projecting_again_replaces_the_token_and_leaves_one_generation(tmp_path: Path) -> None:
    cluster(now=1_000_000.0).project_token(WORKER, tmp_path)
    first = (tmp_path / "azure-identity-token").read_text()
    cluster(now=1_002_880.0).project_token(WORKER, tmp_path)
    second = (tmp_path / "azure-identity-token").read_text()
    assert (claims_of(first)["iat"], claims_of(second)["iat"]) == (1_000_000, 1_002_880)
    generations = [path.name for path in tmp_path.iterdir() if path.is_dir() and not path.is_symlink()]
    assert generations == [str((tmp_path / "..data").readlink())]


def test_the_token_is_its_owners_only(tmp_path: Path) -> None:
    cluster().project_token(WORKER, tmp_path)
    assert (tmp_path / "azure-identity-token").stat().st_mode & 0o777 == 0o600


def test_an_interrupted_swap_is_mended_by_the_next(tmp_path: Path) -> None:
    swap_payload(tmp_path, {"token": b"old"})
    (tmp_path / "..data_tmp").symlink_to("..nowhere")
    swap_payload(tmp_path, {"token": b"new"})
    assert (tmp_path / "token").read_bytes() == b"new"


@pytest.mark.looptime
async def test_tokens_are_rewritten_at_four_fifths_of_their_life(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    local = LocalCluster(KEY, "https://oidc.local/", 3_600.0, loop.time)
    local.project_token(WORKER, tmp_path)
    async with asyncio.TaskGroup() as group:
        rotation = group.create_task(local.rotate_tokens({WORKER: tmp_path}))
        await asyncio.sleep(2_879.0)
        before = (tmp_path / "azure-identity-token").read_text()
        await asyncio.sleep(2.0)
        after = (tmp_path / "azure-identity-token").read_text()
        rotation.cancel()
    assert (claims_of(before)["iat"], claims_of(after)["iat"]) == (0, 2_880)
