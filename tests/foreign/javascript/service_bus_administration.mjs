// Entities of Service Bus, made, read, changed and deleted with Microsoft's administration client.
import assert from "node:assert/strict";
import { administration, namespace, newQueue, one, open } from "./addresses.mjs";

export const client = "@azure/service-bus";

const bus = open();
export const close = () => bus.close();

async function namesOf(list, of = (each) => each.name) {
  const names = [];
  for await (const each of list) names.push(of(each));
  return names;
}

export const checks = {
  async "administration: a queue is made, read, changed, listed and deleted"() {
    const created = await administration.createQueue("made", { maxDeliveryCount: 3, userMetadata: "note", lockDuration: "PT45S" });
    assert.deepEqual([created.name, created.maxDeliveryCount, created.status, created.lockDuration], ["made", 3, "Active", "PT45S"]);
    await administration.updateQueue({ ...created, maxDeliveryCount: 9 });
    assert.equal((await administration.getQueue("made")).maxDeliveryCount, 9);
    assert((await namesOf(administration.listQueues())).includes("made"));
    await administration.deleteQueue("made");
    assert.equal(await administration.queueExists("made"), false);
    await assert.rejects(administration.getQueue("made"), { code: "MessageEntityNotFoundError" });
  },
  async "administration: a queue that is there already is a conflict"() {
    await assert.rejects(administration.createQueue(await newQueue()), { code: "MessageEntityAlreadyExistsError" });
  },
  async "administration: the counts of a queue"() {
    const name = await newQueue();
    await bus.createSender(name).sendMessages([{ body: 1 }, { body: 2 }]);
    const receiver = bus.createReceiver(name);
    await receiver.deadLetterMessage(await one(receiver));
    const counted = await administration.getQueueRuntimeProperties(name);
    assert.deepEqual([counted.activeMessageCount, counted.deadLetterMessageCount, counted.totalMessageCount], [1, 1, 2]);
    assert(counted.sizeInBytes > 0 && counted.createdAt <= new Date(Date.now() + 1_000));
  },
  async "administration: the namespace"() {
    assert.equal((await administration.getNamespaceProperties()).name, namespace.split(".")[0]);
  },
  async "administration: the status of a queue is obeyed"() {
    const queue = await administration.createQueue("paused", { status: "SendDisabled" });
    await assert.rejects(bus.createSender("paused").sendMessages({ body: "x" }), { code: "MessagingEntityDisabled" });
    await administration.updateQueue({ ...queue, status: "ReceiveDisabled" });
    await bus.createSender("paused").sendMessages({ body: "x" });
    await assert.rejects(one(bus.createReceiver("paused")), { code: "MessagingEntityDisabled" });
    await administration.updateQueue({ ...queue, status: "Active" });
    assert.equal((await one(bus.createReceiver("paused"))).body, "x");
  },
  async "administration: a queue that forwards"() {
    const target = await newQueue();
    const name = await newQueue({ forwardTo: target });
    await bus.createSender(name).sendMessages({ body: "on" });
    assert.equal((await one(bus.createReceiver(target))).body, "on");
  },
  async "administration: a topic and its subscriptions"() {
    await administration.createTopic("news");
    const rule = { name: "first", filter: { subject: "order", applicationProperties: { region: "eu", n: 3 } } };
    const subscription = await administration.createSubscription("news", "orders", { defaultRuleOptions: rule });
    assert.deepEqual([subscription.topicName, subscription.subscriptionName], ["news", "orders"]);
    await administration.updateSubscription({ ...subscription, maxDeliveryCount: 4 });
    assert.equal((await administration.getSubscription("news", "orders")).maxDeliveryCount, 4);
    assert((await namesOf(administration.listTopics())).includes("news"));
    assert.deepEqual(await namesOf(administration.listSubscriptions("news"), (each) => each.subscriptionName), ["orders"]);
    const topic = await administration.getTopicRuntimeProperties("news");
    assert.equal(topic.subscriptionCount, 1);
    assert.equal((await administration.getSubscriptionRuntimeProperties("news", "orders")).activeMessageCount, 0);
    await administration.deleteSubscription("news", "orders");
    assert.equal(await administration.subscriptionExists("news", "orders"), false);
    await administration.deleteTopic("news");
    assert.equal(await administration.topicExists("news"), false);
  },
  async "administration: rules with filters, parameters and actions"() {
    await administration.createTopic("rules");
    const since = new Date("2026-01-02T03:04:05Z");
    const filter = { sqlExpression: "n = @n AND region = @region", sqlParameters: { "@n": 9, "@region": "eu" } };
    const action = { sqlExpression: "SET n = n + 1; SET by = @by; REMOVE draft", sqlParameters: { "@by": "rule" } };
    await administration.createSubscription("rules", "changed", { defaultRuleOptions: { name: "set", filter, action } });
    await administration.createRule("rules", "changed", "dated", { applicationProperties: { since } });
    const set = await administration.getRule("rules", "changed", "set");
    assert.deepEqual([set.filter, set.action], [filter, action]);
    assert.deepEqual((await administration.getRule("rules", "changed", "dated")).filter.applicationProperties, { since });
    const changed = bus.createReceiver("rules", "changed");
    await bus.createSender("rules").sendMessages([
      { body: 1, applicationProperties: { n: 9, region: "eu", draft: true } },
      { body: 2, applicationProperties: { since } },
    ]);
    assert.deepEqual({ ...(await one(changed)).applicationProperties }, { n: 10, region: "eu", by: "rule" });
    assert.equal((await one(changed)).body, 2);
    await administration.updateRule("rules", "changed", { ...set, filter: { sqlExpression: "n > 3" } });
    assert.equal((await administration.getRule("rules", "changed", "set")).filter.sqlExpression, "n > 3");
    await administration.deleteRule("rules", "changed", "dated");
    assert.deepEqual(await namesOf(administration.listRules("rules", "changed")), ["set"]);
  },
};
