// The strip: every token a tile, tinted by how much it surprised the model. Tiles are appended, and
// stand in runs that the browser lays out only where they are seen (style.css: content-visibility).

import { h, percent, visible } from "./dom.js";
import { changed, imageAt, select, shared, state, world } from "./store.js";
import { openImage } from "./views/image.js";

const NATS_OF_FULL_TINT = 6;
const RUN = 128; // tokens
let drawn = { world: null, tiles: /** @type {Map<number, HTMLElement>} */ (new Map()), end: 0 };
/** @type {HTMLElement | null} */
let marked = null;

/** Draw what isn't drawn yet. @param {HTMLElement} place @param {boolean} afresh */
export function drawStrips(place, afresh) {
  const at = world();
  if (!at) return place.replaceChildren(h("p", { class: "note" }, "Each token of what is said will stand here."));
  if (afresh || drawn.world !== at || at.ids.length < drawn.end) {
    drawn = { world: at, tiles: new Map(), end: 0 };
    const strips = state.worlds.map((one, i) => {
      const apart = i === state.current ? -1 : shared(one, at);
      const name = h("div", { class: "strip-name" }, `${one.name} · ${one.ids.length} tokens`,
        i === state.current ? "" : h("button", { type: "button", onclick: () => go(i) }, "look at this one"));
      const strip = h("div", { class: "strip", role: "listbox", "aria-label": `Tokens: ${one.name}`, tabindex: i === state.current ? "0" : "-1" });
      if (i === state.current) strip.id = "strip";
      else append(strip, one, Math.max(0, apart - 12), apart, new Map(), i);
      return h("div", {}, name, strip);
    });
    place.replaceChildren(...strips);
  }
  const strip = document.getElementById("strip");
  if (!strip) return;
  const others = state.worlds.filter((one) => one !== at);
  const apart = afresh && others.length ? Math.max(...others.map((one) => shared(one, at))) : -1;
  drawn.end = append(strip, at, drawn.end, apart, drawn.tiles, state.current);
  mark();
}

function go(index) {
  state.current = index;
  changed("worlds", "selection");
}

/** Tiles from `start` on. Tokens that share a character share a tile, its bytes as cells. */
function append(strip, at, start, apart, tiles, index) {
  let position = start;
  while (position < at.ids.length) {
    const image = imageAt(at, position);
    const end = image ? image.stop : characterEnd(at.pieces, position);
    if (tiles.has(position)) { position = end; continue; }
    if (image) {
      const tile = picture(at, image, index);
      for (let i = position; i < end; i++) tiles.set(i, tile);
      runOf(strip, position).append(tile);
      position = end;
      continue;
    }
    const text = textOf(at.pieces.slice(position, end));
    const step = at.steps.get(position);
    const special = at.pieces[position].special;
    const logprob = step?.logprob ?? (position < at.nPrompt ? null : at.scores[position]);
    const known = typeof logprob === "number";
    const surprise = known ? Math.min(1, -logprob / NATS_OF_FULL_TINT) : 0;
    const first = position;
    const told = `token ${at.ids.slice(position, end).join(", ")} at ${position}` +
      (known ? `, probability ${percent(Math.exp(logprob))}` : position < at.nPrompt ? ", of the prompt" : "");
    const tile = h("span", {
      class: `tile${position < at.nPrompt ? " prompt" : ""}${special ? " special" : ""}${position === apart ? " differs" : ""}`,
      role: "option", "aria-selected": "false", title: told, id: index === state.current ? `tile-${position}` : null, "data-position": position,
      "aria-label": `${visible(text)}, ${told}`, "--surprise": surprise.toFixed(3),
      onclick: () => { if (index !== state.current) go(index); select(first); },
    }, ...shown(text));
    if (end - position > 1) {
      tile.append(h("span", { class: "bytes", "aria-hidden": "true" }, at.pieces.slice(position, end).map((p) => p.bytes).join("|")));
    }
    for (let i = position; i < end; i++) tiles.set(i, tile);
    runOf(strip, first).append(tile);
    position = end;
  }
  return position;
}

/** An image's rows are one tile: the picture. */
function picture(at, image, index) {
  const told = `image, rows at ${image.start} to ${image.stop - 1}`;
  return h("span", { class: "tile prompt picture", role: "option", "aria-selected": "false", title: told, "aria-label": told,
    id: index === state.current ? `tile-${image.start}` : null, "data-position": image.start,
    onclick: () => { if (index !== state.current) go(index); openImage(at.images.indexOf(image)); select(image.start); },
  }, h("img", { src: image.url, alt: "" }));
}

/** The run that a position's tile belongs to: always the strip's last one. */
function runOf(strip, position) {
  const index = String(Math.floor(position / RUN));
  const last = /** @type {HTMLElement | null} */ (strip.lastElementChild);
  if (last?.dataset.run === index) return last;
  return strip.appendChild(h("div", { class: "run", "data-run": index, role: "presentation" }));
}

function shown(text) {
  return text.split(/( |\n)/).filter(Boolean).map((part) =>
    part === " " ? h("span", { class: "space" }, "·") : part === "\n" ? h("span", { class: "space" }, "↵\n") : part);
}

/** Where the character ends that begins in this token. */
export function characterEnd(pieces, position) {
  let open = 0;
  for (let i = position; i < Math.min(pieces.length, position + 4); i++) {
    for (const byte of (pieces[i].bytes.match(/../g) ?? []).map((b) => parseInt(b, 16))) {
      open = byte >= 0xf0 ? 3 : byte >= 0xe0 ? 2 : byte >= 0xc0 ? 1 : byte >= 0x80 ? open - 1 : 0;
    }
    if (open <= 0) return i + 1;
  }
  return position + 1;
}

/** The text of some tokens together. */
export function textOf(pieces) {
  if (pieces.length === 1) return pieces[0].text;
  const bytes = pieces.flatMap((p) => p.bytes.match(/../g) ?? []).map((b) => parseInt(b, 16));
  return new TextDecoder().decode(Uint8Array.from(bytes));
}

/** Show where the cursor is. The page itself moves for those alone who walk along the strip. */
export function mark() {
  const tile = drawn.tiles.get(state.selected) ?? null;
  const strip = document.getElementById("strip");
  if (tile === marked) return;
  marked?.setAttribute("aria-selected", "false");
  tile?.setAttribute("aria-selected", "true");
  const { scrollX, scrollY } = window;
  tile?.scrollIntoView({ block: "nearest" });
  if (document.activeElement !== strip) window.scrollTo(scrollX, scrollY);
  strip?.setAttribute("aria-activedescendant", tile?.id ?? "");
  marked = tile;
}
