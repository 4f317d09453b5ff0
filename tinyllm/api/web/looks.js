// Looks at tokens, asked once each: a look is a pure function of ids, so it can be kept.

import * as api from "./api.js";
import { state, world } from "./store.js";

const KEPT = 120;
const PIECE = 240; // tokens that a long text is read by, so that one can be told how far that is
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
    found = inPieces(body, at.images, signal);
    kept.set(name, found);
    found.catch(() => kept.delete(name));
    if (kept.size > KEPT) kept.delete(kept.keys().next().value);
  }
  return found;
}

/** @type {{model: string, tokens: number[]}} */
let read = { model: "", tokens: [] }; // what the server has read for this page, and keeps for a while
/** @type {(done: number, total: number) => void} */
let tell = () => {};

/** Hear how many of a text's tokens have been read; at the end that it is all of them. */
export function onReading(listener) {
  tell = listener;
}

/** A look; of a long text that wasn't read yet, piece by piece before: each is known to the next. */
async function inPieces(body, images, signal) {
  const { model, tokens, position } = body;
  const same = read.model === model ? tokens.findIndex((id, i) => id !== read.tokens[i]) : 0;
  const known = same < 0 ? tokens.length : same;
  const inParts = !body.break && position - known > 2 * PIECE;
  try {
    if (inParts) tell(known, position);
    for (let stop = known + PIECE; inParts && stop < position; stop += PIECE) {
      stop = images.find((one) => one.start < stop && stop < one.stop)?.stop ?? stop;
      if (stop >= position) break;
      await api.look({ ...body, position: stop, n_prompt: Math.min(body.n_prompt, stop), want: {} }, signal);
      read = { model, tokens: tokens.slice(0, stop) };
      tell(stop, position);
    }
    const found = await api.look(body, signal);
    if (!body.break && position > known) read = { model, tokens: tokens.slice(0, position) };
    return found;
  } finally {
    if (inParts) tell(position, position);
  }
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
