// Images for the next message: chosen, dropped or pasted, kept as data URLs.

import { h } from "./dom.js";
import { changed, state } from "./store.js";

const MOST = 8; // as api/prompt/images.py has it
const MOST_BYTES = 10 * 2 ** 20;

/** Take images by button, drag and paste. @param {(message: string) => void} refuse */
export function acceptImages(place, button, input, refuse) {
  const take = (files) => [...files].forEach((file) => add(file).catch((error) => refuse(error.message)));
  button.addEventListener("click", () => input.click());
  input.addEventListener("change", () => { take(input.files); input.value = ""; });
  place.addEventListener("dragover", (event) => { event.preventDefault(); place.classList.add("over"); });
  place.addEventListener("dragleave", () => place.classList.remove("over"));
  place.addEventListener("drop", (event) => { event.preventDefault(); place.classList.remove("over"); take(event.dataTransfer.files); });
  place.addEventListener("paste", (event) => take(event.clipboardData.files));
}

async function add(file) {
  if (!file.type.startsWith("image/")) throw new Error(`${file.name} is no image.`);
  if (file.size > MOST_BYTES) throw new Error(`${file.name} has more than 10 MB.`);
  if (state.images.length >= MOST) throw new Error(`A message takes ${MOST} images.`);
  const url = await new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(String(reader.result));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
  state.images.push(url);
  changed("images");
}

export function drawPictures(place) {
  place.replaceChildren(...state.images.map((url, i) => h("span", {}, h("img", { src: url, alt: `image ${i + 1}` }),
    h("button", { type: "button", onclick: () => { state.images.splice(i, 1); changed("images"); } }, "Remove"))));
}
