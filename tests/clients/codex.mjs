// Codex CLI: one turn without an error of protocol. What it says is beyond a model of 135 M.
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";
import { check, client, done, MODEL, MODULES, URL } from "./checks.mjs";

client("@openai/codex");
// It makes links beside its settings, which it refuses to do in a folder for temporary files.
const home = mkdtempSync(join(homedir(), ".codex-"));
writeFileSync(join(home, "config.toml"), `
model = "${MODEL}"
model_provider = "tinyllm"
model_context_window = 8192
[analytics]
enabled = false
[model_providers.tinyllm]
name = "tinyllm"
base_url = "${URL}"
wire_api = "responses"
`);

await check("a turn of `codex exec`", async () => {
  const script = join(MODULES, "@openai/codex/bin/codex.js");
  const options = ["--json", "--skip-git-repo-check", "--sandbox", "read-only"];
  const { stdout, stderr } = spawnSync(process.execPath, [script, "exec", ...options, "Say hi."], {
    cwd: home, env: { ...process.env, CODEX_HOME: home }, input: "", encoding: "utf8",
  });
  const kinds = stdout.split("\n").filter((line) => line.startsWith("{")).map(
    (line) => JSON.parse(line).type);
  assert.ok(kinds.includes("turn.completed"), stdout + stderr);
  assert.ok(!kinds.includes("error") && !kinds.includes("turn.failed"), stdout);
});
rmSync(home, { recursive: true, force: true });
done();
