// The cache: keys and values of every token, in pages; what was there already, what forks share.

import { h } from "../dom.js";
import { shared, state, world } from "../store.js";
import { lookAt } from "../looks.js";

export const name = "The cache";
const PAGE = 64; // tokens a page, as kernels/layout.py has it

export async function draw(place) {
  const at = world();
  const look = await lookAt({ cache: true });
  const each = look.cache.nbytes / look.cache.n_tokens;
  const others = state.worlds.filter((one) => one !== at);
  const fork = Math.max(0, ...others.map((one) => shared(one, at)));
  const pages = [];
  for (let start = 0; start < at.ids.length; start += PAGE) {
    pages.push(h("div", { class: "page-of-cache" }, ...Array.from({ length: PAGE }, (_, i) =>
      h("i", { class: start + i >= at.ids.length ? "" : start + i < Math.max(at.cached, fork) ? "reused" : "used" }))));
  }
  place.replaceChildren(
    h("p", {}, `${at.ids.length} tokens, ${each.toLocaleString("en")} bytes each in float32 (half of that in a quantised server's float16): ${((at.ids.length * each) / 1e6).toFixed(2)} MB.`),
    h("p", { class: "note" }, `${at.cached} tokens of the prompt were known from before and cost nothing${fork ? `; ${fork} are shared with another way on this page` : ""}. Blue: reused or shared.`),
    h("div", { class: "pages", role: "img", "aria-label": `${pages.length} pages of ${PAGE} tokens` }, ...pages));
}
