// Clients of the embedded Azure that several modules use, with the addresses of the environment.
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { DefaultAzureCredential } from "@azure/identity";

const { ServiceBusAdministrationClient, ServiceBusClient } = createRequire(import.meta.url)("@azure/service-bus");

const { AOAI_WORKER_SERVICEBUS_NAMESPACE, AOAI_WORKER_SERVICEBUS_ENDPOINT, SERVICE_BUS_ADMINISTRATION } = process.env;

export const namespace = AOAI_WORKER_SERVICEBUS_NAMESPACE;
export const [host, port] = AOAI_WORKER_SERVICEBUS_ENDPOINT.split(":");
// No question to login.microsoftonline.com for each token: it takes 5 s to fail on a machine without that network.
export const credential = new DefaultAzureCredential({ disableInstanceDiscovery: true });
export const administration = new ServiceBusAdministrationClient(SERVICE_BUS_ADMINISTRATION, credential);

export function open({ timeoutInMs = 10_000, webSocket } = {}) {
  const retryOptions = { maxRetries: 0, timeoutInMs };
  const address = webSocket ? SERVICE_BUS_ADMINISTRATION : AOAI_WORKER_SERVICEBUS_ENDPOINT;
  const customEndpointAddress = `sb://${address}`;
  return new ServiceBusClient(namespace, credential, { customEndpointAddress, retryOptions, webSocketOptions: { webSocket } });
}

let made = 0;

// A new queue for one case.
export async function newQueue(options = {}) {
  made += 1;
  await administration.createQueue(`queue-${process.pid}-${made}`, options);
  return `queue-${process.pid}-${made}`;
}

export async function one(receiver) {
  const [message] = await receiver.receiveMessages(1, { maxWaitTimeInMs: 5_000 });
  assert(message, "a message within 5 s");
  return message;
}

export async function nothingLeft(receiver) {
  assert.deepEqual(await receiver.receiveMessages(1, { maxWaitTimeInMs: 300 }), []);
}
