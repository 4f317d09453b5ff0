// A state as a link, and what was said as files: a trace, a page, the lines of a notebook.

import * as api from "./api.js";
import { h, percent, visible } from "./dom.js";
import { changed, newWorld, select, state, world } from "./store.js";
import { lookAt } from "./looks.js";
import { use } from "./talk.js";

/** Ids, parameters and selection in the fragment, which no server sees. */
export function link() {
  const at = world();
  const told = { m: at?.model ?? state.model, ids: at?.ids ?? [], n: at?.nPrompt ?? 0, p: at?.params ?? state.params, s: state.selected, v: state.view,
    b: at?.broken ?? "", l: at?.byLooks ?? false, i: at?.images ?? [] };
  return `${location.origin}/#${btoa(JSON.stringify(told)).replaceAll("+", "-").replaceAll("/", "_")}`;
}

/** Open the state that the address holds, if it does. */
export async function openLink() {
  if (location.hash.length < 2) return;
  const told = JSON.parse(atob(location.hash.slice(1).replaceAll("-", "+").replaceAll("_", "/")));
  if (told.m && told.m !== state.model) {
    if (!state.models.includes(told.m)) throw new Error(`it is of ${told.m}, which isn't served here.`);
    await use(told.m);
  }
  const { pieces } = await api.detokenize({ model: state.model, tokens: told.ids });
  for (const key of Object.keys(state.params)) if (Number.isFinite(told.p?.[key])) state.params[key] = told.p[key];
  const more = { broken: String(told.b ?? ""), byLooks: Boolean(told.l), images: told.i ?? [] };
  state.worlds = [newWorld("from a link", told.ids, pieces, told.n, more)];
  state.current = 0;
  state.view = String(told.v);
  changed("worlds", "params");
  select(told.s);
  const at = state.worlds[0];
  if (at.broken || at.byLooks || at.ids.length <= at.nPrompt) return; // the server finds others likely
  const asked = { model: at.model, prompt: at.ids };
  if (at.images.length) asked.images = at.images.map((one) => one.url);
  at.scores = await api.scores(asked).catch(() => []); // a tint alone: without it the state is as told
  changed("worlds");
}

/** The rows that stand for a world's images, as they went into its forwards, and what they look like. */
async function imagesOf(at) {
  const images = [], positions = [], values = [];
  let dim = 0;
  for (const [index, one] of at.images.entries()) {
    images.push({ start: one.start, stop: one.stop, png: await thumbnail(one.url) });
    for (let start = 0, n = 1; start < n; ) {
      const { image } = await lookAt({ image: { index, start, values: true } }, undefined, at, at.images.at(-1).stop);
      [n, dim] = [image.n_rows, image.values.shape[1]];
      positions.push(...image.rows.map((row) => row.position));
      values.push(atob(image.values.data));
      start += image.rows.length;
    }
  }
  return { images, image_rows: { positions, dim, data: btoa(values.join("")) } };
}

/** A small PNG of an image, in base64. */
async function thumbnail(url) {
  const image = new Image();
  image.src = url;
  await image.decode();
  const scale = Math.min(1, 96 / Math.max(image.naturalWidth, image.naturalHeight));
  const side = (pixels) => Math.max(1, Math.round(pixels * scale));
  const canvas = h("canvas", { width: side(image.naturalWidth), height: side(image.naturalHeight) });
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/png").split(",")[1];
}

/**
 * The trace as `tinyllm inspect` and a notebook read it: see inside/trace_file.py. What the server
 * drew last is its steps, and all before it the prompt, so that `tinyllm.reopen` goes on from any.
 */
