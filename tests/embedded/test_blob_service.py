"""The embedded Blob storage over HTTP: who may do what, what is refused and how, and its faults."""

import asyncio
import base64
import hashlib
import io
import ssl
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import aiohttp
import pytest
from aiohttp import web

from embedded_azure.blob.access import AUDIENCE
from embedded_azure.blob.app import BlobStorage, build_app
from embedded_azure.blob.store import PIECE, Store
from embedded_azure.config import Config, RoleAssignment, default_config
from embedded_azure.entra.tokens import AccessTokens, TokenIssuer, issuer_of
from tests.support.blob_service import BlobService
from tests.support.local_azure import Authority
from tests.support.patience import PATIENCE

ACCOUNT = default_config().storage_account
PUT = {"x-ms-blob-type": "BlockBlob"}


def config_of_roles() -> Config:
    """The worker contributes to one container of two, the producer reads the account, the stranger has no role."""
    config = default_config()
    worker, producer = config.identity("worker").object_id, config.identity("producer").object_id
    return replace(
        config,
        containers=("batches", "others"),
        role_assignments=(
            RoleAssignment(object_id=worker, role="Storage Blob Data Contributor", scope="blob/batches"),
            RoleAssignment(object_id=producer, role="Storage Blob Data Reader", scope="blob"),
        ),
    )


@dataclass
class Answer:
    status: int
    headers: Any
    body: bytes

    @property
    def code(self) -> str:
        """Of the refusal, which says it twice wherever it has a body."""
        code: str = self.headers["x-ms-error-code"]
        if self.body:
            assert ElementTree.fromstring(self.body).findtext("Code") == code
        return code


@dataclass
class Client:
    """Sends plain requests, under a token of whom it is told."""

    session: aiohttp.ClientSession
    address: str
    authority: Authority
    storage: BlobStorage
    config: Config = field(default_factory=config_of_roles)

    def token(self, identity: str, *, audience: str = AUDIENCE, now: float | None = None) -> str:
        who = self.config.identity(identity)
        issuer = TokenIssuer(self.authority.entra_private, self.config.tenant_id, 3_600.0)
        return issuer.issue(audience=audience, client_id=who.client_id, object_id=who.object_id, now=now)

    async def ask(
        self, method: str, path: str, *, by: str = "worker", body: Any = b"", headers: dict[str, str] | None = None
    ) -> Answer:
        own = {"Authorization": f"Bearer {self.token(by)}", "x-ms-version": "2023-11-03"}
        return await self.ask_plainly(method, path, body=body, headers={**own, **(headers or {})})

    async def ask_plainly(self, method: str, path: str, *, body: Any = b"", headers: dict[str, str]) -> Answer:
        async with (
            asyncio.timeout(PATIENCE),
            self.session.request(method, f"{self.address}{path}", data=body, headers=headers) as answer,
        ):
            return Answer(answer.status, answer.headers, await answer.read())

    async def put(self, name: str, body: Any, **headers: str) -> Answer:
        return await self.ask("PUT", f"/batches/{name}", body=body, headers={**PUT, **headers})

    def set_fault(self, fault: bytes) -> None:
        self.storage.faults.set(fault)


