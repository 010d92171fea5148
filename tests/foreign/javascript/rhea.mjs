// Plain AMQP 1.0 without Microsoft's client: SASL PLAIN with a key, or a bearer token that is put to $cbs.
import assert from "node:assert/strict";
import { once } from "node:events";
import rhea from "rhea";
import { credential, host, namespace, newQueue, open, port } from "./addresses.mjs";

export const client = "rhea";

const { KEY_NAME, KEY } = process.env;
const bus = open();
const connections = new Set();

export async function close() {
  for (const connection of connections) connection.close();
  await bus.close();
}

const anonymous = { username: "anonymous" };

async function connect(options = { username: KEY_NAME, password: KEY }) {
  const connection = rhea.create_container().connect({ host, port, transport: "tls", hostname: namespace, reconnect: false, ...options });
  connections.add(connection);
  await within(
    new Promise((resolve, reject) => {
      connection.once("connection_open", resolve);
      connection.once("connection_error", ({ error, connection: refused }) => reject(error ?? refused.error));
      connection.once("disconnected", ({ error }) => reject(error ?? new Error("disconnected")));
    }),
  );
  return connection;
}

async function within(promise, milliseconds = 5_000) {
  const signal = AbortSignal.timeout(milliseconds);
  return Promise.race([promise, once(signal, "abort").then(() => assert.fail(`nothing within ${milliseconds} ms`))]);
}

async function senderTo(connection, target) {
  const sender = connection.open_sender({ target });
  await Promise.race([once(sender, "sendable"), once(sender, "sender_error").then(() => Promise.reject(sender.error))]);
  return sender;
}

// Sends one message; the name of the outcome, once the service has told it.
async function send(sender, message) {
  const outcome = new Promise((resolve) => {
    for (const name of ["accepted", "rejected", "released", "modified"]) sender.once(name, () => resolve(name));
  });
  sender.send(message);
  return within(outcome);
}

// A receiver that keeps what arrives until it is asked for, and gives no credit of itself.
function receiverFrom(connection, source, options = {}) {
  const receiver = connection.open_receiver({ source, credit_window: 0, autoaccept: false, autosettle: false, ...options });
  const arrived = [];
  const waiting = [];
  receiver.on("message", (context) => (waiting.length > 0 ? waiting.shift()(context) : arrived.push(context)));
  const next = () => within(arrived.length > 0 ? Promise.resolve(arrived.shift()) : new Promise((resolve) => waiting.push(resolve)));
  return { receiver, arrived, next };
}

async function take(from) {
  from.receiver.add_credit(1);
  return from.next();
}

async function isDrained({ receiver, arrived }) {
  const drained = once(receiver, "receiver_drained");
  receiver.add_credit(1);
  receiver.drain_credit();
  await within(drained);
  assert.deepEqual(arrived, []);
  assert.equal(receiver.credit, 0);
}

async function filled(count, options = {}) {
  const queue = await newQueue(options);
  const connection = await connect();
  const sender = await senderTo(connection, queue);
  for (let n = 0; n < count; n++) assert.equal(await send(sender, { body: n }), "accepted");
  return { queue, connection, sender, from: receiverFrom(connection, queue) };
}

async function putToken(connection, queue, token) {
  const receiver = connection.open_receiver({ source: "$cbs", target: "cbs-reply" });
  const sender = await senderTo(connection, "$cbs");
  const answer = once(receiver, "message");
  const application_properties = { operation: "put-token", type: "jwt", name: `amqps://${namespace}/${queue}` };
  sender.send({ message_id: "put-1", reply_to: "cbs-reply", application_properties, body: token });
  const [{ message }] = await within(answer);
  assert.equal(message.correlation_id, "put-1");
  return message.application_properties["status-code"];
}

