// What each depth would have said: the logit lens, a row a depth, the last one on top.

import { h, heading, percent, visible } from "../dom.js";
import { lookAt, provenance } from "../looks.js";
import { state } from "../store.js";
import { openNumber } from "./number.js";

export const name = "Depth by depth";

export async function draw(place) {
  const look = await lookAt({ candidates: 1, lens: 5 });
  const rows = [...look.lens].reverse().map((row) => h("tr", {},
    h("th", { scope: "row" }, h("button", { type: "button", onclick: () => openNumber({ name: row.layer ? `blocks.${row.layer - 1}.hook_resid_post` : "blocks.0.hook_resid_pre", dim: 0 }) }, row.layer ? `layer ${row.layer - 1}` : "embedding")),
    ...row.top.map(([text, p]) => h("td", { "--share": p, title: percent(p) }, visible(text))),
    h("td", { class: "number" }, `${percent(row.p)} · #${row.rank + 1}`)));
  place.replaceChildren(
    h("p", { class: "note" }, "Each depth's own residual stream through the final norm and the unembedding; to the right, how the chosen token stood. ", provenance(look)),
    h("table", { class: "lens", "data-position": state.selected },
      heading(["depth", "1st", "2nd", "3rd", "4th", "5th", "chosen"], ["chosen"]),
      h("tbody", {}, ...rows)));
}
