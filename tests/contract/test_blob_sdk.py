"""azure-storage-blob against Blob storage: one set of expectations for the embedded one and for Azurite."""

import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from azure.core import MatchConditions
from azure.core.credentials import AccessToken
from azure.core.exceptions import AzureError, HttpResponseError
from azure.storage.blob import BlobBlock, BlobServiceClient, BlobType, ContentSettings, ExponentialRetry
from azure.storage.blob.aio import BlobPrefix, ContainerClient

from tests.support.blob_service import BlobService
from tests.support.fixtures import BOTH
from worker.azure.blob.container import API_VERSION

pytestmark = BOTH

BODY = bytes(range(256)) * 40 + b"the end"


@pytest.fixture
async def client(blob_storage: BlobService) -> AsyncIterator[ContainerClient]:
    """Of an empty container."""
    async with blob_storage.client() as account, account.get_container_client(f"test-{uuid.uuid4().hex}") as made:
        await made.create_container()
        yield made


async def read(client: ContainerClient, name: str, **options: Any) -> bytes:
    body: bytes = await (await client.download_blob(name, **options)).readall()
    return body


async def test_what_is_uploaded_is_downloaded_with_what_was_said_of_it(client: ContainerClient) -> None:
    settings = ContentSettings(
        content_type="application/json",
        content_encoding="identity",
        cache_control="no-store",
        content_language="en",
    )
    written = await client.upload_blob("a/b c+ä%.json", BODY, metadata={"Tokens": "12"}, content_settings=settings)
    assert await read(client, "a/b c+ä%.json") == BODY
    found = await written.get_blob_properties()
    assert (found.size, found.metadata, found.blob_type) == (len(BODY), {"Tokens": "12"}, BlobType.BLOCKBLOB)
    assert found.content_settings.content_type == "application/json"
    assert found.content_settings.cache_control == "no-store"
    assert found.content_settings.content_language == "en"
    assert found.content_settings.content_md5 is not None
    assert found.etag
    assert abs(found.last_modified - datetime.now(UTC)) < timedelta(hours=1)
    assert abs(found.creation_time - datetime.now(UTC)) < timedelta(hours=1)


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 1), (0, 10_000), (1, None), (255, 513), (len(BODY) - 1, 1), (10_000, 99_999)]
)
async def test_a_range_is_what_lies_there(client: ContainerClient, offset: int, length: int | None) -> None:
    await client.upload_blob("a", BODY)
    end = None if length is None else offset + length
    assert await read(client, "a", offset=offset, length=length) == BODY[offset:end]


async def test_an_empty_blob_is_read_and_has_no_range(client: ContainerClient) -> None:
    await client.upload_blob("a", b"")
    assert await read(client, "a") == b""
    with pytest.raises(HttpResponseError) as refused:
        await read(client, "a", offset=5, length=2)
    assert (refused.value.status_code, code_of(refused.value)) == (416, "InvalidRange")


async def test_a_large_upload_goes_by_blocks_and_is_read_by_ranges(blob_storage: BlobService) -> None:
    body = b"".join(number.to_bytes(4, "big") for number in range(1_300_003))
    sizes: dict[str, Any] = {
        "max_single_put_size": 1 << 20,
        "max_block_size": 777_777,
        "max_single_get_size": 1_000_000,
    }
    name = f"test-{uuid.uuid4().hex}"
    async with blob_storage.client(max_chunk_get_size=1_333_333, **sizes) as account:
        await account.create_container(name)
        blob = account.get_blob_client(name, "large")
        await blob.upload_blob(body, max_concurrency=3, validate_content=True)
        assert await (await blob.download_blob(max_concurrency=3)).readall() == body
        committed, uncommitted = await blob.get_block_list("all")
    assert ([block.size for block in committed][:-1], uncommitted) == ([777_777] * 6, [])