export const checks = {
  async "SASL PLAIN with the name of a key and the key"() {
    const { from } = await filled(1);
    const { message, delivery } = await take(from);
    assert.equal(message.body, 0);
    delivery.accept();
    await isDrained(from);
  },
  async "SASL PLAIN with another key is refused"() {
    await assert.rejects(connect({ username: KEY_NAME, password: "wrong" }), { condition: "amqp:unauthorized-access" });
  },
  async "a bearer token that is put to $cbs opens links"() {
    const queue = await newQueue();
    const connection = await connect(anonymous);
    const { token } = await credential.getToken("https://servicebus.azure.net/.default");
    assert.equal(await putToken(connection, queue, token), 202);
    assert.equal(await send(await senderTo(connection, queue), { body: "x" }), "accepted");
    const from = receiverFrom(connection, queue);
    (await take(from)).delivery.accept();
    await isDrained(from);
  },
  async "a token that nobody signed is a 401"() {
    assert.equal(await putToken(await connect(anonymous), await newQueue(), "not.a.token"), 401);
  },
  async "a link without a token is refused"() {
    const connection = await connect(anonymous);
    await assert.rejects(senderTo(connection, await newQueue()), { condition: "amqp:unauthorized-access" });
  },
  async "a link to an entity that does not exist is refused"() {
    await assert.rejects(senderTo(await connect(), "absent"), { condition: "amqp:not-found" });
  },
  async "all the sections of a message come back"() {
    const { sender, from } = await filled(0);
    const sent = {
      durable: true,
      message_id: "m",
      correlation_id: "c",
      subject: "s",
      content_type: "text/plain",
      application_properties: { text: "ä", n: 3, yes: true },
      message_annotations: { "x-opt-mine": "kept" },
      body: rhea.message.data_section(Buffer.from("bytes")),
    };
    assert.equal(await send(sender, sent), "accepted");
    const { message } = await take(from);
    assert.deepEqual([message.message_id, message.correlation_id, message.subject, message.content_type], ["m", "c", "s", "text/plain"]);
    assert.deepEqual({ ...message.application_properties }, sent.application_properties);
    assert.equal(message.message_annotations["x-opt-mine"], "kept");
    assert(message.message_annotations["x-opt-sequence-number"] > 0 && message.message_annotations["x-opt-enqueued-time"]);
    assert.equal(message.body.content.toString(), "bytes");
  },
  async "a message of several frames"() {
    const { sender, from } = await filled(0);
    assert.equal(await send(sender, { body: "x".repeat(200_000) }), "accepted");
    assert.equal((await take(from)).message.body.length, 200_000);
  },
  async "a message that is too large is refused"() {
    const { sender } = await filled(0);
    const refused = Promise.race([once(sender, "rejected"), once(sender, "sender_error")]);
    sender.send({ body: "x".repeat(300_000) });
    const [{ delivery }] = await within(refused);
    assert.equal((delivery?.remote_state?.error ?? sender.error).condition, "amqp:link:message-size-exceeded");
  },
  async "accepted: the message is gone"() {
    const { from, queue } = await filled(1);
    (await take(from)).delivery.accept();
    await isDrained(from);
    assert.deepEqual(await bus.createReceiver(queue).peekMessages(5), []);
  },
  async "released: it comes again, and the count stays"() {
    const { from } = await filled(1);
    (await take(from)).delivery.release();
    const { message } = await take(from);
    assert.equal(message.delivery_count ?? 0, 0);
  },
  async "modified, delivery-failed: it comes again, and is counted"() {
    const { from } = await filled(1);
    (await take(from)).delivery.modified({ delivery_failed: true });
    const { message } = await take(from);
    assert.equal(message.delivery_count, 1);
  },
  async "modified, undeliverable-here: it is deferred"() {
    const { from, queue } = await filled(1);
    (await take(from)).delivery.modified({ undeliverable_here: true });
    await isDrained(from);
    const [peeked] = await bus.createReceiver(queue).peekMessages(1);
    assert.equal(peeked.state, "deferred");
  },
  async "rejected: it is a dead letter"() {
    const { from, queue, connection } = await filled(1);
    const info = { DeadLetterReason: "bad", DeadLetterErrorDescription: "worse" };
    (await take(from)).delivery.reject({ condition: "com.microsoft:dead-letter", description: "bad", info });
    await isDrained(from);
    const { message } = await take(receiverFrom(connection, `${queue}/$deadletterqueue`));
    assert.deepEqual([message.body, message.application_properties.DeadLetterReason], [0, "bad"]);
  },
  async "a settled transfer is received and deleted"() {
    const { queue, connection } = await filled(1);
    const from = receiverFrom(connection, queue, { snd_settle_mode: 1 });
    const { delivery } = await take(from);
    assert.equal(delivery.remote_settled, true);
    assert.deepEqual(await bus.createReceiver(queue).peekMessages(5), []);
  },
  async "a message that was sent settled arrives"() {
    const queue = await newQueue();
    const connection = await connect();
    const sender = connection.open_sender({ target: queue, snd_settle_mode: 1, autosettle: true });
    await once(sender, "sendable");
    sender.send({ body: "settled" });
    assert.equal((await take(receiverFrom(connection, queue))).message.body, "settled");
  },
  async "credit: as many messages arrive as were asked for"() {
    const { from } = await filled(5);
    from.receiver.add_credit(2);
    assert.deepEqual([(await from.next()).message.body, (await from.next()).message.body], [0, 1]);
    assert.deepEqual([from.arrived.length, from.receiver.credit], [0, 0]);
    from.receiver.add_credit(3);
    for (const n of [2, 3, 4]) assert.equal((await from.next()).message.body, n);
  },
  async "drain: what is there arrives, and the rest of the credit goes"() {
    const { from } = await filled(2);
    const drained = once(from.receiver, "receiver_drained");
    from.receiver.add_credit(10);
    from.receiver.drain_credit();
    await within(drained);
    assert.deepEqual(from.arrived.map(({ message }) => message.body), [0, 1]);
    assert.equal(from.receiver.credit, 0);
    await isDrained({ ...from, arrived: [] });
  },
  async "a session by its filter, and its order"() {
    const queue = await newQueue({ requiresSession: true });
    const connection = await connect();
    const sender = await senderTo(connection, queue);
    for (const n of [0, 1]) assert.equal(await send(sender, { body: n, group_id: "s" }), "accepted");
    const from = receiverFrom(connection, { address: queue, filter: { "com.microsoft:session-filter": "s" } });
    for (const n of [0, 1]) {
      const { message, delivery } = await take(from);
      assert.deepEqual([message.body, message.group_id], [n, "s"]);
      delivery.accept();
    }
    await isDrained(from);
  },
};
