// Looks at tokens, asked once each: a look is a pure function of ids, so it can be kept.

import * as api from "./api.js";
import { state, world } from "./store.js";

const KEPT = 60;
/** @type {Map<string, Promise<any>>} */
const kept = new Map();

/** What the server sees at the selected token. @param {any} want @param {AbortSignal} [signal] */
export function lookAt(want, signal) {
  const at = world();
  const position = state.selected;
  if (!at || position < 1) return Promise.reject(new Error("Choose a token: the first has nothing before it."));
  const { temperature, top_k, top_p, seed } = at.params;
  const body = {
    model: state.model, tokens: at.ids.slice(0, position + 1), position,
    n_prompt: Math.min(at.nPrompt, position), temperature, top_k, top_p, seed, want,
  };
  const name = JSON.stringify(body);
  let found = kept.get(name);
  if (!found) {
    found = api.look(body, signal).then((told) => {
      state.shape = { layers: told.n_layers, heads: told.n_heads };
      return told;
    });
    kept.set(name, found);
    found.catch(() => kept.delete(name));
    if (kept.size > KEPT) kept.delete(kept.keys().next().value);
  }
  return found;
}
