// Short lessons on the live page: each step says what to try, and puts the view there.

import { h } from "./dom.js";
import { changed, state } from "./store.js";
import { say } from "./talk.js";

const LESSONS = {
  tokens: ["Tokens", [
    ["A model reads no letters. Ask it something, and see what your text became.", "why", "What does 東京 mean? 🙂"],
    ["Look at 🙂 and 東: one character, several tokens; their bytes stand beside them. ← and → move along the strip.", "why"],
    ["The marks around your words are special tokens: nobody can type them. Which ones end a turn?", "why"]]],
  temperature: ["Temperature and its filters", [
    ["Ask for something with many good answers.", "why", "Name a colour."],
    ["Choose a coloured tile and drag the temperature from 0 to 2. Which bar shrinks first? Nothing is computed again: the logits are here.", "why"],
    ["Set top-k to 3, then top-p to 0.5. Who is cut, and by which of the two?", "why"]]],
  attention: ["Where it looks", [
    ["Ask for a fact.", "attention", "What is the capital of France?"],
    ["Choose the token after “of”, and go through layers. Many heads look at the first token: it is where a head looks that has nothing to say.", "attention"],
    ["Take parts out, one by one. Do the heads that look hardest matter most?", "attention"]]],
  cache: ["The cache", [
    ["Ask something, and see pages fill.", "cache", "Tell me about the sea."],
    ["Ask again: how many tokens were there already?", "cache", "And the moon?"]]],
  depths: ["A depth at a time", [
    ["Ask for a fact.", "depths", "What is the capital of Italy?"],
    ["At which depth does the answer come first? Does it stay there?", "depths"],
    ["Click a depth: one number of its residual stream, down to the weights.", "depths"]]],
  break: ["Break it", [
    ["Ask for a fact that the model knows.", "worlds", "What is the capital of France?"],
    ["Break a part and let it answer again. Nothing of the server changes: the mistake is an argument of these forwards alone. Which parts make nonsense, which are hardly seen?", "worlds"],
    ["“Look there” goes to the first token that differs. At which depth do the two part? Which mistake would you not find by reading the answer?", "worlds"]]],
};

export function fillLessons(menu, guide) {
  menu.append(...Object.entries(LESSONS).map(([id, [title]]) => h("option", { value: id }, title)));
  menu.addEventListener("change", () => open(menu.value, 0, guide));
  const asked = new URLSearchParams(location.search).get("lesson");
  if (asked && LESSONS[asked]) open(asked, 0, guide);
}

function open(id, at, guide) {
  guide.hidden = !LESSONS[id];
  if (!LESSONS[id]) return;
  const [title, steps] = LESSONS[id];
  const [text, view, message] = steps[at];
  state.view = view;
  changed("selection");
  guide.replaceChildren(
    h("b", {}, `${title} · ${at + 1} of ${steps.length}`), h("p", {}, text),
    h("div", { class: "row" },
      message && h("button", { type: "button", onclick: () => say(message) }, `Ask “${message}”`),
      at > 0 && h("button", { type: "button", onclick: () => open(id, at - 1, guide) }, "Back"),
      at + 1 < steps.length && h("button", { type: "button", onclick: () => open(id, at + 1, guide) }, "Next"),
      h("button", { type: "button", onclick: () => { guide.hidden = true; } }, "Close")));
}
