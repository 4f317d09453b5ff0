// What the page asks the server: a few stateless calls, each a function of token ids.

const KEY = "tinyllm-key"; // kept for this tab alone

export const UNREACHABLE = "The server can't be reached.";

/** An answer other than 200. */
export class Refused extends Error {
  /** @param {number} status @param {string} message @param {any} body */
  constructor(status, message, body) {
    super(message);
    this.status = status;
    this.body = body;
  }
}

/** @param {string} key */
export function useKey(key) {
  sessionStorage.setItem(KEY, key);
}

/** @param {string} path @param {any} [body] @param {AbortSignal} [signal] */
async function ask(path, body, signal) {
  const headers = { "Content-Type": "application/json" };
  const key = sessionStorage.getItem(KEY);
  if (key) headers["Authorization"] = `Bearer ${key}`;
  const request = body ? { method: "POST", headers, body: JSON.stringify(body), signal } : { headers };
  const response = await fetch(path, request).catch((error) => {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, UNREACHABLE, null);
  });
  if (!response.ok) {
    const told = await response.json().catch(() => null);
    throw new Refused(response.status, told?.error?.message ?? response.statusText, told);
  }
  return response;
}

export const health = () => ask("/health").then((r) => r.json());
export const model = (id) => ask(`/v1/models/${encodeURIComponent(id)}`).then((r) => r.json());
export const tokenize = (body) => ask("/v1/tokenize", { ...body, pieces: true }).then((r) => r.json());
export const detokenize = (body) => ask("/v1/detokenize", { ...body, pieces: true }).then((r) => r.json());
export const look = (body, signal) => ask("/v1/look", body, signal).then((r) => r.json());

/** How likely each of these tokens is behind those before it: log-probabilities, and null for the first. */
export const scores = (body) => ask("/v1/completions", { ...body, max_tokens: 0, echo: true, logprobs: 0 })
  .then((r) => r.json()).then((told) => told.choices[0].logprobs.token_logprobs);

/** The chunks of an answer to ids. @param {any} body @param {AbortSignal} signal */
export async function* complete(body, signal) {
  const response = await ask("/v1/completions", { ...body, stream: true, stream_options: { include_usage: true } }, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read().catch((error) => {
      if (error.name === "AbortError") throw error;
      return { done: true, value: "" };
    });
    if (done) throw new Refused(0, "The stream broke off. What came stays; “Go on” asks for the rest.", null);
    const events = (rest + value).split("\n\n");
    rest = events.pop() ?? "";
    for (const event of events) {
      if (event === "data: [DONE]") return;
      if (!event.startsWith("data: ")) continue;
      const chunk = JSON.parse(event.slice(6));
      if (chunk.error) throw new Refused(500, chunk.error.message, chunk);
      yield chunk;
    }
  }
}

const VIEWS = { float16: Uint16Array, float32: Float32Array, int32: Int32Array, uint8: Uint8Array };

/** An array that the server has packed. @param {{shape: number[], dtype: string, data: string}} packed */
export function unpack(packed) {
  const bytes = Uint8Array.from(atob(packed.data), (c) => c.charCodeAt(0));
  const raw = new VIEWS[packed.dtype](bytes.buffer);
  const values = packed.dtype === "float16" ? Float32Array.from(raw, half) : raw;
  return { shape: packed.shape, values };
}

/** The number that 16 bits stand for. @param {number} bits */
export function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}
