// The snippet of the Azure OpenAI documentation, with the addresses of the environment.
import assert from "node:assert/strict";
import { DefaultAzureCredential, getBearerTokenProvider } from "@azure/identity";
import OpenAI, { AzureOpenAI } from "openai";
import { credential as quickCredential } from "./addresses.mjs";

export const client = "openai";

const { AZURE_OPENAI_ENDPOINT: endpoint, DEPLOYMENT: deployment } = process.env;
const apiVersion = "2025-04-01-preview";
const messages = [{ role: "user", content: "What is 17 + 25?" }];
const ANSWER = "17 + 25 = 42";
const isTheAnswer = (text) => assert(text.startsWith(ANSWER), text);

const credential = new DefaultAzureCredential();
const scope = "https://cognitiveservices.azure.com/.default";
const azureADTokenProvider = getBearerTokenProvider(credential, scope);
const azure = new AzureOpenAI({ azureADTokenProvider, deployment, apiVersion, endpoint });
const v1 = new OpenAI({ baseURL: `${endpoint}/openai/v1/`, apiKey: azureADTokenProvider });

async function textOf(stream) {
  let text = "";
  for await (const chunk of stream) text += chunk.choices[0]?.delta?.content ?? "";
  return text;
}

export const checks = {
  async "a chat completion with DefaultAzureCredential"() {
    const answer = await azure.chat.completions.create({ messages, model: "", max_completion_tokens: 200 });
    isTheAnswer(answer.choices[0].message.content);
    assert.equal(answer.choices[0].finish_reason, "stop");
    assert(answer.usage.total_tokens > 0);
  },
  async "a streamed chat completion"() {
    const stream = await azure.chat.completions.create({ messages, model: "", stream: true });
    isTheAnswer(await textOf(stream));
  },
  async "a streamed chat completion with its usage"() {
    const options = { messages, model: "", stream: true, stream_options: { include_usage: true } };
    let usage;
    for await (const chunk of await azure.chat.completions.create(options)) usage = chunk.usage ?? usage;
    assert(usage.completion_tokens > 0);
  },
  async "the stream helper puts the answer together"() {
    const answer = await azure.chat.completions.stream({ messages, model: deployment }).finalChatCompletion();
    isTheAnswer(answer.choices[0].message.content);
  },
  async "a stream that is aborted"() {
    const stream = await azure.chat.completions.create({ messages, model: "", stream: true });
    for await (const chunk of stream) {
      assert(chunk);
      break;
    }
    assert(stream.controller.signal.aborted);
  },
  async "the v1 surface with a token provider as its key"() {
    const answer = await v1.chat.completions.create({ model: deployment, messages });
    isTheAnswer(answer.choices[0].message.content);
  },
  async "responses, whole and streamed"() {
    const input = messages[0].content;
    isTheAnswer((await v1.responses.create({ model: deployment, input })).output_text);
    let text = "";
    let ended;
    for await (const event of await v1.responses.create({ model: deployment, input, stream: true })) {
      if (event.type === "response.output_text.delta") text += event.delta;
      if (event.type === "response.completed") ended = event.response.status;
    }
    isTheAnswer(text);
    assert.equal(ended, "completed");
  },
  async "structured output"() {
    const schema = {
      type: "object",
      properties: { city: { type: "string" }, people: { type: "integer" } },
      required: ["city", "people"],
      additionalProperties: false,
    };
    const response_format = { type: "json_schema", json_schema: { name: "city", strict: true, schema } };
    const answer = await azure.chat.completions.create({ messages, model: "", response_format });
    const city = JSON.parse(answer.choices[0].message.content);
    assert.deepEqual([typeof city.city, typeof city.people], ["string", "number"]);
  },
  async "an unknown deployment is a 404"() {
    const lost = new AzureOpenAI({ azureADTokenProvider, deployment: "absent", apiVersion, endpoint });
    const call = lost.chat.completions.create({ messages, model: "" });
    await assert.rejects(call, { status: 404, code: "DeploymentNotFound" });
  },
  async "a token for another audience is a 401"() {
    const wrong = getBearerTokenProvider(quickCredential, "https://storage.azure.com/.default");
    const stranger = new AzureOpenAI({ azureADTokenProvider: wrong, deployment, apiVersion, endpoint });
    await assert.rejects(stranger.chat.completions.create({ messages, model: "" }), { status: 401 });
  },
};
