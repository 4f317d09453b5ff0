// Looks at tokens, asked once each: a look is a pure function of ids, so it can be kept.

import * as api from "./api.js";
import { state, world } from "./store.js";

const KEPT = 120;
const BEHIND = 40; // tokens that are sent along: they change nothing here, and are then known to the server
/** @type {Map<string, Promise<any>>} */
const kept = new Map();

/**
 * What the server sees at a token, by default the selected one of the world that is looked at.
 *
 * @param {any} want @param {AbortSignal} [signal]
 * @param {import("./store.js").World} [at] @param {number} [position]
 */
export function lookAt(want, signal, at = world(), position = state.selected) {
  if (!at || position < 1) return Promise.reject(new Error("Choose a token: the first has nothing before it."));
  const { temperature, top_k, top_p, seed } = at.params;
  const images = at.images.filter((one) => one.start <= position);
  const end = Math.max(position + 1, ...images.map((one) => one.stop)); // an image's tokens stand there whole
  const body = {
    model: at.model, tokens: at.ids.slice(0, end), position,
    n_prompt: Math.min(at.nPrompt, position), temperature, top_k, top_p, seed,
    want: { drawn: drawnFrom(at, position), ...want },
  };
  if (images.length) body.images = images.map((one) => one.url);
  if (at.broken) body.break = at.broken;
  const name = JSON.stringify({ ...body, images: images.map((one) => numberOf(one.url)) });
  let found = kept.get(name);
  if (!found) {
    const next = at.images.find((one) => one.start >= end)?.start ?? at.ids.length;
    body.tokens = at.ids.slice(0, Math.min(end + BEHIND, next));
    found = api.look(body, signal);
    kept.set(name, found);
    found.catch(() => kept.delete(name));
    if (kept.size > KEPT) kept.delete(kept.keys().next().value);
  }
  return found;
}

/** @type {string[]} */
const urls = []; // an image's URL may be megabytes: looks are kept by its place here

function numberOf(url) {
  if (!urls.includes(url)) urls.push(url);
  return urls.indexOf(url);
}

/** The logits that the server drew from, where it told: `replay_error` is the gap to them. */
function drawnFrom(at, position) {
  const candidates = at.steps.get(position)?.candidates ?? [];
  return candidates.filter((c) => Number.isFinite(c.logit)).map(({ token, logit }) => ({ token, logit }));
}

/** Which world a look's numbers are from, in a sentence. */
export function provenance(look) {
  const broken = look.broken ? ` with ${look.broken} broken` : "";
  const gap = look.replay_error === undefined ? "; nothing was drawn here to compare with"
    : `; the logits that were drawn from differ by ${look.replay_error.toPrecision(2)} at most`;
  return `Worked out again in float32${broken}${gap}.`;
}
