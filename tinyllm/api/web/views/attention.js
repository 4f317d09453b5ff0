// Where it looked: one layer's heads over the tokens; beside it what each part was worth.

import { unpack } from "../api.js";
import { h, percent, pieceText, visible } from "../dom.js";
import { lookAt, provenance } from "../looks.js";
import { imageAt, state, world } from "../store.js";
import { rectangle } from "./image.js";

export const name = "Where it looked";
let layer = 12;
let head = 0;
const PARTS = 15; // taken out in one request
const SEEN = 24; // newest tokens that arcs are drawn to
const WIDTH = 34;

export async function draw(place) {
  layer = Math.min(layer, state.inside.n_layers - 1);
  const look = await lookAt({ candidates: 1, attention: { layer } });
  const { shape: [nHeads, n], values } = unpack(look.attention.weights);
  head = Math.min(head, nHeads - 1);
  const weights = values.slice(head * n, (head + 1) * n);
  const images = world().images.filter((one) => one.stop <= n);
  const slider = h("input", { type: "range", min: 0, max: state.inside.n_layers - 1, value: layer, "aria-label": "Layer",
    onchange: (e) => { layer = Number(e.target.value); redraw(place); } });
  const drawing = h("div", { class: "arcs", tabindex: "0", role: "img", "aria-label": told(weights) }, arcs(weights));
  requestAnimationFrame(() => { drawing.scrollLeft = drawing.scrollWidth; }); // the newest token, where it is too wide
  place.replaceChildren(
    h("p", { class: "note" }, provenance(look)),
    h("label", { class: "row" }, "layer", slider, h("b", {}, String(layer)), ` head ${head}`),
    drawing,
    further(weights),
    h("div", { class: "seen" }, ...await Promise.all(images.map((image, i) => overImage(image, i, weights, images.length)))),
    h("div", { class: "heads" }, ...Array.from({ length: nHeads }, (_, i) => small(values.slice(i * n, (i + 1) * n), i, place))),
    h("h2", {}, "What it owed to each part"),
    h("p", { class: "note" }, "A pattern says where a head looked, not whether it mattered. Taking each part out in turn does."),
    owed());
}

function redraw(place) {
  draw(place).catch((error) => place.replaceChildren(h("p", { class: "note" }, error.message)));
}

/** What arcs go to: tokens, and images, each with all of its rows. */
function ends(weights) {
  const found = [];
  for (let i = 0; i < weights.length; i++) {
    const image = imageAt(world(), i);
    if (image && found.at(-1)?.image === image) found.at(-1).weight += weights[i];
    else found.push({ image, weight: weights[i], text: image ? "▦" : visible(pieceText(world().pieces[i])) });
  }
  return found;
}

function told(weights) {
  const best = ends(weights).sort((a, b) => b.weight - a.weight).slice(0, 3);
  return "Attention, most to: " + best.map(({ image, text, weight }) => `${image ? "the image" : text} ${percent(weight)}`).join(", ");
}

/** Arcs from the newest token to those before it, and to images however far back they are. */
function arcs(weights) {
  const all = ends(weights);
  const shown = all.filter((end, i) => end.image || i >= all.length - SEEN);
  const svg = h("svg", { viewBox: `0 0 ${shown.length * WIDTH + 20} 150`, "--wide": `${shown.length * WIDTH + 20}px` });
  const x = (i) => 10 + (i + 0.5) * WIDTH;
  shown.forEach(({ image, text, weight }, i) => {
    if (weight > 0.01) {
      const a = x(i), b = x(shown.length - 1), top = 105 - Math.min(95, 14 + Math.abs(b - a) / 4);
      svg.append(h("path", { d: `M${a} 108 Q${(a + b) / 2} ${top - 30} ${b} 108`, "stroke-width": 1 + 7 * weight, opacity: 0.25 + 0.75 * weight }));
    }
    svg.append(h("text", { x: x(i), y: 124, "text-anchor": "middle" }, h("title", {}, `${image ? "image" : text} ${percent(weight)}`), text.length > 5 ? `${text.slice(0, 4)}…` : text));
  });
  return svg;
}

/** What arcs leave out: tokens that are further back. The first one often gets what a head has to spare. */
function further(weights) {
  const all = ends(weights);
  const back = all.filter((end, i) => !end.image && i < all.length - SEEN);
  const sum = back.reduce((whole, end) => whole + end.weight, 0);
  return back.length ? h("p", { class: "note" }, `${percent(sum)} went to the ${back.length} tokens before these; the very first alone got ${percent(all[0].weight)}.`) : "";
}

/** An image, lit where the head looked: each row's weight on the part of the image it stands for.
 * Where rows stand for no part, as a connector's words do, those that got most are named. */
