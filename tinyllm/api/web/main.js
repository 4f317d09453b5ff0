// The page: waits for the server, then ties the store to what is seen.

import * as api from "./api.js";
import { h } from "./dom.js";
import { fillLessons } from "./lessons.js";
import { link, openLink, save } from "./share.js";
import { changed, onChange, select, state, world } from "./store.js";
import { drawStrips, mark } from "./strip.js";
import { answer, fork, rewind, say, stop } from "./talk.js";
import * as attention from "./views/attention.js";
import * as cache from "./views/cache.js";
import * as depths from "./views/depths.js";
import * as number from "./views/number.js";
import * as why from "./views/why.js";

const VIEWS = { why, attention, depths, cache, number };
const CONTROLS = [
  ["temperature", "Temperature", { min: 0, max: 2, step: 0.05 }],
  ["top_k", "Top-k (0: off)", { min: 0, max: 100, step: 1 }],
  ["top_p", "Top-p", { min: 0, max: 1, step: 0.01 }],
];
const $ = (id) => document.getElementById(id);

function tell(text, bad = false) {
  $("status").textContent = text;
  $("status").classList.toggle("bad", bad);
}

/** Say what went wrong in words; with a key missing, ask for one. */
function failed(error) {
  if (error.status === 401) return askForKey(error.message);
  const full = error.status === 429 ? " Try again in a moment." : "";
  tell(`${error.message}${full}`, true);
}

function askForKey(message) {
  const input = h("input", { class: "plain", type: "password", "aria-label": "API key", autocomplete: "off" });
  const form = h("form", { class: "row", onsubmit: (e) => { e.preventDefault(); api.useKey(input.value.trim()); tell(""); begin(); } },
    message, input, h("button", { type: "submit" }, "Use this key for this tab"));
  $("status").replaceChildren(form);
}

async function begin() {
  for (;;) {
    try {
      const told = await api.health();
      state.model = told.models[0];
      await api.models();
      break;
    } catch (error) {
      if (error.status !== 503) return error.status ? failed(error) : tell("The server can't be reached.", true);
      tell(`${error.message} This page goes on by itself.`);
      await new Promise((resume) => setTimeout(resume, 1000));
    }
  }
  tell(`${state.model} is ready.`);
  await openLink().catch(() => tell("This link can't be read.", true));
}

function drawMessages() {
  const at = world();
  const last = state.messages.at(-1);
  if (at && last?.role === "assistant") last.content = answer(at);
  const box = $("messages");
  const atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 60;
  while (box.children.length > state.messages.length) box.lastChild.remove();
  state.messages.forEach((message, i) => {
    const shown = box.children[i] ?? box.appendChild(h("div", {}));
    shown.className = `message ${message.role}`;
    if (shown.textContent !== message.content) shown.textContent = message.content;
  });
  if (atEnd) box.scrollTop = box.scrollHeight;
}

let drawing = 0;
async function drawView() {
  const mine = ++drawing;
  for (const tab of $("tabs").children) {
    const on = tab.dataset.view === state.view;
    tab.setAttribute("aria-selected", String(on));
    tab.tabIndex = on ? 0 : -1;
  }
  const view = VIEWS[state.view] ?? why;
  const draft = h("div", {});
  if (!world()) return $("view").replaceChildren(h("p", { class: "note" }, "Say something; then click any token to see where it came from."));
  $("view").setAttribute("aria-busy", "true");
  try {
    await view.draw(draft);
  } catch (error) {
    draft.replaceChildren(h("p", { class: "note" }, error.message));
  }
  if (mine !== drawing) return;
  $("view").replaceChildren(draft);
  $("view").setAttribute("aria-busy", "false");
}

function drawControls() {
  const seed = h("input", { type: "number", min: 0, max: 2 ** 31, value: state.params.seed, "aria-label": "Seed", onchange: (e) => { state.params.seed = Number(e.target.value); } });
  $("controls").replaceChildren($("controls").firstElementChild, ...CONTROLS.map(([key, label, range]) => {
    const output = h("output", {}, String(state.params[key]));
    const slider = h("input", { ...range, type: "range", value: state.params[key], "aria-label": label,
      oninput: (e) => { state.params[key] = Number(e.target.value); output.textContent = e.target.value; changed("slider"); } });
    return h("div", { class: "control" }, h("span", { "aria-hidden": "true" }, label), slider, output);
  }), h("div", { class: "control" }, h("span", { "aria-hidden": "true" }, "Seed"), seed, h("span", {})));
}

/** ← → move, ↑ ↓ choose among candidates, Enter takes, Backspace rewinds, F forks. */
function keys(event) {
  if (event.target.matches?.("input, textarea, select") || event.ctrlKey || event.metaKey) return;
  const candidates = [...document.querySelectorAll("#view button.token")];
  const on = candidates.indexOf(document.activeElement);
  const act = {
    ArrowLeft: () => select(state.selected - 1),
    ArrowRight: () => select(state.selected + 1),
    ArrowDown: () => candidates[Math.min(on + 1, candidates.length - 1)]?.focus(),
    ArrowUp: () => candidates[Math.max(on - 1, 0)]?.focus(),
    Backspace: () => rewind(state.selected),
    f: () => { const at = world(); if (at && state.selected > 0) fork(state.selected, [], "fork").catch(failed); },
  }[event.key];
  if (!act || !world()) return;
  event.preventDefault();
  act();
}

onChange((what) => {
  if (what === "tokens" || what === "worlds") drawStrips($("strips"), what === "worlds");
  if (what === "tokens" || what === "messages") drawMessages();
  if (what === "selection") { mark(); drawView(); }
  if (what === "slider" && state.view === "why" && world()) drawView();
  if (what === "params") drawControls();
  if (what === "busy") { $("send").hidden = state.busy; $("stop").hidden = !state.busy; }
});

for (const [id, view] of Object.entries(VIEWS)) {
  $("tabs").append(h("button", { type: "button", role: "tab", "data-view": id, "aria-controls": "view", onclick: () => { state.view = id; drawView(); } }, view.name));
}
$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (!text || state.busy || !state.model) return;
  $("text").value = "";
  tell("");
  say(text).catch(failed);
});
$("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); $("composer").requestSubmit(); }
});
$("stop").addEventListener("click", stop);
$("share").addEventListener("click", () => { history.replaceState(null, "", link()); navigator.clipboard?.writeText(location.href).then(() => tell("The link is copied; it holds everything that is needed."), () => tell("The link stands in the address bar.")); });
$("export").addEventListener("click", save);
addEventListener("keydown", keys);
addEventListener("unhandledrejection", (event) => { event.preventDefault(); failed(event.reason); });
drawControls();
drawView();
drawStrips($("strips"), true);
fillLessons($("lesson"), $("guide"));
begin();
