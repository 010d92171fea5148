// Microsoft's client for JavaScript against the embedded Service Bus: one line on standard output for each thing that
// works, and the error of each that does not. The addresses and a token come from the environment.
import assert from "node:assert/strict";
import { createRequire } from "node:module";

const { ServiceBusAdministrationClient, ServiceBusClient } = createRequire(import.meta.url)("@azure/service-bus");

const { NAMESPACE, AMQP_PORT, HTTPS_PORT, TOKEN } = process.env;
const credential = { getToken: async () => ({ token: TOKEN, expiresOnTimestamp: Date.now() + 3_600_000 }) };
const retryOptions = { maxRetries: 0, timeoutInMs: 10_000 };
const open = () =>
  new ServiceBusClient(NAMESPACE, credential, { customEndpointAddress: `sb://localhost:${AMQP_PORT}`, retryOptions });
const administration = new ServiceBusAdministrationClient(`localhost:${HTTPS_PORT}`, credential);
const client = open();

async function one(receiver) {
  const [message] = await receiver.receiveMessages(1, { maxWaitTimeInMs: 5_000 });
  assert(message, "a message within 5 s");
  return message;
}

const checks = {
  async "send, receive, complete"() {
    const sender = client.createSender("jobs");
    await sender.sendMessages({ body: "one" });
    const batch = await sender.createMessageBatch();
    for (let n = 0; n < 7; n++) assert(batch.tryAddMessage({ body: n, applicationProperties: { n } }));
    await sender.sendMessages(batch);
    const receiver = client.createReceiver("jobs");
    const bodies = [];
    while (bodies.length < 8) {
      const message = await one(receiver);
      assert(message.messageId, "an id that the service gave");
      bodies.push(message.body);
      await receiver.completeMessage(message);
    }
    assert.deepEqual(bodies, ["one", 0, 1, 2, 3, 4, 5, 6]);
    assert.deepEqual(await receiver.receiveMessages(1, { maxWaitTimeInMs: 300 }), []);
    await receiver.close();
  },
  async "abandon counts, and the last delivery is a dead letter"() {
    await client.createSender("brief").sendMessages({ body: "poison" });
    const receiver = client.createReceiver("brief");
    for (const count of [0, 1, 2]) {
      const message = await one(receiver);
      assert.equal(message.deliveryCount, count);
      await receiver.abandonMessage(message, { tried: count + 1 });
    }
    const dead = await one(client.createReceiver("brief", { subQueueType: "deadLetter" }));
    assert.deepEqual([dead.deadLetterReason, dead.deliveryCount], ["MaxDeliveryCountExceeded", 3]);
    assert.equal(dead.applicationProperties.tried, 3);
    await receiver.close();
  },
  async "defer and dead-letter keep the properties given"() {
    await client.createSender("held").sendMessages({ body: "x", applicationProperties: { lang: "de" } });
    const receiver = client.createReceiver("held");
    const message = await one(receiver);
    await receiver.deferMessage(message, { why: "later" });
    const [deferred] = await receiver.receiveDeferredMessages(message.sequenceNumber);
    assert.equal(deferred.deliveryCount, 1);
    assert.deepEqual({ ...deferred.applicationProperties }, { lang: "de", why: "later" });
    await receiver.deadLetterMessage(deferred, { deadLetterReason: "bad", deadLetterErrorDescription: "worse", line: 7 });
    const dead = await one(client.createReceiver("held", { subQueueType: "deadLetter" }));
    assert.deepEqual([dead.deadLetterReason, dead.deadLetterErrorDescription], ["bad", "worse"]);
    assert.equal(dead.applicationProperties.line, 7);
    await receiver.close();
  },
  async "peek, schedule and cancel with a client that did nothing else"() {
    const fresh = open();
    const sender = fresh.createSender("large");
    const [first, second] = await sender.scheduleMessages([{ body: "a" }, { body: "b" }], new Date(Date.now() + 3_600_000));
    await sender.cancelScheduledMessages(first);
    await fresh.close();
    const other = open();
    const peeked = await other.createReceiver("large").peekMessages(10);
    assert.deepEqual(peeked.map((message) => [message.body, message.state]), [["b", "scheduled"]]);
    assert.equal(peeked[0].sequenceNumber.toString(), second.toString());
    await other.close();
  },
  async "subscribe"() {
    await client.createSender("jobs").sendMessages(Array.from({ length: 11 }, (_, n) => ({ body: n })));
    const receiver = client.createReceiver("jobs");
    const seen = [];
    await new Promise((resolve, reject) => {
      receiver.subscribe({
        processMessage: async (message) => void (seen.push(message.body) === 11 && resolve()),
        processError: async ({ error }) => reject(error),
      });
      setTimeout(() => reject(new Error(`${seen.length} of 11 messages within 10 s`)), 10_000).unref();
    });
    await receiver.close();
    assert.deepEqual(seen.sort((a, b) => a - b), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
  },
  async "sessions"() {
    const sender = client.createSender("chat");
    await sender.sendMessages(["s1", "s1", "s2"].map((sessionId, n) => ({ body: n, sessionId })));
    const receiver = await client.acceptSession("chat", "s1");
    await receiver.setSessionState("half");
    assert.equal(await receiver.getSessionState(), "half");
    await receiver.renewSessionLock();
    for (const body of [0, 1]) {
      const message = await one(receiver);
      assert.equal(message.body, body);
      await receiver.completeMessage(message);
    }
    assert.deepEqual(await receiver.receiveMessages(1, { maxWaitTimeInMs: 300 }), []);
    await receiver.renewSessionLock(); // still held after the drain
    await receiver.close();
    const next = await client.acceptNextSession("chat");
    assert.equal(next.sessionId, "s2");
    await next.completeMessage(await one(next));
    await next.close();
  },
  async "administration of queues"() {
    const created = await administration.createQueue("made", { maxDeliveryCount: 3, userMetadata: "note" });
    assert.deepEqual([created.name, created.maxDeliveryCount, created.status], ["made", 3, "Active"]);
    await client.createSender("made").sendMessages({ body: "x" });
    const counted = await administration.getQueueRuntimeProperties("made");
    assert.deepEqual([counted.activeMessageCount, counted.totalMessageCount], [1, 1]);
    assert.equal(await administration.queueExists("absent"), false);
    const names = [];
    for await (const queue of administration.listQueues()) names.push(queue.name);
    assert(names.includes("made") && names.includes("jobs"));
    assert.equal((await administration.getNamespaceProperties()).name, NAMESPACE.split(".")[0]);
    await administration.deleteQueue("made");
    assert.equal(await administration.queueExists("made"), false);
  },
  async "entity status"() {
    const queue = await administration.createQueue("paused", { status: "SendDisabled" });
    await assert.rejects(client.createSender("paused").sendMessages({ body: "x" }), { code: "MessagingEntityDisabled" });
    await administration.updateQueue({ ...queue, status: "ReceiveDisabled" });
    await client.createSender("paused").sendMessages({ body: "x" });
    await assert.rejects(one(client.createReceiver("paused")), { code: "MessagingEntityDisabled" });
    await administration.updateQueue({ ...queue, status: "Active" });
    assert.equal((await one(client.createReceiver("paused"))).body, "x");
  },
  async "administration of topics, subscriptions and rules"() {
    await administration.createTopic("news");
    const rule = { name: "first", filter: { subject: "order", applicationProperties: { region: "eu", n: 3 } } };
    const subscription = await administration.createSubscription("news", "orders", { defaultRuleOptions: rule });
    assert.deepEqual([subscription.topicName, subscription.subscriptionName], ["news", "orders"]);
    await administration.createRule("news", "orders", "second", { sqlExpression: "n > 3" });
    const rules = [];
    for await (const each of administration.listRules("news", "orders")) rules.push([each.name, each.filter]);
    assert.deepEqual(rules.map(([name]) => name), ["first", "second"]);
    assert.deepEqual(rules[0][1].applicationProperties, { region: "eu", n: 3 });
    assert.equal(rules[1][1].sqlExpression, "n > 3");
    const receiver = client.createReceiver("news", "orders");
    await client.createSender("news").sendMessages([{ body: "no" }, { body: "yes", applicationProperties: { n: 4 } }]);
    assert.equal((await one(receiver)).body, "yes");
    const since = new Date("2026-01-02T03:04:05Z");
    const filter = { sqlExpression: "n = @n AND region = @region", sqlParameters: { "@n": 9, "@region": "eu" } };
    const action = { sqlExpression: "SET n = n + 1; SET by = @by; REMOVE draft", sqlParameters: { "@by": "rule" } };
    await administration.createSubscription("news", "changed", { defaultRuleOptions: { name: "set", filter, action } });
    await administration.createRule("news", "changed", "dated", { applicationProperties: { since } });
    const set = await administration.getRule("news", "changed", "set");
    assert.deepEqual([set.filter, set.action], [filter, action]);
    assert.deepEqual((await administration.getRule("news", "changed", "dated")).filter.applicationProperties, { since });
    const changed = client.createReceiver("news", "changed");
    await client.createSender("news").sendMessages([
      { body: 1, applicationProperties: { n: 9, region: "eu", draft: true } },
      { body: 2, applicationProperties: { since } },
    ]);
    assert.deepEqual({ ...(await one(changed)).applicationProperties }, { n: 10, region: "eu", by: "rule" });
    assert.equal((await one(changed)).body, 2);
  },
};

let failed = 0;
for (const [name, check] of Object.entries(checks)) {
  try {
    await check();
    console.log(`passed: ${name}`);
  } catch (error) {
    failed += 1;
    console.log(`FAILED: ${name}: ${error.stack ?? error}`);
  }
}
await client.close();
process.exit(failed ? 1 : 0);
