// The one store of state. A world is a list of token ids and how they came about; views read it.

/**
 * @typedef {{text: string, bytes: string, special: boolean}} Piece
 * @typedef {{name: string, ids: number[], pieces: Piece[], nPrompt: number,
 *   steps: Map<number, any>, cached: number, params: Params}} World
 * @typedef {{temperature: number, top_k: number, top_p: number, seed: number}} Params
 */

export const state = {
  model: "",
  shape: { layers: 0, heads: 0 }, // told by the first look
  /** @type {Params} */
  params: { temperature: 0.8, top_k: 40, top_p: 0.95, seed: 1 },
  /** @type {{role: string, content: string}[]} */
  messages: [],
  /** @type {World[]} */
  worlds: [],
  current: 0,
  selected: -1, // position of a token in the current world
  view: "why",
  busy: false,
};

/** @type {Set<(what: string) => void>} */
const listeners = new Set();

/** Hear of changes: "tokens", "selection", "params", "worlds", "messages", "busy". */
export function onChange(listener) {
  listeners.add(listener);
}

/** @param {...string} what */
export function changed(...what) {
  for (const name of what) for (const listener of listeners) listener(name);
}

/** @returns {World | undefined} */
export const world = () => state.worlds[state.current];

/** Put the cursor on a token; its views follow. @param {number} position */
export function select(position) {
  const last = (world()?.ids.length ?? 0) - 1;
  state.selected = Math.max(-1, Math.min(position, last));
  changed("selection");
}

/** A new world of some ids. @returns {World} */
export function newWorld(name, ids, pieces, nPrompt) {
  return { name, ids, pieces, nPrompt, steps: new Map(), cached: 0, params: { ...state.params } };
}

/** How many tokens two worlds share. */
export function shared(a, b) {
  const n = Math.min(a.ids.length, b.ids.length);
  for (let i = 0; i < n; i++) if (a.ids[i] !== b.ids[i]) return i;
  return n;
}
