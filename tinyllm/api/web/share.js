// A state as a link: ids, parameters and selection in the fragment, which no server sees.

import * as api from "./api.js";
import { changed, newWorld, select, state, world } from "./store.js";

export function link() {
  const at = world();
  const told = { ids: at?.ids ?? [], n: at?.nPrompt ?? 0, p: state.params, s: state.selected, v: state.view };
  return `${location.origin}/#${btoa(JSON.stringify(told)).replaceAll("+", "-").replaceAll("/", "_")}`;
}

/** Open the state that the address holds, if it does. */
export async function openLink() {
  if (location.hash.length < 2) return;
  const told = JSON.parse(atob(location.hash.slice(1).replaceAll("-", "+").replaceAll("_", "/")));
  const { pieces } = await api.detokenize({ model: state.model, tokens: told.ids });
  for (const key of Object.keys(state.params)) if (Number.isFinite(told.p?.[key])) state.params[key] = told.p[key];
  state.worlds = [newWorld("from a link", told.ids, pieces, told.n)];
  state.current = 0;
  state.view = String(told.v);
  changed("worlds", "params");
  select(told.s);
}

export function save() {
  const at = world();
  if (!at) return;
  const trace = { model: state.model, sampling: at.params, prompt: at.ids.slice(0, at.nPrompt), tokens: at.ids, steps: [...at.steps.values()] };
  const file = URL.createObjectURL(new Blob([JSON.stringify(trace)], { type: "application/json" }));
  const anchor = document.createElement("a");
  anchor.href = file;
  anchor.download = "trace.json";
  anchor.click();
  URL.revokeObjectURL(file);
}
