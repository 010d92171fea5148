// Containers and blobs with Microsoft's client of Blob storage.
import assert from "node:assert/strict";
import { Readable } from "node:stream";
import { BlobServiceClient } from "@azure/storage-blob";
import { credential } from "./addresses.mjs";

export const client = "@azure/storage-blob";

const service = new BlobServiceClient(process.env.BLOB_ACCOUNT, credential, { retryOptions: { maxTries: 1 } });

let made = 0;

// A new container for one case.
async function newContainer() {
  made += 1;
  const container = service.getContainerClient(`case-${made}`);
  await container.create();
  return container;
}

async function newBlob(text = "hello, world", options = {}) {
  const blob = (await newContainer()).getBlockBlobClient("folder/a b ä.txt");
  await blob.upload(text, Buffer.byteLength(text), options);
  return blob;
}

async function namesOf(list) {
  const names = [];
  for await (const each of list) names.push(each.name);
  return names;
}

const textOf = async (answer) => Buffer.concat(await answer.readableStreamBody.toArray()).toString();

export const checks = {
  async "a container is made, found, made only once, and deleted"() {
    const container = await newContainer();
    assert.equal(await container.exists(), true);
    await assert.rejects(container.create(), { statusCode: 409, code: "ContainerAlreadyExists" });
    assert.equal((await container.createIfNotExists()).succeeded, false);
    await container.delete();
    assert.equal(await container.exists(), false);
  },
  async "put a blob, and get it whole"() {
    const blob = await newBlob("hello, wörld", { blobHTTPHeaders: { blobContentType: "text/plain" } });
    const answer = await blob.download();
    assert.deepEqual([await textOf(answer), answer.contentType], ["hello, wörld", "text/plain"]);
    assert.equal((await blob.downloadToBuffer()).toString(), "hello, wörld");
  },
  async "get a range"() {
    const blob = await newBlob();
    const answer = await blob.download(7, 3);
    assert.deepEqual([await textOf(answer), answer.contentRange], ["wor", "bytes 7-9/12"]);
    await assert.rejects(blob.download(100), { statusCode: 416, code: "InvalidRange" });
  },
  async "properties and metadata"() {
    const blob = await newBlob("x", { metadata: { by: "me" } });
    await blob.setMetadata({ by: "you", n: "1" });
    const { metadata, contentLength, etag, lastModified, blobType } = await blob.getProperties();
    assert.deepEqual([metadata, contentLength, blobType], [{ by: "you", n: "1" }, 1, "BlockBlob"]);
    assert(etag && lastModified <= new Date(Date.now() + 1_000));
  },
  async "what is absent is a 404"() {
    const blob = (await newContainer()).getBlockBlobClient("absent");
    assert.equal(await blob.exists(), false);
    await assert.rejects(blob.download(), { statusCode: 404, code: "BlobNotFound" });
    await assert.rejects(service.getContainerClient("absent").getBlockBlobClient("a").upload("x", 1), { code: "ContainerNotFound" });
  },
  async "if-none-match keeps what is there"() {
    const blob = await newBlob("first");
    await assert.rejects(blob.upload("second", 6, { conditions: { ifNoneMatch: "*" } }), { statusCode: 409, code: "BlobAlreadyExists" });
    assert.equal((await blob.downloadToBuffer()).toString(), "first");
  },
  async "if-match writes over the version that was read, and no other"() {
    const blob = await newBlob("first");
    const { etag } = await blob.getProperties();
    const written = await blob.upload("second", 6, { conditions: { ifMatch: etag } });
    assert.notEqual(written.etag, etag);
    await assert.rejects(blob.upload("third", 5, { conditions: { ifMatch: etag } }), { statusCode: 412, code: "ConditionNotMet" });
    await assert.rejects(blob.delete({ conditions: { ifMatch: etag } }), { statusCode: 412 });
    await assert.rejects(blob.download(0, 1, { conditions: { ifNoneMatch: written.etag } }), { statusCode: 304 });
  },
  async "list by prefix, by pages, with metadata"() {
    const container = await newContainer();
    for (const name of ["a/1", "a/2", "a/b/3", "c"]) await container.getBlockBlobClient(name).upload("x", 1, { metadata: { name: "n" } });
    assert.deepEqual(await namesOf(container.listBlobsFlat({ prefix: "a/" })), ["a/1", "a/2", "a/b/3"]);
    const pages = [];
    for await (const { segment } of container.listBlobsFlat().byPage({ maxPageSize: 3 })) pages.push(segment.blobItems.length);
    assert.deepEqual(pages, [3, 1]);
    const { value: first } = await container.listBlobsFlat({ includeMetadata: true }).next();
    assert.deepEqual([first.metadata, first.properties.contentLength], [{ name: "n" }, 1]);
  },
  async "list by hierarchy"() {
    const container = await newContainer();
    for (const name of ["a/1", "a/b/2", "c"]) await container.getBlockBlobClient(name).upload("x", 1);
    const found = [];
    for await (const each of container.listBlobsByHierarchy("/")) found.push([each.kind, each.name]);
    assert.deepEqual(found, [["prefix", "a/"], ["blob", "c"]]);
    assert.deepEqual(await namesOf(container.listBlobsByHierarchy("/", { prefix: "a/" })), ["a/b/", "a/1"]);
  },
  async "list the containers of the account"() {
    const { containerName } = await newContainer();
    assert((await namesOf(service.listContainers())).includes(containerName));
  },
  async "staged blocks become a blob when they are committed"() {
    const blob = (await newContainer()).getBlockBlobClient("blocks");
    const ids = ["a", "b"].map((id) => Buffer.from(id).toString("base64"));
    for (const id of ids) await blob.stageBlock(id, id, id.length);
    assert.equal((await blob.getBlockList("all")).uncommittedBlocks.length, 2);
    assert.equal(await blob.exists(), false);
    await blob.commitBlockList(ids.toReversed(), { metadata: { by: "me" } });
    assert.equal((await blob.downloadToBuffer()).toString(), ids.toReversed().join(""));
    assert.equal((await blob.getBlockList("committed")).committedBlocks.length, 2);
  },
  async "a large upload in parallel blocks"() {
    const blob = (await newContainer()).getBlockBlobClient("large");
    const data = Buffer.alloc(5 << 20, "0123456789abcdef");
    await blob.uploadData(data, { blockSize: 1 << 20, maxSingleShotSize: 1 << 20, concurrency: 3 });
    assert((await blob.downloadToBuffer(0, undefined, { blockSize: 1 << 20, concurrency: 3 })).equals(data));
  },
  async "delete, and delete if it exists"() {
    const blob = await newBlob();
    await blob.delete();
    assert.equal(await blob.exists(), false);
    await assert.rejects(blob.delete(), { statusCode: 404, code: "BlobNotFound" });
    assert.equal((await blob.deleteIfExists()).succeeded, false);
  },
  async "a stream is uploaded"() {
    const blob = (await newContainer()).getBlockBlobClient("streamed");
    await blob.uploadStream(Readable.from([Buffer.from("one "), Buffer.from("two")]));
    assert.equal(await textOf(await blob.download()), "one two");
  },
};
