// Queues, sessions, topics and every settlement with Microsoft's client of Service Bus.
import assert from "node:assert/strict";
import WebSocket from "ws";
import { administration, newQueue, nothingLeft, one, open } from "./addresses.mjs";

export const client = "@azure/service-bus";

const bus = open();
export const close = () => bus.close();

const inAnHour = () => new Date(Date.now() + 3_600_000);

// A new queue with these messages in it, a sender to it and a receiver from it.
async function filled(messages, options = {}) {
  const name = await newQueue(options);
  const sender = bus.createSender(name);
  if (messages.length > 0) await sender.sendMessages(messages);
  return { name, sender, receiver: bus.createReceiver(name) };
}

const deadLetters = (name) => bus.createReceiver(name, { subQueueType: "deadLetter" });

export const checks = {
  async "send one, receive it and complete it"() {
    const properties = { text: "ä", whole: 3, part: 1.5, yes: true };
    const sent = { body: { a: [1, "two", null] }, subject: "s", correlationId: "c", to: "t", replyTo: "r", contentType: "x/y", applicationProperties: properties };
    const { receiver } = await filled([sent]);
    const message = await one(receiver);
    assert.deepEqual(message.body, sent.body);
    for (const name of ["subject", "correlationId", "to", "replyTo", "contentType"]) assert.equal(message[name], sent[name]);
    assert.deepEqual({ ...message.applicationProperties }, properties);
    assert(message.messageId, "an id that the service gave");
    assert(message.lockToken && message.lockedUntilUtc > new Date() && message.enqueuedTimeUtc <= new Date(Date.now() + 1_000));
    await receiver.completeMessage(message);
    await nothingLeft(receiver);
  },
  async "bodies of bytes, null and AMQP values and sequences"() {
    const bodies = [Buffer.from([0, 255]), null, "text", 42, ["list"], { map: 1 }];
    const { sender, receiver } = await filled(bodies.map((body) => ({ body })));
    await sender.sendMessages({ bodyType: "value", body: "value" });
    await sender.sendMessages({ bodyType: "sequence", body: [1, 2] });
    const received = await receiver.receiveMessages(8, { maxWaitTimeInMs: 2_000 });
    while (received.length < 8) received.push(await one(receiver));
    assert.deepEqual(received.map(({ body }) => body), [...bodies, "value", [1, 2]]);
  },
  async "a batch is filled until it is full, and arrives in order"() {
    const { sender, receiver } = await filled([]);
    const batch = await sender.createMessageBatch();
    let count = 0;
    while (batch.tryAddMessage({ body: "x".repeat(20_000), applicationProperties: { n: count } })) count += 1;
    assert(count >= 12 && batch.sizeInBytes <= batch.maxSizeInBytes);
    await sender.sendMessages(batch);
    for (let n = 0; n < count; n++) {
      const message = await one(receiver);
      assert.equal(message.applicationProperties.n, n);
      await receiver.completeMessage(message);
    }
    await nothingLeft(receiver);
  },
  async "a message that is too large is refused"() {
    const { sender } = await filled([]);
    await assert.rejects(sender.sendMessages({ body: "x".repeat(300_000) }), { code: "MessageSizeExceeded" });
  },
  async "an entity that does not exist is refused"() {
    await assert.rejects(bus.createSender("absent").sendMessages({ body: 1 }), { code: "MessagingEntityNotFound" });
  },
  async "receive and delete"() {
    const { name } = await filled([{ body: 1 }, { body: 2 }]);
    const receiver = bus.createReceiver(name, { receiveMode: "receiveAndDelete" });
    assert.deepEqual([(await one(receiver)).body, (await one(receiver)).body], [1, 2]);
    await receiver.close();
    assert.deepEqual(await bus.createReceiver(name).peekMessages(5), []);
  },
  async "abandon counts, and the last delivery is a dead letter"() {
    const { name, receiver } = await filled([{ body: "poison" }], { maxDeliveryCount: 3 });
    for (const count of [0, 1, 2]) {
      const message = await one(receiver);
      assert.equal(message.deliveryCount, count);
      await receiver.abandonMessage(message, { tried: count + 1 });
    }
    const dead = await one(deadLetters(name));
    assert.deepEqual([dead.deadLetterReason, dead.deliveryCount], ["MaxDeliveryCountExceeded", 3]);
    assert.equal(dead.applicationProperties.tried, 3);
  },
  async "defer, and receive what was deferred"() {
    const { receiver } = await filled([{ body: "x", applicationProperties: { lang: "de" } }]);
    const message = await one(receiver);
    await receiver.deferMessage(message, { why: "later" });
    await nothingLeft(receiver);
    const [deferred] = await receiver.receiveDeferredMessages(message.sequenceNumber);
    assert.deepEqual([deferred.deliveryCount, deferred.state], [1, "deferred"]);
    assert.deepEqual({ ...deferred.applicationProperties }, { lang: "de", why: "later" });
    await receiver.completeMessage(deferred);
    await assert.rejects(receiver.receiveDeferredMessages(message.sequenceNumber), { code: "MessageNotFound" });
  },
  async "dead-letter, and read the dead-letter queue"() {
    const { name, receiver } = await filled([{ body: "x" }]);
    const why = { deadLetterReason: "bad", deadLetterErrorDescription: "worse", line: 7 };
    await receiver.deadLetterMessage(await one(receiver), why);
    const fromDeadLetters = deadLetters(name);
    const dead = await one(fromDeadLetters);
    assert.deepEqual([dead.deadLetterReason, dead.deadLetterErrorDescription], ["bad", "worse"]);
    assert.equal(dead.applicationProperties.line, 7);
    await fromDeadLetters.completeMessage(dead);
    await nothingLeft(fromDeadLetters);
  },
  async "a lock that is renewed holds, and one that is lost cannot be settled"() {
    const { receiver } = await filled([{ body: "x" }], { lockDuration: "PT5S" });
    const message = await one(receiver);
    const before = message.lockedUntilUtc.getTime();
    await new Promise((resolve) => setTimeout(resolve, 1_100));
    assert((await receiver.renewMessageLock(message)).getTime() > before);
    await receiver.completeMessage(message);
    await assert.rejects(receiver.renewMessageLock(message), { code: "MessageLockLost" });
  },
  async "schedule, peek and cancel with a client that did nothing else"() {
    const name = await newQueue();
    const fresh = open();
    const sender = fresh.createSender(name);
    const [first, second] = await sender.scheduleMessages([{ body: "a" }, { body: "b" }], inAnHour());
    await sender.cancelScheduledMessages(first);
    await fresh.close();
    const other = open();
    const peeked = await other.createReceiver(name).peekMessages(10);
    assert.deepEqual(peeked.map((message) => [message.body, message.state]), [["b", "scheduled"]]);
    assert.equal(peeked[0].sequenceNumber.toString(), second.toString());
    await other.close();
  },
  async "a scheduled message arrives when it is due"() {
    const { sender, receiver } = await filled([]);
    await sender.scheduleMessages({ body: "soon" }, new Date(Date.now() + 1_000));
    await nothingLeft(receiver);
    assert.equal((await one(receiver)).body, "soon");
  },
  async "peek goes on where it was, or from a sequence number, and takes nothing"() {
    const { receiver } = await filled([1, 2, 3].map((body) => ({ body })));
    const [first] = await receiver.peekMessages(1);
    const rest = await receiver.peekMessages(5);
    const again = await receiver.peekMessages(5, { fromSequenceNumber: first.sequenceNumber });
    assert.deepEqual([first.body, rest.map(({ body }) => body), again.map(({ body }) => body)], [1, [2, 3], [1, 2, 3]]);
    assert.deepEqual([(await one(receiver)).deliveryCount, again[0].state], [0, "active"]);
  },
  async "a message that has expired is a dead letter"() {
    const { name, receiver } = await filled([{ body: "old", timeToLive: 200 }], { deadLetteringOnMessageExpiration: true });
    await new Promise((resolve) => setTimeout(resolve, 400));
    await nothingLeft(receiver);
    assert.equal((await one(deadLetters(name))).deadLetterReason, "TTLExpiredException");
  },
  async "duplicates are detected"() {
    const twice = [{ body: 1, messageId: "same" }, { body: 2, messageId: "same" }];
    const { receiver } = await filled(twice, { requiresDuplicateDetection: true });
    assert.equal((await one(receiver)).body, 1);
    await nothingLeft(receiver);
  },
  async "subscribe() calls back for each message, and settles it"() {
    const { receiver } = await filled(Array.from({ length: 50 }, (_, body) => ({ body })));
    const seen = [];
    let subscription;
    await new Promise((resolve, reject) => {
      subscription = receiver.subscribe(
        {
          processMessage: async (message) => void (seen.push(message.body) === 50 && resolve()),
          processError: async ({ error }) => reject(error),
        },
        { maxConcurrentCalls: 4 },
      );
    });
    await subscription.close();
    await nothingLeft(receiver);
    assert.deepEqual(seen.sort((a, b) => a - b), Array.from({ length: 50 }, (_, n) => n));
  },
  async "subscribe() abandons the message of a handler that throws"() {
    const { receiver } = await filled([{ body: "x" }], { maxDeliveryCount: 3 });
    const counts = [];
    await new Promise((resolve) => {
      receiver.subscribe({
        processMessage: async ({ deliveryCount }) => {
          if (counts.push(deliveryCount) < 3) throw new Error("not yet");
          resolve();
        },
        processError: async () => {},
      });
    });
    await receiver.close();
    assert.deepEqual(counts, [0, 1, 2]);
  },
  async "getMessageIterator() yields messages until it is left"() {
    const { receiver } = await filled([1, 2, 3].map((body) => ({ body })));
    const seen = [];
    for await (const message of receiver.getMessageIterator()) {
      seen.push(message.body);
      await receiver.completeMessage(message);
      if (seen.length === 3) break;
    }
    assert.deepEqual(seen, [1, 2, 3]);
  },
  async "a session is accepted, holds its order and its state"() {
    const { name } = await filled([["s1", 0], ["s2", 1], ["s1", 2]].map(([sessionId, body]) => ({ body, sessionId })), { requiresSession: true });
    const receiver = await bus.acceptSession(name, "s1");
    assert.equal(await receiver.getSessionState(), null);
    await receiver.setSessionState({ half: true });
    assert.deepEqual(await receiver.getSessionState(), { half: true });
    assert((await receiver.renewSessionLock()) > new Date());
    for (const body of [0, 2]) {
      const message = await one(receiver);
      assert.deepEqual([message.body, message.sessionId], [body, "s1"]);
      await receiver.completeMessage(message);
    }
    await nothingLeft(receiver);
    await receiver.renewSessionLock(); // still held after the drain
    await receiver.close();
  },
  async "the next session is one that nobody holds, or none is there"() {
    const { name } = await filled(["a", "b"].map((sessionId) => ({ body: sessionId, sessionId })), { requiresSession: true });
    const [first, second] = [await bus.acceptNextSession(name), await bus.acceptNextSession(name)];
    assert.deepEqual([first.sessionId, second.sessionId].sort(), ["a", "b"]);
    await assert.rejects(bus.acceptSession(name, "a"), { code: "SessionCannotBeLocked" });
    for (const receiver of [first, second]) await receiver.completeMessage(await one(receiver));
    await first.close();
    await second.close();
    const impatient = open({ timeoutInMs: 1_500 });
    await assert.rejects(impatient.acceptNextSession(name), { code: "ServiceTimeout" });
    await impatient.close();
  },
  async "defer, schedule and peek within a session"() {
    const { name, sender } = await filled([{ body: "x", sessionId: "s" }], { requiresSession: true });
    await sender.scheduleMessages({ body: "later", sessionId: "s" }, inAnHour());
    const receiver = await bus.acceptSession(name, "s");
    const message = await one(receiver);
    await receiver.deferMessage(message);
    const [deferred] = await receiver.receiveDeferredMessages(message.sequenceNumber);
    await receiver.deadLetterMessage(deferred, { deadLetterReason: "done" });
    assert.deepEqual((await receiver.peekMessages(5)).map(({ body }) => body), ["later"]);
    await receiver.close();
    assert.equal((await one(deadLetters(name))).sessionId, "s");
  },
  async "a topic gives each subscription the messages that its rules match"() {
    await administration.createTopic("orders");
    await administration.createSubscription("orders", "all");
    await administration.createSubscription("orders", "large", { defaultRuleOptions: { name: "large", filter: { sqlExpression: "n > 3" } } });
    const set = { name: "marked", filter: { subject: "eu" }, action: { sqlExpression: "SET by = 'rule'" } };
    await administration.createSubscription("orders", "eu", { defaultRuleOptions: set });
    await bus.createSender("orders").sendMessages([{ body: 1, applicationProperties: { n: 1 } }, { body: 2, subject: "eu", applicationProperties: { n: 4 } }]);
    const [all, large, eu] = ["all", "large", "eu"].map((name) => bus.createReceiver("orders", name));
    assert.deepEqual([(await one(all)).body, (await one(all)).body, (await one(large)).body], [1, 2, 2]);
    const marked = await one(eu);
    assert.deepEqual({ ...marked.applicationProperties }, { n: 4, by: "rule" });
    await eu.deadLetterMessage(marked);
    assert.equal((await one(bus.createReceiver("orders", "eu", { subQueueType: "deadLetter" }))).body, 2);
    await nothingLeft(large);
  },
  async "a rule manager changes a subscription's rules over AMQP"() {
    await administration.createTopic("ruled");
    await administration.createSubscription("ruled", "one");
    const rules = bus.createRuleManager("ruled", "one");
    await rules.createRule("large", { sqlExpression: "n > 3" });
    await rules.createRule("eu", { correlationId: "eu" });
    await rules.deleteRule("$Default");
    const names = [];
    for await (const rule of rules.listRules()) names.push(rule.name);
    assert.deepEqual(names.sort(), ["eu", "large"]);
  },
  async "send and receive over WebSockets"() {
    const name = await newQueue();
    const far = open({ webSocket: WebSocket });
    await far.createSender(name).sendMessages({ body: "x" });
    const receiver = far.createReceiver(name);
    await receiver.completeMessage(await one(receiver));
    await nothingLeft(receiver);
    await far.close();
  },
};
