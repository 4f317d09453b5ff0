// What a client's script says of itself: one line of JSON a check; as checks.py.
import { readFileSync } from "node:fs";
import { join } from "node:path";

export const MODEL = process.env.TINYLLM_MODEL;
export const VISION = process.env.TINYLLM_VISION;
export const URL = process.env.OPENAI_BASE_URL;
export const QUESTION = "What is the capital of France?";
export const MODULES = process.env.NODE_MODULES;
// A red square of 4 x 4 pixels.
export const PNG =
  "iVBORw0KGgoAAAANSUhEUgAAAAQAAAAECAIAAAAmkwkpAAAAFElEQVR4nGO8pqHBAANMDEgANwcAOx4BLuuawwkA" +
  "AAAASUVORK5CYII=";

let failed = false;
const say = (line) => console.log(JSON.stringify(line));

/** Say which package, in which version, this script is about. */
export function client(name) {
  const text = readFileSync(join(MODULES, name, "package.json"), "utf8");
  say({ client: name, version: JSON.parse(text).version });
}

/** Run a function and say what came of it. */
export async function check(what, run) {
  try {
    await run();
    say({ check: what, ok: true });
  } catch (error) {
    failed = true;
    say({ check: what, ok: false, why: String(error?.stack ?? error).slice(0, 2000) });
  }
}

/** The exit status: whether every check passed. */
export const done = () => process.exit(failed ? 1 : 0);
