// Elements from plain data. Text is always text: nothing here, or anywhere, parses markup.

/**
 * An element. Attributes that begin with "on" are listeners, "--x" sets a CSS variable.
 * @param {string} tag
 * @param {Record<string, any>} [attributes]
 * @param {...(Node | string | null | undefined | false)} children
 */
export function h(tag, attributes = {}, ...children) {
  const svg = ["svg", "path", "text", "title"].includes(tag);
  const element = svg
    ? document.createElementNS("http://www.w3.org/2000/svg", tag)
    : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name.startsWith("--")) element.style.setProperty(name, String(value));
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.filter((c) => c !== null && c !== undefined && c !== false));
  return element;
}

/** White space made visible. @param {string} text */
export function visible(text) {
  return text.replaceAll(" ", "·").replaceAll("\n", "↵").replaceAll("\t", "⇥");
}

/**
 * A token's text; bytes that are no character by themselves as Python writes them, \xe6.
 * @param {{text: string, bytes: string}} piece
 */
export function pieceText({ text, bytes }) {
  if (!text.includes("\ufffd") || !bytes) return text;
  let shown = "";
  const raw = Uint8Array.from(bytes.match(/../g) ?? [], (b) => parseInt(b, 16));
  for (let i = 0; i < raw.length;) {
    const first = raw[i], n = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : first >= 0xc0 ? 2 : 1;
    const character = new TextDecoder().decode(raw.slice(i, i + n));
    const whole = [...character].length === 1 && character !== "\ufffd";
    shown += whole ? character : `\\x${first.toString(16).padStart(2, "0")}`;
    i += whole ? n : 1;
  }
  return shown;
}

/** A probability, as short as it can be told. @param {number} p */
export function percent(p) {
  if (p === 0) return "0";
  if (p >= 0.0995) return `${(100 * p).toFixed(1)} %`;
  if (p >= 0.0005) return `${(100 * p).toFixed(2)} %`;
  return p >= 5e-6 ? `${(100 * p).toPrecision(1)} %` : "< 0.0005 %";
}

/** A table's head. @param {string[]} titles @param {string[]} [numbers] those that stand over numbers */
export const heading = (titles, numbers = []) => h("thead", {}, h("tr", {},
  ...titles.map((title) => h("th", { scope: "col", class: numbers.includes(title) && "number" }, title))));
