// Talking: messages to ids, ids to an answer; forcing, rewinding and forking are other ids.

import * as api from "./api.js";
import { filtered } from "./sampler.js";
import { lookAt } from "./looks.js";
import { changed, imageAt, newWorld, select, state, world } from "./store.js";

const MOST = 160; // tokens at a time; "Go on" asks for more
const MOST_LOOKS = 24; // tokens of a world that is worked out by looks, one after the other
/** @type {AbortController | null} */
let running = null;

/** The conversation as the API takes it: the system prompt first, images as parts. */
export function conversation() {
  const said = state.messages.map(({ role, content, images }) => images?.length
    ? { role, content: [...images.map((url) => ({ type: "image_url", image_url: { url } })), { type: "text", text: content }] }
    : { role, content });
  return state.system ? [{ role: "system", content: state.system }, ...said] : said;
}

/** Take a model, and learn what the views need to know of it. @param {string} id */
export async function use(id) {
  state.inside = (await api.model(id)).inside;
  state.model = id;
  changed("model");
}

/** Ask with a message of one's own. @param {string} text @param {string[]} [images] data URLs */
export async function say(text, images = []) {
  state.messages.push({ role: "user", content: text, ...(images.length && { images }) });
  await ask();
}

/** The last question again; with another seed, so that the answer may be another. */
export async function retry() {
  const last = state.messages.findLastIndex((message) => message.role === "user");
  if (last < 0 || state.busy) return;
  state.messages.length = last + 1;
  state.params.seed += 1;
  changed("params");
  await ask();
}

/** Take a question back into the composer, with all that follows it. @returns {string} its text */
export function edit(index) {
  const text = state.messages[index].content;
  state.messages.length = index;
  changed("messages");
  return text;
}

async function ask() {
  changed("messages");
  const messages = conversation();
  let told;
  try {
    told = await api.tokenize({ model: state.model, messages });
  } catch (error) {
    state.messages.pop(); // what wasn't taken can be sent again
    changed("messages");
    throw error;
  }
  const urls = state.messages.flatMap((message) => message.images ?? []);
  const images = (told.images ?? []).map((span, i) => ({ ...span, url: urls[i] }));
  state.worlds = [newWorld("answer", told.tokens, told.pieces, told.tokens.length, { images })];
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
  at.end = "";
  changed("busy");
  try {
    await (at.byLooks ? stepByLooks(at, running.signal) : stream(at, running.signal));
  } catch (error) {
    at.end = error.name === "AbortError" ? "stopped" : "broke off";
    if (error.name !== "AbortError") throw error;
  } finally {
    running = null;
    state.busy = false;
    await exactPieces(at).catch(() => {});
    changed("tokens", "worlds", "busy");
    if (state.selected < at.nPrompt) select(at.nPrompt);
  }
}

/** Tokens as the server draws them, from its own format of the weights. */
async function stream(at, signal) {
  at.params = { ...state.params };
  const asked = { model: at.model, prompt: at.ids, max_tokens: MOST, ...at.params, trace: { candidates: 12, stages: true, whole: true } };
  at.began = at.ids.length;
  if (at.images.length) asked.images = at.images.map((one) => one.url);
  for await (const chunk of api.complete(asked, signal)) {
    if (chunk.usage) at.cached = chunk.usage.prompt_tokens_details?.cached_tokens ?? 0;
    state.fingerprint = chunk.system_fingerprint ?? state.fingerprint;
    const choice = chunk.choices[0];
    if (choice?.finish_reason) at.end = choice.finish_reason;
    const steps = choice?.trace?.steps ?? [];
    for (const step of steps) {
      at.steps.set(at.ids.length, step);
      at.ids.push(step.token);
      at.pieces.push({ text: step.text, bytes: "", special: /^<\|.*\|>$/.test(step.text) });
    }
    if (steps.length) changed("tokens");
  }
}

/** Tokens drawn here, from float32 logits of a look each: the same filters, the same draw. */
async function stepByLooks(at, signal) {
  for (let i = 0; i < MOST_LOOKS; i++) {
    const position = at.ids.length;
    const asked = { ...at, ids: [...at.ids, 0] }; // some token has to stand where one is asked for
    const look = await lookAt({ candidates: 1, logits: true }, signal, asked, position);
    const ids = api.unpack(look.logits.ids).values;
    const now = filtered(ids, api.unpack(look.logits.values).values, look.logits.tail, at.params);
    const token = drawn(now.tokens, look.uniform);
    const { pieces: [piece] } = await api.detokenize({ model: at.model, tokens: [token.id] });
    at.steps.set(position, { token: token.id, text: piece.text, logprob: Math.log(token.pRaw),
      chosen_by: at.params.temperature === 0 ? "argmax" : "sample", candidates: [] });
    at.ids.push(token.id);
    at.pieces.push(piece);
    changed("tokens");
    if (piece.special) { at.end = "stop"; return; }
  }
  at.end = "length";
}

/** Whose slice of the line from 0 to 1 holds a number; slices lie in the order of ids. */
function drawn(tokens, uniform) {
  const slices = tokens.filter((token) => token.p > 0).sort((a, b) => a.id - b.id);
  let end = 0;
  return slices.find((token) => (end += token.p) > uniform) ?? tokens[0];
}

export function stop() {
  running?.abort();
}

/** Bytes of every token, so that a character's tokens can stand together. */
async function exactPieces(at) {
  at.pieces = (await api.detokenize({ model: at.model, tokens: at.ids })).pieces;
}

/**
 * Another way from a position on: these ids there instead. The old way is kept beside it.
 *
 * @param {number} position @param {number[]} ids @param {string} name
 * @param {Partial<import("./store.js").World>} [more] what else is different about it
 */
export async function fork(position, ids, name, more = {}) {
  const from = world();
  if (!from || state.busy) return;
  if (imageAt(from, position)) throw new Error("An image's rows stand here; they can't be replaced one by one. Choose a token behind it.");
  const tokens = [...from.ids.slice(0, position), ...ids];
  const told = await api.detokenize({ model: from.model, tokens });
  const { broken, byLooks, model } = from;
  const scores = from.scores.slice(0, position);
  const images = from.images.filter((one) => one.stop <= position);
  const twin = newWorld(name, tokens, told.pieces, Math.min(from.nPrompt, position), { broken, byLooks, model, images, scores, ...more });
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
  at.scores.length = Math.min(at.scores.length, position);
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
