// The page: waits for the server, then ties the store to what is seen.

import * as api from "./api.js";
import { h } from "./dom.js";
import { fillLessons } from "./lessons.js";
import { link, openLink, save } from "./share.js";
import { acceptImages, drawPictures } from "./pictures.js";
import { onReading } from "./looks.js";
import { changed, move, onChange, state, world } from "./store.js";
import { drawStrips, mark } from "./strip.js";
import { answer, edit, fork, goOn, retry, rewind, say, stop, use } from "./talk.js";
import * as attention from "./views/attention.js";
import * as cache from "./views/cache.js";
import * as depths from "./views/depths.js";
import * as image from "./views/image.js";
import * as number from "./views/number.js";
import * as why from "./views/why.js";
import * as worlds from "./views/worlds.js";

const VIEWS = { why, attention, depths, cache, image, number, worlds };
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

/** Say what went wrong in words, and what to do; with a key missing or wrong, ask for one. */
function failed(error) {
  if (error.status === 401) return askForKey(error.message);
  if (error.message === api.UNREACHABLE) return waitForServer();
  const remedy = error.status === 429 || error.status === 503 ? " Nothing is lost: try again in a moment." : "";
  tell(`${error.message}${remedy}`, true);
}

function askForKey(message) {
  const input = h("input", { class: "plain", type: "password", "aria-label": "API key", autocomplete: "off" });
  const form = h("form", { class: "row", onsubmit: (e) => { e.preventDefault(); api.useKey(input.value.trim()); tell(""); begin(); } },
    message, input, h("button", { type: "submit" }, "Use this key for this tab"));
  $("status").replaceChildren(form);
}

const soon = () => new Promise((resume) => setTimeout(resume, 1000));
const tellOfSilence = () => tell(`${api.UNREACHABLE} This page tries again by itself.`, true);

/** Ask until the server is there again: what is on the page stays, since the server keeps nothing of it. */
let waiting = false;
async function waitForServer() {
  tellOfSilence();
  if (waiting) return;
  waiting = true;
  for (let away = true; away;) {
    await soon();
    away = await api.health().then(() => false, (error) => {
      if (error.status === 503) showLoading(error);
      return error.status === 503 || error.message === api.UNREACHABLE;
    });
  }
  waiting = false;
  tell("The server is back.");
  drawView();
}

async function begin() {
  for (;;) {
    try {
      state.models = (await api.health()).models;
      state.model = state.models[0];
      await use(state.model);
      break;
    } catch (error) {
      if (error.message === api.UNREACHABLE) tellOfSilence();
      else if (error.status === 503) showLoading(error);
      else return failed(error);
      await soon();
    }
  }
  $("model").replaceChildren(...state.models.map((id) => h("option", {}, id)));
  tell(`${state.model} is ready.`);
  await openLink().catch((error) => tell(`This link can't be opened: ${error.message}`, true));
}

/** What the server is at before it can answer, and how much of that remains. */
function showLoading(error) {
  const { stage, what, done, total, seconds_left: left } = error.body?.error?.loading ?? {};
  const bar = total ? h("progress", { max: total, value: done, "aria-label": what }) : null;
  const rest = left ? ` about ${left < 90 ? `${Math.ceil(left)} seconds` : `${Math.ceil(left / 60)} minutes`} remain.` : "";
  $("status").classList.remove("bad");
  $("status").replaceChildren(...[stage ? `${stage}: ${what} ` : `${error.message} `, bar, `${rest} This page goes on by itself.`].filter(Boolean));
}

const opened = h("p", { class: "note" }, "Opened from a link: “Go on” asks for more of it; what you ask here begins anew.");
function drawMessages() {
  const at = world();
  const last = state.messages.at(-1);
  if (at && last?.role === "assistant") last.content = answer(at);
  const box = $("messages");
  if (at && !state.messages.length) return box.replaceChildren(opened);
  opened.remove();
  const atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 60;
  while (box.children.length > state.messages.length) box.lastChild.remove();
  state.messages.forEach((message, i) => {
    const shown = box.children[i] ?? box.appendChild(h("div", {}, h("div", { class: "said" })));
    shown.className = `message ${message.role}`;
    const said = shown.firstElementChild;
    if (said.textContent === message.content && said.childElementCount === (message.images?.length ?? 0)) return;
    said.replaceChildren(...(message.images ?? []).map((url) => h("img", { src: url, alt: "the image that was sent" })), message.content);
    if (message.role === "user") shown.replaceChildren(said, h("button", { type: "button", class: "edit", onclick: () => { if (!state.busy) { $("text").value = edit(i); $("text").focus(); } } }, "Edit"));
  });
  if (atEnd) box.scrollTop = box.scrollHeight;
}

function drawButtons() {
  const answered = Boolean(world()) && !state.busy;
  $("send").hidden = state.busy;
  $("stop").hidden = !state.busy;
  $("retry").disabled = !answered || !state.messages.length;
  $("more").disabled = !answered;
}

