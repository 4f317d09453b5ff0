// An image: the patches it is cut into, and the rows that the connector hands to the language model.

import { unpack } from "../api.js";
import { h, heading, percent, visible } from "../dom.js";
import { lookAt } from "../looks.js";
import { changed, select, state, world } from "../store.js";

export const name = "The image";
let index = 0;
let start = 0; // the first row that is told of
let at = -1; // the row whose part of the image is marked

export async function draw(place) {
  const images = world().images;
  if (!images.length) {
    const why = state.inside.sees ? "No image is in this conversation: drop one on it, paste it, or use +."
      : `${state.model} reads text alone; choose a model that sees under “Model and system prompt”.`;
    return place.replaceChildren(h("p", { class: "note" }, why));
  }
  const here = images.findIndex((one) => one.start <= state.selected && state.selected < one.stop);
  if (here >= 0 && here !== index) [index, start, at] = [here, 0, -1];
  index = Math.min(index, images.length - 1);
  const shown = images[index];
  const look = await lookAt({ image: { index, start } }, undefined, world(), Math.max(shown.stop, state.selected));
  const told = look.image;
  const from = (first) => h("button", { type: "button", onclick: () => { start = first; at = -1; draw(place); } }, first > start ? "Next rows" : "Rows before");
  place.replaceChildren(
    images.length > 1 ? h("div", { class: "row" }, ...images.map((one, i) => h("button", { type: "button", "aria-pressed": String(i === index), onclick: () => { start = 0; at = -1; index = i; select(one.start); } }, `image ${i + 1}`))) : "",
    h("p", {}, `${cut(told)} The connector makes ${told.n_rows} rows of them; in the prompt they stand at ${told.start} to ${told.stop - 1}${told.stop - told.start > told.n_rows ? ", with the tokens that frame them" : ""}, where words would.`),
    h("div", { class: "seen" }, picture(shown.url, told), ...told.looked.map(({ slot, weights }) => picture(shown.url, told, slot, unpack(weights)))),
    told.caption ? h("p", {}, "In the connector's own words: ", h("b", {}, told.caption), " What it thought of: ",
      told.names.map(({ part, best }) => `${part}: ${best.filter(([, p]) => p >= 0.001).map(([n, p]) => `${n} ${percent(p)}`).join(", ")}`).join("; "), ".") : "",
    h("p", { class: "note" }, "Each row, and the words of the model's own that point most nearly where it points. Likeness 1.00 is the word itself; others are no word at all, only near some."),
    rows(told, place),
    h("div", { class: "row" }, start > 0 && from(Math.max(0, start - told.rows.length)), start + told.rows.length < told.n_rows && from(start + told.rows.length)));
}

function cut(told) {
  const [down, across] = told.patches;
  const each = `${across} × ${down} patches`;
  if (told.parts.length > 1) return `It is cut into ${told.parts.length - 1} tiles, and the whole, shrunk, comes last; each is ${each}.`;
  return down === across ? `It is squeezed into a square of ${each}.` : `It is cut into ${each}.`;
}

/** The image under its patches; with weights, lit where a slot looked. */
function picture(url, told, slot = "", weights = null) {
  const svg = h("svg", { viewBox: "0 0 1000 1000", preserveAspectRatio: "none", "aria-hidden": "true" });
  if (weights) {
    const n = weights.shape[0], most = Math.max(...weights.values);
    weights.values.forEach((value, i) => svg.append(h("path", { class: "veil", opacity: (0.85 * (1 - value / most)).toFixed(3),
      d: rectangle([(i % n) / n, Math.floor(i / n) / n, ((i % n) + 1) / n, (Math.floor(i / n) + 1) / n]) })));
  } else {
    const tiles = told.parts.length > 1 ? told.parts.slice(0, -1) : told.parts;
    for (const tile of tiles) svg.append(h("path", { class: "patches", d: lines(tile, told.patches) }), h("path", { class: "tile-edge", d: rectangle(tile) }));
    if (at >= 0 && told.rows[at]) svg.append(h("path", { class: "chosen", d: rectangle(told.rows[at].place) }));
  }
  const label = slot ? `where the slot “${slot}” looked` : "the image and its patches";
  return h("figure", {}, h("div", { class: "under" }, h("img", { src: url, alt: label }), svg), h("figcaption", {}, slot || "patches"));
}

/** A part of an image, as a path. */
export const rectangle = ([left, top, right, bottom]) => `M${1000 * left} ${1000 * top}H${1000 * right}V${1000 * bottom}H${1000 * left}Z`;

function lines([left, top, right, bottom], [down, across]) {
  let d = "";
  for (let i = 1; i < across; i++) d += `M${1000 * (left + ((right - left) * i) / across)} ${1000 * top}V${1000 * bottom}`;
  for (let i = 1; i < down; i++) d += `M${1000 * left} ${1000 * (top + ((bottom - top) * i) / down)}H${1000 * right}`;
  return d;
}

/** A line a row; a row that is the one before it again stands with it. */
function rows(told, place) {
  const groups = [];
  told.rows.forEach((row, i) => {
    const same = (one) => one.length === row.length && JSON.stringify(one.nearest) === JSON.stringify(row.nearest);
    if (groups.length && same(groups.at(-1).row)) groups.at(-1).last = row.position;
    else groups.push({ row, i, last: row.position });
  });
  const whole = (box) => box[0] === 0 && box[1] === 0 && box[2] === 1 && box[3] === 1;
  return h("table", {}, heading(["position", "length", "nearest words"], ["length"]),
    h("tbody", {}, ...groups.map(({ row, i, last }) => h("tr", { class: i === at ? "chosen" : "" },
      h("td", {}, whole(row.place) ? span(row.position, last) : h("button", { type: "button", class: "opens", title: "show which part of the image", onclick: () => { at = i; draw(place); } }, span(row.position, last))),
      h("td", { class: "number" }, row.length.toFixed(2)),
      h("td", {}, ...row.nearest.flatMap(([word, like]) => [h("span", { class: "token" }, visible(word)), ` ${like.toFixed(2)}  `]))))));
}

const span = (first, last) => (first === last ? String(first) : `${first}–${last}`);

/** Show an image. @param {number} which */
export function openImage(which) {
  index = which;
  start = 0;
  at = -1;
  state.view = "image";
  changed("selection");
}
