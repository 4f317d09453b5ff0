// One number: the formula, the values in it, the line of source. Each term opens the next.

import { h, heading, visible } from "../dom.js";
import { lookAt, provenance } from "../looks.js";
import { changed, state, world } from "../store.js";

export const name = "One number";
const CHOICE = ["p", "min_p", "top_p", "top_k", "temperature", "penalties", "p_raw", "logits"];
const LAST = "ln_final.hook_normalized"; // stands in no layer
const POINTS = ["hook_resid_pre", "ln1.hook_normalized", "attn.hook_q", "attn.hook_k", "attn.hook_v", "attn.hook_rot_q", "attn.hook_rot_k", "attn.hook_attn_scores", "attn.hook_pattern", "attn.hook_z", "hook_attn_out", "hook_resid_mid", "ln2.hook_normalized", "mlp.hook_pre", "mlp.hook_pre_linear", "mlp.hook_post", "hook_mlp_out", "hook_resid_post"];

/** @typedef {{name: string, head?: number, key?: number, dim?: number}} Asked */
/** @type {Asked} */
let asked = { name: "p" };
/** @type {Asked[]} */
let trail = []; // the numbers that led here

/** Show where a number comes from. @param {Asked} number */
export function openNumber(number) {
  asked = number;
  trail = [];
  state.view = "number";
  changed("selection");
}

function follow(number) {
  trail.push(asked);
  asked = number;
  changed("selection");
}

export async function draw(place) {
  const inLayer = /^blocks\.(\d+)\.(.*)$/.exec(asked.name);
  const layer = Number(inLayer?.[1] ?? 0);
  const suffix = inLayer?.[2] ?? asked.name;
  place.replaceChildren(chooser(layer, suffix), h("p", { class: "note" }, "…"));
  const explain = { ...asked };
  if (CHOICE.includes(asked.name)) explain.dim ??= world().ids[state.selected];
  const look = await lookAt({ explain });
  const told = look.explain;
  const back = trail.length > 0 && h("button", { type: "button", onclick: () => { asked = trail.pop(); changed("selection"); } }, `Back to ${trail.at(-1).name}`);
  place.replaceChildren(
    chooser(layer, suffix), back || "",
    h("pre", {}, `${told.name}  at ${Object.entries(told.where).map(([k, v]) => `${k} ${v}`).join(", ")}\n\n  ${told.formula}\n= ${told.filled}\n= ${told.recomputed ?? "−∞"}   in float64, from these inputs\n= ${told.value ?? "−∞"}   as the readable path has it\n\n${told.source}   ${told.line}${told.tensor ? `\nwith ${told.tensor}` : ""}`),
    told.terms.length ? terms(told) : h("p", { class: "note" }, "This is a weight: nothing is behind it but training."),
    told.n_terms > told.terms.length ? h("p", { class: "note" }, `The largest ${told.terms.length} of ${told.n_terms} terms.`) : "",
    h("p", { class: "note" }, provenance(look)));
}

function terms(told) {
  return h("table", {},
    heading(["term", "factors", "value"], ["value"]),
    h("tbody", {}, ...told.terms.map((term) => h("tr", {},
      h("td", {}, term.opens.name ? h("button", { type: "button", class: "opens", onclick: () => follow(term.opens) }, visible(term.label)) : visible(term.label)),
      h("td", {}, term.factors), h("td", { class: "number" }, term.value === null ? "−∞" : term.value.toPrecision(5))))));
}

function chooser(layer, suffix) {
  const point = h("select", { "aria-label": "Number", onchange: (e) => go(e.target.value, layer) },
    ...CHOICE.map((p) => h("option", { value: p, selected: p === suffix }, p)),
    h("option", { value: LAST, selected: suffix === LAST }, LAST),
    ...POINTS.map((p) => h("option", { value: p, selected: p === suffix }, p)));
  const number = (label, value, set) => h("label", {}, `${label} `, h("input", { class: "plain", type: "number", min: 0, value, onchange: (e) => { set(Number(e.target.value)); changed("selection"); } }));
  const inLayer = POINTS.includes(suffix);
  const perHead = /hook_(q|k|v|rot_q|rot_k|z|attn_scores|pattern)$/.test(suffix);
  const overKeys = /scores|pattern/.test(suffix);
  return h("div", { class: "row" }, point,
    inLayer && number("layer", layer, (v) => { asked = { ...asked, name: `blocks.${v}.${suffix}` }; }),
    perHead && number("head", asked.head ?? 0, (v) => { asked = { ...asked, head: v }; }),
    (inLayer || suffix === LAST) && !overKeys && number("dim", asked.dim ?? 0, (v) => { asked = { ...asked, dim: v }; }));
}

function go(point, layer) {
  openNumber({ name: CHOICE.includes(point) || point === LAST ? point : `blocks.${layer}.${point}` });
}