let drawing = 0;
const invitation = h("p", { class: "note" }, "Say something; then click any token to see where it came from.");
async function drawView() {
  const mine = ++drawing;
  for (const tab of $("tabs").children) {
    const on = tab.dataset.view === state.view;
    tab.setAttribute("aria-selected", String(on));
    tab.tabIndex = on ? 0 : -1;
  }
  const view = VIEWS[state.view] ?? why;
  const draft = h("div", {});
  if (!world()) return $("view").replaceChildren(invitation);
  $("view").setAttribute("aria-busy", "true");
  invitation.replaceWith(h("p", { class: "note" }, "Looking inside; the first look takes some seconds, which read the weights in float32 …"));
  try {
    await view.draw(draft);
  } catch (error) {
    draft.replaceChildren(h("p", { class: "note" }, error.message));
    if (error.message === api.UNREACHABLE) failed(error);
  }
  if (mine !== drawing) return;
  $("view").replaceChildren(draft);
  $("view").setAttribute("aria-busy", "false");
}

/** Of a long text that the model reads before it can look, how much it has read. */
function drawReading(done, total) {
  const said = `Reading the text in float32: ${done} of ${total} tokens`;
  $("reading").hidden = done >= total;
  $("reading").replaceChildren(`${said} `, h("progress", { max: total, value: done, "aria-label": said }));
}
onReading(drawReading);

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
    ArrowLeft: () => move(-1),
    ArrowRight: () => move(1),
    ArrowDown: () => candidates[Math.min(on + 1, candidates.length - 1)]?.focus(),
    ArrowUp: () => candidates[Math.max(on - 1, 0)]?.focus(),
    Backspace: () => rewind(state.selected),
    f: () => { const at = world(); if (at && state.selected > 0) fork(state.selected, [], "fork").catch(failed); },
  }[event.key];
  if (!act || !world()) return;
  event.preventDefault();
  act();
}

/** Tokens come faster than frames: what came since the last one is drawn at once. */
let frame = 0;
function drawTokens() {
  frame ||= requestAnimationFrame(() => {
    frame = 0;
    drawStrips($("strips"), false);
    drawMessages();
  });
}

onChange((what) => {
  if (what === "tokens") drawTokens();
  if (what === "worlds") drawStrips($("strips"), true);
  if (what === "messages" || what === "worlds") drawMessages();
  if (what === "images") drawPictures($("pictures"));
  if (what === "selection") { mark(); drawView(); }
  if (what === "slider" && state.view === "why" && world()) drawView();
  if (what === "model") $("model").value = state.model;
  if (what === "params") drawControls();
  if (what === "busy" || what === "worlds" || what === "messages") drawButtons();
});

for (const [id, view] of Object.entries(VIEWS)) {
  $("tabs").append(h("button", { type: "button", role: "tab", "data-view": id, "aria-controls": "view", onclick: () => { state.view = id; drawView(); } }, view.name));
}
$("tabs").addEventListener("keydown", (event) => {
  const tabs = [...$("tabs").children];
  const on = tabs.findIndex((tab) => tab.dataset.view === state.view);
  const to = { ArrowLeft: on - 1, ArrowRight: on + 1, Home: 0, End: tabs.length - 1 }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  event.stopPropagation(); // on the strip these keys move along the tokens
  const tab = tabs.at(to % tabs.length);
  tab.focus();
  tab.click();
});
$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (!text || state.busy || !state.model) return;
  $("text").value = "";
  tell("");
  const images = state.images;
  state.images = [];
  changed("images");
  if (images.length) tell("The image is being read; the first one takes a while.");
  say(text, images).then(() => tell(""), (error) => {
    if (!state.messages.some((m) => m.content === text)) { // it was refused: nothing is lost
      $("text").value ||= text;
      state.images = images;
      changed("images");
    }
    failed(error);
  });
});
$("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); $("composer").requestSubmit(); }
});
$("stop").addEventListener("click", stop);
$("share").addEventListener("click", () => { history.replaceState(null, "", link()); navigator.clipboard?.writeText(location.href).then(() => tell("The link is copied; it holds everything that is needed."), () => tell("The link stands in the address bar.")); });
$("export").addEventListener("change", () => { save($("export").value).catch(failed); $("export").value = ""; });
$("retry").addEventListener("click", () => { tell(""); retry().catch(failed); });
$("more").addEventListener("click", () => { tell(""); goOn().catch(failed); });
$("model").addEventListener("change", () => use($("model").value).catch(failed));
$("system").addEventListener("change", () => { state.system = $("system").value.trim(); });
acceptImages($("talk"), $("attach"), $("file"), (message) => tell(message, true));
addEventListener("keydown", keys);
addEventListener("unhandledrejection", (event) => { event.preventDefault(); failed(event.reason); });
drawControls();
drawView();
drawStrips($("strips"), true);
fillLessons($("lesson"), $("guide"));
begin();