CONDITIONS = [
    pytest.param({"match_condition": MatchConditions.IfNotModified, "etag": "now"}, None, id="the same ETag"),
    pytest.param({"match_condition": MatchConditions.IfNotModified, "etag": '"0x1"'}, 412, id="another ETag"),
    pytest.param({"match_condition": MatchConditions.IfModified, "etag": '"0x1"'}, None, id="not another ETag"),
    pytest.param({"match_condition": MatchConditions.IfPresent}, None, id="any"),
    pytest.param({"if_modified_since": timedelta(hours=-1)}, None, id="modified since"),
    pytest.param({"if_unmodified_since": timedelta(hours=1)}, None, id="not modified since"),
    pytest.param({"if_unmodified_since": timedelta(hours=-1)}, 412, id="modified after"),
]


def made_true(condition: dict[str, Any], etag: str) -> dict[str, Any]:
    now = datetime.now(UTC)
    made = {name: now + value if isinstance(value, timedelta) else value for name, value in condition.items()}
    return {**made, "etag": etag} if made.get("etag") == "now" else made


ALSO_OF_READS = [
    pytest.param({"match_condition": MatchConditions.IfModified, "etag": "now"}, 304, id="not the same ETag"),
    pytest.param({"if_modified_since": timedelta(hours=1)}, 304, id="not modified"),
    pytest.param(
        {"match_condition": MatchConditions.IfModified, "etag": '"0x1"', "if_modified_since": timedelta(hours=1)},
        None,
        id="another ETag, and not modified",
    ),
]


@pytest.mark.parametrize(("condition", "status"), CONDITIONS + ALSO_OF_READS)
@pytest.mark.parametrize("verb", ["get", "head"])
async def test_a_read_keeps_its_condition(
    client: ContainerClient, verb: str, condition: dict[str, Any], status: int | None
) -> None:
    blob = await client.upload_blob("a", BODY)
    options = made_true(condition, (await blob.get_blob_properties()).etag)

    async def attempt() -> None:
        if verb == "get":
            assert await read(client, "a", **options) == BODY
        else:
            assert (await blob.get_blob_properties(**options)).size == len(BODY)

    await expect(attempt(), status)


async def expect(attempt: Any, status: int | None, code: str | None = None) -> None:
    """None where it succeeds."""
    if status is None:
        await attempt
        return
    with pytest.raises(HttpResponseError) as refused:
        await attempt
    assert (refused.value.status_code, code_of(refused.value)) == (status, code or "ConditionNotMet")


def code_of(error: HttpResponseError) -> str:
    response: Any = error.response
    return str(response.headers["x-ms-error-code"])


ALSO_OF_WRITES = [
    pytest.param({"match_condition": MatchConditions.IfModified, "etag": "now"}, 412, id="not the same ETag"),
    pytest.param({"if_modified_since": timedelta(hours=1)}, 412, id="not modified"),
]


@pytest.mark.parametrize(("condition", "status"), CONDITIONS + ALSO_OF_WRITES)
@pytest.mark.parametrize("verb", ["put", "delete", "metadata", "block list"])
async def test_a_write_keeps_its_condition(
    client: ContainerClient, verb: str, condition: dict[str, Any], status: int | None
) -> None:
    blob = await client.upload_blob("a", BODY)
    await blob.stage_block("1", b"other")
    options = made_true(condition, (await blob.get_blob_properties()).etag)
    match verb:
        case "put":
            attempt: Any = blob.upload_blob(b"other", overwrite=True, **options)
        case "delete":
            attempt = blob.delete_blob(**options)
        case "metadata":
            attempt = blob.set_blob_metadata({"a": "b"}, **options)
        case _:
            attempt = blob.commit_block_list([BlobBlock("1")], **options)
    if verb == "put" and status is not None:
        # the client takes every refused condition of an upload for a blob that is there
        with pytest.raises(AzureError) as refused:
            await attempt
        assert "ConditionNotMet" in str(refused.value)
    else:
        await expect(attempt, status)
    if status is not None:
        assert await read(client, "a") == BODY
        assert (await blob.get_blob_properties()).metadata == {}


