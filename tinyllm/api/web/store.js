// The one store of state. A world is a list of token ids and how they came about; views read it.

/**
 * @typedef {{text: string, bytes: string, special: boolean}} Piece
 * @typedef {{temperature: number, top_k: number, top_p: number, seed: number}} Params
 * @typedef {{name: string, model: string, ids: number[], pieces: Piece[], nPrompt: number,
 *   steps: Map<number, any>, scores: (number | null)[], cached: number, params: Params, broken: string, byLooks: boolean,
 *   images: {url: string, start: number, stop: number}[], end: string}} World
 *   `byLooks`: its tokens come from float32 looks, one at a time, not from the server's own format;
 *   `scores`: log-probabilities by position, of tokens that weren't drawn on this page;
 *   `images`: where each image's rows stand among the ids; `end`: why it ended.
 */

export const state = {
  model: "",
  /** @type {string[]} */
  models: [],
  system: "",
  fingerprint: "",
  // What the server tells of the model: see InsideOut in contract/answers.py.
  inside: { dtype: "", n_layers: 0, n_heads: 0, sees: false, breakages: {} },
  /** @type {Params} */
  params: { temperature: 0.8, top_k: 40, top_p: 0.95, seed: 1 },
  /** @type {{role: string, content: string, images?: string[]}[]} */
  messages: [],
  /** @type {string[]} */
  images: [], // data URLs that go with the next message
  /** @type {World[]} */
  worlds: [],
  current: 0,
  selected: -1, // position of a token in the current world
  view: "why",
  busy: false,
};

/** @type {Set<(what: string) => void>} */
const listeners = new Set();

/** Hear of changes: "tokens", "selection", "params", "worlds", "messages", "images", "model", "busy". */
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

/** A new world of some ids. @param {Partial<World>} [more] @returns {World} */
export function newWorld(name, ids, pieces, nPrompt, more = {}) {
  return { name, model: state.model, ids, pieces, nPrompt, steps: new Map(), scores: [], cached: 0,
    params: { ...state.params }, broken: "", byLooks: false, images: [], end: "", ...more };
}

/** How many tokens two worlds share. */
export function shared(a, b) {
  const n = Math.min(a.ids.length, b.ids.length);
  for (let i = 0; i < n; i++) if (a.ids[i] !== b.ids[i]) return i;
  return n;
}

/** The image whose rows stand at a position, if one's do. */
export const imageAt = (at, position) => at.images.find((one) => one.start <= position && position < one.stop);

/** Put the cursor on the tile before or behind; an image is one. @param {number} by -1 or 1 */
export function move(by) {
  const at = world();
  if (!at) return;
  const from = imageAt(at, state.selected);
  const to = from ? (by > 0 ? from.stop : from.start - 1) : state.selected + by;
  select(imageAt(at, to)?.start ?? to);
}
