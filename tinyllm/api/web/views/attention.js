// Where it looked: one layer's heads over the tokens; beside it what each part was worth.

import { unpack } from "../api.js";
import { h, percent, visible } from "../dom.js";
import { lookAt, provenance } from "../looks.js";
import { imageAt, state, world } from "../store.js";

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
  const slider = h("input", { type: "range", min: 0, max: state.inside.n_layers - 1, value: layer, "aria-label": "Layer",
    onchange: (e) => { layer = Number(e.target.value); redraw(place); } });
  place.replaceChildren(
    h("p", { class: "note" }, provenance(look)),
    h("label", { class: "row" }, "layer", slider, h("b", {}, String(layer)), ` head ${head}`),
    h("div", { class: "arcs", tabindex: "0", role: "img", "aria-label": told(weights) }, arcs(weights)),
    h("div", { class: "heads" }, ...Array.from({ length: nHeads }, (_, i) => small(values.slice(i * n, (i + 1) * n), i, place))),
    h("h2", {}, "What it owed to each part"),
    h("p", { class: "note" }, "A pattern says where a head looked, not whether it mattered. Taking each part out in turn does."),
    owed());
}

function redraw(place) {
  draw(place).catch((error) => place.replaceChildren(h("p", { class: "note" }, error.message)));
}

/** A token's text; an image's rows have none. */
const shown = (i) => (imageAt(world(), i) ? "▦" : visible(world().pieces[i].text));

function told(weights) {
  const best = Array.from(weights.keys()).sort((a, b) => weights[b] - weights[a]).slice(0, 3);
  return "Attention, most to: " + best.map((i) => `${shown(i)} ${percent(weights[i])}`).join(", ");
}

function arcs(weights) {
  const from = Math.max(0, weights.length - SEEN);
  const n = weights.length - from;
  const svg = h("svg", { viewBox: `0 0 ${n * WIDTH + 20} 150`, "--wide": `${n * WIDTH + 20}px` });
  const x = (i) => 10 + (i - from + 0.5) * WIDTH;
  for (let i = from; i < weights.length; i++) {
    if (weights[i] > 0.01) {
      const a = x(i), b = x(weights.length - 1), top = 105 - Math.min(95, 14 + Math.abs(b - a) / 4);
      svg.append(h("path", { d: `M${a} 108 Q${(a + b) / 2} ${top - 30} ${b} 108`, "stroke-width": 1 + 7 * weights[i], opacity: 0.25 + 0.75 * weights[i] }));
    }
    svg.append(h("text", { x: x(i), y: 124, "text-anchor": "middle" }, h("title", {}, `${shown(i)} ${percent(weights[i])}`), shown(i).slice(0, 5)));
  }
  return svg;
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
