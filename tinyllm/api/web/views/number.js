// One number: the formula, the values in it, the line of source; each hook point can be asked.

import { h } from "../dom.js";
import { lookAt } from "../looks.js";
import { changed, state } from "../store.js";

export const name = "One number";
const POINTS = ["hook_resid_pre", "ln1.hook_normalized", "attn.hook_q", "attn.hook_k", "attn.hook_v", "attn.hook_rot_q", "attn.hook_rot_k", "attn.hook_attn_scores", "attn.hook_pattern", "attn.hook_z", "hook_attn_out", "hook_resid_mid", "ln2.hook_normalized", "mlp.hook_pre", "mlp.hook_pre_linear", "mlp.hook_post", "hook_mlp_out", "hook_resid_post"];
let asked = { point: "blocks.0.attn.hook_pattern", head: 0, dim: 0 };

/** Show where a number comes from. @param {string} point */
export function openNumber(point) {
  asked = { ...asked, point };
  state.view = "number";
  changed("selection");
}

export async function draw(place) {
  const suffix = asked.point.replace(/^blocks\.\d+\./, "");
  const perHead = /hook_(q|k|v|rot_q|rot_k|z|attn_scores|pattern)$/.test(suffix);
  const overKeys = /scores|pattern/.test(suffix);
  const explain = { name: asked.point };
  if (perHead) explain.head = asked.head;
  if (!overKeys) explain.dim = asked.dim;
  const { explain: told } = await lookAt({ explain });
  const layer = Number(/\d+/.exec(asked.point)?.[0] ?? 0);
  const number = (label, value, set) => h("label", {}, `${label} `, h("input", { class: "plain", type: "number", min: 0, value, onchange: (e) => { set(Number(e.target.value)); changed("selection"); } }));
  const point = h("select", { "aria-label": "Hook point", onchange: (e) => { asked.point = `blocks.${layer}.${e.target.value}`; changed("selection"); } },
    ...POINTS.map((p) => h("option", { value: p, selected: p === suffix }, p)));
  place.replaceChildren(
    h("div", { class: "row" }, number("layer", layer, (v) => { asked.point = `blocks.${v}.${suffix}`; }), point,
      perHead && number("head", asked.head, (v) => { asked.head = v; }), !overKeys && number("dim", asked.dim, (v) => { asked.dim = v; })),
    h("pre", {}, `${told.name}  at ${Object.entries(told.where).map(([k, v]) => `${k} ${v}`).join(", ")}\n\n  ${told.formula}\n= ${told.filled}\n= ${told.recomputed}   in float64, from these inputs\n= ${told.value}   as the readable path has it\n\n${told.source}   ${told.line}${told.tensor ? `\nwith ${told.tensor}` : ""}`),
    told.terms.length ? h("table", {}, h("thead", {}, h("tr", {}, ...["term", "factors", "value"].map((t) => h("th", { scope: "col" }, t)))),
      h("tbody", {}, ...told.terms.map((t) => h("tr", {}, h("td", {}, t.label), h("td", {}, t.factors), h("td", { class: "number" }, t.value.toPrecision(5)))))) : "",
    told.n_terms > told.terms.length ? h("p", { class: "note" }, `The largest ${told.terms.length} of ${told.n_terms} terms.`) : "");
}
