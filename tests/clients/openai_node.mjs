// openai-node: chat, completions and responses, whole, streamed and parsed.
import assert from "node:assert/strict";
import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";
import { check, client, done, MODEL, QUESTION } from "./checks.mjs";

client("openai");
const api = new OpenAI();
const messages = [
  { role: "system", content: "You are a helpful assistant." },
  { role: "user", content: QUESTION },
];
const City = z.object({ name: z.string().max(40), population: z.number() });
const parameters = {
  type: "object",
  properties: { city: { type: "string", maxLength: 40 } },
  required: ["city"],
  additionalProperties: false,
};

await check("chat", async () => {
  const answer = await api.chat.completions.create({ model: MODEL, messages, temperature: 0 });
  assert.match(answer.choices[0].message.content, /Paris/);
});
await check("chat `.stream()`", async () => {
  const stream = api.chat.completions.stream({ model: MODEL, messages, temperature: 0 });
  let text = "";
  stream.on("content", (piece) => (text += piece));
  assert.equal(await stream.finalContent(), text);
  assert.match(text, /Paris/);
});
await check("chat `.parse()`", async () => {
  const format = zodResponseFormat(City, "city");
  const answer = await api.chat.completions.parse({
    model: MODEL, messages, response_format: format, max_tokens: 120,
  });
  assert.equal(typeof answer.choices[0].message.parsed.population, "number");
});
await check("tools, `.runTools()`", async () => {
  const asked = [];
  const run = api.chat.completions.runTools({
    model: MODEL, messages, max_tokens: 60, temperature: 0,
    tool_choice: { type: "function", function: { name: "weather" } },
    tools: [{ type: "function", function: { name: "weather", parameters, parse: JSON.parse,
      function: ({ city }) => { asked.push(city); return "Sunny."; } } }],
  });
  await run.finalMessage();
  assert.equal(typeof asked[0], "string");
});
await check("completions", async () => {
  const prompt = "The capital of France is";
  const asked = { model: MODEL, prompt, max_tokens: 4, temperature: 0 };
  assert.match((await api.completions.create(asked)).choices[0].text, /Paris/);
});
await check("responses, kept and gone on with", async () => {
  const asked = { model: MODEL, temperature: 0, max_output_tokens: 30 };
  const first = await api.responses.create({ ...asked, input: QUESTION });
  assert.match(first.output_text, /Paris/);
  const next = { ...asked, input: "And of Italy?", previous_response_id: first.id };
  const second = await api.responses.create(next);
  assert.equal((await api.responses.retrieve(second.id)).output_text, second.output_text);
  await api.responses.delete(first.id);
});
await check("responses `.stream()`", async () => {
  const stream = api.responses.stream({ model: MODEL, input: QUESTION, temperature: 0 });
  let text = "";
  stream.on("response.output_text.delta", (event) => (text += event.delta));
  assert.equal((await stream.finalResponse()).output_text, text);
});
await check("responses `.parse()`", async () => {
  const answer = await api.responses.parse({
    model: MODEL, input: QUESTION, text: { format: zodTextFormat(City, "city") },
    max_output_tokens: 120,
  });
  assert.equal(typeof answer.output_parsed.population, "number");
});
done();