async def test_a_blob_that_is_there_is_not_created(client: ContainerClient) -> None:
    await client.upload_blob("a", b"first", overwrite=False)
    await expect(client.upload_blob("a", b"second", overwrite=False), 409, "BlobAlreadyExists")
    blob = client.get_blob_client("a")
    await blob.stage_block("1", b"third")
    attempt = blob.commit_block_list([BlobBlock("1")], match_condition=MatchConditions.IfMissing)
    await expect(attempt, 409, "BlobAlreadyExists")
    assert await read(client, "a") == b"first"


async def test_a_condition_on_what_is_not_there(client: ContainerClient) -> None:
    blob = client.get_blob_client("a")
    named: dict[str, Any] = {"match_condition": MatchConditions.IfNotModified, "etag": '"0x1"'}
    await expect(blob.delete_blob(), 404, "BlobNotFound")
    await expect(blob.get_blob_properties(), 404, "BlobNotFound")
    await expect(blob.download_blob(), 404, "BlobNotFound")
    await expect(blob.set_blob_metadata({}), 404, "BlobNotFound")
    await expect(blob.download_blob(**named), 412)
    await expect(blob.upload_blob(b"", overwrite=True, **named), 412)


NAMES = sorted(
    [f"r/{batch}/{number:05}.ok.json" for batch in ("a", "b~", "b.c") for number in range(0, 41, 3)]
    + ["r/a", "r/a/", "R/a", "s/<&>'\".json", "s/ä/ö", "s/\U0001f600", "t", "r//x"]
)


@pytest.fixture
async def filled(client: ContainerClient) -> ContainerClient:
    for name in NAMES:
        await client.upload_blob(name, name.encode(), metadata={"length": str(len(name))})
    return client


async def listed(client: ContainerClient, size: int | None = None, **options: Any) -> tuple[list[Any], int]:
    """All entries, and the number of pages."""
    pages = client.list_blobs(results_per_page=size, **options).by_page()
    found = [[blob async for blob in page] async for page in pages]
    return [blob for page in found for blob in page], len(found)


