// Two worlds side by side: a fork, another temperature, float32, a broken part; where they part.

import { h, heading, percent, pieceText, visible } from "../dom.js";
import { lookAt, provenance } from "../looks.js";
import { changed, select, shared, state, world } from "../store.js";
import { fork } from "../talk.js";

export const name = "Two worlds";
/** @type {import("../store.js").World | null} */
let chosen = null;

export async function draw(place) {
  const at = world();
  const others = state.worlds.filter((one) => one !== at);
  if (!others.includes(chosen)) chosen = others.at(-1) ?? null;
  const pick = h("select", { "aria-label": "The other world", onchange: (e) => { chosen = others[e.target.value]; changed("selection"); } },
    ...others.map((one, i) => h("option", { value: i, selected: one === chosen }, one.name)));
  place.replaceChildren(makers(at), others.length ? h("label", { class: "row" }, h("b", {}, at.name), " beside ", pick) : "");
  if (!chosen) return;
  const apart = shared(at, chosen);
  const end = Math.min(at.ids.length, chosen.ids.length);
  place.append(
    h("p", {}, apart === end ? "All tokens that both have are the same. " : `They part at token ${apart}: ${text(at, apart)} here, ${text(chosen, apart)} there. `,
      h("button", { type: "button", onclick: () => select(Math.min(apart, end - 1)) }, "Look there")),
    h("div", { class: "aligned" }, aligned(at, apart), aligned(chosen, apart)));
  if (state.selected > apart) return place.append(h("p", { class: "note" }, "Behind that token, each goes on from another text: choose it, or one before."));
  const position = state.selected;
  const want = { candidates: 6, lens: 1 };
  const [mine, theirs] = await Promise.all([lookAt(want, undefined, at, position), lookAt(want, undefined, chosen, position)]);
  const parted = mine.lens.findIndex((row, i) => row.top[0][0] !== theirs.lens[i].top[0][0]);
  place.append(h("div", { class: "beside" }, side(at, mine, theirs, parted), side(chosen, theirs, mine, parted)));
}

const signed = (points) => `${points < 0 ? "−" : "+"}${Math.abs(points).toFixed(2)}`;

const text = (at, position) => visible(at.pieces[position]?.text ?? "the end");

/** The tokens around the first difference, one under the other. */
function aligned(at, apart) {
  const start = Math.max(0, apart - 4);
  return h("div", { class: "strip", "aria-label": at.name }, h("span", { class: "strip-name" }, at.name), " ",
    ...at.pieces.slice(start, apart + 8).map((piece, i) =>
      h("span", { class: `tile${start + i === apart ? " differs" : ""}` }, visible(pieceText(piece)))));
}

function side(at, look, other, parted) {
  const there = new Map(other.candidates.map((c) => [c.token, c.p_raw]));
  return h("section", { "aria-label": at.name }, h("h2", {}, at.name),
    h("p", { class: "note" }, provenance(look)),
    h("table", {}, heading(["token", "", "p", "here − there"], ["p", "here − there"]),
      h("tbody", {}, ...look.candidates.map((c) => h("tr", {},
        h("td", {}, h("span", { class: "token" }, visible(c.text))),
        h("td", { class: "bars" }, h("span", { class: "bar", "--share": c.p_raw })),
        h("td", { class: "number" }, percent(c.p_raw)),
        h("td", { class: "number" }, there.has(c.token) ? signed(100 * (c.p_raw - there.get(c.token))) : "–"))))),
    h("p", {}, "Likeliest at each depth: ", ...look.lens.map((row, i) =>
      h("span", { class: i === parted ? "token differs" : "token", title: row.layer ? `layer ${row.layer - 1}` : "embedding" }, visible(row.top[0][0])))));
}

/** Ways to make a second world. Each starts where the answer does. */
function makers(at) {
  const from = at.nPrompt;
  const broken = h("select", { "aria-label": "Part to break" }, ...Object.entries(state.inside.breakages).map(([id, what]) => h("option", { value: id }, what)));
  const button = (label, act) => h("button", { type: "button", disabled: state.busy, onclick: () => act() }, label);
  const models = state.models.filter((id) => id !== at.model);
  return h("div", {},
    h("p", { class: "note" }, "Tell the same answer anew, with one thing different:"),
    h("div", { class: "row" },
      button("the temperature on the slider", () => fork(from, [], `temperature ${state.params.temperature}`, { broken: "", byLooks: false })),
      button("float32 weights", () => fork(from, [], "float32", { broken: "", byLooks: true, params: { ...at.params } })),
      ...models.map((id) => button(id, () => fork(from, [], id, { model: id })))),
    h("div", { class: "row" }, broken,
      button("Break it", () => fork(from, [], `broken: ${broken.value}`, { broken: broken.value, byLooks: true, params: { ...at.params } }))));
}