async function overImage(image, index, weights, nImages) {
  const { image: seen } = await lookAt({ image: { index, places: true } }, undefined, world(), Math.max(image.stop, state.selected));
  const places = unpack(seen.places).values;
  const rows = Array.from(unpack(seen.positions).values, (position, i) =>
    ({ i, weight: weights[position], place: Array.from(places.slice(4 * i, 4 * i + 4)) }));
  const parts = new Map(); // several rows may stand for one part
  for (const { weight, place } of rows) {
    if (place.join() !== "0,0,1,1") parts.set(place.join(), { place, weight: weight + (parts.get(place.join())?.weight ?? 0) });
  }
  const most = Math.max(1e-9, ...[...parts.values()].map((part) => part.weight));
  const svg = h("svg", { viewBox: "0 0 1000 1000", preserveAspectRatio: "none", "aria-hidden": "true" },
    ...[...parts.values()].map(({ place, weight }) => h("path", { class: "lit", d: rectangle(place), opacity: (0.8 * (weight / most)).toFixed(3) })));
  const name = nImages > 1 ? `image ${index + 1}` : "the image";
  const sum = rows.reduce((all, row) => all + row.weight, 0);
  const best = rows.sort((a, b) => b.weight - a.weight).slice(0, 3)
    .flatMap(({ i, weight }) => [" ", seen.rows[i] ? h("span", { class: "token" }, visible(seen.rows[i].nearest[0][0])) : `row ${i}`, ` ${percent(weight)}`]);
  return h("figure", { class: "looked-at" },
    h("div", { class: "under" }, h("img", { src: image.url, alt: `${name}, lit where the head looked` }), svg),
    h("figcaption", {}, `Head ${head} gave ${percent(sum)} to ${name}`,
      ...(parts.size ? ["."] : [". Its rows stand for no part of it: this model is handed words. Most went to", ...best, "."])));
}

function small(weights, i, place) {
  const canvas = h("canvas", { width: 160, height: 36, "aria-hidden": "true" });
  bars(canvas, weights, 1);
  return h("button", { type: "button", "aria-pressed": String(i === head), onclick: () => { head = i; redraw(place); } }, `head ${i}`, canvas);
}

/** Bars over a middle line, `most` filling half of the height. */
function bars(canvas, values, most, signed = false) {
  const brush = canvas.getContext("2d");
  const colour = getComputedStyle(document.body).getPropertyValue("--accent");
  const { width, height } = canvas;
  brush.clearRect(0, 0, width, height);
  brush.fillStyle = colour;
  values.forEach((value, i) => {
    const tall = (signed ? height / 2 : height) * Math.min(1, Math.abs(value) / most);
    const top = signed ? (value > 0 ? height / 2 - tall : height / 2) : height - tall;
    brush.fillRect((i * width) / values.length, top, Math.max(1, width / values.length - 1), tall);
  });
}

/** What one request may ask for at a time. */
function inSlices(parts) {
  const slices = [];
  for (let i = 0; i < parts.length; i += PARTS) slices.push(parts.slice(i, i + PARTS));
  return slices;
}

/** The causal map, a slice a request, shown as it comes; it can be stopped. */
function owed() {
  const box = h("div", { class: "owed" });
  const start = h("button", { type: "button", onclick: async () => {
    const stop = new AbortController();
    const button = h("button", { type: "button", onclick: () => stop.abort() }, "Stop");
    const canvases = { attn: h("canvas", { width: 600, height: 60, "aria-hidden": "true" }), mlp: h("canvas", { width: 600, height: 60, "aria-hidden": "true" }), head: h("canvas", { width: 600, height: 60, "aria-hidden": "true" }) };
    const text = h("p", { class: "note", role: "status" });
    box.replaceChildren(button, "attention of each layer", canvases.attn, "MLP of each layer", canvases.mlp, `heads of layer ${layer}`, canvases.head, text);
    const found = { attn: [], mlp: [], head: [] };
    const layers = Array.from({ length: state.inside.n_layers }, (_, i) => i);
    const heads = Array.from({ length: state.inside.n_heads }, (_, i) => ({ part: "head", layer, head: i }));
    const slices = [...inSlices(heads), ...["attn", "mlp"].flatMap((part) => inSlices(layers.map((l) => ({ part, layer: l }))))];
    try {
      for (const causal of slices) {
        const look = await lookAt({ causal }, stop.signal);
        for (const effect of look.causal) found[effect.part].push(effect.nats);
        const most = Math.max(0.01, ...Object.values(found).flat().map(Math.abs));
        for (const part of Object.keys(found)) bars(canvases[part], found[part], most, true);
        text.textContent = `Up: spoke for the token. The tallest bar is ${most.toFixed(2)} nats.`;
      }
    } catch (error) {
      text.textContent = error.name === "AbortError" ? "Stopped." : error.message;
    }
    button.remove();
  } }, `Take parts out, one by one (${2 * state.inside.n_layers + state.inside.n_heads} forwards)`);
  box.append(start);
  return box;
}