@asynccontextmanager
async def serving(app: web.Application) -> AsyncIterator[str]:
    runner = web.AppRunner(
        app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1, auto_decompress=False
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.fixture
async def client(authority: Authority, tmp_path: Path) -> AsyncIterator[Client]:
    config = config_of_roles()
    store = Store(tmp_path / "blobs.sqlite")
    storage = BlobStorage(config, AccessTokens(authority.entra_public, issuer_of(config.tenant_id)), store)
    try:
        async with (
            serving(build_app(storage)) as address,
            aiohttp.ClientSession(auto_decompress=False) as session,
        ):
            yield Client(session, f"{address}/{ACCOUNT}", authority, storage)
    finally:
        store.close()


@pytest.mark.parametrize(
    ("who", "method", "path", "status"),
    [
        ("worker", "PUT", "/batches/a", 201),
        ("worker", "GET", "/batches?restype=container&comp=list", 200),
        ("worker", "PUT", "/others/a", 403),
        ("worker", "GET", "/others?restype=container&comp=list", 403),
        ("worker", "GET", "/?comp=list", 403),
        ("worker", "PUT", "/third?restype=container", 403),
        ("producer", "GET", "/others?restype=container&comp=list", 200),
        ("producer", "GET", "/?comp=list", 200),
        ("producer", "GET", "/batches/nothing", 404),
        ("producer", "PUT", "/batches/a", 403),
        ("producer", "DELETE", "/batches/nothing", 403),
        ("producer", "PUT", "/batches/a?comp=block&blockid=YQ==", 403),
        ("producer", "DELETE", "/batches?restype=container", 403),
        ("stranger", "GET", "/batches/a", 403),
        ("stranger", "HEAD", "/batches/a", 403),
        ("stranger", "GET", "/nowhere?restype=container&comp=list", 403),
    ],
)
async def test_a_role_opens_what_it_is_for(client: Client, who: str, method: str, path: str, status: int) -> None:
    answer = await client.ask(method, path, by=who, headers=PUT)
    assert answer.status == status
    if status == 403:
        assert answer.code == "AuthorizationPermissionMismatch"


async def test_the_role_is_looked_at_before_the_container_and_that_before_the_condition(client: Client) -> None:
    never = {**PUT, "If-Match": '"0x0"'}
    for who, path, refusal in (
        ("stranger", "/batches/a", (403, "AuthorizationPermissionMismatch")),
        ("producer", "/batches/a", (403, "AuthorizationPermissionMismatch")),
        ("worker", "/batches/a", (412, "ConditionNotMet")),
    ):
        answer = await client.ask("PUT", path, by=who, headers=never)
        assert (answer.status, answer.code) == refusal
    client.storage.store.delete_container("batches")
    answer = await client.ask("PUT", "/batches/a", headers=never)
    assert (answer.status, answer.code) == (404, "ContainerNotFound")


async def test_a_bad_token_is_answered_with_a_challenge(client: Client) -> None:
    bad = {
        "another service's": client.token("worker", audience="https://servicebus.azure.net"),
        "expired": client.token("worker", now=time.time() - 7_200),
        "none": "a.b.c",
        "forged": client.token("worker")[:-8] + "AAAAAAAA",
    }
    for why, token in bad.items():
        headers = {"Authorization": f"Bearer {token}", "x-ms-version": "2023-11-03"}
        answer = await client.ask_plainly("GET", "/batches/a", headers=headers)
        assert (answer.status, answer.code) == (401, "InvalidAuthenticationInfo"), why
        challenge = answer.headers["WWW-Authenticate"]
        assert challenge.startswith("Bearer authorization_uri=https://login.microsoftonline.com/"), why
        assert challenge.endswith("/oauth2/authorize resource_id=https://storage.azure.com"), why


@pytest.mark.parametrize(
    ("headers", "query", "refusal"),
    [
        ({}, "", (401, "NoAuthenticationInformation")),
        ({"Authorization": "Basic x"}, "", (401, "NoAuthenticationInformation")),
        ({"Authorization": "SharedKey a:b"}, "", (403, "KeyBasedAuthenticationNotPermitted")),
        ({}, "?sv=2023-11-03&sp=r&sig=x", (403, "KeyBasedAuthenticationNotPermitted")),
        ({"Authorization": "Bearer x"}, "", (403, "AuthenticationFailed")),
        ({"Authorization": "Bearer x", "x-ms-version": "2016-05-31"}, "", (403, "AuthenticationFailed")),
        ({"Authorization": "Bearer x", "x-ms-version": "newest"}, "", (400, "InvalidHeaderValue")),
    ],
)
async def test_keys_signatures_and_no_token_open_nothing(
    client: Client, headers: dict[str, str], query: str, refusal: tuple[int, str]
) -> None:
    answer = await client.ask_plainly("GET", f"/batches/a{query}", headers=headers)
    assert (answer.status, answer.code) == refusal


async def test_every_answer_has_azures_headers(client: Client) -> None:
    given = {"x-ms-client-request-id": "mine"}
    answers = [
        await client.put("a", b"x", **given),
        await client.ask("GET", "/batches/a", headers=given),
        await client.ask("HEAD", "/batches/none", headers=given),
        await client.ask("GET", "/batches?restype=container&comp=list", headers=given),
    ]
    for answer in answers:
        assert answer.headers["x-ms-version"] == "2023-11-03"
        assert answer.headers["x-ms-client-request-id"] == "mine"
    assert len({answer.headers["x-ms-request-id"] for answer in answers}) == len(answers)
    assert all(answer.headers["ETag"].startswith('"0x8D') for answer in answers[:2])
    assert all(answer.headers["Last-Modified"].endswith("GMT") for answer in answers[:2])


async def test_a_refusal_names_what_was_seen_and_its_request(client: Client) -> None:
    answer = await client.ask("GET", "/batches/a?comp=tags")
    document = ElementTree.fromstring(answer.body)
    assert (answer.status, answer.code) == (501, "NotImplemented")
    assert "GET of the blob with comp=tags" in (document.findtext("Detail") or "")
    assert answer.headers["x-ms-request-id"] in (document.findtext("Message") or "")


@pytest.mark.parametrize(
    ("path", "headers", "refusal"),
    [
        ("/batches/a", {}, (400, "MissingRequiredHeader")),
        ("/batches/a", {"x-ms-blob-type": "PageBlob"}, (501, "NotImplemented")),
        ("/batches/a", {**PUT, "x-ms-copy-source": "https://x"}, (501, "NotImplemented")),
        ("/batches/a", {**PUT, "x-ms-lease-id": "x"}, (412, "LeaseNotPresentWithBlobOperation")),
        ("/batches/a", {**PUT, "Content-MD5": "AAAA"}, (400, "InvalidMd5")),
        ("/batches/a", {**PUT, "Content-MD5": "A" * 22 + "=="}, (400, "Md5Mismatch")),
        ("/batches/a", {**PUT, "x-ms-meta-a-b": "x"}, (400, "InvalidMetadata")),
        ("/batches/a?comp=block&blockid=%23", {}, (400, "InvalidQueryParameterValue")),
        ("/batches/a?comp=block", {}, (400, "InvalidQueryParameterValue")),
        ("/batches/a?comp=blocklist", {}, (400, "InvalidXmlDocument")),
        ("/batches/a?comp=lease", {}, (501, "NotImplemented")),
        ("/batches/a?snapshot=x", PUT, (501, "NotImplemented")),
        ("/batches?restype=container", {}, (409, "ContainerAlreadyExists")),
    ],
)
async def test_a_write_that_cannot_be_is_refused(
    client: Client, path: str, headers: dict[str, str], refusal: tuple[int, str]
) -> None:
    answer = await client.ask("PUT", path, body=b"body", headers=headers)
    assert (answer.status, answer.code) == refusal
    assert (await client.ask("GET", "/batches/a")).status == 404


async def test_an_account_of_another_name_is_not_here(client: Client) -> None:
    client.address = client.address.removesuffix(ACCOUNT) + "elsewhere"
    answer = await client.ask("GET", "/batches/a")
    assert (answer.status, answer.code) == (404, "ResourceNotFound")


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 12_345])
async def test_a_body_of_any_size_is_kept_as_it_came(client: Client, size: int) -> None:
    body = (bytes(range(251)) * (size // 251 + 1))[:size]
    # it claims to be compressed, and is not: Blob storage does not look
    assert (await client.put("a", io.BytesIO(body), **{"x-ms-blob-content-encoding": "gzip"})).status == 201
    answer = await client.ask("GET", "/batches/a")
    assert (answer.status, answer.body, answer.headers["Content-Encoding"]) == (200, body, "gzip")
    head = await client.ask("HEAD", "/batches/a")
    assert (head.headers["Content-Length"], head.body) == (str(size), b"")


async def test_the_process_takes_a_compressed_body_as_it_is(blob_storage: BlobService) -> None:
    token = await blob_storage.credential().get_token()
    headers = {"Authorization": f"Bearer {token.token}", "x-ms-version": "2023-11-03", "Content-Encoding": "gzip"}
    url = f"{await blob_storage.new_container()}/a"
    trust = ssl.create_default_context(cafile=blob_storage.state.ca)
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        async with session.put(url, data=b"no gzip", headers={**headers, **PUT}, ssl=trust) as answer:
            assert answer.status == 201
        async with session.get(url, headers=headers, ssl=trust) as answer:
            assert (answer.headers["Content-Encoding"], await answer.read()) == ("gzip", b"no gzip")


async def test_a_length_must_be_known(client: Client) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"x"

    answer = await client.put("a", pieces())
    assert (answer.status, answer.code) == (411, "MissingContentLengthHeader")


async def test_of_many_writers_one_creates(client: Client) -> None:
    attempts = [client.put("a", f"{number}" * 99, **{"If-None-Match": "*"}) for number in range(30)]
    answers = await asyncio.gather(*attempts)
    assert sorted(answer.status for answer in answers) == [201] + [409] * 29
    assert {answer.code for answer in answers if answer.status == 409} == {"BlobAlreadyExists"}


async def test_a_write_that_was_given_up_leaves_nothing(client: Client) -> None:
    async def half() -> AsyncIterator[bytes]:
        yield b"x" * (3 * PIECE)
        await asyncio.get_running_loop().create_future()

    attempt = asyncio.ensure_future(client.put("a", half(), **{"Content-Length": str(9 * PIECE)}))
    await until(lambda: pieces_in(client.storage.store) > 0)
    attempt.cancel()
    await asyncio.gather(attempt, return_exceptions=True)
    await until(lambda: pieces_in(client.storage.store) == 0)
    assert (await client.ask("GET", "/batches/a")).status == 404


async def until(reached: Callable[[], bool]) -> None:
    """The server is a task of this loop: let it run until then."""
    async with asyncio.timeout(PATIENCE):
        while not reached():
            await asyncio.sleep(0)


def pieces_in(store: Store) -> int:
    return int(store._database.execute("SELECT count(*) FROM piece").fetchone()[0])


async def test_ids_of_blocks_have_one_length(client: Client) -> None:
    assert (await client.ask("PUT", "/batches/a?comp=block&blockid=YWE=", body=b"x")).status == 201
    answer = await client.ask("PUT", "/batches/a?comp=block&blockid=YWFhYQ==", body=b"x")
    assert (answer.status, answer.code) == (400, "InvalidBlobOrBlock")


async def test_an_md5_of_a_range_is_that_of_the_range(client: Client) -> None:
    await client.put("a", b"0123456789")
    asked = {"x-ms-range": "bytes=2-4", "x-ms-range-get-content-md5": "true"}
    answer = await client.ask("GET", "/batches/a", headers=asked)
    assert (answer.status, answer.body) == (206, b"234")
    assert answer.headers["Content-MD5"] == md5(b"234")
    assert answer.headers["x-ms-blob-content-md5"] == md5(b"0123456789")


def md5(body: bytes) -> str:
    return base64.b64encode(hashlib.md5(body).digest()).decode()


async def test_faults_are_refusals_of_azure(client: Client) -> None:
    await client.put("a", b"x")
    client.set_fault(b'[{"code": "ServerBusy", "retry_after": 5, "count": 2, "operation": "get_blob"}]')
    for _ in range(2):
        answer = await client.ask("GET", "/batches/a")
        assert (answer.status, answer.code, answer.headers["Retry-After"]) == (503, "ServerBusy", "5")
        assert (await client.put("b", b"x")).status == 201
    assert (await client.ask("GET", "/batches/a")).status == 200
    client.set_fault(b'{"code": "AuthorizationFailure", "container": "batches"}')
    answer = await client.put("c", b"x")
    assert (answer.status, answer.code) == (403, "AuthorizationFailure")
    client.set_fault(b'{"status": 500}')
    assert (await client.ask("GET", "/batches/a")).code == "InternalError"
    with pytest.raises(ValueError, match=r"Blob storage's refusals here are .*, not 'Tired'"):
        client.set_fault(b'{"code": "Tired"}')
    with pytest.raises(ValueError, match="operation"):
        client.set_fault(b'{"operation": "rest"}')


async def test_an_answer_that_is_lost_is_of_a_write_that_was_done(client: Client) -> None:
    # no count: aiohttp sends a PUT again by itself
    client.set_fault(b'{"kind": "lose_answer", "operation": "put_blob"}')
    with pytest.raises(aiohttp.ClientError):
        await client.put("a", b"x")
    client.set_fault(b"{}")
    assert (await client.put("a", b"x", **{"If-None-Match": "*"})).code == "BlobAlreadyExists"


async def test_a_refusal_can_be_lost_too(client: Client) -> None:
    await client.put("a", b"x")
    client.set_fault(b'{"kind": "lose_every_answer", "operation": "put_blob"}')
    with pytest.raises(aiohttp.ClientError):
        await client.put("a", b"y", **{"If-None-Match": "*"})


async def test_a_connection_that_is_reset_is_of_a_write_that_was_not_done(client: Client) -> None:
    client.set_fault(b'{"kind": "connection", "how": "reset"}')
    with pytest.raises(aiohttp.ClientError):
        await client.put("a", b"x")
    client.set_fault(b"{}")
    assert (await client.ask("GET", "/batches/a")).status == 404


@pytest.mark.parametrize("path", ["/batches/a", "/batches?restype=container&comp=list"])
async def test_a_body_can_be_cut(client: Client, path: str) -> None:
    await client.put("a", b"x" * 1_000)
    client.set_fault(b'{"kind": "body", "how": "cut", "count": 1, "after": 100}')
    with pytest.raises(aiohttp.ClientPayloadError):
        await client.ask("GET", path)
    assert (await client.ask("GET", path)).status == 200


async def test_answers_are_counted_by_operation_and_status(client: Client) -> None:
    await client.put("a", b"x")
    await client.put("a", b"x", **{"If-None-Match": "*"})
    await client.ask("GET", f"/batches/{uuid.uuid4()}")
    await client.ask("POST", "/batches/a")
    assert client.storage.stats() == {
        "(unknown)": {"501": 1},
        "get_blob": {"404": 1},
        "put_blob": {"201": 1, "409": 1},
    }
