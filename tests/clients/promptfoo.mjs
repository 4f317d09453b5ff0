// promptfoo: one evaluation through its three providers. What is right is the model's affair.
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { check, client, done, MODEL, MODULES, URL } from "./checks.mjs";

client("promptfoo");
const folder = mkdtempSync(join(tmpdir(), "promptfoo-"));
const config = { apiBaseUrl: URL, apiKey: "unused", temperature: 0 };
writeFileSync(join(folder, "config.json"), JSON.stringify({
  prompts: ["What is the capital of {{country}}?"],
  providers: [
    { id: `openai:chat:${MODEL}`, config: { ...config, max_tokens: 32 } },
    { id: `openai:responses:${MODEL}`, config: { ...config, max_output_tokens: 32 } },
    { id: `openai:completion:${MODEL}`, config: { ...config, max_tokens: 16 } },
  ],
  tests: [{ vars: { country: "France" } }],
}));
const script = join(MODULES, "promptfoo/dist/src/main.js");
const options = ["-c", "config.json", "--no-cache", "--no-progress-bar", "-o", "out.json"];
const { stdout, stderr } = spawnSync(process.execPath, [script, "eval", ...options], {
  cwd: folder, encoding: "utf8", env: {
    ...process.env, PROMPTFOO_CONFIG_DIR: folder, PROMPTFOO_DISABLE_TELEMETRY: "1",
    PROMPTFOO_DISABLE_UPDATE: "1",
  },
});

for (const kind of ["chat", "responses", "completion"]) {
  await check(`\`openai:${kind}:ID\``, () => {
    const { results } = JSON.parse(readFileSync(join(folder, "out.json"), "utf8")).results;
    const result = results.find(({ provider }) => provider.id.startsWith(`openai:${kind}:`));
    assert.ok(!result.error, stdout + stderr);
    assert.equal(typeof result.response.output, "string");
    assert.ok(result.response.tokenUsage.total > 0);
    if (kind !== "completion") assert.match(result.response.output, /Paris/);
  });
}
rmSync(folder, { recursive: true, force: true });
done();
