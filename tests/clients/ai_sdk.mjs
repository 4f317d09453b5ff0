// The AI SDK: `openai(id)` on /responses, `.chat(id)`, and the compatible provider.
import assert from "node:assert/strict";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, isStepCount, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";
import { check, client, done, MODEL, PNG, QUESTION, URL, VISION } from "./checks.mjs";

client("ai");
const openai = createOpenAI({ baseURL: URL, apiKey: "unused" });
const compatible = createOpenAICompatible({
  name: "tinyllm", baseURL: URL, supportsStructuredOutputs: true,
});
const schema = z.object({ name: z.string().max(40), population: z.number() });
const steps = (isStepCount ?? stepCountIs)(2);

for (const [way, model] of [
  ["`openai(id)`", (id) => openai(id)],
  ["`.chat(id)`", (id) => openai.chat(id)],
  ["compatible", (id) => compatible(id)],
]) {
  await check(`${way}: generateText`, async () => {
    const { text } = await generateText({ model: model(MODEL), prompt: QUESTION, temperature: 0 });
    assert.match(text, /Paris/);
  });
  await check("streamText", async () => {
    const asked = { model: model(MODEL), prompt: QUESTION, temperature: 0 };
    const errors = [];
    const stream = streamText({ ...asked, onError: ({ error }) => errors.push(error) });
    let text = "";
    for await (const piece of stream.textStream) text += piece;
    assert.deepEqual(errors, []);
    assert.match(text, /Paris/);
  });
  await check("generateObject, 20 of 20", async () => {
    for (let i = 0; i < 20; i++) {
      const { object } = await generateObject({
        model: model(MODEL), schema, prompt: "Tell of a city.", maxOutputTokens: 120, seed: i,
      });
      assert.equal(typeof object.population, "number");
    }
  });
  await check("tools", async () => {
    const asked = [];
    await generateText({
      model: model(MODEL), prompt: "What is the weather in Paris?", temperature: 0,
      maxOutputTokens: 60, toolChoice: "required", stopWhen: steps,
      tools: { weather: tool({
        description: "The weather in a city.",
        inputSchema: z.object({ city: z.string().max(40) }),
        execute: async ({ city }) => { asked.push(city); return "Sunny."; },
      }) },
    });
    assert.equal(typeof asked[0], "string");
  });
  await check("images", async () => {
    const image = { type: "image", image: Buffer.from(PNG, "base64"), mediaType: "image/png" };
    const { text } = await generateText({
      model: model(VISION), maxOutputTokens: 12, temperature: 0,
      messages: [{ role: "user", content: [{ type: "text", text: "What is this?" }, image] }],
    });
    assert.ok(text);
  });
}
done();
