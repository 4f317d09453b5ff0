// Why this token: candidates before and after the filters, the stages, and the draw itself.

import * as api from "../api.js";
import { h, heading, percent, pieceText, visible } from "../dom.js";
import { lookAt, provenance } from "../looks.js";
import { filtered } from "../sampler.js";
import { state, world } from "../store.js";
import { force, fork } from "../talk.js";
import { openNumber } from "./number.js";

export const name = "Why this token";
const SHOWN = 12;
let guessFirst = false;
const guessed = new Set();
/** @type {Map<number, string>} */
const texts = new Map();

export async function draw(place) {
  const look = await lookAt({ candidates: SHOWN, logits: true });
  const ids = api.unpack(look.logits.ids).values;
  const logits = api.unpack(look.logits.values).values;
  const unknown = Array.from(ids.slice(0, 40)).filter((id) => !texts.has(id));
  if (unknown.length) {
    const told = await api.detokenize({ model: state.model, tokens: unknown });
    told.pieces.forEach((piece, i) => texts.set(unknown[i], pieceText(piece)));
  }
  const at = world();
  const chosen = at.ids[state.selected];
  const name = `${at.name} ${state.selected} ${at.ids.length}`;
  if (guessFirst && !guessed.has(name)) return place.replaceChildren(guessForm(look, place, name));

  const now = filtered(ids, logits, look.logits.tail, state.params);
  const rows = now.tokens.slice(0, SHOWN);
  const own = now.tokens.find((t) => t.id === chosen);
  if (own && !rows.includes(own)) rows.push(own);
  if (!own) { // beyond the likeliest, of which alone the sliders know
    const drawn = look.candidates.find((c) => c.token === chosen);
    texts.set(chosen, drawn.text);
    rows.push({ id: chosen, pRaw: drawn.p_raw, p: null, cutBy: "" });
  }
  const step = at.steps.get(state.selected);
  place.replaceChildren(
    h("p", { class: "note" },
      drawnWith(at, step), `the bars are of float32, where it has ${percent(Math.exp(look.logprob))}. `,
      `Entropy ${look.entropy.toFixed(2)} nats. `, provenance(look), " Drag the sliders: the bars follow. Click a number: where it comes from."),
    h("table", {},
      heading(["token", "the model's own / after filters", "p", "drawn with", "cut by"], ["p", "drawn with"]),
      h("tbody", {}, ...rows.map((token) => row(token, chosen)))),
    ...unitLine(now, look.uniform, chosen, step),
    tools(look));
}

function row(token, chosen) {
  const text = texts.get(token.id) ?? `token ${token.id}`;
  const take = () => fork(state.selected, [token.id], `“${visible(text)}” instead`);
  return h("tr", { class: [token.id === chosen && "chosen", token.cutBy && "cut"].filter(Boolean).join(" ") },
    h("td", {}, h("button", { class: "token", type: "button", onclick: take, title: "take this one instead", "aria-label": `take ${visible(text)} instead` }, visible(text))),
    h("td", { class: "bars" }, h("span", { class: "bar raw", "--share": token.pRaw }), h("span", { class: "bar", "--share": token.p ?? 0 })),
    h("td", { class: "number" }, opens(percent(token.pRaw), "p_raw", token)),
    h("td", { class: "number" }, opens(token.p === null ? "–" : percent(token.p), "p", token)),
    h("td", {}, token.cutBy ? opens(token.cutBy, token.cutBy, token) : ""));
}

const opens = (text, name, token) =>
  h("button", { type: "button", class: "opens", onclick: () => openNumber({ name, dim: token.id }) }, text);

/** Whose number a token's probability was when it was drawn. */
function drawnWith(at, step) {
  if (!step) return state.selected < at.nPrompt ? "A token of the prompt; " : "A token of the answer, which wasn't drawn on this page; ";
  const p = percent(Math.exp(step.logprob));
  return at.byLooks ? `Drawn in float32 with ${p}; ` : `The server drew this with ${p}, from its own format's logits; `;
}

/** The interval from 0 to 1, cut up in the order of ids as the draw does it, and where it fell. */
function unitLine(now, uniform, chosen, step) {
  if (!now.complete) return [h("p", { class: "note" }, "So many tokens could be drawn that they don't fit on a line: cut with top-k or top-p.")];
  const slices = now.tokens.filter((t) => t.p > 0).sort((a, b) => a.id - b.id);
  let end = 0;
  const there = slices.find((t) => (end += t.p) > uniform);
  const apart = there && there.id !== chosen
    ? " In float32 another token's slice lies there: the server drew from its own format's logits, or the sliders have moved since." : "";
  return [
    h("div", { class: "unit", role: "img", "aria-label": `${slices.length} tokens share the line from 0 to 1; the draw fell at ${uniform.toFixed(3)}` },
      ...slices.map((t) => h("span", { "--share": t.p, class: t.id === chosen ? "chosen" : "", title: `${visible(texts.get(t.id) ?? String(t.id))} ${percent(t.p)}` },
        t.p > 0.04 ? visible(texts.get(t.id) ?? "") : ""))),
    step?.chosen_by === "sample" ? h("div", { class: "mark", "--share": uniform }) : "",
    step ? h("p", { class: "note" }, step.chosen_by === "sample" ? `The slices are of float32, under the sliders as they are now. The seed's number here is ${uniform.toFixed(4)}: whoever's slice holds it is drawn.${apart}` : "Greedy: the likeliest was taken.") : "",
  ];
}

function tools(look) {
  const input = h("input", { class: "plain", type: "text", "aria-label": "Any text to force here", placeholder: "any text instead …" });
  const form = h("form", { class: "row", onsubmit: (e) => { e.preventDefault(); if (input.value) force(state.selected, input.value); } },
    input, h("button", { type: "submit" }, "Force"));
  const box = h("input", { type: "checkbox", onchange: (e) => { guessFirst = e.target.checked; } });
  box.checked = guessFirst;
  const stages = look.stages.map((s) => `${s.name} ${s.n_kept.toLocaleString("en")}`).join(" → ");
  return h("div", {}, form, h("label", {}, box, " guess first: hide the candidates of the next token I look at"),
    h("p", { class: "note" }, `Tokens left, as it was drawn: ${stages}`));
}

function guessForm(look, place, name) {
  const input = h("input", { class: "plain", type: "text", "aria-label": "Your guess", placeholder: "what comes next?" });
  return h("form", { class: "row", onsubmit: async (e) => {
    e.preventDefault();
    const told = await api.tokenize({ model: state.model, text: input.value });
    const ids = api.unpack(look.logits.ids).values;
    const now = filtered(ids, api.unpack(look.logits.values).values, look.logits.tail, { temperature: 1, top_k: 0, top_p: 1 });
    const mine = now.tokens.find((t) => t.id === told.tokens[0]);
    guessed.add(name);
    await draw(place);
    place.prepend(h("p", {}, mine ? `Your guess cost ${(-Math.log(mine.pRaw)).toFixed(2)} nats; ` : "Your guess isn't among the model's 256 likeliest; ", `the model's choice cost ${(-look.logprob).toFixed(2)}.`));
  } }, input, h("button", { type: "submit" }, "Guess"));
}
