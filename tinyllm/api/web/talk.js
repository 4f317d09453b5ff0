// Talking: messages to ids, ids to an answer; forcing, rewinding and forking are other ids.

import * as api from "./api.js";
import { changed, newWorld, select, state, world } from "./store.js";

/** @type {AbortController | null} */
let running = null;

/** Ask with a message of one's own. @param {string} text */
export async function say(text) {
  state.messages.push({ role: "user", content: text });
  changed("messages");
  const told = await api.tokenize({ model: state.model, messages: state.messages });
  state.worlds = [newWorld("answer", told.tokens, told.pieces, told.tokens.length)];
  state.current = 0;
  state.messages.push({ role: "assistant", content: "" });
  changed("worlds", "messages");
  await goOn();
}

/** Let the model go on from the current world's tokens. */
export async function goOn() {
  const at = world();
  if (!at || state.busy) return;
  running = new AbortController();
  state.busy = true;
  at.params = { ...state.params };
  changed("busy");
  try {
    const body = { model: state.model, prompt: at.ids, max_tokens: 160, ...at.params, trace: { candidates: 12, stages: true } };
    for await (const chunk of api.complete(body, running.signal)) {
      if (chunk.usage) at.cached = chunk.usage.prompt_tokens_details?.cached_tokens ?? 0;
      const steps = chunk.choices[0]?.trace?.steps ?? [];
      for (const step of steps) {
        at.steps.set(at.ids.length, step);
        at.ids.push(step.token);
        at.pieces.push({ text: step.text, bytes: "", special: /^<\|.*\|>$/.test(step.text) });
      }
      if (steps.length) changed("tokens");
    }
  } catch (error) {
    if (error.name !== "AbortError") throw error;
  } finally {
    running = null;
    state.busy = false;
    await exactPieces(at).catch(() => {});
    changed("tokens", "worlds", "busy");
    if (state.selected < at.nPrompt) select(at.nPrompt);
  }
}

export function stop() {
  running?.abort();
}

/** Bytes of every token, so that a character's tokens can stand together. */
async function exactPieces(at) {
  at.pieces = (await api.detokenize({ model: state.model, tokens: at.ids })).pieces;
}

/** Another way from a position on: these ids there instead. The old way is kept beside it. */
export async function fork(position, ids, name) {
  const from = world();
  if (!from || state.busy) return;
  const tokens = [...from.ids.slice(0, position), ...ids];
  const told = await api.detokenize({ model: state.model, tokens });
  const twin = newWorld(name, tokens, told.pieces, Math.min(from.nPrompt, position));
  for (const [at, step] of from.steps) if (at < position) twin.steps.set(at, step);
  if (state.worlds.length > 5) state.worlds.splice(1, 1);
  state.worlds.push(twin);
  state.current = state.worlds.length - 1;
  changed("worlds");
  select(position);
  await goOn();
}

/** Take typed text as what comes at a position. @param {number} position @param {string} text */
export async function force(position, text) {
  const told = await api.tokenize({ model: state.model, text });
  await fork(position, told.tokens, `forced “${text.trim()}”`);
}

/** Forget everything from a position on. @param {number} position */
export function rewind(position) {
  const at = world();
  if (!at || state.busy || position <= at.nPrompt) return;
  at.ids.length = at.pieces.length = position;
  for (const key of [...at.steps.keys()]) if (key >= position) at.steps.delete(key);
  changed("tokens", "worlds");
  select(position - 1);
}

/** The answer of a world, as text. */
export function answer(at) {
  const said = at.pieces.slice(at.nPrompt).filter((piece) => !piece.special);
  if (said.some((piece) => !piece.bytes)) return said.map((piece) => piece.text).join("");
  const hex = said.map((piece) => piece.bytes).join("");
  const bytes = Uint8Array.from(hex.match(/../g) ?? [], (byte) => parseInt(byte, 16));
  return new TextDecoder().decode(bytes);
}