@pytest.mark.parametrize("size", [1, 7, 5_000, None])
async def test_a_listing_has_every_name_once_in_pages_of_the_size_that_is_asked(
    filled: ContainerClient, size: int | None
) -> None:
    blobs, pages = await listed(filled, size, include=["metadata"])
    assert sorted(blob.name for blob in blobs) == NAMES
    assert all(blob.metadata == {"length": str(len(blob.name))} for blob in blobs)
    assert all(blob.size == len(blob.name.encode()) for blob in blobs)
    assert {blob.blob_type for blob in blobs} == {BlobType.BLOCKBLOB}
    if size is not None:
        assert pages == -(-len(NAMES) // size)


@pytest.mark.parametrize("prefix", ["r/", "r/b", "R", "s/<", "s/ä", "no", "t"])
async def test_a_prefix_narrows_a_listing(filled: ContainerClient, prefix: str) -> None:
    blobs, _ = await listed(filled, 4, name_starts_with=prefix)
    assert [blob.name for blob in blobs] == [name for name in NAMES if name.startswith(prefix)]
    assert not any(blob.metadata for blob in blobs)


@pytest.mark.parametrize("size", [1, 3, None])
@pytest.mark.parametrize("prefix", ["", "r/", "r/a/", "s/"])
async def test_a_delimiter_folds_what_lies_below(filled: ContainerClient, prefix: str, size: int | None) -> None:
    below = filled.walk_blobs(name_starts_with=prefix, delimiter="/", results_per_page=size).by_page()
    found = [entry async for page in below async for entry in page]
    ends = [(name, name.find("/", len(prefix))) for name in NAMES if name.startswith(prefix)]
    expected = {name if end < 0 else name[: end + 1] for name, end in ends}
    assert sorted(entry.name for entry in found) == sorted(expected)
    assert {entry.name for entry in found if isinstance(entry, BlobPrefix)} == {
        name[: end + 1] for name, end in ends if end >= 0
    }


async def test_blocks_are_a_blob_once_they_are_committed_in_the_order_of_the_list(client: ContainerClient) -> None:
    blob = client.get_blob_client("a")
    for name in ("one", "two", "six"):
        await blob.stage_block(name, name.encode() * 3)
    await blob.stage_block("two", b"TWO")
    await expect(blob.get_blob_properties(), 404, "BlobNotFound")
    assert [found async for found in client.list_blobs()] == []
    await blob.commit_block_list([BlobBlock("six"), BlobBlock("one"), BlobBlock("two"), BlobBlock("one")])
    assert await read(client, "a") == b"sixsixsix" + b"oneoneone" + b"TWO" + b"oneoneone"
    await blob.stage_block("new", b"new")
    committed, uncommitted = await blob.get_block_list("all")
    assert [block.id for block in committed] == ["six", "one", "two", "one"]
    assert [block.id for block in uncommitted] == ["new"]
    await blob.commit_block_list([BlobBlock("new"), BlobBlock("two")])
    assert await read(client, "a") == b"newTWO"
    attempt = blob.commit_block_list([BlobBlock("one")])
    await expect(attempt, 400, "InvalidBlockList")
    assert await read(client, "a") == b"newTWO"


async def test_metadata_and_properties_are_changed_apart(client: ContainerClient) -> None:
    blob = await client.upload_blob("a", BODY, metadata={"a": "1"})
    before = await blob.get_blob_properties()
    await blob.set_blob_metadata({"b": "2"})
    await blob.set_http_headers(ContentSettings(content_type="text/plain"))
    after = await blob.get_blob_properties()
    assert (after.metadata, after.content_settings.content_type) == ({"b": "2"}, "text/plain")
    assert after.etag != before.etag
    assert await read(client, "a") == BODY


async def test_a_container_lives_from_its_creation_to_its_deletion(blob_storage: BlobService) -> None:
    names = [f"test-{uuid.uuid4().hex}" for _ in range(7)]
    async with blob_storage.client() as account:
        container = account.get_container_client(names[0])
        assert not await container.exists()
        for name in names:
            await account.create_container(name, metadata={"owner": "me"})
        await expect(account.create_container(names[0]), 409, "ContainerAlreadyExists")
        assert await container.exists()
        assert (await container.get_container_properties()).metadata == {"owner": "me"}
        pages = account.list_containers("test-", include_metadata=True, results_per_page=3).by_page()
        found = [each async for page in pages async for each in page]
        assert {each.name for each in found} >= set(names)
        assert all(each.metadata == {"owner": "me"} for each in found if each.name in names)
        await container.upload_blob("a", b"")
        for name in names:
            await account.delete_container(name)
        assert not await container.exists()
        await expect(container.upload_blob("a", b""), 404, "ContainerNotFound")
        await expect(container.get_blob_client("a").get_blob_properties(), 404, "ContainerNotFound")
        await expect(container.delete_container(), 404, "ContainerNotFound")
        await account.get_account_information()


class SignedForSync:
    """The credential of the other client."""

    def __init__(self, token: AccessToken) -> None:
        self._token = token

    def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        return self._token


async def test_the_synchronous_client_does_the_same(blob_storage: BlobService) -> None:
    token = await blob_storage.credential().get_token()
    name = f"test-{uuid.uuid4().hex}"
    with BlobServiceClient(
        blob_storage.account_url,
        SignedForSync(token),
        connection_verify=str(blob_storage.state.ca),
        api_version=API_VERSION,
        retry_policy=ExponentialRetry(initial_backoff=0, retry_total=1),
    ) as account:
        container = account.create_container(name)
        for number in range(13):
            container.upload_blob(f"r/{number:03}", BODY)
        pages = list(container.list_blobs(results_per_page=4).by_page())
        assert [blob.name for page in pages for blob in page] == [f"r/{number:03}" for number in range(13)]
        assert container.download_blob("r/007", offset=300, length=600).readall() == BODY[300:900]
        container.delete_blob("r/007")
        assert not container.get_blob_client("r/007").exists()