export async function trace() {
  const at = world();
  const said = [];
  for (let i = at.began; at.steps.has(i); i++) said.push(at.steps.get(i));
  const start = said[0]?.start;
  if (start) {
    const seen = await Promise.all(at.images.map((one) => thumbnail(one.url)));
    const images = start.images.map((image, i) => ({ ...image, png: seen[i] ?? "" }));
    return { format: "tinyllm-trace", version: 1, ...start, images, steps: said,
      tokens: [...start.prompt, ...said.map((step) => step.token)], texts: [...start.texts, ...said.map((step) => step.text)],
      deltas: [...start.deltas, ...said.map((step) => step.text_delta)] };
  }
  const more = at.images.length ? await imagesOf(at) : {};
  const sampling = at.params; // of tokens that were drawn here, from looks
  const steps = [...at.steps].sort(([a], [b]) => a - b).filter(([, step]) => step.candidates.length).map(([, step]) => ({ ...step, sampling }));
  return { format: "tinyllm-trace", version: 1, model: at.model, fingerprint: state.fingerprint, dtype: state.inside.dtype,
    n_layers: state.inside.n_layers, n_heads: state.inside.n_heads, sampling, prompt: at.ids.slice(0, at.nPrompt),
    tokens: at.ids, texts: at.pieces.map((piece) => piece.text), steps, ...more };
}

/** The lines of Python that go to the selected step again. */
export function notebookLines() {
  const at = world();
  const { temperature, top_k, top_p, seed } = at.params;
  const first = Math.min(at.nPrompt, Math.max(1, state.selected));
  const broken = at.broken ? `, broken=${JSON.stringify(at.broken)}` : "";
  const images = at.images.filter((one) => one.stop <= first);
  return [
    "import tinyllm",
    ...(images.length ? ["from urllib.request import urlopen", "from tinyllm.vision.image import read_image"] : []),
    `lm = tinyllm.load(${JSON.stringify(at.model)})`,
    `ids = ${JSON.stringify(at.ids.slice(0, state.selected + 1))}`,
    ...(images.length ? [
      `images = ${JSON.stringify(images.map((one) => one.url))}`,
      `prompt = lm.vision.around(ids[:${first}], [read_image(urlopen(url).read()) for url in images])`] : [`prompt = ids[:${first}]`]),
    `session = lm.session(prompt, temperature=${temperature}, top_k=${top_k}, top_p=${top_p}, seed=${seed}${broken})`,
    "steps = [session.step(token, beyond_end=True) for token in ids[len(session.prompt):]]",
    "steps[-1]",
  ].join("\n");
}

/** A page that stands by itself: every token with what else could have stood there. */
export function page() {
  const at = world();
  const doc = document.implementation.createHTMLDocument(`tinyllm · ${at.name}`);
  const meta = doc.createElement("meta");
  meta.setAttribute("charset", "utf-8");
  doc.head.prepend(meta);
  const rows = at.ids.map((id, i) => {
    const step = at.steps.get(i);
    const others = (step?.candidates ?? []).map((c) => `${visible(c.text)} ${percent(c.p_raw)}`).join("   ");
    return h("tr", {}, h("td", {}, String(i)), h("td", {}, String(id)), h("td", {}, h("code", {}, visible(at.pieces[i].text))),
      h("td", {}, step ? percent(Math.exp(step.logprob)) : "prompt"), h("td", {}, others));
  });
  doc.body.append(h("h1", {}, `${at.model}: ${at.name}`), h("p", {}, JSON.stringify(at.params)),
    h("table", {}, h("tr", {}, ...["position", "id", "token", "p", "candidates"].map((t) => h("th", {}, t))), ...rows));
  return `<!doctype html>\n${new XMLSerializer().serializeToString(doc.documentElement)}`;
}

export async function save(kind) {
  if (!world()) return;
  if (kind === "trace") download("trace.json", "application/json", JSON.stringify(await trace()));
  if (kind === "page") download("tinyllm.html", "text/html", page());
  if (kind === "notebook") download("step.py", "text/x-python", `${notebookLines()}\n`);
}

function download(name, type, text) {
  const file = URL.createObjectURL(new Blob([text], { type }));
  h("a", { href: file, download: name }).click();
  URL.revokeObjectURL(file);
}
